"""A config.json of a LLaMA: what is read from it, and what is refused."""

import pytest

from seed_core.errors import CheckpointError
from seed_core.llm.config import LlamaConfig

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
