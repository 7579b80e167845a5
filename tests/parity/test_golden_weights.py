"""The weight generator against the tensors that the tiny goldens carry."""

import pytest
from safetensors import safe_open


@pytest.mark.parametrize("name", ["golden_v2_tiny", "golden_v2_revq_tiny"])
def test_generated_weights_equal_the_goldens_bit_for_bit(name, golden_folder, golden_weights):
    with safe_open(golden_folder / f"{name}.safetensors", framework="numpy") as golden:
        keys = list(golden.keys())
        assert len(keys) > 100
        for key in keys:
            expected = golden.get_tensor(key)
            made = golden_weights.weight(key, expected.shape)
            assert made.dtype == expected.dtype, key
            assert made.tobytes() == expected.tobytes(), key


def test_a_tensor_longer_than_one_chunk_is_one_stream(golden_weights):
    """Chunks are an optimisation: the numbers must not depend on where they are cut."""
    key, count = "visual_encoder.blocks.0.mlp.fc1.weight", golden_weights.CHUNK + 1001
    lanes = golden_weights.lanes_of(key, count)
    factor = golden_weights.factor_of(golden_weights.rule_of(key), (count, 1))
    whole = (lanes.astype("f8") - 32767.5) / 32768.0
    made = golden_weights.weight(key, (count, 1))
    assert abs(made[:, 0] - whole * factor).max() < 1e-7


def test_a_key_without_a_rule_is_refused(golden_weights):
    with pytest.raises(KeyError, match="no weight rule"):
        golden_weights.weight("quantize.unknown_buffer", (3,))
