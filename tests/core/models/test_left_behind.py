"""What other programs leave in the folder of a model: each thing is read, or named.

Every row goes through opening, which is all that a loader's check does, and through loading. What
opens loads; what is read has the same weights as the plain folder; what is refused is refused by
both with one sentence.
"""

import codecs
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from seed_core.errors import CheckpointError
from seed_core.models.llm import EMBEDDINGS, HEAD, load_llm, open_llm
from seed_core.models.tokenizer import load_tokenizer, open_tokenizer
from seed_core.models.unclip import load_decoder, open_decoder

WEIGHTS, PICKLED, CONFIG = "model.safetensors", "pytorch_model.bin", "config.json"
PRODUCT = "model.layers.0.self_attn.q_proj"
TOKENS = 1538


def tensors_of(folder):
    return load_file(folder / WEIGHTS)


def rename(folder, change):
    save_file({change(key): value for key, value in tensors_of(folder).items()}, folder / WEIGHTS)


def pickle_as(folder, make, name=PICKLED, **options):
    tensors = tensors_of(folder)
    (folder / WEIGHTS).unlink()
    torch.save(make(tensors), folder / name, **options)


def configure(folder, **fields):
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    text = json.dumps({**config, **fields})
    (folder / CONFIG).write_text(text, encoding="utf-8")


def recode(folder, name, encode):
    file = folder / name
    file.write_bytes(encode(file.read_text(encoding="utf-8")))


def shard(folder, count=2, suffix=".safetensors", stem="model", is_listed=False):
    """Split the weights in shards, with an index or without."""
    tensors, table = tensors_of(folder), {}
    (folder / WEIGHTS).unlink()
    for number in range(count):
        name = f"{stem}-{number + 1:05d}-of-{count:05d}{suffix}"
        chosen = {key: tensors[key] for key in sorted(tensors)[number::count]}
        (save_file if suffix == ".safetensors" else torch.save)(chosen, folder / name)
        table |= dict.fromkeys(chosen, name)
    if is_listed:
        index = {"weight_map": table}
        (folder / f"{stem}{suffix}.index.json").write_text(json.dumps(index), encoding="utf-8")


def pad(folder, rows=1600, value=1e4):
    """Round embeddings and head up, with rows that would be sampled if they could be."""
    tensors = tensors_of(folder)
    for key in (EMBEDDINGS, HEAD):
        surplus = torch.full((rows - TOKENS, tensors[key].shape[1]), value)
        tensors[key] = torch.cat([tensors[key], surplus])
    save_file(tensors, folder / WEIGHTS)
    configure(folder, vocab_size=rows)


def stale_index(folder):
    index = {"weight_map": {EMBEDDINGS: "model-00001-of-00009.safetensors"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index), encoding="utf-8")


def as_precision(folder, name, dtype=torch.float32):
    save_file({k: v.to(dtype) for k, v in tensors_of(folder).items()}, folder / name)
    (folder / WEIGHTS).unlink()


def training_files(folder):
    (folder / "global_step500").mkdir()
    for name in ("optimizer.pt", "rng_state_0.pth", "scheduler.pt", "training_args.bin", "latest"):
        (folder / name).write_bytes(b"not for us")


def beside(name):
    return lambda folder: (folder / name).write_bytes(b"something else")


READ = {
    "one file beside a stale index": stale_index,
    "safetensors beside a pickled file of something else": lambda f: torch.save(
        {"a": torch.ones(1)}, f / PICKLED
    ),
    "shards with an index": lambda f: shard(f, 3, is_listed=True),
    "shards without an index": shard,
    "pickled shards without an index": lambda f: shard(f, 2, ".bin", "pytorch_model"),
    "fp16 variant": lambda f: as_precision(f, "model.fp16.safetensors"),
    "fp32 variant": lambda f: as_precision(f, "model.fp32.safetensors"),
    "bf16 variant": lambda f: as_precision(f, "model.bf16.safetensors"),
    "shards of a variant": lambda f: shard(f, 2, stem="model.fp16"),
    "float64": lambda f: as_precision(f, "model.fp32.safetensors", torch.float64),
    "old form of pickles": lambda f: pickle_as(f, dict, _use_new_zipfile_serialization=False),
    "state_dict in a checkpoint": lambda f: pickle_as(
        f, lambda t: {"state_dict": t, "epoch": 3, "optimizer_states": [{"state": {}}]}
    ),
    "module in a checkpoint": lambda f: pickle_as(f, lambda t: {"module": t, "lr": 0.1}),
    "parameters that want gradients": lambda f: pickle_as(
        f, lambda t: {k: torch.nn.Parameter(v) for k, v in t.items()}
    ),
    "names of DataParallel": lambda f: rename(f, lambda key: f"module.{key}"),
    "names of torch.compile": lambda f: rename(f, lambda key: f"_orig_mod.{key}"),
    "names of both": lambda f: rename(f, lambda key: f"module._orig_mod.{key}"),
    "names of compiled layers": lambda f: rename(
        f, lambda key: key.replace("self_attn.", "self_attn._orig_mod.")
    ),
    "names of a module that holds the model": lambda f: rename(f, lambda key: f"model.{key}"),
    "files of a training": training_files,
    "tensors that old releases stored": lambda f: save_file(
        {**tensors_of(f), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)},
        f / WEIGHTS,
    ),
    "scales of a cache of keys and values": lambda f: save_file(
        {**tensors_of(f), "model.layers.0.self_attn.k_scale": torch.ones(1)}, f / WEIGHTS
    ),
    "a head for rewards": lambda f: save_file(
        {**tensors_of(f), "v_head.summary.weight": torch.ones(1, 32)}, f / WEIGHTS
    ),
    "a padded vocabulary": pad,
    "a vocabulary padded to 8": lambda f: pad(f, 1544),
    "a vocabulary padded to 1024": lambda f: pad(f, 2048),
    "byte-order mark": lambda f: recode(f, CONFIG, lambda text: codecs.BOM_UTF8 + text.encode()),
    "UTF-16": lambda f: recode(f, CONFIG, lambda text: text.encode("utf-16")),
    "UTF-16 of the vocabulary": lambda f: recode(
        f, "added_tokens.json", lambda text: text.encode("utf-16")
    ),
    "UTF-32": lambda f: recode(f, CONFIG, lambda text: text.encode("utf-32")),
    "no scaling of positions": lambda f: configure(f, rope_scaling=None),
    "scaling named default": lambda f: configure(f, rope_scaling={"type": "default"}),
    "scaling by 1": lambda f: configure(f, rope_scaling={"type": "linear", "factor": 1.0}),
    "positions as transformers 5 writes them": lambda f: configure(
        f, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}
    ),
    "key-value heads that are not given": lambda f: configure(f, head_dim=8, pretraining_tp=1),
    "biases that are not given": lambda f: configure(f, attention_bias=None, mlp_bias=None),
    "another name of silu": lambda f: configure(f, hidden_act="swish"),
    "precision by its new name": lambda f: configure(f, dtype="bfloat16", torch_dtype=None),
    "a head of its own, said to be the embeddings": lambda f: configure(
        f, tie_word_embeddings=True
    ),
    "the same in a pickled file": lambda f: (
        configure(f, tie_word_embeddings=True),
        pickle_as(f, lambda t: dict(sorted(t.items()))),
    ),
    "the same with the head first": lambda f: (
        configure(f, tie_word_embeddings=True),
        pickle_as(f, lambda t: dict(sorted(t.items(), reverse=True))),
    ),
}


def replace_weights(content):
    return lambda folder: (folder / WEIGHTS).write_bytes(content)


def store(**changes):
    """Replace tensors by others, or by nothing."""

    def change(folder):
        tensors = {**tensors_of(folder), **changes}
        save_file({k: v.clone() for k, v in tensors.items() if v is not None}, folder / WEIGHTS)

    return change


def quantised(**entries):
    """Replace a product's weight by what other programs store in its place."""
    return store(
        **{f"{PRODUCT}.weight": None}, **{f"{PRODUCT}{end}": v for end, v in entries.items()}
    )


def only(name):
    """Leave another file in the place of the weights."""

    def change(folder):
        (folder / WEIGHTS).unlink()
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"something else")

    return change


def lacking_shard(folder):
    shard(folder, 3)
    (folder / "model-00002-of-00003.safetensors").unlink()


def unfinished_shard(folder):
    lacking_shard(folder)
    (folder / "model-00002-of-00003.safetensors.incomplete").touch()


def listed_shard_is_missing(folder):
    shard(folder, 3, is_listed=True)
    (folder / "model-00001-of-00003.safetensors").unlink()


def twice(folder):
    shard(folder, 2, is_listed=True)
    shutil.copy(
        folder / "model-00001-of-00002.safetensors", folder / "model-00002-of-00002.safetensors"
    )


def broken_link(folder):
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(folder / "gone")


WORDS = torch.ones(4, 32, dtype=torch.int32)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4096\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>404</title></head></html>\n"
REFUSED = {
    "pointer of Git LFS": (replace_weights(POINTER), "Git LFS.*git lfs pull"),
    "pointer of git-annex": (
        replace_weights(b"/annex/objects/SHA256E-s1--ab.safetensors\n"),
        "git annex get",
    ),
    "web page": (replace_weights(PAGE), "web page"),
    "answer of a server": (replace_weights(b"<?xml version='1.0'?><Error/>"), "server"),
    "error in JSON": (replace_weights(b'{"error": "Access to model is restricted"}'), "a text"),
    "empty file": (replace_weights(b""), "is empty"),
    "GGUF by another name": (replace_weights(b"GGUF\x03\x00\x00\x00" + b"\x00" * 90), "GGUF"),
    "pickled file by another name": (
        lambda f: pickle_as(f, dict, WEIGHTS),
        "content is that of a .bin file.*such as .bin",
    ),
    "old pickled file by another name": (
        lambda f: pickle_as(f, dict, WEIGHTS, _use_new_zipfile_serialization=False),
        "such as .bin",
    ),
    "safetensors by another name": (
        lambda f: (f / WEIGHTS).rename(f / PICKLED),
        "content is that of a .safetensors file.*such as .safetensors",
    ),
    "file that was cut": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-5]),
        "download",
    ),
    "pickled pointer": (
        lambda f: (pickle_as(f, dict), (f / PICKLED).write_bytes(POINTER)),
        "Git LFS",
    ),
    "config is a page": (lambda f: (f / CONFIG).write_bytes(PAGE), "config.json.*web page"),
    "config is a pointer": (lambda f: (f / CONFIG).write_bytes(POINTER), "config.json.*Git LFS"),
    "vocabulary is a pointer": (
        lambda f: (f / "tokenizer.model").write_bytes(POINTER),
        "tokenizer.model.*Git LFS",
    ),
    "config is empty": (lambda f: (f / CONFIG).write_bytes(b""), "config.json.*empty"),
    "config with a comma too many": (
        lambda f: (f / CONFIG).write_bytes(b'{"a": 1,}'),
        "config.json.*not valid JSON",
    ),
    "config of null bytes": (lambda f: (f / CONFIG).write_bytes(bytes(90)), "config.json"),
    "GGUF": (only("model-Q4_K_M.gguf"), "GGUF"),
    "first release": (only("consolidated.00.pth"), "convert_llama_weights_to_hf"),
    "TensorFlow": (only("tf_model.h5"), "TensorFlow"),
    "Flax": (only("flax_model.msgpack"), "Flax"),
    "ONNX": (only("model.onnx"), "ONNX"),
    "DeepSpeed": (only("global_step500/mp_rank_00_model_states.pt"), "zero_to_fp32"),
    "DeepSpeed's file": (only("mp_rank_00_model_states.pt"), "zero_to_fp32"),
    "FSDP": (only("pytorch_model_fsdp_0/__0_0.distcp"), "merge-weights"),
    "folder of a run": (only("checkpoint-500/model.safetensors"), "checkpoint-500.*Choose that"),
    "adapter": (only("adapter_model.safetensors"), "LoRA adapter"),
    "download in parts": (only(f"{WEIGHTS}.part"), "did not finish"),
    "download by aria2": (only(f"{WEIGHTS}.aria2"), "did not finish"),
    "broken link": (broken_link, "link to something that is gone"),
    "folder of the file's name": (
        lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).mkdir()),
        "no weights",
    ),
    "a shard is missing": (lacking_shard, "lacks model-00002-of-00003.safetensors"),
    "a shard is unfinished": (unfinished_shard, "did not finish"),
    "a listed shard is missing": (listed_shard_is_missing, "lacks model-00001-of-00003"),
    "shards of two downloads": (
        lambda f: (shard(f, 2), (f / "model-00001-of-00003.safetensors").touch()),
        "two downloads",
    ),
    "a shard twice": (twice, "two downloads are mixed"),
    "ZeRO-3": (store(**{f"{PRODUCT}.weight": torch.empty(0)}), "ZeRO-3"),
    "ZeRO-3's embeddings": (store(**{EMBEDDINGS: torch.empty(0)}), "ZeRO-3"),
    "GPTQ": (quantised(**{".qweight": WORDS, ".qzeros": WORDS, ".g_idx": WORDS}), "GPTQ"),
    "EXL2": (quantised(**{".q_weight": WORDS, ".q_scale_max": WORDS}), "EXL2"),
    "compressed-tensors": (quantised(**{".weight_packed": WORDS}), "compressed-tensors"),
    "bitsandbytes, 4 bits": (
        quantised(**{".weight.absmax": torch.ones(4), ".weight.quant_map": torch.ones(16)}),
        "bitsandbytes",
    ),
    "bitsandbytes, 8 bits": (
        store(
            **{
                f"{PRODUCT}.weight": torch.ones(32, 32, dtype=torch.int8),
                f"{PRODUCT}.SCB": torch.ones(32),
            }
        ),
        "16 or 32 bits",
    ),
    "HQQ": (quantised(**{".W_q": WORDS, ".scale": torch.ones(4)}), "HQQ"),
    "quantisation that config.json names": (
        lambda f: configure(f, quantization_config={"quant_method": "awq", "bits": 4}),
        "awq",
    ),
    "adapter inside": (
        quantised(
            **{
                ".base_layer.weight": torch.ones(32, 32),
                ".lora_A.default.weight": torch.ones(4, 32),
            }
        ),
        "LoRA adapter",
    ),
    "complex numbers": (
        store(**{f"{PRODUCT}.weight": torch.ones(32, 32, dtype=torch.complex64)}),
        "complex64",
    ),
    "too few token ids": (lambda f: pad_to_too_few(f), "1538 token ids.*1500"),
    "far too many token ids": (lambda f: pad(f, 4096), "1538 token ids.*4096"),
    "padded weights, another config": (
        lambda f: (pad(f), configure(f, vocab_size=TOKENS)),
        "one row for each of the 1538",
    ),
    "scaled positions": (
        lambda f: configure(f, rope_scaling={"type": "linear", "factor": 2.0}),
        "rope_scaling.*linear",
    ),
    "scaled positions of LLaMA 3": (
        lambda f: configure(f, rope_scaling={"rope_type": "llama3", "factor": 8.0}),
        "llama3",
    ),
    "scaled positions of transformers 5": (
        lambda f: configure(f, rope_parameters={"rope_type": "yarn", "factor": 4.0}),
        "rope_parameters.*yarn",
    ),
    "positions of several kinds": (
        lambda f: configure(f, rope_parameters={"full_attention": {"rope_theta": 5e5}}),
        "rope_parameters",
    ),
    "two bases of positions": (
        lambda f: configure(f, rope_theta=1e4, rope_parameters={"rope_theta": 5e5}),
        "rope_theta 10000.0 and 500000.0",
    ),
    "no architecture": (lambda f: configure(f, model_type=None), "model_type is missing"),
    "some of a head turned": (
        lambda f: configure(f, rope_parameters={"partial_rotary_factor": 0.5}),
        "rope_parameters",
    ),
    "heads of another width": (lambda f: configure(f, head_dim=16), "head_dim is 16"),
    "layers beyond those of the config": (
        lambda f: configure(f, num_hidden_layers=1),
        "holds model.layers.1.*different models",
    ),
    "biases that the config lacks": (
        store(**{f"{PRODUCT}.bias": torch.ones(32)}),
        f"holds {PRODUCT}.bias",
    ),
    "norms of another architecture": (
        store(**{"model.layers.1.self_attn.q_norm.weight": torch.ones(8)}),
        "q_norm.weight",
    ),
    "an adapter beside what it changes": (
        store(**{f"{PRODUCT}.lora_A.default.weight": torch.ones(4, 32)}),
        "LoRA adapter",
    ),
    "another architecture": (lambda f: configure(f, model_type="qwen2"), "qwen2"),
}


def pad_to_too_few(folder):
    tensors = tensors_of(folder)
    for key in (EMBEDDINGS, HEAD):
        tensors[key] = tensors[key][:1500].clone()
    save_file(tensors, folder / WEIGHTS)
    configure(folder, vocab_size=1500)


@pytest.mark.parametrize("place", ["rope_parameters", "rope_scaling"])
def test_the_base_of_positions_is_read_where_transformers_writes_it(llm_folder, place):
    configure(llm_folder, **{place: {"rope_type": "default", "rope_theta": 5e5}})
    assert open_llm(llm_folder).config.rope_theta == 5e5


@pytest.fixture
def plain(llm_folder):
    """The network before anything was done to its folder."""
    return load_llm(llm_folder).module.state_dict()


@pytest.mark.parametrize("name", READ)
def test_it_is_read_as_the_plain_folder_is(llm_folder, plain, name):
    READ[name](llm_folder)
    open_llm(llm_folder)
    state = load_llm(llm_folder).module.state_dict()
    assert state.keys() == plain.keys()
    assert all(torch.equal(state[key], plain[key]) for key in plain)


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_named_by_the_check_and_by_loading(llm_folder, name):
    change, words = REFUSED[name]
    change(llm_folder)
    said = []
    for read in (open_llm, load_llm):
        with pytest.raises(CheckpointError, match=words) as caught:
            read(llm_folder)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "\n" not in said[0]


def test_rows_of_a_padded_vocabulary_are_never_sampled(llm_folder):
    """Their logits would be the largest of all."""
    pad(llm_folder)
    llm = load_llm(llm_folder)
    assert llm.module.lm_head.weight.shape[0] == TOKENS


def test_a_padded_model_is_converted_without_its_padding(llm_folder, tmp_path):
    from seed_core.models.convert import convert_model, plan_conversion

    before = load_llm(llm_folder).module.state_dict()
    pad(llm_folder)
    convert_model(plan_conversion(llm_folder, torch.float32), tmp_path / "a.safetensors")
    after = load_llm(tmp_path / "a.safetensors").module.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="this user may read everything")
def test_a_file_that_may_not_be_read_is_named(llm_folder):
    (llm_folder / WEIGHTS).chmod(0)
    with pytest.raises(CheckpointError, match="right to read"):
        open_llm(llm_folder)


@pytest.mark.parametrize("stored", [EMBEDDINGS, HEAD])
def test_of_one_table_either_name_will_do(llm_folder, stored):
    """transformers too ties whichever of the two is missing."""
    tensors = tensors_of(llm_folder)
    table = tensors.pop(HEAD)
    tensors.pop(EMBEDDINGS)
    save_file({**tensors, stored: table}, llm_folder / WEIGHTS)
    configure(llm_folder, tie_word_embeddings=True)
    state = load_llm(llm_folder).module.state_dict()
    assert torch.equal(state[EMBEDDINGS], table)
    assert torch.equal(state[HEAD], table)


# --- tokenizers ---


@pytest.fixture
def tokenizer(tiny_tensors, tiny_config):
    save_file(tiny_tensors, tiny_config / WEIGHTS)
    return tiny_config


WRAPPED = {
    "DataParallel": lambda key: f"module.{key}",
    "torch.compile": lambda key: f"_orig_mod.{key}",
    "compiled blocks": lambda key: key.replace("blocks.0.", "blocks.0._orig_mod."),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_tokenizers_names_are_read_without_wrappers(tokenizer, wrapper, suffix):
    plain = load_tokenizer(tokenizer).module.state_dict()
    rename(tokenizer, WRAPPED[wrapper])
    file = tokenizer / WEIGHTS
    if suffix == "pt":
        file = tokenizer / "seed_quantizer.pt"
        torch.save({"state_dict": tensors_of(tokenizer)}, file)
    state = load_tokenizer(file).module.state_dict()
    assert all(torch.equal(state[key], plain[key]) for key in plain)


@pytest.mark.parametrize(
    ("content", "words"), [(POINTER, "Git LFS"), (PAGE, "web page"), (b"", "is empty")]
)
def test_what_is_not_a_tokenizer_is_named(tokenizer, content, words):
    (tokenizer / WEIGHTS).write_bytes(content)
    for read in (open_tokenizer, load_tokenizer):
        with pytest.raises(CheckpointError, match=words):
            read(tokenizer)


def test_a_tokenizer_whose_download_did_not_finish_is_named(tokenizer):
    (tokenizer / WEIGHTS).rename(tokenizer / "seed_quantizer.pt.crdownload")
    with pytest.raises(CheckpointError, match="did not finish"):
        open_tokenizer(tokenizer)


# --- decoders ---


@pytest.fixture
def decoder(tmp_path, mini_folder):
    """The bundled decoder in a folder of its own."""
    return shutil.copytree(mini_folder / "decoder", tmp_path / "decoder")


def network_file(decoder):
    return next(decoder.joinpath("unet").glob("*.safetensors"))


def test_a_decoders_names_are_read_without_wrappers(decoder):
    plain = load_decoder(decoder).module.state_dict()
    tensors = load_file(network_file(decoder))
    save_file({f"_orig_mod.{k}": v for k, v in tensors.items()}, network_file(decoder))
    state = load_decoder(decoder).module.state_dict()
    assert all(torch.equal(state[key], plain[key]) for key in plain)


@pytest.mark.parametrize(
    "name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"]
)
def test_a_decoders_configs_may_begin_with_a_mark(decoder, name):
    recode(decoder, name, lambda text: codecs.BOM_UTF8 + text.encode())
    open_decoder(decoder)
    load_decoder(decoder)


@pytest.mark.parametrize(
    ("content", "words"), [(POINTER, "Git LFS"), (PAGE, "web page"), (b"", "is empty")]
)
def test_what_is_not_a_decoders_network_is_named(decoder, content, words):
    network_file(decoder).write_bytes(content)
    for read in (open_decoder, load_decoder):
        with pytest.raises(CheckpointError, match=words):
            read(decoder)


def test_a_decoder_in_gguf_is_named(decoder):
    network_file(decoder).rename(decoder / "unet" / "unet-Q8_0.gguf")
    with pytest.raises(CheckpointError, match="GGUF"):
        open_decoder(decoder)
