"""Conversion of a language model's folder: what is written, what is kept, what is refused."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import seed_core
from seed_core import GenerationOptions, convert, fp8
from seed_core.convert import convert_llm
from seed_core.errors import CheckpointError, OptionError
from seed_core.llama import KVCache

GREEDY = GenerationOptions(temperature=0, max_new_tokens=40)
GROUPS = [
    [f"model.layers.{i}.{part}.weight" for part in parts]
    for i in range(2)
    for parts in (
        [f"self_attn.{part}_proj" for part in "qkv"],
        ["self_attn.o_proj"],
        ["mlp.gate_proj", "mlp.up_proj"],
        ["mlp.down_proj"],
    )
]
QUANTISED = {key for group in GROUPS for key in group}


@pytest.fixture
def converted(llm_folder, tmp_path):
    convert_llm(llm_folder, tmp_path / "fp8", fp8.FP8)
    return tmp_path / "fp8"


def tensors_of(folder):
    return {
        key: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for key, tensor in load_file(file).items()
    }


def change(folder, **tensors):
    """Replace tensors of a folder with one file; dots are written as two underscores."""
    file = folder / "model.safetensors"
    new = {key.replace("__", "."): tensor for key, tensor in tensors.items()}
    save_file({**load_file(file), **new}, file)


def logits(llm):
    token_ids = torch.arange(3, 23)[None]
    cache = KVCache(llm.config, 1, 20, llm.device, llm.dtype)
    with torch.inference_mode():
        return llm.module.prefill(token_ids, cache, all_positions=True)


# --- fp8 ---


def test_the_products_of_the_layers_are_quantised_and_nothing_else(llm_folder, converted):
    before, after = tensors_of(llm_folder), tensors_of(converted)
    assert after.keys() == before.keys() | {f"{key}_scale" for key in QUANTISED}
    for key, tensor in before.items():
        if key not in QUANTISED:
            assert torch.equal(after[key], tensor.bfloat16())
            continue
        scale = after[f"{key}_scale"]
        assert after[key].dtype == torch.float8_e4m3fn
        assert (scale.dtype, scale.shape) == (torch.float32, ())
        assert (after[key].float() * scale - tensor).abs().max() <= 16 * scale  # of 448, 3 bits


def test_what_the_network_joins_has_one_scale_by_its_largest_number(llm_folder, converted):
    before, after = tensors_of(llm_folder), tensors_of(converted)
    for group in GROUPS:
        largest = max(float(before[key].abs().max()) for key in group)
        for key in group:
            assert float(after[f"{key}_scale"]) == pytest.approx(largest / 448)


def test_the_header_is_comfyuis(converted):
    with safe_open(converted / "model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    layers = {key.removesuffix(".weight"): {"format": "float8_e4m3fn"} for key in QUANTISED}
    assert json.loads(metadata["_quantization_metadata"]) == {
        "format_version": "1.0",
        "layers": layers,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_loaded_in_another_precision_a_weight_is_its_values_times_its_scale(converted, dtype):
    state = seed_core.load_llm(converted, dtype=dtype).module.state_dict()
    assert {tensor.dtype for tensor in state.values()} == {dtype}
    stored = tensors_of(converted)
    joined = torch.cat([stored[key].float() * stored[f"{key}_scale"] for key in GROUPS[0]])
    assert torch.equal(state["model.layers.0.self_attn.qkv_proj.weight"], joined.to(dtype))
    alone = GROUPS[1][0]
    assert torch.equal(state[alone], (stored[alone].float() * stored[f"{alone}_scale"]).to(dtype))


def test_loaded_in_fp8_weights_stay_so_and_the_rest_is_bf16(converted):
    llm = seed_core.load_llm(converted, dtype=fp8.FP8)
    assert llm.dtype == torch.bfloat16
    kinds = {}
    for name, tensor in llm.module.state_dict().items():
        kinds.setdefault(tensor.dtype, set()).add(name.split(".")[-2] + "." + name.split(".")[-1])
    products = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
    assert kinds[torch.float8_e4m3fn] == {f"{name}.weight" for name in products}
    assert kinds[torch.float32] == {f"{name}.weight_scale" for name in products}
    assert "lm_head.weight" in kinds[torch.bfloat16]
    assert kinds.keys() == {torch.float8_e4m3fn, torch.float32, torch.bfloat16}
    assert not any(value.requires_grad for value in llm.module.parameters())


def test_fp8_computes_what_its_dequantised_weights_do(converted):
    quantised = seed_core.load_llm(converted, dtype=fp8.FP8)
    plain = seed_core.load_llm(converted, dtype=torch.bfloat16)
    assert torch.equal(logits(quantised), logits(plain))


# --- other precisions ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_other_precisions_are_those_of_every_tensor(llm_folder, tmp_path, dtype):
    convert_llm(llm_folder, tmp_path / "out", dtype)
    before, after = tensors_of(llm_folder), tensors_of(tmp_path / "out")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], tensor.to(dtype)) for key, tensor in before.items())


def test_back_from_fp8_are_the_dequantised_weights(converted, tmp_path):
    convert_llm(converted, tmp_path / "back", torch.float32)
    expected, back = (seed_core.load_llm(path) for path in (converted, tmp_path / "back"))
    assert torch.equal(logits(back), logits(expected))


def test_converted_twice_to_fp8_is_the_same_again(converted, tmp_path):
    convert_llm(converted, tmp_path / "again", fp8.FP8)
    first, again = tensors_of(converted), tensors_of(tmp_path / "again")
    assert all(torch.equal(again[key].float(), first[key].float()) for key in QUANTISED)


# --- files ---


def test_the_other_files_come_along(llm_folder, converted):
    names = {"config.json", "generation_config.json", "tokenizer.model", "added_tokens.json"}
    assert {file.name for file in converted.iterdir()} == names | {"model.safetensors"}
    assert all((converted / n).read_bytes() == (llm_folder / n).read_bytes() for n in names)


@pytest.mark.parametrize("dtype", [fp8.FP8, torch.float32])
def test_a_large_model_is_several_files_with_an_index(llm_folder, tmp_path, monkeypatch, dtype):
    convert_llm(llm_folder, tmp_path / "one", dtype)
    monkeypatch.setattr(convert, "SHARD_BYTES", 100_000)
    convert_llm(llm_folder, tmp_path / "many", dtype)
    whole, parts = tensors_of(tmp_path / "one"), tensors_of(tmp_path / "many")
    assert all(torch.equal(parts[key].float(), whole[key].float()) for key in whole)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text("utf-8"))
    assert index["weight_map"].keys() == whole.keys()
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in whole.values())
    files = sorted(set(index["weight_map"].values()))
    assert files == [
        f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)
    ]
    assert len(files) > 2
    for key in QUANTISED & index["weight_map"].keys() if dtype == fp8.FP8 else ():
        assert index["weight_map"][f"{key}_scale"] == index["weight_map"][key]
    one, many = (seed_core.load_llm(tmp_path / name, dtype=dtype) for name in ("one", "many"))
    assert torch.equal(logits(one), logits(many))


def test_a_pickled_model_is_converted_too(llm_folder, converted, tmp_path):
    file = llm_folder / "model.safetensors"
    torch.save(load_file(file), llm_folder / "pytorch_model.bin")
    file.unlink()
    convert_llm(llm_folder, tmp_path / "of-bin", fp8.FP8)
    first, second = tensors_of(converted), tensors_of(tmp_path / "of-bin")
    assert all(torch.equal(second[key].float(), first[key].float()) for key in first)


def test_tied_embeddings_are_written_once(llm_folder, tmp_path):
    file = llm_folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["lm_head.weight"]
    save_file(tensors, file)
    config = llm_folder / "config.json"
    fields = {**json.loads(config.read_text("utf-8")), "tie_word_embeddings": True}
    config.write_text(json.dumps(fields), encoding="utf-8")
    convert_llm(llm_folder, tmp_path / "out", fp8.FP8)
    assert "lm_head.weight" not in tensors_of(tmp_path / "out")
    state = seed_core.load_llm(tmp_path / "out", dtype=fp8.FP8).module.state_dict()
    assert torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"])


def test_progress_counts_every_tensor(llm_folder, tmp_path):
    seen = []
    convert_llm(llm_folder, tmp_path / "out", fp8.FP8, lambda *counts: seen.append(counts))
    total = len(tensors_of(llm_folder)) + len(QUANTISED)  # these are read twice
    assert seen == [(done, total) for done in range(1, total + 1)]


def test_an_empty_folder_may_wait_for_the_result(llm_folder, tmp_path):
    (tmp_path / "out").mkdir()
    convert_llm(llm_folder, tmp_path / "out", torch.bfloat16)
    assert (tmp_path / "out" / "model.safetensors").is_file()


# --- refusals ---


def test_the_source_is_not_written_to(llm_folder):
    before = sorted(file.name for file in llm_folder.iterdir())
    with pytest.raises(OptionError, match="another folder"):
        convert_llm(llm_folder, llm_folder.parent / "x" / ".." / llm_folder.name, fp8.FP8)
    assert sorted(file.name for file in llm_folder.iterdir()) == before


def test_a_folder_with_something_in_it_is_not_written_to(llm_folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(OptionError, match="not empty"):
        convert_llm(llm_folder, tmp_path / "out", fp8.FP8)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_folder_that_nothing_can_be_made_in_is_named(llm_folder, tmp_path):
    with pytest.raises(OptionError, match="gone"):
        convert_llm(llm_folder, tmp_path / "gone" / "out", fp8.FP8)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model", "model.safetensors"])
def test_a_missing_file_of_the_source_is_named(llm_folder, tmp_path, name):
    (llm_folder / name).unlink()
    with pytest.raises(CheckpointError, match=name.replace("model.s", r"model\.s")):
        convert_llm(llm_folder, tmp_path / "out", fp8.FP8)
    assert not (tmp_path / "out").exists()


def test_a_missing_tensor_of_the_source_is_named(llm_folder, tmp_path):
    file = llm_folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        convert_llm(llm_folder, tmp_path / "out", fp8.FP8)


@pytest.mark.parametrize(
    ("dtype", "number"), [(torch.float16, 1e6), (fp8.FP8, torch.nan), (fp8.FP8, torch.inf)]
)
def test_numbers_that_do_not_fit_are_refused_with_their_tensor(llm_folder, tmp_path, dtype, number):
    change(llm_folder, model__layers__0__mlp__down_proj__weight=torch.full((32, 48), number))
    with pytest.raises(CheckpointError, match=r"model\.layers\.0\.mlp\.down_proj.*cannot hold"):
        convert_llm(llm_folder, tmp_path / "out", dtype)


@pytest.mark.parametrize("when", [1, 20])
def test_a_run_that_breaks_leaves_nothing(llm_folder, tmp_path, monkeypatch, when):
    monkeypatch.setattr(convert, "SHARD_BYTES", 10_000)
    before = sorted(tmp_path.iterdir())

    def on_tensor(done, total):
        if done == when:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_llm(llm_folder, tmp_path / "out", torch.bfloat16, on_tensor)
    assert sorted(tmp_path.iterdir()) == before


# --- the bundled model ---


def test_seed_mini_in_fp8_names_the_samples(tmp_path, mini_llm, sample_codes):
    convert_llm("seed-mini", tmp_path / "mini", fp8.FP8)
    llm = seed_core.load_llm(tmp_path / "mini", dtype=fp8.FP8)
    for row, thing in enumerate(("fox", "cat", "castle")):
        reply = llm.generate("What is this?", sample_codes[row : row + 1], options=GREEDY)
        assert reply.text == f"It is a {thing}."
    stored = sum(t.nbytes for t in llm.module.state_dict().values())
    assert stored < 0.7 * sum(t.nbytes // 2 for t in mini_llm.module.state_dict().values())


# --- adapters ---


@pytest.fixture
def adapter(llm_folder, tmp_path, peft_adapter, make_generator):
    """As SEED-LLaMA's own recipe leaves it: projections, and embeddings, head and norms in full."""
    config = seed_core.load_llm(llm_folder).config
    tensors = peft_adapter.random_tensors(config, make_generator(6), in_full=True)
    return peft_adapter.save(tmp_path / "adapter", tensors)


def merged(llm_folder, *adapters):
    llm = seed_core.load_llm(llm_folder)
    for path, strength in adapters:
        seed_core.merge_lora(llm.module, seed_core.read_lora(path, llm.config), strength)
    return llm.module.state_dict()


@pytest.mark.parametrize("strengths", [(1.0,), (0.5, -0.2)])
def test_adapters_are_merged_as_into_a_loaded_network(llm_folder, adapter, tmp_path, strengths):
    adapters = [(adapter, strength) for strength in strengths]
    convert_llm(llm_folder, tmp_path / "new", torch.float32, loras=adapters)
    state = seed_core.load_llm(tmp_path / "new").module.state_dict()
    for name, tensor in merged(llm_folder, *adapters).items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-6, atol=1e-6)


def test_scales_are_those_of_the_merged_weights(llm_folder, adapter, tmp_path):
    convert_llm(llm_folder, tmp_path / "new", torch.float32, loras=[(adapter, 1.0)])
    convert_llm(tmp_path / "new", tmp_path / "in_two_steps", fp8.FP8)
    convert_llm(llm_folder, tmp_path / "at_once", fp8.FP8, loras=[(adapter, 1.0)])
    at_once, in_two_steps = tensors_of(tmp_path / "at_once"), tensors_of(tmp_path / "in_two_steps")
    assert at_once.keys() == in_two_steps.keys()
    assert all(torch.equal(x.float(), in_two_steps[key].float()) for key, x in at_once.items())


@pytest.fixture
def ancestor(llm_folder, tmp_path):
    """The model before it had tokens of pictures, with SEED's vocabulary already beside it."""
    folder = tmp_path / "ancestor"
    shutil.copytree(llm_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[key] = tensors[key][:1024].clone()
    save_file(tensors, folder / "model.safetensors")
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = json.dumps({**fields, "vocab_size": 1024})
    (folder / "config.json").write_text(text, encoding="utf-8")
    return folder


def test_an_adapter_makes_a_seed_llama_of_the_model_it_was_trained_from(
    llm_folder, ancestor, adapter, tmp_path
):
    """The embeddings and the head come from the adapter, so it is what it is on the grown model."""
    with pytest.raises(CheckpointError, match="1538 token ids"):
        seed_core.load_llm(ancestor)
    convert_llm(ancestor, tmp_path / "new", torch.float32, loras=[(adapter, 1.0)])
    state = seed_core.load_llm(tmp_path / "new").module.state_dict()
    for name, tensor in merged(llm_folder, (adapter, 1.0)).items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-6, atol=1e-6)


def test_tokens_that_no_adapter_gives_a_meaning_are_not_made_up(
    llm_folder, ancestor, tmp_path, peft_adapter, make_generator
):
    config = seed_core.load_llm(llm_folder).config
    tensors = peft_adapter.random_tensors(config, make_generator(6))
    adapter = peft_adapter.save(tmp_path / "adapter", tensors)
    with pytest.raises(CheckpointError, match=r"no SEED-LLaMA yet.*embed_tokens"):
        convert_llm(ancestor, tmp_path / "new", torch.float32, loras=[(adapter, 1.0)])
    assert not (tmp_path / "new").exists()


def test_a_model_with_one_table_takes_no_adapters(llm_folder, adapter, tmp_path):
    fields = json.loads((llm_folder / "config.json").read_text(encoding="utf-8"))
    text = json.dumps({**fields, "tie_word_embeddings": True})
    (llm_folder / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match="one table for embeddings and head"):
        convert_llm(llm_folder, tmp_path / "new", torch.float32, loras=[(adapter, 1.0)])
