"""The picture of codes."""

import torch

from seed_core.code_picture import draw_codes


def cells(picture):
    """[H, W, 3] as 32 cells in reading order."""
    height, width = picture.shape[0] // 4, picture.shape[1] // 8
    grid = picture.reshape(4, height, 8, width, 3).permute(0, 2, 1, 3, 4)
    return grid.reshape(32, height, width, 3)


def test_one_picture_a_row_in_the_hosts_layout():
    pictures = draw_codes(torch.arange(64).view(2, 32))
    assert pictures.ndim == 4
    assert (pictures.shape[0], pictures.shape[3]) == (2, 3)
    assert pictures.dtype == torch.float32
    assert pictures.min() >= 0
    assert pictures.max() <= 1


def test_no_codes_give_no_picture():
    pictures = draw_codes(torch.empty(0, 32, dtype=torch.int64))
    assert pictures.shape[0] == 0
    assert pictures.shape[1:] == draw_codes(torch.zeros(1, 32, dtype=torch.int64)).shape[1:]


def test_equal_codes_look_equal_and_different_ones_differ():
    values = torch.arange(32)[None].repeat(2, 1)
    values[1, 5], values[1, 20] = 20, 77
    first, second = (cells(picture) for picture in draw_codes(values))
    same = [torch.equal(a, b) for a, b in zip(first, second, strict=True)]
    assert [i for i, equal in enumerate(same) if not equal] == [5, 20]
    assert torch.equal(second[5], first[20])


def test_numbers_are_legible_on_their_colour():
    """Every cell holds ink that stands out from its fill."""
    for cell in cells(draw_codes(torch.arange(32)[None] * 255)[0]):
        luminance = (cell * torch.tensor([0.299, 0.587, 0.114])).sum(-1)[4:-4, 4:-4]
        assert luminance.max() - luminance.min() > 0.3
