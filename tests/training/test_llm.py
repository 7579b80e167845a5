"""The language model's stage at toy size: it learns, resumes exactly and writes what we load."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from seed_core import GenerationOptions, OptionError, load_llm
from seed_core.files.side_files import read_json
from seed_core.llm.prompt import LLAMA_2, VICUNA
from seed_core.models.names import bundled
from seed_core.training.data.examples import Example, collate
from seed_core.training.data.sources import SourceFiles
from seed_core.training.recipe import RECIPES, read_recipe
from seed_core.training.schedule import Schedule
from seed_core.training.stages import llm, tune
from seed_core.training.streams import Streams
from seed_core.training.world.conversations import ConversationSettings

ANSWERS = ("A red fox.", "A blue cat.", "A big owl.", "No.")
SIZES = llm.Sizes(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)


def new_network(vocab_size: int | None = None, **sizes: int) -> LlamaForCausalLM:
    config = replace(SIZES, **sizes).config(load_llm("seed-mini").vocab)
    config.vocab_size = vocab_size or config.vocab_size
    with torch.random.fork_rng():
        return LlamaForCausalLM(config)


def picture(number: int) -> list[int]:
    return random.Random(number).choices(range(512), k=32)


def conversations() -> list[dict]:
    """Four pictures that are described, and four that are drawn."""
    described = [[[picture(i), "What is it?"], [answer]] for i, answer in enumerate(ANSWERS)]
    drawn = [[[f"Draw {word}"], [picture(4 + i)]] for i, word in enumerate("abcd")]
    return [
        {
            "format": "conversation",
            "turns": [{"role": "user", "parts": asked}, {"role": "assistant", "parts": answered}],
        }
        for asked, answered in described + drawn
    ]


def write_files(folder: Path) -> tuple[SourceFiles, ...]:
    path = folder / "conversations.jsonl"
    path.write_text("\n".join(map(json.dumps, conversations())), "utf-8")
    return (SourceFiles(str(path)),)


def make_recipe(folder: Path, steps: int, **changes) -> llm.Recipe:
    schedule = Schedule(
        steps=steps, batch_size=8, learning_rate=1e-2, warm_up=5, log_every=1, save_every=1000
    )
    data = llm.Data(write_files(folder))
    return replace(llm.Recipe(data, schedule, sizes=SIZES, weights="fp32"), **changes)


def examples(recipe: llm.Recipe, count: int) -> list[Example]:
    samples = recipe.data.open(load_llm("seed-mini").vocab, 0)
    return [samples.sample(number, Streams(0)) for number in range(count)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[llm.Recipe, Path]:
    folder = tmp_path_factory.mktemp("llm")
    recipe = make_recipe(folder, 120)
    llm.run(recipe, folder)
    return recipe, folder


def test_learns_its_conversations(trained):
    recipe, folder = trained
    rows = json.loads((folder / "log.json").read_text("utf-8"))
    assert [row["step"] for row in rows] == list(range(1, 121))
    assert rows[0]["loss"] > 6.5  # that of 1538 equally likely tokens is 7.3
    assert rows[-1]["loss"] < 0.1
    model = LlamaForCausalLM.from_pretrained(folder / llm.FOLDER)
    batch = collate(examples(recipe, 8))
    with torch.no_grad():
        guesses = model(batch["input_ids"]).logits[:, :-1].argmax(-1)
    wanted = batch["labels"][:, 1:]
    assert (guesses == wanted)[wanted != -100].float().mean() > 0.97
    assert (folder / "curves.png").stat().st_size > 1000


def test_result_replies_the_same_here_and_in_transformers(trained):
    _, folder = trained
    ours = load_llm(folder / llm.FOLDER)
    theirs = LlamaForCausalLM.from_pretrained(folder / llm.FOLDER)
    vocab, greedy = ours.vocab, GenerationOptions(temperature=0, max_new_tokens=40)
    for i, answer in enumerate(ANSWERS):
        reply = ours.generate("What is it?", torch.tensor([picture(i)]), options=greedy)
        assert reply.text == answer
        asked = vocab.encode(["USER: ", tuple(picture(i)), "What is it?\nASSISTANT:"])
        made = theirs.generate(torch.tensor([asked]), do_sample=False, max_new_tokens=40)
        assert made[0, len(asked) :].tolist() == list(reply.token_ids)
    reply = ours.generate("Draw b", options=greedy)
    assert reply.codes.tolist() == [picture(5)]


def test_result_has_a_vocabulary_and_keeps_the_settings_of_generation(trained):
    folder = trained[1] / llm.FOLDER
    for name in ("tokenizer.model", "added_tokens.json", "generation_config.json"):
        assert (folder / name).read_bytes() == bundled(f"llm/{name}").read_bytes()
    assert read_json(folder / "config.json")["use_cache"] is True


@pytest.mark.parametrize("stage", ["llm", "tune"])
def test_batches_of_like_length_teach_the_same_with_less_padding(stage, tmp_path, monkeypatch):
    """The steps of a run whose batches are sorted are those of a run with one batch a step."""
    texts = [{"format": "text", "text": "a quick fox " * (1 + i)} for i in range(24)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, texts)), "utf-8")
    data = llm.Data((SourceFiles(str(tmp_path / "a.jsonl")),))
    module = {"llm": llm, "tune": tune}[stage]
    logs, sizes = [], []

    def counted(batch):
        found = collate(batch)
        sizes[-1] += found["labels"].numel()
        return found

    monkeypatch.setattr(module, "collate", counted)
    for accumulate in (1, 4):
        sizes.append(0)
        schedule = Schedule(
            steps=6, batch_size=16, learning_rate=1e-2, log_every=1, accumulate=accumulate
        )
        recipe = (
            llm.Recipe(data, schedule, sizes=SIZES)
            if stage == "llm"
            else tune.Recipe(data, schedule, "seed-mini", dropout=0.0)
        )
        folder = tmp_path / str(accumulate)
        module.run(recipe, folder)
        logs.append(json.loads((folder / "log.json").read_text("utf-8")))
    for row, other in zip(*logs, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
    assert sizes[1] < 0.75 * sizes[0]


def test_interrupted_run_ends_like_another(tmp_path, interrupt):
    recipe = make_recipe(tmp_path, 12)
    schedule = replace(recipe.schedule, save_every=4, log_every=2, accumulate=2)
    recipe = replace(recipe, data=replace(recipe.data, wrong_codes=0.35), schedule=schedule)
    llm.run(recipe, tmp_path / "whole")
    interrupt(lambda: llm.run(recipe, tmp_path / "halves"), step=5)
    assert not (tmp_path / "halves" / llm.FOLDER).exists()
    llm.run(recipe, tmp_path / "halves")
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    rows, others = (json.loads((run / "log.json").read_text("utf-8")) for run in (whole, halves))
    assert rows == others
    weights, others = (run / llm.FOLDER / "model.safetensors" for run in (whole, halves))
    assert weights.read_bytes() == others.read_bytes()


def test_workers_can_make_samples(tmp_path, artwork, assert_workers_can_make_samples):
    recipe = make_recipe(tmp_path, 1)
    world = ConversationSettings(artwork, variants=1)
    recipe = replace(recipe, data=replace(recipe.data, world=world))
    assert_workers_can_make_samples(lambda: llm.run(recipe, tmp_path))


def test_wrong_codes_change_what_is_read_and_not_what_is_learned(tmp_path):
    recipe = make_recipe(tmp_path, 1)
    wrong = replace(recipe, data=replace(recipe.data, wrong_codes=0.35))
    first = load_llm("seed-mini").vocab.first_code
    changed = drawn = 0
    for right, noisy in zip(examples(recipe, 200), examples(wrong, 200), strict=True):
        assert right.labels == noisy.labels
        for token, other, label in zip(right.token_ids, noisy.token_ids, right.labels, strict=True):
            drawn += first <= label < first + 512
            if token != other:
                changed += 1
                assert token == label
                assert first <= other < first + 512
    assert changed / drawn == pytest.approx(0.35 / 2, abs=0.04)


def test_start_of_several_is_their_average(tmp_path):
    vocab = load_llm("seed-mini").vocab
    models = [new_network() for _ in range(2)]
    for i, model in enumerate(models):
        llm.write(model, llm.model_folder("seed-mini"), tmp_path / str(i), torch.float32)
    starts = [llm.load_start(str(tmp_path / str(i)), torch.float32, vocab) for i in range(2)]
    averaged = llm.average(starts).state_dict()
    for name, tensor in averaged.items():
        expected = (models[0].state_dict()[name] + models[1].state_dict()[name]) / 2
        assert torch.equal(tensor, expected), name
    other = new_network(intermediate_size=64)
    with pytest.raises(OptionError, match="different sizes"):
        llm.average([models[0], other])


def test_goes_on_from_seed_mini_and_writes_16_bits(tmp_path):
    recipe = make_recipe(tmp_path, 1, start=("seed-mini",), weights="fp16")
    still = replace(recipe.schedule, learning_rate=1e-9, warm_up=0, batch_size=2)
    llm.run(replace(recipe, schedule=still), tmp_path)
    written = load_file(tmp_path / llm.FOLDER / "model.safetensors")
    shipped = load_file(bundled("llm/model.safetensors"))
    assert written.keys() == shipped.keys()
    for name, tensor in written.items():
        assert tensor.dtype == torch.float16
        assert torch.equal(tensor, shipped[name]), name


@pytest.mark.parametrize("part", [0.25, 1.0])
def test_a_part_of_the_start_is_kept(part, tmp_path):
    small = new_network(vocab_size=1024)  # its new rows are random; the start has those of training
    vocabulary = llm.model_folder("seed-mini")
    llm.write(small, vocabulary, tmp_path / "small", torch.float32)
    recipe = make_recipe(tmp_path, 2, start=(str(tmp_path / "small"),), vocabulary="seed-mini")
    still = replace(recipe.schedule, learning_rate=1e-12, warm_up=0)
    weights = {}
    for name, changes in (
        ("start", {"schedule": still}),
        ("trained", {}),
        ("kept", {"keep": part}),
    ):
        llm.run(replace(recipe, **changes), tmp_path / name)
        weights[name] = load_file(tmp_path / name / llm.FOLDER / "model.safetensors")
    for name, kept in weights["kept"].items():
        start, trained = weights["start"][name], weights["trained"][name]
        assert (trained - start).abs().max() > 1e-3
        torch.testing.assert_close(kept, part * start + (1 - part) * trained)


def test_what_is_kept_is_of_a_start(tmp_path):
    with pytest.raises(OptionError, match=r"keep 0\.5 is of the weights of start"):
        make_recipe(tmp_path, 1, keep=0.5)


def test_smaller_vocabulary_grows(tmp_path):
    vocab = load_llm("seed-mini").vocab
    small = new_network(vocab_size=1024)
    small.save_pretrained(tmp_path)
    with torch.random.fork_rng():
        grown = llm.load_start(str(tmp_path), torch.float32, vocab)
    for old, new in (
        (small.get_input_embeddings(), grown.get_input_embeddings()),
        (small.get_output_embeddings(), grown.get_output_embeddings()),
    ):
        assert new.weight.shape == (vocab.size, 32)
        assert torch.equal(new.weight[:1024], old.weight)
        assert new.weight[1024:].std().item() == pytest.approx(0.02, rel=0.1)


def test_sizes_of_a_new_network_are_those_of_seed_mini():
    shipped = read_json(bundled("llm/config.json"))
    new = llm.Sizes().config(load_llm("seed-mini").vocab).to_dict()
    new |= new["rope_parameters"]
    same = shipped.keys() - {"torch_dtype", "transformers_version", "rope_scaling", "architectures"}
    assert {name: new[name] for name in same} == {name: shipped[name] for name in same}


@pytest.mark.parametrize("wrong", [-0.1, 1.1])
def test_wrong_codes_are_a_part_of_all(wrong):
    with pytest.raises(OptionError, match="wrong_codes"):
        llm.Data(wrong_codes=wrong)


NAMES = (
    *("mini-llm", "mini-llm-more", "mini-llm-robust", "mini-llm-on"),
    *("smoke-llm", "teach-llm"),
)


@pytest.mark.parametrize("name", NAMES)
def test_bundled_recipes_can_be_read(name):
    recipe = read_recipe(llm.Recipe, RECIPES / f"{name}.yaml")
    wrong_codes = {"mini-llm-robust": 0.35, "mini-llm-on": 0.35, "teach-llm": 0.2}
    assert recipe.data.wrong_codes == wrong_codes.get(name, 0)
    if name.startswith("mini-llm"):
        assert recipe.sizes == llm.Sizes()
        assert recipe.data.pieces == "joined"


def test_learns_from_the_closed_world(artwork, tmp_path):
    """The smoke recipe, shortened."""
    changes = [f"data.world.artwork={artwork}", "schedule.steps=8", "schedule.log_every=2"]
    changes += [f"data.world.{name}" for name in ("bank=null", "tokenizer=null", "variants=1")]
    recipe = read_recipe(llm.Recipe, RECIPES / "smoke-llm.yaml", changes)
    llm.run(recipe, tmp_path / "run")
    rows = json.loads((tmp_path / "run" / "log.json").read_text("utf-8"))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert load_llm(tmp_path / "run" / llm.FOLDER).codebook_size == 512


def test_a_model_learns_in_the_template_it_is_used_with(tmp_path: Path, mini_llm) -> None:
    """SEED-LLaMA-14B, told by its depth, has another one, in which pieces are never separate."""
    config = json.loads((bundled("llm") / "config.json").read_text("utf-8"))
    for depth, template in ((4, VICUNA), (40, LLAMA_2)):
        folder = tmp_path / str(depth)
        folder.mkdir()
        (folder / "config.json").write_text(
            json.dumps(config | {"num_hidden_layers": depth}), "utf-8"
        )
        assert llm.read_template(str(folder)) is template
    (tmp_path / "texts.jsonl").write_text('{"format": "text", "text": "a fox"}\n', "utf-8")
    files = (SourceFiles(str(tmp_path / "texts.jsonl")),)
    with pytest.raises(OptionError, match="llama-2"):
        llm.Data(files).open(mini_llm.vocab, 0, LLAMA_2)
    assert (
        len(llm.Data(files, pieces="joined").open(mini_llm.vocab, 0, LLAMA_2).sample(0, Streams(0)))
        > 2
    )
