"""Numbers in a model's config: the one helper that all configs are checked by."""

from types import SimpleNamespace

import pytest

from seed_core.errors import CheckpointError
from seed_core.ranges import EPSILON, WIDTH, check_number, check_numbers

NEVER = ["32", None, True, [32], {}, float("nan"), float("inf"), -1]
NO_SIZE = [*NEVER, 0, 10**9, 10**30, 32.0]
NO_SMALL_NUMBER = [*NEVER, "1e-5", -1e-5, 10**9, [1e-5]]


@pytest.mark.parametrize("value", NO_SIZE, ids=repr)
def test_a_size_is_a_whole_number_in_its_range(value):
    with pytest.raises(CheckpointError) as caught:
        check_number("the width", value, WIDTH)
    assert f"the width must be a whole number in 1..262144; got {value!r}" in str(caught.value)


@pytest.mark.parametrize("value", NO_SMALL_NUMBER, ids=repr)
def test_another_number_is_one_in_its_range(value):
    with pytest.raises(CheckpointError) as caught:
        check_number("the epsilon", value, EPSILON)
    assert f"the epsilon must be a number in 0.0..0.1; got {value!r}" in str(caught.value)


@pytest.mark.parametrize("value", [1, 32, 2**18])
def test_a_range_has_both_its_ends(value):
    check_number("the width", value, WIDTH)


@pytest.mark.parametrize("value", [0.0, 1e-5, 0.1, 0])
def test_a_whole_number_may_stand_where_a_fraction_may(value):
    check_number("the epsilon", value, EPSILON)


def test_a_long_value_is_cut_in_the_message():
    with pytest.raises(CheckpointError) as caught:
        check_number("the width", "9" * 5000, WIDTH)
    assert len(str(caught.value)) < 200


def test_the_first_wrong_field_is_named_with_its_owner():
    config = SimpleNamespace(width=32, depth=0, height=0)
    ranges = dict.fromkeys(("width", "depth", "height"), WIDTH)
    with pytest.raises(CheckpointError, match="^the tower's depth must be"):
        check_numbers("the tower", config, ranges)
    check_numbers("the tower", config, {"width": WIDTH})
