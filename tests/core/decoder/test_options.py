"""The options of a picture."""

import pytest

from seed_core.decoder.options import DecodeOptions
from seed_core.errors import OptionError


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_inference_steps": 0},
        {"num_inference_steps": 1001},
        {"guidance_scale": -1.0},
        {"guidance_scale": float("nan")},
        {"noise_level": -1},
        {"noise_level": 1000},
        {"width": 100},
        {"height": -8},
    ],
    ids=str,
)
def test_an_option_out_of_range_is_refused_with_its_value(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(OptionError, match=f"{name.removeprefix('num_inference_')}.*{value}"):
        DecodeOptions(**wrong)


def test_the_defaults_are_the_references():
    options = DecodeOptions()
    assert (options.num_inference_steps, options.noise_level) == (20, 0)
    assert options.guidance_scale is None  # the decoder's own
    assert (options.width, options.height) == (0, 0)
