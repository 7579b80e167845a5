"""Codes: what is legal, what is refused and in which words."""

import pytest
import torch

from seed_core.codes.value import CODEBOOK_SIZES, NUM_CODES, SeedCodes
from seed_core.errors import CodesError, SeedError


@pytest.fixture
def codes(generator):
    return SeedCodes(torch.randint(0, 512, (3, 32), generator=generator), "seed-mini", 512)


def test_the_published_numbers():
    assert NUM_CODES == 32
    assert CODEBOOK_SIZES == {"seed-1": 8192, "seed-2": 8192, "seed-mini": 512}


def test_text_is_one_line_a_picture(codes):
    lines = codes.to_text().split("\n")
    assert len(lines) == 3
    first = [int(code) for code in codes.values[0]]
    assert lines[0] == "<img>" + "".join(f"<img_{code:05d}>" for code in first) + "</img>"


def test_text_of_no_picture_is_empty():
    assert SeedCodes.empty("seed-2", 8192).to_text() == ""


def test_any_integer_dtype_becomes_int64():
    codes = SeedCodes(torch.zeros(2, 32, dtype=torch.int16), "seed-2", 8192)
    assert codes.values.dtype == torch.int64
    assert len(codes) == 2


@pytest.mark.parametrize("value", [0, 8191])
def test_both_ends_of_the_range_are_legal(value):
    assert len(SeedCodes(torch.full((1, 32), value), "seed-2", 8192)) == 1


@pytest.mark.parametrize(("value", "row", "position"), [(8200, 0, 3), (-1, 1, 31), (8192, 1, 0)])
def test_code_out_of_range_is_named_with_row_and_position(value, row, position):
    values = torch.zeros(2, 32, dtype=torch.int64)
    values[row, position] = value
    with pytest.raises(CodesError) as caught:
        SeedCodes(values, "seed-2", 8192)
    assert str(caught.value) == (
        f"codes must lie in 0..8191; got {value} at row {row}, position {position}"
    )


def test_the_first_of_many_wrong_codes_is_named():
    values = torch.full((2, 32), 600)
    values[0, :5] = 0
    with pytest.raises(CodesError, match="got 600 at row 0, position 5"):
        SeedCodes(values, "seed-mini", 512)


@pytest.mark.parametrize("shape", [(1, 31), (1, 33), (31,), (2, 3, 32), (0, 31), ()])
def test_another_number_of_codes_is_refused(shape):
    with pytest.raises(CodesError, match="exactly 32 codes"):
        SeedCodes(torch.zeros(shape, dtype=torch.int64), "seed-2", 8192)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
def test_codes_that_are_no_integers_are_refused(dtype):
    with pytest.raises(CodesError, match="must be integers"):
        SeedCodes(torch.zeros(1, 32, dtype=dtype), "seed-2", 8192)


def test_unknown_family_is_refused_and_the_known_are_listed():
    with pytest.raises(CodesError, match="'seed-x'.*seed-1, seed-2, seed-mini"):
        SeedCodes.empty("seed-x", 8192)


def test_codes_of_another_family_are_refused_with_both_names(codes):
    with pytest.raises(CodesError) as caught:
        codes.require("seed-2", 8192, "This tokenizer")
    assert "This tokenizer" in str(caught.value)
    assert "seed-2" in str(caught.value)
    assert "seed-mini" in str(caught.value)


def test_codes_of_the_right_family_pass(codes):
    assert codes.require("seed-mini", 512, "This tokenizer") is codes.values


def test_codes_are_frozen(codes):
    with pytest.raises(AttributeError):
        codes.family = "seed-2"


@pytest.mark.parametrize("value", [-1, 0, 8193, 10**30])
def test_a_codebook_that_the_family_does_not_have_is_refused_with_both_sizes(value):
    with pytest.raises(CodesError, match=f"seed-2 has 8192.*{value}"):
        SeedCodes(torch.zeros(1, 32, dtype=torch.int64), "seed-2", value)


def test_every_error_is_a_seed_error_and_a_value_error():
    assert issubclass(CodesError, SeedError)
    assert issubclass(CodesError, ValueError)


def test_distances_are_nan_where_no_picture_was_encoded():
    codes = SeedCodes(torch.zeros(2, 32, dtype=torch.int64), "seed-mini", 512)
    assert codes.distances.shape == (2, 32)
    assert codes.distances.isnan().all()
    assert SeedCodes.empty("seed-mini", 512).distances.shape == (0, 32)


def test_distances_of_another_shape_are_refused():
    with pytest.raises(CodesError, match=r"\[1, 32\].*\[32\]"):
        SeedCodes(torch.zeros(1, 32, dtype=torch.int64), "seed-mini", 512, torch.zeros(32))


@pytest.mark.parametrize("distance", [-0.1, -torch.inf, torch.inf])
def test_a_distance_that_cannot_be_is_refused(distance):
    distances = torch.zeros(1, 32)
    distances[0, 31] = distance
    with pytest.raises(CodesError, match="0 or more"):
        SeedCodes(torch.zeros(1, 32, dtype=torch.int64), "seed-mini", 512, distances)
    with pytest.raises(CodesError, match="0 or more"):
        SeedCodes(torch.zeros(1, 32, dtype=torch.int64), "seed-mini", 512, torch.ones(1, 32).int())


def test_one_known_distance_is_worth_keeping(codes):
    assert not codes.has_distances
    assert not SeedCodes.empty("seed-mini", 512).has_distances
    distances = codes.distances.clone()
    distances[2, 7] = 0.0
    assert SeedCodes(codes.values, codes.family, codes.codebook_size, distances).has_distances
