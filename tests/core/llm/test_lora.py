"""LoRA adapters on tiny random weights: what they become, and what is refused."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from seed_core import CheckpointError, load_llm, merge_lora, read_lora
from seed_core.__main__ import main
from seed_core.compute.fp8 import FP8
from seed_core.models.convert import convert_model, plan_conversion
from seed_core.models.names import bundled

Q_PROJ = "base_model.model.model.layers.1.self_attn.q_proj"
EXACT = {"rtol": 1e-6, "atol": 1e-6}  # one sum in another order


@pytest.fixture
def whole(llm, peft_adapter, make_generator):
    """As SEED-LLaMA was trained: embeddings, head and norms in full besides."""
    return peft_adapter.random_tensors(llm.config, make_generator(9), in_full=True)


def state_after(llm_folder, *adapters, **options):
    """The network's tensors with adapters merged, each a path and a strength."""
    llm = load_llm(llm_folder, **options)
    for path, strength in adapters:
        merge_lora(llm.module, read_lora(path, llm.config), strength)
    return llm.module.state_dict()


def merged_by_hand(llm_folder, folder, change):
    """The network's tensors when those of the file are changed first, by Hugging Face's names."""
    shutil.copytree(llm_folder, folder)
    weights = load_file(llm_folder / "model.safetensors")
    save_file(
        {key: change(key, weight).contiguous() for key, weight in weights.items()},
        folder / "model.safetensors",
    )
    return load_llm(folder).module.state_dict()


def plus(tensors, scale):
    """W + scale * B @ A on every projection, and a mean with what was trained in full."""

    def change(key, weight):
        module = f"base_model.model.{key.removesuffix('.weight')}"
        if f"{module}.lora_A.weight" in tensors:
            product = tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"]
            return weight + scale * product
        return tensors.get(f"{module}.weight", weight)

    return change


def assert_same(state, expected, **tolerance):
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, expected[name], msg=name, **(tolerance or EXACT))


# --- what an adapter does ---


@pytest.mark.parametrize("strength", [1.0, 0.3, -2.0])
def test_every_projection_is_what_it_was_and_the_scaled_product(
    llm_folder, tensors, save_adapter, tmp_path, strength
):
    """Keys and values have fewer rows than queries here, so that none can take another's place."""
    state = state_after(llm_folder, (save_adapter(tensors, lora_alpha=6), strength))
    change = plus(tensors, strength * 6 / 4)
    assert_same(state, merged_by_hand(llm_folder, tmp_path / "by_hand", change))


def test_what_was_trained_in_full_takes_the_models_place(llm_folder, whole, save_adapter, tmp_path):
    state = state_after(llm_folder, (save_adapter(whole), 1.0))
    assert_same(state, merged_by_hand(llm_folder, tmp_path / "by_hand", plus(whole, 2.0)))
    assert torch.equal(state["lm_head.weight"], whole["base_model.model.lm_head.weight"])


@pytest.mark.parametrize("strength", [0.25, 1.5, -1.0])
def test_at_other_strengths_it_lies_on_the_line_between_the_two(
    llm, llm_folder, whole, save_adapter, strength
):
    before = llm.module.state_dict()
    state = state_after(llm_folder, (save_adapter(whole), strength))
    for name in ("model.embed_tokens.weight", "model.layers.1.input_layernorm.weight"):
        old, new = before[name], whole[f"base_model.model.{name}"]
        torch.testing.assert_close(state[name], old + strength * (new - old), **EXACT)


def test_strength_0_changes_nothing(llm, llm_folder, whole, save_adapter):
    state = state_after(llm_folder, (save_adapter(whole), 0.0))
    assert all(torch.equal(state[name], x) for name, x in llm.module.state_dict().items())


def test_two_adapters_add_up_in_either_order(
    llm, llm_folder, tensors, save_adapter, peft_adapter, make_generator
):
    other = peft_adapter.random_tensors(llm.config, make_generator(10), rank=2)
    first, second = (
        (save_adapter(tensors), 0.7),
        (save_adapter(other, "other", r=2, lora_alpha=2), -1.2),
    )
    state = state_after(llm_folder, first, second)
    assert_same(state_after(llm_folder, second, first), state)
    before, alone = llm.module.state_dict(), [state_after(llm_folder, x) for x in (first, second)]
    assert_same(state, {name: sum(s[name] for s in alone) - x for name, x in before.items()})


def test_16_bit_weights_are_rounded_once(llm_folder, whole, save_adapter):
    """Query, key and value are one weight here; rounded after each they would drift."""
    path = save_adapter(whole)
    llm = load_llm(llm_folder, dtype=torch.bfloat16).module.float()
    merge_lora(llm, read_lora(path, llm.config))
    state = state_after(llm_folder, (path, 1.0), dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    assert all(torch.equal(state[name], x.bfloat16()) for name, x in llm.state_dict().items())


def test_weights_in_fp8_get_the_scale_of_their_sum(llm_folder, tensors, save_adapter, tmp_path):
    """Half of the largest step between two float8 values is 1 part in 28 of the largest weight."""
    fp8_file = tmp_path / "fp8.safetensors"
    convert_model(plan_conversion(llm_folder, FP8), fp8_file)
    path = save_adapter(tensors)
    llm = load_llm(fp8_file, dtype=FP8)
    adapter = read_lora(path, llm.config)
    merge_lora(llm.module, adapter)
    exact = state_after(fp8_file, (path, 1.0))
    for name in adapter.by_weight():
        layer = llm.module.get_submodule(name.removesuffix(".weight"))
        assert layer.weight.dtype == FP8
        assert layer.weight.float().abs().max() == 448
        largest = float(exact[name].abs().max())
        merged = layer.weight.float() * layer.weight_scale
        torch.testing.assert_close(merged, exact[name], rtol=0, atol=largest / 28)


def test_the_file_of_the_model_is_not_written_to(llm_folder, whole, save_adapter):
    before = (llm_folder / "model.safetensors").read_bytes()
    state_after(llm_folder, (save_adapter(whole), 1.0))
    assert (llm_folder / "model.safetensors").read_bytes() == before


# --- scales ---


@pytest.mark.parametrize(
    ("fields", "scale"),
    [
        ({"lora_alpha": 8}, 2.0),
        ({"lora_alpha": 8, "use_rslora": True}, 8 / math.sqrt(4)),
        ({"lora_alpha": 8, "alpha_pattern": {"q_proj": 2}}, 0.5),
        ({"lora_alpha": 8, "alpha_pattern": {"k_proj": 2, r"layers\.1\..*proj": 6}}, 1.5),
        ({"lora_alpha": 8, "alpha_pattern": {"proj": 2, "layers.0.self_attn.q_proj": 2}}, 2.0),
        ({"lora_alpha": 8, "r": 16, "rank_pattern": {".*": 4}}, 2.0),
        ({"lora_alpha": 8, "r": None}, 2.0),
    ],
)
def test_the_scale_is_what_the_config_says_of_a_module(llm, tensors, save_adapter, fields, scale):
    adapter = read_lora(save_adapter(tensors, **fields), llm.config)
    (query,) = [p for p in adapter.products if p.part.rows == (0, 32) and "1.self" in p.part.weight]
    assert query.scale == scale


def test_files_that_hold_alpha_themselves_need_no_config(llm, tensors, save_adapter):
    alphas = {
        key.replace("lora_A.weight", "alpha"): torch.tensor(6.0)
        for key in tensors
        if "lora_A" in key
    }
    folder = save_adapter(tensors | alphas)
    (folder / "adapter_config.json").unlink()
    adapter = read_lora(folder / "adapter_model.safetensors", llm.config)
    assert {product.scale for product in adapter.products} == {1.5}


# --- files and names ---


def renamed(tensors, *changes):
    for old, new in changes:
        tensors = {key.replace(old, new): tensor for key, tensor in tensors.items()}
    return tensors


FORMS = {
    "with the adapter's name": (
        ("lora_A.", "lora_A.default."),
        ("lora_B.", "lora_B.default."),
        ("norm.weight", "norm.modules_to_save.default.weight"),
    ),
    "without peft's prefix": (
        (".model.norm.weight", ".model.norm.modules_to_save.default.weight"),
        ("layernorm.weight", "layernorm.modules_to_save.default.weight"),
        ("tokens.weight", "tokens.modules_to_save.default.weight"),
        ("head.weight", "head.modules_to_save.default.weight"),
        ("base_model.model.", ""),
    ),
    "of resized embeddings": (("tokens.weight", "tokens.base_layer.weight"),),
}


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_of_names_are_the_same_adapter(llm_folder, whole, save_adapter, form):
    expected = state_after(llm_folder, (save_adapter(whole), 1.0))
    other = renamed(whole, *FORMS[form])
    assert other.keys() != whole.keys()
    state = state_after(llm_folder, (save_adapter(other, "renamed"), 1.0))
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_the_models_own_copy_beside_a_module_trained_in_full_is_left_out(llm, whole, save_adapter):
    key = "base_model.model.lm_head.original_module.weight"
    adapter = read_lora(save_adapter(whole | {key: torch.zeros(1538, 32)}), llm.config)
    (head,) = [r.tensor for r in adapter.replacements if r.part.weight == "lm_head.weight"]
    assert torch.equal(head, whole["base_model.model.lm_head.weight"])


def test_a_file_or_a_pickle_is_read_like_the_folder(llm_folder, tensors, save_adapter):
    folder = save_adapter(tensors)
    expected = state_after(llm_folder, (folder, 1.0))
    file = folder / "adapter_model.safetensors"
    assert_same(state_after(llm_folder, (file, 1.0)), expected)
    file.unlink()
    torch.save(tensors, folder / "adapter_model.bin")
    assert_same(state_after(llm_folder, (folder, 1.0)), expected)


def test_lora_of_the_table_of_embeddings_is_added_turned(
    llm, llm_folder, save_adapter, make_generator
):
    random = make_generator(3)
    down, up = (torch.randn(shape, generator=random) for shape in ((4, 1538), (32, 4)))
    name = "base_model.model.model.embed_tokens"
    folder = save_adapter({f"{name}.lora_embedding_A": down, f"{name}.lora_embedding_B": up})
    name = "model.embed_tokens.weight"
    expected = llm.module.state_dict()[name] + 2 * (up @ down).T
    torch.testing.assert_close(state_after(llm_folder, (folder, 1.0))[name], expected, **EXACT)


# --- what is refused ---


def test_an_adapter_of_another_model_is_refused_with_both_shapes(
    llm, save_adapter, peft_adapter, make_generator
):
    wider = replace(llm.config, hidden_size=40)
    folder = save_adapter(peft_adapter.random_tensors(wider, make_generator()))
    with pytest.raises(CheckpointError, match=r"another language model.*\[40, 48\].*\[32, 48\]"):
        read_lora(folder, llm.config)


def test_a_vocabulary_of_another_size_is_refused_with_both_sizes(llm, whole, save_adapter):
    key = "base_model.model.lm_head.weight"
    with pytest.raises(CheckpointError, match=r"lm_head.*\[1000, 32\].*\[1538, 32\]"):
        read_lora(save_adapter(whole | {key: whole[key][:1000]}), llm.config)


def test_a_layer_that_the_model_does_not_have_is_named(llm, tensors, save_adapter):
    folder = save_adapter(renamed(tensors, ("layers.1.", "layers.31.")))
    with pytest.raises(CheckpointError, match=r"layers\.31\.\S+ .*does not have"):
        read_lora(folder, llm.config)


def test_a_module_that_a_llama_does_not_have_is_named(llm, tensors, save_adapter):
    with pytest.raises(CheckpointError, match=r"query_key_value .*does not have"):
        read_lora(save_adapter(renamed(tensors, ("q_proj", "query_key_value"))), llm.config)


@pytest.mark.parametrize(
    "key",
    [
        "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight",
        "transformer.single_blocks.0.linear1.lora.down.weight",
        "model.layers.0.self_attn.q_proj.weight",
    ],
    ids=["of Stable Diffusion", "of Flux", "a whole language model"],
)
def test_what_is_no_adapter_of_a_language_model_is_refused_with_its_names(llm, save_adapter, key):
    with pytest.raises(CheckpointError, match="no LoRA adapter of a language model") as caught:
        read_lora(save_adapter({key: torch.zeros(4, 4)}), llm.config)
    assert key in str(caught.value)


@pytest.mark.parametrize("fields", [{"use_dora": True}, {}], ids=["by its config", "by its names"])
def test_dora_is_refused_by_name(llm, tensors, save_adapter, fields):
    extra = {} if fields else {f"{Q_PROJ}.lora_magnitude_vector": torch.ones(32)}
    with pytest.raises(CheckpointError, match="DoRA"):
        read_lora(save_adapter(tensors | extra, **fields), llm.config)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"peft_type": "ADALORA"}, "ADALORA"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4.*plain LoRA"),
        ({"r": 16}, "rank 4 for .* says 16"),
        ({"rank_pattern": {"layers.1.mlp.up_proj": 2}}, r"rank 4 for \S*up_proj .* says 2"),
        ({"lora_alpha": None}, 'nothing says how strong.*"lora_alpha": 32'),
        ({"lora_alpha": "much"}, "nothing says how strong"),
    ],
)
def test_a_config_that_is_not_followed_is_refused(llm, tensors, save_adapter, fields, named):
    with pytest.raises(CheckpointError, match=named):
        read_lora(save_adapter(tensors, **fields), llm.config)


def test_a_lone_file_without_alpha_says_what_is_missing(llm, tensors, save_adapter, tmp_path):
    file = shutil.copy(
        save_adapter(tensors) / "adapter_model.safetensors", tmp_path / "lone.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"how strong \S+lone\.safetensors .*adapter_config"):
        read_lora(file, llm.config)


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_numbers_that_are_none_are_told_of_the_adapter(llm, tensors, save_adapter, number):
    key = next(iter(tensors))
    broken = tensors | {key: torch.full_like(tensors[key], number)}
    with pytest.raises(
        CheckpointError, match="holds NaN or infinity in float32. The file is damaged"
    ):
        read_lora(save_adapter(broken), llm.config)


@pytest.mark.parametrize("alpha", ["nan", "inf", 10**400, None, [1]])
def test_a_strength_that_is_no_number_is_refused(llm, tensors, save_adapter, alpha):
    with pytest.raises(CheckpointError, match="how strong"):
        read_lora(save_adapter(tensors, lora_alpha=alpha), llm.config)


@pytest.mark.parametrize(
    "patterns", [["q_proj"], {"(": 1}, {"(([a-z_.0-9])+)+X": 1}, {"(a*)*": 1}, {"(q|k){9}": 1}]
)
def test_patterns_that_may_run_without_end_are_refused(llm, tensors, save_adapter, patterns):
    with pytest.raises(CheckpointError, match="rank_pattern that cannot be read"):
        read_lora(save_adapter(tensors, rank_pattern=patterns), llm.config)


def test_an_adapter_in_shards_is_read_whole(llm, tensors, save_adapter, tmp_path):
    whole = read_lora(save_adapter(tensors), llm.config)
    folder = shutil.copytree(tmp_path / "adapter", tmp_path / "shards")
    (folder / "adapter_model.safetensors").unlink()
    index = {}
    for number, keys in enumerate((list(tensors)[::2], list(tensors)[1::2])):
        name = f"adapter_model-{number}.safetensors"
        save_file({key: tensors[key].contiguous() for key in keys}, folder / name)
        index |= dict.fromkeys(keys, name)
    text = json.dumps({"weight_map": index})
    (folder / "adapter_model.safetensors.index.json").write_text(text, encoding="utf-8")
    assert len(read_lora(folder, llm.config).products) == len(whole.products) > 0


def test_half_a_pair_is_refused(llm, tensors, save_adapter):
    del tensors[f"{Q_PROJ}.lora_B.weight"]
    with pytest.raises(CheckpointError, match=r"half of what changes \S+layers\.1\S+q_proj"):
        read_lora(save_adapter(tensors), llm.config)


@pytest.mark.parametrize("shape", [(0,), (0, 32), (5, 32)])
def test_matrices_that_do_not_fit_each_other_are_refused(llm, tensors, save_adapter, shape):
    """Training over several cards leaves empty ones behind where it is saved carelessly."""
    tensors[f"{Q_PROJ}.lora_A.weight"] = torch.zeros(shape)
    with pytest.raises(CheckpointError, match="do not fit each other"):
        read_lora(save_adapter(tensors), llm.config)


def test_two_adapters_in_one_file_are_refused(llm, tensors, save_adapter):
    both = renamed(tensors, (".weight", ".one.weight")) | renamed(
        tensors, (".weight", ".two.weight")
    )
    with pytest.raises(CheckpointError, match="several adapters"):
        read_lora(save_adapter(both), llm.config)


def test_tensors_that_nothing_is_known_of_are_refused(llm, tensors, save_adapter):
    extra = {f"{Q_PROJ}.lora_B.bias": torch.zeros(32)}
    with pytest.raises(CheckpointError, match=r"1 tensors .*q_proj\.lora_B\.bias"):
        read_lora(save_adapter(tensors | extra), llm.config)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_damaged_file_is_named(llm, tensors, save_adapter, name):
    folder = save_adapter(tensors)
    (folder / name).write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=name):
        read_lora(folder, llm.config)


def test_a_folder_without_weights_says_what_was_looked_for(llm, save_adapter, tensors):
    folder = save_adapter(tensors)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors"):
        read_lora(folder, llm.config)


# --- the command line ---


@pytest.fixture
def strong(mini_llm, peft_adapter, make_generator, tmp_path):
    """An adapter that changes what seed-mini says."""
    random = make_generator(4)
    tensors = peft_adapter.random_tensors(mini_llm.config, random, size=0.5)
    return str(peft_adapter.save(tmp_path / "strong", tensors))


@pytest.fixture
def chat(capsys):
    def chat(*options):
        capsys.readouterr()  # what came before
        asked = ["chat", "Draw a fox.", "--reply", "text", "--temperature", "0"]
        assert main([*asked, "--max-new-tokens", "12", *options]) == 0
        return capsys.readouterr().out

    return chat


def test_chat_takes_adapters_with_their_strengths(chat, strong):
    plain = chat()
    assert chat("--lora", strong) != plain
    assert chat("--lora", f"{strong}:0") == plain
    assert chat("--lora", f"{strong}:0.5", "--lora", f"{strong}:-0.5") == plain


def test_the_bundled_adapter_goes_by_its_name(tmp_path):
    def drawn(*options):
        output = tmp_path / "reply.json"
        assert main(["chat", "Draw a big hedgehog", "-o", str(output), *options]) == 0
        return output.read_text(encoding="utf-8")

    plain = drawn()
    assert drawn("--lora", "seed-mini night") != plain
    assert drawn("--lora", "seed-mini night:0") == plain


def test_convert_writes_a_model_with_adapters_in_it(chat, strong, tmp_path):
    output, mini = str(tmp_path / "merged.safetensors"), str(bundled("llm"))
    lora = ["--lora", f"{strong}:0.8"]
    assert main(["convert", mini, "-o", output, "--precision", "fp32", *lora]) == 0
    assert chat("--model", output) == chat(*lora)


def test_an_adapter_that_is_not_there_is_one_sentence(tmp_path, capsys):
    """Also where a colon in its path has no strength behind it."""
    assert main(["chat", "hi", "--lora", str(tmp_path / "C:gone")]) == 1
    assert "C:gone" in capsys.readouterr().err
