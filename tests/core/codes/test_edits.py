"""Mixing, joining and selecting codes."""

import pytest
import torch

from seed_core import SeedCodes, seeded_generators
from seed_core.codes.edits import join_codes, mix_codes, select_codes
from seed_core.errors import CodesError, OptionError


def filled(value, count=1, family="seed-mini", size=512):
    """Pictures that consist of one code, so that it shows where each position came from."""
    return SeedCodes(torch.full((count, 32), value), family, size)


def mix(a, b, start=0, end=32, mode="splice", amount=0.5, number=0):
    generators = seeded_generators(number, max(len(a), len(b)))
    return mix_codes(a, b, start, end, mode, amount, generators)


@pytest.mark.parametrize(("start", "end"), [(0, 32), (16, 32), (0, 16), (3, 4), (31, 32)])
def test_splice_takes_the_positions_from_start_up_to_but_without_end(start, end):
    (row,) = mix(filled(1), filled(2), start, end).values.tolist()
    assert row == [1] * start + [2] * (end - start) + [1] * (32 - end)


@pytest.mark.parametrize("position", [0, 16, 32])
def test_an_empty_range_changes_nothing(position):
    a = filled(1)
    for mode in ("splice", "random"):
        assert torch.equal(mix(a, filled(2), position, position, mode, 1.0).values, a.values)


def test_equal_numbers_pair_up_in_order():
    a, b = join_codes([filled(1), filled(2)]), join_codes([filled(3), filled(4)])
    mixed = mix(a, b, 31).values
    assert mixed[:, 0].tolist() == [1, 2]
    assert mixed[:, 31].tolist() == [3, 4]


def test_one_picture_on_either_side_serves_all():
    many = join_codes([filled(5), filled(6), filled(7)])
    assert mix(filled(1), many, 31).values[:, [0, 31]].tolist() == [[1, 5], [1, 6], [1, 7]]
    assert mix(many, filled(1), 31).values[:, [0, 31]].tolist() == [[5, 1], [6, 1], [7, 1]]


@pytest.mark.parametrize(("a", "b"), [(2, 3), (3, 2)])
def test_other_numbers_are_refused_with_both(a, b):
    with pytest.raises(CodesError, match=f"{a} pictures cannot be mixed with {b}"):
        mix(filled(1, a), filled(2, b))


@pytest.mark.parametrize(("a", "b"), [(0, 1), (1, 0), (0, 2)])
def test_a_side_without_a_picture_is_told_apart(a, b):
    """A reply that only talks has no picture; to ask for a single one would not help."""
    with pytest.raises(CodesError, match=rf"no picture \({a} and {b}\)"):
        mix(filled(1, a), filled(2, b))


@pytest.mark.parametrize("mode", ["splice", "random"])
def test_no_pictures_mix_to_none(mode):
    assert len(mix(filled(1, 0), filled(2, 0), mode=mode)) == 0


def test_the_ends_of_amount_take_nothing_and_everything():
    a, b = filled(1, 4), filled(2, 4)
    assert torch.equal(mix(a, b, mode="random", amount=0.0).values, a.values)
    assert torch.equal(mix(a, b, mode="random", amount=1.0).values, b.values)


def test_random_takes_about_the_amount_and_only_in_the_range():
    mixed = mix(filled(1, 200), filled(2, 200), 8, 24, "random", 0.25).values == 2
    assert not mixed[:, :8].any()
    assert not mixed[:, 24:].any()
    # 3200 draws: the standard error is 0.008, and the draws are fixed.
    assert abs(mixed[:, 8:24].float().mean() - 0.25) < 0.03


def test_a_row_depends_on_its_own_seed_alone():
    together = mix(filled(1, 3), filled(2), mode="random", number=40).values
    for i, row in enumerate(together):
        assert torch.equal(mix(filled(1), filled(2), mode="random", number=40 + i).values[0], row)
    assert not torch.equal(together[0], together[1])


def test_a_larger_amount_or_range_only_adds_positions():
    a, b = filled(1, 20), filled(2, 20)
    some = mix(a, b, 8, 24, "random", 0.3).values == 2
    assert (mix(a, b, 8, 24, "random", 0.6).values == 2)[some].all()
    assert (mix(a, b, 0, 32, "random", 0.3).values == 2)[some].all()


def test_the_first_seed_may_be_the_largest():
    assert len(mix(filled(1, 2), filled(2), mode="random", number=2**64 - 1)) == 2


def test_mixing_leaves_its_inputs_alone():
    a, b = filled(1), filled(2)
    mix(a, b)
    assert (a.values == 1).all()
    assert (b.values == 2).all()


@pytest.mark.parametrize(("start", "end"), [(-1, 4), (0, 33), (20, 10)])
def test_a_range_outside_the_picture_is_refused_with_both_numbers(start, end):
    with pytest.raises(OptionError, match=f"got {start} and {end}"):
        mix(filled(1), filled(2), start, end)


@pytest.mark.parametrize("amount", [-0.1, 1.1, float("nan")])
def test_an_amount_that_is_no_probability_is_refused(amount):
    with pytest.raises(OptionError, match="0..1"):
        mix(filled(1), filled(2), amount=amount)


def test_an_unknown_mode_is_refused_and_the_known_are_listed():
    with pytest.raises(OptionError, match="'blend'.*splice, random"):
        mix(filled(1), filled(2), mode="blend")


@pytest.mark.parametrize("other", [("seed-2", 8192), ("seed-mini", 256)])
def test_two_families_are_refused_with_both_names(other):
    a, b = filled(1), filled(2, 1, *other)
    with pytest.raises(CodesError, match=f"seed-mini codes .* and {other[0]} codes"):
        mix(a, b)
    with pytest.raises(CodesError, match=f"seed-mini codes .* and {other[0]} codes"):
        join_codes([a, a, b])


def test_joining_keeps_the_order_and_nothing_adds_nothing():
    joined = join_codes([filled(3, 2), filled(1, 0), filled(2)])
    assert joined.values[:, 0].tolist() == [3, 3, 2]
    assert len(join_codes([filled(1, 0), filled(1, 0)])) == 0


@pytest.mark.parametrize(
    ("index", "length", "wanted"),
    [(0, 1, [0]), (2, 1, [2]), (1, 2, [1, 2]), (0, 3, [0, 1, 2]), (-1, 1, [2]), (-3, 3, [0, 1, 2])],
)
def test_selecting_counts_from_either_end(index, length, wanted):
    codes = join_codes([filled(i) for i in range(3)])
    assert select_codes(codes, index, length).values[:, 0].tolist() == wanted


@pytest.mark.parametrize(("index", "length"), [(3, 1), (-4, 1), (2, 2), (-1, 2), (0, 4)])
def test_selecting_outside_is_refused_not_moved_inside(index, length):
    words = f"index {index} with length {length} reaches beyond a batch of 3"
    with pytest.raises(CodesError, match=words):
        select_codes(filled(1, 3), index, length)


def test_nothing_can_be_selected_from_codes_without_a_picture():
    with pytest.raises(CodesError, match="batch of 0 pictures"):
        select_codes(filled(1, 0), 0, 1)


def test_a_length_below_one_is_refused():
    with pytest.raises(OptionError, match="got 0"):
        select_codes(filled(1), 0, 0)


def test_distances_stay_with_their_pictures_and_leave_mixtures():
    """A mixture was never encoded from a picture, so its distance is unknown."""
    values = torch.zeros(2, 32, dtype=torch.int64)
    encoded = SeedCodes(values, "seed-mini", 512, torch.tensor([0.1, 0.2])[:, None].expand(2, 32))
    joined = join_codes([filled(1), encoded])
    assert joined.distances[:, 0].tolist() == pytest.approx([torch.nan, 0.1, 0.2], nan_ok=True)
    assert select_codes(joined, -1, 1).distances[0, 0] == pytest.approx(0.2)
    assert mix(encoded, encoded).distances.isnan().all()
