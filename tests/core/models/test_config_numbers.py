"""Numbers in configs: what no model can have is one sentence, before any network is built."""

import json

import pytest
from safetensors.torch import save_file

import seed_core
from seed_core.errors import CheckpointError
from seed_core.llm.config import LlamaConfig
from seed_core.llm.llama import Llama
from seed_core.tokenizer.config import TokenizerConfig
from seed_core.tokenizer.network import TokenizerModel

LLM_SIZES = [
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
]
TOKENIZER_SIZES = [
    *("image_size", "patch_size", "vit_width", "vit_depth", "vit_heads", "vit_mlp_hidden"),
    *("num_query_tokens", "qformer_hidden_size", "qformer_num_layers", "qformer_num_heads"),
    *("qformer_intermediate_size", "cross_attention_freq", "n_embed", "codebook_embed_dim"),
    *("blocks_image_depth", "blocks_image_heads", "image_features_dim", "num_reverse_tokens"),
]
TOKENIZER_NUMBERS = [
    *("vit_norm_eps", "ln_vision_eps", "qformer_layer_norm_eps", "blocks_norm_eps"),
    "blocks_image_mlp_ratio",
]


def change(file, **fields):
    content = {**json.loads(file.read_text(encoding="utf-8")), **fields}
    file.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def no_network(monkeypatch):
    """A wrong number must be seen before anything of its size is made."""

    def build(*arguments, **named):
        raise AssertionError("a network was built")

    monkeypatch.setattr(Llama, "__init__", build)
    monkeypatch.setattr(TokenizerModel, "__init__", build)


@pytest.mark.parametrize("field", LLM_SIZES)
def test_each_size_of_a_language_model_is_checked(llm_folder, no_network, field):
    change(llm_folder / "config.json", **{field: 10**9})
    with pytest.raises(CheckpointError, match=f"{field} must be a whole number in 1"):
        seed_core.load_llm(llm_folder)


def test_the_other_number_of_a_language_model_is_checked(llm_folder, no_network):
    change(llm_folder / "config.json", rms_norm_eps="1e-5")
    with pytest.raises(CheckpointError, match="rms_norm_eps must be a number in"):
        seed_core.load_llm(llm_folder)


def test_a_model_may_have_as_many_keys_as_heads_without_saying_so():
    """``num_key_value_heads`` came later than the first configs."""
    sizes = dict.fromkeys(LLM_SIZES, 64) | {"hidden_size": 128, "num_key_value_heads": None}
    fields = {"model_type": "llama", "rms_norm_eps": 1e-5, **sizes}
    assert LlamaConfig.from_dict(fields).num_key_value_heads == 64


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_theta": float("nan")}, "rope_theta must be"),
        ({"rope_theta": "10000"}, "rope_theta must be"),
        ({"rope_parameters": 5}, "scaled positions"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "scaled positions"),
        ({"rope_parameters": {"rope_theta": []}}, "rope_theta must be"),
        ({"num_attention_heads": 5}, "do not divide"),
        ({"num_attention_heads": 32}, "even width"),
        ({"num_key_value_heads": 3}, "do not divide"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; a SEED-LLaMA's is 'silu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
    ],
    ids=repr,
)
def test_what_would_be_computed_wrongly_is_refused(llm_folder, no_network, fields, message):
    change(llm_folder / "config.json", **fields)
    with pytest.raises(CheckpointError, match=message):
        seed_core.load_llm(llm_folder)


@pytest.mark.parametrize("field", TOKENIZER_SIZES)
def test_each_size_of_a_tokenizer_is_checked(tiny_config, tiny_tensors, no_network, field):
    save_file(tiny_tensors, tiny_config / "model.safetensors")
    change(tiny_config / "config.json", **{field: 10**9})
    with pytest.raises(CheckpointError, match=r"must be a whole number in 1\.\.|has 32 queries"):
        seed_core.load_tokenizer(tiny_config)


@pytest.mark.parametrize("field", TOKENIZER_NUMBERS)
def test_the_other_numbers_of_a_tokenizer_are_checked(tiny_config, tiny_tensors, no_network, field):
    save_file(tiny_tensors, tiny_config / "model.safetensors")
    change(tiny_config / "config.json", **{field: 10**9})
    with pytest.raises(CheckpointError, match="must be a number in"):
        seed_core.load_tokenizer(tiny_config)


@pytest.mark.parametrize(
    "widths", [[], 3, "16", [16, "4"], [16, 10**9], [16, -4], [16] * 100, [16, None], {"a": 1}]
)
def test_the_widths_of_the_reduction_are_checked_too(tiny_config, tiny_tensors, no_network, widths):
    save_file(tiny_tensors, tiny_config / "model.safetensors")
    change(tiny_config / "config.json", image_down=widths)
    with pytest.raises(CheckpointError, match=r"image_down|not iterable"):
        seed_core.load_tokenizer(tiny_config)


def test_heads_that_do_not_divide_the_decode_blocks_are_refused(tiny_config):
    fields = json.loads((tiny_config / "config.json").read_text(encoding="utf-8"))
    with pytest.raises(CheckpointError, match="decode blocks' width 24 .* 7 heads"):
        TokenizerConfig.from_dict({**fields, "blocks_image_heads": 7})


@pytest.mark.parametrize("number", [10**9, 300, "9" * 5000])
def test_layers_that_only_a_files_names_claim_are_not_built(
    tiny_config, tiny_tensors, no_network, number
):
    rest = {k: v for k, v in tiny_tensors.items() if not k.startswith("image_down.")}
    rest[f"Reverse_Qformer.bert.encoder.layer.{number}.x"] = tiny_tensors["query_tokens"].clone()
    save_file(rest, tiny_config / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"reverse_depth must be|neither image_down"):
        seed_core.load_tokenizer(tiny_config)


def test_every_published_size_is_in_range():
    """The largest ones there are, and what others may have made of them."""
    TokenizerConfig.seed_1()
    TokenizerConfig.seed_2()
    eight = LlamaConfig(40194, 4096, 11008, 32, 32, 32, 2048, 1e-6)
    fourteen = LlamaConfig(40194, 5120, 13824, 40, 40, 40, 4096, 1e-5)
    seventy = LlamaConfig(136256, 8192, 28672, 80, 64, 8, 131072, 1e-5, 5e5)
    assert [config.head_dim for config in (eight, fourteen, seventy)] == [128, 128, 128]
