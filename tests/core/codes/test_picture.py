"""The picture of codes: what it shows, and to eyes that see no colours."""

import pytest
import torch

from seed_core import SeedCodes
from seed_core.codes.picture import (
    CELL,
    CELL_WIDTH,
    FLAT_CELL,
    MOST_TOGETHER,
    ROWS,
    band_height,
    draw_codes,
    draw_comparison,
    draw_together,
)
from seed_core.errors import CodesError

GREY = torch.tensor([0.299, 0.587, 0.114])


def codes_of(values, distances=None, family="seed-2"):
    size = {"seed-2": 8192, "seed-mini": 512}[family]
    return SeedCodes(values, family, size, distances)


def cells(picture):
    """The grid of [H, W, 3] as 32 cells in reading order."""
    grid = picture[: ROWS * CELL.height].reshape(ROWS, CELL.height, 8, CELL_WIDTH, 3)
    return grid.permute(0, 2, 1, 3, 4).reshape(32, CELL.height, CELL_WIDTH, 3)


def footer(picture):
    return picture[ROWS * CELL.height :]


def test_one_picture_a_row_in_the_hosts_layout():
    pictures = draw_codes(codes_of(torch.arange(64).view(2, 32)))
    assert pictures.ndim == 4
    assert (pictures.shape[0], pictures.shape[3]) == (2, 3)
    assert pictures.dtype == torch.float32
    assert pictures.min() >= 0
    assert pictures.max() <= 1


def test_no_codes_give_no_picture():
    pictures = draw_codes(SeedCodes.empty("seed-2", 8192))
    assert pictures.shape[0] == 0
    assert pictures.shape[1:] == draw_codes(codes_of(torch.arange(32))).shape[1:]


def signs(values):
    """What the cells show above their numbers, in shades of grey."""
    pictures = draw_codes(codes_of(values))
    return torch.cat([cells(picture) for picture in pictures])[:, 4:56, 4:-4] @ GREY


def test_every_code_has_a_sign_of_its_own_without_colour_and_number():
    """8192 signs, compared by where there is ink: no eye for colours is needed."""
    shapes = signs(torch.arange(8192).view(-1, 32)) > 0.2
    assert len({shape.numpy().tobytes() for shape in shapes}) == 8192


def test_every_sign_can_be_seen():
    """Ink in a part of the cell, of a lightness that stands out from its ground."""
    grey = signs(torch.arange(8192).view(-1, 32))
    ink = grey > 0.2
    share = ink.float().mean((1, 2))
    assert (share > 0.15).all()
    assert (share < 0.75).all()
    darkest = torch.where(ink, grey, 1.0).amin((1, 2))
    lightest = torch.where(ink, 0.0, grey).amax((1, 2))
    assert (darkest - lightest > 0.2).all()


def test_a_cell_depends_on_its_code_alone():
    values = torch.arange(32).repeat(2, 1)
    values[1, 5] = 77
    first, second = (cells(draw_codes(codes_of(row))[0]) for row in values)
    same = [torch.equal(a, b) for a, b in zip(first, second, strict=True)]
    assert [i for i, equal in enumerate(same) if not equal] == [5]
    (flipped,) = draw_codes(codes_of(values[0].flip(0)))
    assert torch.equal(cells(flipped), first.flip(0))


def test_codes_that_pictures_share_are_framed_in_each_of_them():
    """In the same place only: the same code elsewhere says something else."""
    values = torch.arange(32).repeat(3, 1)
    values[1, :16] = values[1, :16].flip(0)
    values[2] += 100
    batch = draw_codes(codes_of(values))
    for row, shared in enumerate((16, 16, 0)):
        (alone,) = draw_codes(codes_of(values[row]))
        pairs = zip(cells(batch[row]), cells(alone), strict=True)
        framed = [not torch.equal(a, b) for a, b in pairs]
        assert framed == [False] * (32 - shared) + [True] * shared
        assert not torch.equal(footer(batch[row]), footer(alone))


@pytest.mark.parametrize("family", ["seed-2", "seed-mini"])
def test_distances_change_what_is_said(family):
    """Three kinds of origin: known, unlike anything known, no picture at all."""
    values = torch.arange(32)[None]
    distances = [torch.full((1, 32), value) for value in (0.1, 0.4, torch.nan)]
    said = [footer(draw_codes(codes_of(values, each, family))[0]) for each in distances]
    for i, j in ((0, 1), (1, 2), (0, 2)):
        assert not torch.equal(said[i], said[j])


def test_a_longer_bar_is_a_greater_distance():
    """Up to twice what is familiar; none for codes that were not made from a picture."""
    distances = torch.full((1, 32), torch.nan)
    distances[0, :5] = torch.tensor([1e-6, 0.1, 0.2, 0.4, 9.0])
    with_bars = cells(draw_codes(codes_of(torch.zeros(1, 32).long(), distances, "seed-mini"))[0])
    plain = with_bars[-1]
    bars = [int((cell != plain).any(-1).sum()) for cell in with_bars]
    assert 0 < bars[0] < bars[1] < bars[2] < bars[3] < bars[4] <= 48 * 3
    assert set(bars[5:]) == {0}


def test_of_very_many_pictures_the_first_are_drawn_as_in_the_whole_batch(peak_memory):
    values = torch.arange(20_000 * 32).view(20_000, 32) % 8192
    values[0] = values[-1]  # which is not drawn, and shared
    codes = codes_of(values)
    pictures = draw_codes(codes, 2)
    assert len(pictures) == 2
    alone = draw_codes(codes_of(values[:2]))
    framed = (cells(pictures[0]) - cells(alone[0])).abs().amax((1, 2, 3)) > 0.1
    assert framed.all()
    assert peak_memory(lambda: draw_codes(codes, 2)) < 2**28


# --- several rows in one picture ---

NAMES = ("upper", "lower")
WHITE = torch.ones(3)


def grids(picture, rows):
    """A picture of several rows as cells [rows, 32, H, W, 3]."""
    bands = picture[: ROWS * band_height(rows)].reshape(ROWS, band_height(rows), 8, CELL_WIDTH, 3)
    bands = bands[:, : rows * FLAT_CELL.height]
    cut = bands.reshape(ROWS, rows, FLAT_CELL.height, 8, CELL_WIDTH, 3)
    return cut.permute(1, 0, 3, 2, 4, 5).reshape(rows, 32, FLAT_CELL.height, CELL_WIDTH, 3)


def framed(picture, rows=2):
    """Whether each cell has white along its left edge, from end to end but for the corners."""
    edge = grids(picture, rows)[:, :, 4:-4, 2]
    return (edge == WHITE).all(-1).all(-1).tolist()


def two_that_share(count):
    """Two pictures with so many first codes in common."""
    values = torch.arange(64).view(2, 32)
    values[1, :count] = values[0, :count]
    return codes_of(values[:1]), codes_of(values[1:])


@pytest.mark.parametrize("count", [0, 1, 12, 32])
def test_a_comparison_is_one_picture_that_frames_what_is_equal(count):
    pictures = draw_comparison(*two_that_share(count), NAMES)
    assert len(pictures) == 1
    assert framed(pictures[0]) == [[True] * count + [False] * (32 - count)] * 2


def test_a_comparison_shows_the_codes_of_both_one_above_the_other():
    upper, lower = two_that_share(0)
    cells_of_both = grids(draw_comparison(upper, lower, NAMES)[0], 2)
    swapped = grids(draw_comparison(lower, upper, NAMES)[0], 2)
    assert torch.equal(cells_of_both, swapped.flip(0))
    assert len({cell.numpy().tobytes() for cell in cells_of_both.flatten(0, 1)}) == 64


def test_a_frame_holds_both_and_nothing_parts_them():
    """Between two equal codes there is no line of the frame, between two others no frame at all."""
    (picture,) = draw_comparison(*two_that_share(32), NAMES)
    seam = grids(picture, 2)[:, :, :, CELL_WIDTH // 2]
    assert not (seam[0, :, -3:] == WHITE).all(-1).any()
    assert not (seam[1, :, :3] == WHITE).all(-1).any()


@pytest.mark.parametrize("is_above", [True, False], ids=["above", "below"])
def test_one_picture_is_compared_with_all(is_above):
    one, many = codes_of(torch.arange(32)[None]), codes_of(torch.arange(96).view(3, 32))
    given = (one, many) if is_above else (many, one)
    pictures = draw_comparison(*given, NAMES)
    assert [sum(framed(picture)[0]) for picture in pictures] == [32, 0, 0]


def test_as_many_are_compared_one_by_one():
    values = torch.arange(64).view(2, 32)
    pictures = draw_comparison(codes_of(values), codes_of(values.flip(0)), NAMES)
    assert [sum(framed(picture)[0]) for picture in pictures] == [0, 0]
    assert len(draw_comparison(codes_of(values), codes_of(values), NAMES, most=1)) == 1


def test_what_cannot_be_compared_is_one_clear_error():
    two, three = (codes_of(torch.zeros(count, 32).long()) for count in (2, 3))
    with pytest.raises(CodesError, match="2 pictures cannot be compared with 3: give both"):
        draw_comparison(two, three, NAMES)
    mini = codes_of(torch.zeros(2, 32).long(), family="seed-mini")
    with pytest.raises(CodesError, match="seed-2 codes .* and seed-mini codes"):
        draw_comparison(two, mini, NAMES)


@pytest.mark.parametrize("count", range(2, MOST_TOGETHER + 1))
def test_a_small_batch_is_one_picture(count):
    values = torch.arange(count * 32).view(count, 32)
    values[-1, 5] = values[0, 5]
    pictures = draw_together(codes_of(values))
    assert len(pictures) == 1
    shared = framed(pictures[0], count)
    assert [row[5] for row in shared] == [True] + [False] * (count - 2) + [True]
    assert sum(map(sum, shared)) == 2


@pytest.mark.parametrize("count", [0, 1, MOST_TOGETHER + 1])
def test_a_single_picture_and_a_large_batch_are_one_picture_each(count):
    codes = codes_of(torch.arange(count * 32).view(count, 32))
    assert torch.equal(draw_together(codes), draw_codes(codes))


def test_numbers_can_be_read_where_a_node_shows_two_rows():
    """In a node 340 wide with 380 pixels for its picture, digits are 8 pixels high or more."""
    height, width = draw_comparison(*two_that_share(0), NAMES).shape[1:3]
    scale = min(340 / width, 380 / height)
    assert FLAT_CELL.number_size * 0.7 * scale >= 8


def test_signs_stay_apart_in_flat_cells():
    """All 8192, compared by where there is ink."""
    values = torch.arange(8192).view(-1, 32)
    pictures = draw_comparison(codes_of(values[:128]), codes_of(values[128:]), NAMES, 128)
    number = FLAT_CELL.number - FLAT_CELL.number_size // 2
    shapes = (
        torch.cat([grids(p, 2).flatten(0, 1)[:, 4:number, 4:-4] @ GREY for p in pictures]) > 0.2
    )
    assert len({shape.numpy().tobytes() for shape in shapes}) == 8192
