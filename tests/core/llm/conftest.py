import pytest

from seed_core.llm.config import LlamaConfig


@pytest.fixture(scope="session")
def tiny_config() -> LlamaConfig:
    """A language model of two layers whose heads share keys and values in pairs."""
    return LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
    )
