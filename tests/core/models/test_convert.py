"""Conversion to one file: what is written, what is kept, what is refused."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import seed_core
from seed_core import GenerationOptions
from seed_core.compute import fp8
from seed_core.errors import CheckpointError, OptionError
from seed_core.llm.cache import KVCache
from seed_core.models.convert import convert_model, plan_conversion

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


def convert(source, output, dtype, on_tensor=None, loras=()):
    return convert_model(plan_conversion(source, dtype, loras), output, on_tensor)


@pytest.fixture
def output(tmp_path):
    return tmp_path / "converted.safetensors"


@pytest.fixture
def converted(llm_folder, output):
    convert(llm_folder, output, fp8.FP8)
    return output


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


def weights(model):
    return {name: tensor.tolist() for name, tensor in model.module.state_dict().items()}


# --- fp8 ---


def test_the_products_of_the_layers_are_quantised_and_nothing_else(llm_folder, converted):
    before, after = load_file(llm_folder / "model.safetensors"), load_file(converted)
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
    before, after = load_file(llm_folder / "model.safetensors"), load_file(converted)
    for group in GROUPS:
        largest = max(float(before[key].abs().max()) for key in group)
        for key in group:
            assert float(after[f"{key}_scale"]) == pytest.approx(largest / 448)


def test_the_header_tells_comfyui_of_the_quantised_layers(converted):
    with safe_open(converted, framework="pt") as file:
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
    stored = load_file(converted)
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
    exact = logits(seed_core.load_llm(converted))
    # Its products are rounded to bf16 before they are scaled, and after.
    distance = (logits(quantised).float() - exact).norm() / exact.norm()
    assert distance < 0.01


def test_back_from_fp8_are_the_dequantised_weights(converted, tmp_path):
    convert(converted, tmp_path / "back.safetensors", torch.float32)
    expected, back = (
        seed_core.load_llm(path) for path in (converted, tmp_path / "back.safetensors")
    )
    assert torch.equal(logits(back), logits(expected))


def test_converted_twice_to_fp8_is_the_same_again(converted, tmp_path):
    convert(converted, tmp_path / "again.safetensors", fp8.FP8)
    first, again = load_file(converted), load_file(tmp_path / "again.safetensors")
    assert all(torch.equal(again[key].float(), first[key].float()) for key in QUANTISED)


@pytest.mark.parametrize("part", ["tokenizer", "decoder"])
def test_only_language_models_are_quantised(mini_folder, part):
    with pytest.raises(OptionError, match=f"a {part} loses too much"):
        plan_conversion(mini_folder / part, fp8.FP8)


# --- each part, each precision ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("part", ["tokenizer", "llm", "decoder"])
def test_a_converted_model_is_the_model_in_that_precision(mini_folder, output, part, dtype):
    """Alone in a folder: nothing beside it is read."""
    load = getattr(seed_core, f"load_{part}")
    convert(mini_folder / part, output, dtype)
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    assert weights(load(output, dtype=dtype)) == weights(load(mini_folder / part, dtype=dtype))


def test_a_converted_decoder_paints_the_same_picture(mini_folder, mini_decoder, output, generator):
    convert(mini_folder / "decoder", output, torch.float32)
    embedding = torch.randn(1, 256, generator=generator)
    options = seed_core.DecodeOptions(num_inference_steps=2)
    ours, same = (
        decoder.decode(embedding, options=options)
        for decoder in (seed_core.load_decoder(output), mini_decoder)
    )
    assert torch.equal(ours, same)


@pytest.mark.parametrize("form", ["two files", "one file"])
def test_published_tokenizers_become_one_file(tiny_tensors, tiny_config, output, form):
    """SEED-2's two files, with what no network has; the result knows its sizes by itself."""
    folder = tiny_config / "published"
    folder.mkdir()
    (tiny_config / "config.json").rename(folder / "config.json")
    tower = {k[15:]: v for k, v in tiny_tensors.items() if k.startswith("visual_encoder.")}
    rest = {k: v for k, v in tiny_tensors.items() if not k.startswith("visual_encoder.")}
    if form == "two files":
        torch.save(tower, folder / "eva_vit_g.pth")
        torch.save(rest | {"unknown": torch.zeros(3)}, folder / "seed_quantizer.pt")
    else:
        save_file(tiny_tensors, folder / "seed_quantizer.safetensors")
    convert(folder, output, torch.float32)
    assert weights(seed_core.load_tokenizer(output)) == weights(seed_core.load_tokenizer(folder))
    assert load_file(output).keys() == tiny_tensors.keys()


def test_seed_1_becomes_one_file(seed_1_folder, output):
    convert(seed_1_folder, output, torch.float32)
    tokenizer, expected = (seed_core.load_tokenizer(p) for p in (output, seed_1_folder))
    assert tokenizer.config == expected.config
    assert weights(tokenizer) == weights(expected)


def test_the_codebook_stays_in_float32(mini_folder, output):
    """Half-precision distances confuse close codes."""
    convert(mini_folder / "tokenizer", output, torch.float16)
    kinds = {key: tensor.dtype for key, tensor in load_file(output).items()}
    assert kinds.pop("quantize.embedding.weight") == torch.float32
    assert set(kinds.values()) == {torch.float16}


def test_a_pickled_model_in_shards_is_converted_too(llm_folder, converted, tmp_path):
    file = llm_folder / "model.safetensors"
    tensors = list(load_file(file).items())
    index = {}
    for number, shard in enumerate((tensors[::2], tensors[1::2])):
        name = f"pytorch_model-{number}.bin"
        torch.save(dict(shard), llm_folder / name)
        index |= {key: name for key, _ in shard}
    text = json.dumps({"weight_map": index})
    (llm_folder / "pytorch_model.bin.index.json").write_text(text, encoding="utf-8")
    file.unlink()
    convert(llm_folder, tmp_path / "of-bin.safetensors", fp8.FP8)
    first, second = load_file(converted), load_file(tmp_path / "of-bin.safetensors")
    assert all(torch.equal(second[key].float(), first[key].float()) for key in first)


def test_tied_embeddings_are_written_once(llm_folder, output):
    file = llm_folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["lm_head.weight"]
    save_file(tensors, file)
    config = llm_folder / "config.json"
    fields = {**json.loads(config.read_text("utf-8")), "tie_word_embeddings": True}
    config.write_text(json.dumps(fields), encoding="utf-8")
    convert(llm_folder, output, fp8.FP8)
    assert "lm_head.weight" not in load_file(output)
    state = seed_core.load_llm(output, dtype=fp8.FP8).module.state_dict()
    assert torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"])


def test_the_header_says_where_it_comes_from(llm_folder, converted):
    with safe_open(converted, framework="pt") as file:
        record = json.loads(file.metadata()["seed_llama"])
    assert record["part"] == "llm"
    file = llm_folder / "model.safetensors"
    state = file.stat()
    weights = {"name": file.name, "bytes": state.st_size, "modified": state.st_mtime_ns}
    assert record["origin"] == {
        "source": llm_folder.name,
        "weights": [weights],
        "adapters": [],
        "precision": "fp8",
    }
    assert json.loads(record["files"]["config.json"])["hidden_size"] == 32


def test_the_digest_is_that_of_the_file(llm_folder, output):
    digest = convert(llm_folder, output, torch.bfloat16)
    assert digest == hashlib.sha256(output.read_bytes()).hexdigest()


@pytest.mark.parametrize("dtype", [fp8.FP8, torch.bfloat16])
def test_progress_counts_every_tensor(llm_folder, output, dtype):
    """Those that are quantised twice: their scale has to be known first."""
    seen = []
    convert(llm_folder, output, dtype, lambda *counts: seen.append(counts))
    total = len(load_file(llm_folder / "model.safetensors"))
    total += len(QUANTISED) if dtype == fp8.FP8 else 0
    assert seen == [(done, total) for done in range(1, total + 1)]


def stop_half_way(*arguments, **options):
    def on_tensor(done, total):
        if done == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(*arguments, on_tensor=on_tensor, **options)


def test_a_stopped_run_is_not_gone_on_with_for_another_model_of_the_same_name(llm_folder, output):
    """Every published tokenizer is called seed_quantizer.pt, and shards have the same names too."""
    stop_half_way(llm_folder, output, torch.float32)
    tensors = load_file(llm_folder / "model.safetensors")
    other = {key: tensor + 1 for key, tensor in tensors.items()}
    save_file(other, llm_folder / "model.safetensors")
    convert(llm_folder, output, torch.float32)
    assert all(torch.equal(tensor, other[key]) for key, tensor in load_file(output).items())


# --- refusals ---


@pytest.mark.parametrize("label", [None, 2816])
def test_another_stable_diffusion_in_one_file_is_no_decoder(tmp_path, output, label):
    """SD 1.5 has no label, SDXL's is a size. Pickled, as it came then, with training's leftovers."""
    prefix = "model.diffusion_model."
    tensors = {f"{prefix}input_blocks.0.0.weight": torch.zeros(320, 4, 3, 3)}
    if label:
        tensors[f"{prefix}label_emb.0.0.weight"] = torch.zeros(1280, label)
    path = tmp_path / "sd.ckpt"
    torch.save({"state_dict": tensors, "global_step": 470_000}, path)
    with pytest.raises(
        CheckpointError, match=r"sd\.ckpt .* takes no image embedding of SEED.*unclip-h"
    ):
        convert(path, output, torch.float16)


def test_what_exists_is_not_written_to(llm_folder, output):
    output.write_text("mine", encoding="utf-8")
    with pytest.raises(OptionError, match="exists already"):
        convert(llm_folder, output, fp8.FP8)
    assert output.read_text("utf-8") == "mine"
    with pytest.raises(OptionError, match="exists already"):
        convert(llm_folder, llm_folder / "model.safetensors", torch.bfloat16)


def test_the_output_is_a_safetensors_file_in_a_folder_that_exists(llm_folder, tmp_path):
    with pytest.raises(OptionError, match="must end in .safetensors"):
        convert(llm_folder, tmp_path / "out", fp8.FP8)
    with pytest.raises(OptionError, match="gone"):
        convert(llm_folder, tmp_path / "gone" / "out.safetensors", fp8.FP8)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model", "model.safetensors"])
def test_a_missing_file_of_the_source_is_named(llm_folder, output, name):
    (llm_folder / name).unlink()
    with pytest.raises(CheckpointError, match=re.escape(name)):
        convert(llm_folder, output, fp8.FP8)
    assert not output.exists()


def test_a_missing_tensor_of_the_source_is_named(llm_folder, output):
    file = llm_folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        convert(llm_folder, output, fp8.FP8)


def test_a_tensor_of_another_shape_is_refused_before_anything_is_written(llm_folder, output):
    change(llm_folder, model__norm__weight=torch.zeros(31))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight \[31\].*\[32\]"):
        convert(llm_folder, output, torch.bfloat16)
    assert list(output.parent.glob("converted*")) == []


@pytest.mark.parametrize(
    ("dtype", "number"), [(torch.float16, 1e6), (fp8.FP8, torch.nan), (fp8.FP8, torch.inf)]
)
def test_numbers_that_do_not_fit_are_refused_with_their_tensor(llm_folder, output, dtype, number):
    change(llm_folder, model__layers__0__mlp__down_proj__weight=torch.full((32, 48), number))
    with pytest.raises(
        CheckpointError,
        match=r"model\.layers\.0\.mlp\.down_proj.* holds NaN or infinity in.*try bf16",
    ):
        convert(llm_folder, output, dtype)
    assert not output.exists()


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("decoder", "scheduler/scheduler_config.json"),
        ("decoder", "vae/config.json"),
        ("decoder", "model_index.json"),
        ("llm", "generation_config.json"),
    ],
)
@pytest.mark.parametrize("is_gone", [True, False], ids=["gone", "broken"])
def test_what_could_not_be_loaded_again_is_not_written(
    mini_folder, tmp_path, output, part, name, is_gone
):
    """Nobody should delete the source and then find that the new file is of no use."""
    folder = shutil.copytree(mini_folder / part, tmp_path / part)
    (folder / name).unlink() if is_gone else (folder / name).write_text("{", encoding="utf-8")
    if is_gone and part == "llm":  # this one may be missing
        convert(folder, output, torch.float16)
        assert seed_core.load_llm(output).end_ids
        return
    with pytest.raises(CheckpointError, match=Path(name).name):
        convert(folder, output, torch.float16)
    assert not output.exists()


@pytest.mark.parametrize("part", ["tokenizer", "llm", "decoder"])
def test_a_converted_model_of_another_part_is_refused_by_both_names(mini_folder, output, part):
    convert(mini_folder / part, output, torch.float16)
    for other in {"tokenizer", "llm", "decoder"} - {part}:
        with pytest.raises(CheckpointError, match=f"holds a SEED {part}; a SEED {other}"):
            getattr(seed_core, f"load_{other}")(output)


# --- the bundled model ---


def test_seed_mini_in_fp8_names_the_samples(mini_folder, output, mini_llm, sample_codes):
    convert(mini_folder / "llm", output, fp8.FP8)
    llm = seed_core.load_llm(output, dtype=fp8.FP8)
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
    convert(llm_folder, tmp_path / "new.safetensors", torch.float32, loras=adapters)
    state = seed_core.load_llm(tmp_path / "new.safetensors").module.state_dict()
    for name, tensor in merged(llm_folder, *adapters).items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-6, atol=1e-6)


def test_scales_are_those_of_the_merged_weights(llm_folder, adapter, tmp_path):
    convert(llm_folder, tmp_path / "new.safetensors", torch.float32, loras=[(adapter, 1.0)])
    convert(tmp_path / "new.safetensors", tmp_path / "in_two_steps.safetensors", fp8.FP8)
    convert(llm_folder, tmp_path / "at_once.safetensors", fp8.FP8, loras=[(adapter, 1.0)])
    at_once, in_two_steps = (
        load_file(tmp_path / "at_once.safetensors"),
        load_file(tmp_path / "in_two_steps.safetensors"),
    )
    assert at_once.keys() == in_two_steps.keys()
    assert all(torch.equal(x.float(), in_two_steps[key].float()) for key, x in at_once.items())


def test_a_stopped_run_is_not_gone_on_with_for_another_strength(llm_folder, adapter, output):
    stop_half_way(llm_folder, output, torch.float32, loras=[(adapter, 1.0)])
    convert(llm_folder, output, torch.float32, loras=[(adapter, 0.25)])
    state = seed_core.load_llm(output).module.state_dict()
    for name, tensor in merged(llm_folder, (adapter, 0.25)).items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-6, atol=1e-6)


def test_an_adapter_makes_no_cut_tensor_whole(llm_folder, adapter, output):
    key = "model.layers.0.self_attn.q_proj.weight"
    change(llm_folder, **{key.replace(".", "__"): torch.zeros(20, 32)})
    with pytest.raises(CheckpointError, match=r"q_proj\.weight \[20, 32\]"):
        convert(llm_folder, output, torch.float32, loras=[(adapter, 1.0)])


def test_an_adapter_makes_a_seed_llama_of_the_model_it_was_trained_from(
    llm_folder, ancestor, adapter, tmp_path
):
    """The embeddings and the head come from the adapter, so it is what it is on the grown model."""
    with pytest.raises(CheckpointError, match="1538 token ids"):
        seed_core.load_llm(ancestor)
    convert(ancestor, tmp_path / "new.safetensors", torch.float32, loras=[(adapter, 1.0)])
    state = seed_core.load_llm(tmp_path / "new.safetensors").module.state_dict()
    for name, tensor in merged(llm_folder, (adapter, 1.0)).items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-6, atol=1e-6)


def test_an_adapter_takes_no_rows_from_a_table(ancestor, adapter):
    """The config says 1024 token ids, the table has more than the vocabulary's 1538."""
    change(ancestor, model__embed_tokens__weight=torch.zeros(1600, 32))
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight \[1600, 32\] should have"):
        plan_conversion(ancestor, torch.float32, [(adapter, 1.0)])


def test_tokens_that_no_adapter_gives_a_meaning_are_not_made_up(
    llm_folder, ancestor, tmp_path, peft_adapter, make_generator
):
    config = seed_core.load_llm(llm_folder).config
    tensors = peft_adapter.random_tensors(config, make_generator(6))
    adapter = peft_adapter.save(tmp_path / "adapter", tensors)
    with pytest.raises(CheckpointError, match=r"not a SEED-LLaMA yet.*embed_tokens"):
        convert(ancestor, tmp_path / "new.safetensors", torch.float32, loras=[(adapter, 1.0)])
    assert not (tmp_path / "new.safetensors").exists()


def test_a_model_with_one_table_takes_no_adapters(llm_folder, adapter, tmp_path):
    fields = json.loads((llm_folder / "config.json").read_text(encoding="utf-8"))
    text = json.dumps({**fields, "tie_word_embeddings": True})
    (llm_folder / "config.json").write_text(text, encoding="utf-8")
    tensors = load_file(llm_folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, llm_folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="one table for embeddings and head"):
        convert(llm_folder, tmp_path / "new.safetensors", torch.float32, loras=[(adapter, 1.0)])


@pytest.mark.parametrize("part", ["tokenizer", "decoder"])
def test_adapters_are_for_language_models(mini_folder, adapter, part):
    with pytest.raises(OptionError, match=f"is a {part}"):
        plan_conversion(mini_folder / part, torch.float16, [(adapter, 1.0)])
