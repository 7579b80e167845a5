"""Adapters at toy size: what they change, that they learn, resume exactly and fit what loads them."""

import json
import random
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from seed_core import GenerationOptions, OptionError, load_llm, merge_lora, read_lora
from seed_core.bench.subject import Subject
from seed_core.files.side_files import read_json
from seed_core.llm.cache import KVCache
from seed_core.models.llm import read_vocabulary
from seed_core.models.names import bundled
from seed_core.training.data.sources import SourceFiles
from seed_core.training.recipe import RECIPES, read_recipe
from seed_core.training.schedule import Schedule
from seed_core.training.stages import llm, tune

QUESTIONS = ("What is a wug?", "What is a dax?", "What is a blick?", "What is a toma?")
ANSWERS = ("A red thing.", "A blue thing.", "A small one.", "A big one.")


def make_recipe(folder: Path, steps: int, **changes) -> tune.Recipe:
    turns = [
        [{"role": "user", "parts": question}, {"role": "assistant", "parts": answer}]
        for question, answer in zip(QUESTIONS, ANSWERS, strict=True)
    ]
    path = folder / "conversations.jsonl"
    lines = [json.dumps({"format": "conversation", "turns": each}) for each in turns]
    path.write_text("\n".join(lines), "utf-8")
    schedule = Schedule(
        steps=steps, batch_size=4, learning_rate=1e-2, warm_up=3, log_every=1, save_every=1000
    )
    data = llm.Data((SourceFiles(str(path)),))
    return replace(tune.Recipe(data, schedule, "seed-mini", rank=4, alpha=8), **changes)


def adapted(recipe: tune.Recipe) -> PeftModel:
    vocab = load_llm("seed-mini").vocab
    with torch.random.fork_rng():
        return tune.with_adapter(llm.load_start("seed-mini", torch.float32, vocab), recipe)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[tune.Recipe, Path]:
    folder = tmp_path_factory.mktemp("tune")
    recipe = make_recipe(folder, 40, trained_in_full=("embeddings", "norms"))
    tune.run(recipe, folder)
    return recipe, folder


def test_learns_new_words(trained):
    _, folder = trained
    rows = json.loads((folder / "log.json").read_text("utf-8"))
    assert rows[0]["loss"] > 2
    assert rows[-1]["loss"] < 0.1
    model, greedy = load_llm("seed-mini"), GenerationOptions(temperature=0, max_new_tokens=20)
    before = [model.generate(question, options=greedy).text for question in QUESTIONS]
    assert not set(before) & set(ANSWERS)
    merge_lora(model.module, read_lora(folder / tune.FOLDER, model.config))
    after = [model.generate(question, options=greedy).text for question in QUESTIONS]
    assert after == list(ANSWERS)


def test_computes_the_same_here_and_in_peft(trained):
    _, folder = trained
    ours = load_llm("seed-mini")
    merge_lora(ours.module, read_lora(folder / tune.FOLDER, ours.config))
    base = LlamaForCausalLM.from_pretrained(bundled("llm"), dtype=torch.float32)
    with torch.random.fork_rng():
        theirs = PeftModel.from_pretrained(base, folder / tune.FOLDER).merge_and_unload()
    token_ids = torch.tensor([random.Random(0).choices(range(1538), k=40)])
    cache = KVCache(ours.config, 1, 40, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        expected = theirs(token_ids).logits
        logits = ours.module.prefill(token_ids, cache, all_positions=True)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    plain = load_llm("seed-mini").module
    with torch.no_grad():
        unchanged = plain.prefill(token_ids, cache, all_positions=True)
    assert (unchanged - expected).abs().max() > 1


def test_adapter_is_what_peft_writes(trained):
    recipe, folder = trained
    config = read_json(folder / tune.FOLDER / "adapter_config.json")
    expected = {
        **{"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8},
        **{"lora_dropout": 0.05, "inference_mode": True, "target_modules": sorted(tune.MODULES)},
    }
    assert {name: config[name] for name in expected} == expected
    assert str(folder) not in json.dumps(config)
    written = load_file(folder / tune.FOLDER / tune.WEIGHTS_FILE)
    layers, matrices, norms = 4, len(tune.MODULES), 2 * 4 + 1
    assert len(written) == 2 * layers * matrices + 2 + norms
    assert {tensor.dtype for tensor in written.values()} == {torch.float32}


def test_nothing_but_the_adapter_is_trained(tmp_path):
    shipped = {
        f"base_model.model.{name}": tensor.float()
        for name, tensor in load_file(bundled("llm/model.safetensors")).items()
    }
    for kinds in ((), ("norms",), ("embeddings",)):
        recipe = make_recipe(tmp_path, 2, trained_in_full=kinds)
        output = tmp_path / "-".join(("run", *kinds))
        tune.run(recipe, output)
        written = load_file(output / tune.FOLDER / tune.WEIGHTS_FILE)
        in_full = {name for name in written if "lora_" not in name}
        is_wanted = {
            "norms": lambda name: "norm" in name,
            "embeddings": lambda name: "embed" in name or "head" in name,
        }
        wanted = [is_wanted[kind] for kind in kinds]
        assert in_full == {name for name in shipped if any(each(name) for each in wanted)}
        assert not any(torch.equal(written[name], shipped[name]) for name in in_full)
        model = adapted(recipe)
        trainable = [name for name, x in model.named_parameters() if x.requires_grad]
        assert all("lora_" in name or "modules_to_save" in name for name in trainable)


def test_frozen_weights_stay_what_they_are(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(tune, "write", lambda model, *_: seen.append(model))
    tune.run(make_recipe(tmp_path, 2, trained_in_full=("norms",)), tmp_path)
    shipped = load_file(bundled("llm/model.safetensors"))
    state = seen[0].base_model.model.state_dict()
    names = {name.replace(".base_layer", ""): name for name in state}
    frozen = [name for name in shipped if "norm" not in name]
    assert len(frozen) == 4 * 7 + 2
    for name in frozen:
        assert torch.equal(state[names[name]], shipped[name].float()), name


def test_workers_can_make_samples(tmp_path, assert_workers_can_make_samples):
    assert_workers_can_make_samples(lambda: tune.run(make_recipe(tmp_path, 2), tmp_path / "run"))


def test_interrupted_run_ends_like_another(tmp_path, interrupt):
    recipe = make_recipe(tmp_path, 5, dropout=0.3, trained_in_full=("embeddings", "norms"))
    recipe = replace(recipe, schedule=replace(recipe.schedule, save_every=2, log_every=1))
    tune.run(recipe, tmp_path / "whole")
    interrupt(lambda: tune.run(recipe, tmp_path / "halves"), step=3)
    assert not (tmp_path / "halves" / tune.FOLDER).exists()
    tune.run(recipe, tmp_path / "halves")
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    rows, others = (json.loads((run / "log.json").read_text("utf-8")) for run in (whole, halves))
    assert rows == others
    weights, others = (run / tune.FOLDER / tune.WEIGHTS_FILE for run in (whole, halves))
    assert weights.read_bytes() == others.read_bytes()


def test_a_merged_model_replies_as_its_adapter_does_and_can_be_tuned(
    tmp_path, isolated_random_state
):
    recipe = make_recipe(tmp_path, 3, merge=True, trained_in_full=("embeddings", "norms"))
    tune.run(recipe, tmp_path / "first")
    folder = tmp_path / "first" / llm.FOLDER
    base = llm.load_start(
        "seed-mini", torch.float32, read_vocabulary(llm.model_folder("seed-mini"))
    )
    adapter = PeftModel.from_pretrained(base, tmp_path / "first" / tune.FOLDER)
    merged = LlamaForCausalLM.from_pretrained(folder)
    token_ids = torch.tensor([[1, 400, 1200, 7]])
    with torch.no_grad():
        ours, theirs = (model(token_ids).logits for model in (merged, adapter))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert load_llm(folder).vocab.size == 1538

    tune.run(replace(recipe, start=str(folder), merge=False), tmp_path / "second")
    assert not (tmp_path / "second" / llm.FOLDER).exists()
    rows = json.loads((tmp_path / "second" / "log.json").read_text("utf-8"))
    first = json.loads((tmp_path / "first" / "log.json").read_text("utf-8"))
    assert rows[0]["loss"] < first[-1]["loss"]


def test_frozen_weights_may_have_16_bits(tmp_path):
    recipe = make_recipe(tmp_path, 10)
    schedule = replace(recipe.schedule, precision="bf16", checkpoint_activations=True)
    changes = {"base_precision": "bf16", "trained_in_full": ("embeddings", "norms")}
    recipe = replace(recipe, schedule=schedule, weights="fp16", **changes)
    model = adapted(recipe)
    assert {x.dtype for x in model.parameters() if x.requires_grad} == {torch.float32}
    tune.run(recipe, tmp_path / "run")
    rows = json.loads((tmp_path / "run" / "log.json").read_text("utf-8"))
    assert rows[-1]["loss"] < rows[0]["loss"] * 0.7
    written = load_file(tmp_path / "run" / tune.FOLDER / tune.WEIGHTS_FILE)
    assert {tensor.dtype for tensor in written.values()} == {torch.float16}
    with pytest.raises(OptionError, match="base_precision"):
        make_recipe(tmp_path, 1, base_precision="bf16")


def test_unknown_modules_are_refused(tmp_path):
    with pytest.raises(OptionError, match="qkv_proj"):
        adapted(make_recipe(tmp_path, 1, modules=("q_proj", "qkv_proj")))


@pytest.mark.parametrize("name", ["smoke-tune", "pretrain-lora", "sft-lora", "llama-8b-lora"])
def test_bundled_recipes_can_be_read(name):
    recipe = read_recipe(tune.Recipe, RECIPES / f"{name}.yaml")
    if name == "smoke-tune":
        return
    assert (recipe.rank, recipe.alpha, recipe.dropout) == (16, 32, 0.05)
    assert recipe.modules == tune.MODULES
    assert recipe.trained_in_full == ("embeddings", "norms")
    warm_up = {"pretrain-lora": 0.03, "sft-lora": 0.07, "llama-8b-lora": 0.07}[name]
    assert recipe.schedule.warm_up == round(warm_up * recipe.schedule.steps)


def test_8b_has_the_weights_that_its_recipe_reckons_with():
    recipe = read_recipe(tune.Recipe, RECIPES / "llama-8b-lora.yaml")
    sizes = Subject("8b", torch.device("cpu"), torch.bfloat16).config
    with torch.device("meta"), torch.random.fork_rng():
        base = LlamaForCausalLM(LlamaConfig(**asdict(sizes))).to(torch.bfloat16)
        count = sum(x.numel() for x in base.parameters())
        model = tune.with_adapter(base, recipe)
    trained = {name: x for name, x in model.named_parameters() if x.requires_grad}
    products = sum(x.numel() for name, x in trained.items() if "lora_" in name)
    in_full = sum(x.numel() for name, x in trained.items() if "lora_" not in name)
    assert round(count / 1e9, 2) == 6.81
    assert round(products / 1e6, 1) == 40.0
    assert round(in_full / 1e6, 1) == 329.5
    gib = [round(size / 2**30, 2) for size in (2 * count, 16 * products, 16 * in_full)]
    assert gib == [12.68, 0.6, 4.91]


def test_new_tokens_without_their_embeddings_are_refused(tmp_path: Path) -> None:
    """Their rows are random in every training, so an adapter learned beside them fits no model."""
    smaller = tmp_path / "smaller"
    shutil.copytree(bundled("llm"), smaller)
    config = read_json(smaller / "config.json")
    (smaller / "config.json").write_text(json.dumps(config | {"vocab_size": 1024}), "utf-8")
    changes = {"start": str(smaller), "vocabulary": "seed-mini", "trained_in_full": ("norms",)}
    with pytest.raises(OptionError, match="514 tokens that .* lacks"):
        tune.run(make_recipe(tmp_path, 2, **changes), tmp_path / "run")
