"""The network's config and cache; its numbers are tested against transformers in tests/parity."""

import pytest
import torch

from seed_core.errors import CheckpointError
from seed_core.llm.llama import (
    ATTENTION_STEP,
    KVCache,
    Llama,
    LlamaConfig,
    names_in_file,
    parts_in_file,
)

FIELDS = {
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}


def test_a_published_config_without_newer_fields_is_read():
    """SEED-LLaMA-8B's config is from early 2023: no key-value heads, no rope fields."""
    fields = {key: value for key, value in FIELDS.items() if key != "num_key_value_heads"}
    config = LlamaConfig.from_dict(fields)
    assert (config.num_key_value_heads, config.rope_theta) == (4, 10000.0)
    assert not config.tie_word_embeddings
    assert config.head_dim == 8


def test_the_newest_form_of_the_rotation_fields_is_read():
    rope = {"rope_type": "default", "rope_theta": 500.0}
    assert LlamaConfig.from_dict({**FIELDS, "rope_parameters": rope}).rope_theta == 500.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mistral"}, "mistral"),
        ({"model_type": None}, "model_type"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "scaled positions"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "scaled positions"),
        ({"hidden_size": 33}, "33"),
        ({"num_key_value_heads": 3}, "3 key-value heads"),
        ({"vocab_size": "many"}, "config.json"),
        ({"num_attention_heads": 0}, "config.json|divide"),
    ],
)
def test_a_config_of_another_model_is_refused(change, message):
    with pytest.raises(CheckpointError, match=message):
        LlamaConfig.from_dict({**FIELDS, **change})


@pytest.mark.parametrize(
    "field", ["vocab_size", "hidden_size", "num_hidden_layers", "rms_norm_eps"]
)
def test_a_missing_field_is_named(field):
    fields = {key: value for key, value in FIELDS.items() if key != field}
    with pytest.raises(CheckpointError, match=field):
        LlamaConfig.from_dict(fields)


def test_names_in_files_are_hugging_faces():
    ours = Llama(LlamaConfig.from_dict(FIELDS), device="meta").state_dict()
    names = {name for own in ours for name in names_in_file(own)}
    layer = {
        f"model.layers.{i}.{name}.weight"
        for i in range(2)
        for name in (
            "input_layernorm",
            "post_attention_layernorm",
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        )
    }
    assert names == layer | {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


def test_the_estimate_of_the_cache_is_its_size():
    config = LlamaConfig.from_dict(FIELDS)
    cache = KVCache(config, 3, 20, torch.device("cpu"), torch.float16)
    held = sum(x.numel() * x.element_size() for x in (cache.keys, cache.values))
    assert config.cache_bytes(3, 20, torch.float16) == held
    assert cache.length == ATTENTION_STEP


def test_the_parts_in_a_file_cover_every_weight_once():
    config = LlamaConfig.from_dict(FIELDS)
    state = Llama(config, device="meta").state_dict()
    rows = {name: [] for name in state}
    for part in parts_in_file(config).values():
        first, length = part.rows or (0, part.shape[0])
        assert part.shape == (length, *state[part.weight].shape[1:])
        rows[part.weight] += range(first, first + length)
    assert rows == {name: list(range(len(tensor))) for name, tensor in state.items()}
    query, key, value = (f"model.layers.1.self_attn.{x}_proj.weight" for x in "qkv")
    parts = parts_in_file(config)
    assert [parts[x].rows for x in (query, key, value)] == [(0, 32), (32, 16), (48, 16)]


def test_a_processor_reads_no_position_that_was_not_written(generator):
    """So nothing has to be cleared for it: here the rest of the cache holds no numbers."""
    config = LlamaConfig.from_dict(FIELDS)
    network = Llama(config, device="meta").to_empty(device="cpu").requires_grad_(False)
    for weight in network.parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator))
    cpu, logits = torch.device("cpu"), []
    for rest in (torch.nan, 0.0):
        cache = KVCache(config, 2, 20, cpu, torch.float32)
        cache.pairs.fill_(rest)
        network.prefill(torch.tensor([[1, 2, 3]]), cache)
        logits.append(network.decode(torch.tensor([4, 5]), cache, torch.tensor([3]), cache.length))
    assert logits[0].isfinite().all()
    assert torch.equal(logits[0], logits[1])
