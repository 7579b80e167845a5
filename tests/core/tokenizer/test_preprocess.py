"""Preprocessing: any picture becomes the square the tower expects, or one clear error."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from seed_core.errors import OptionError, PictureError
from seed_core.tokenizer.preprocess import CLIP_MEAN, CLIP_STD, FITS, preprocess

SIZE = 32
MEAN = torch.tensor(CLIP_MEAN).view(3, 1, 1)
STD = torch.tensor(CLIP_STD).view(3, 1, 1)


def levels(pixels):
    """Undo the normalisation: 8-bit levels [3, S, S] of one picture."""
    return ((pixels * STD + MEAN) * 255).round()


@pytest.fixture
def photo(make_generator):
    """A 60 x 40 picture whose every pixel differs."""
    values = torch.randint(0, 256, (40, 60, 3), generator=make_generator(1), dtype=torch.uint8)
    return Image.fromarray(values.numpy())


def test_the_fits_are_the_contract():
    assert FITS == ("stretch", "crop", "pad")


def test_stretch_is_pillows_bilinear_squash_bit_for_bit(photo):
    resized = photo.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    scaled = np.asarray(resized, dtype=np.float32) / 255
    expected = (scaled - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)
    pixels = preprocess([photo], SIZE)
    assert pixels.dtype == torch.float32
    assert pixels[0].permute(1, 2, 0).numpy().tobytes() == expected.astype(np.float32).tobytes()


@pytest.mark.parametrize("fit", FITS)
def test_float_batch_equals_the_picture_path(photo, fit):
    batch = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None].float() / 255
    assert torch.equal(preprocess(batch, SIZE, fit), preprocess([photo], SIZE, fit))


@pytest.mark.parametrize("fit", FITS)
def test_rows_do_not_depend_on_their_neighbours(photo, fit):
    other = photo.rotate(90, expand=True)
    both = preprocess([photo, other], SIZE, fit)
    assert torch.equal(both[:1], preprocess([photo], SIZE, fit))
    assert torch.equal(both[1:], preprocess([other], SIZE, fit))


def halves(left, right, width, height):
    picture = Image.new("RGB", (width, height), left)
    picture.paste(right, (width // 2, 0, width, height))
    return picture


def test_crop_keeps_the_centre_and_the_aspect_ratio():
    """A wide picture with red ends: the centre square is all blue."""
    picture = Image.new("RGB", (300, 100), "red")
    picture.paste("blue", (90, 0, 210, 100))
    square = levels(preprocess([picture], SIZE, "crop")[0])
    assert torch.equal(square, torch.tensor([0.0, 0.0, 255.0]).view(3, 1, 1).expand_as(square))


def test_pad_keeps_all_of_the_picture_between_black_bars():
    square = levels(preprocess([halves("red", "blue", 64, 32)], SIZE, "pad")[0])
    assert torch.equal(square[:, :8], torch.zeros(3, 8, SIZE))
    assert torch.equal(square[:, 24:], torch.zeros(3, 8, SIZE))
    assert square[:, 16, 2].tolist() == [255, 0, 0]
    assert square[:, 16, SIZE - 3].tolist() == [0, 0, 255]


@pytest.mark.parametrize("fit", FITS)
def test_a_square_picture_of_the_right_size_is_not_resampled(fit, make_generator):
    values = torch.randint(0, 256, (SIZE, SIZE, 3), generator=make_generator(2), dtype=torch.uint8)
    pixels = preprocess([Image.fromarray(values.numpy())], SIZE, fit)
    assert torch.equal(levels(pixels[0]), values.permute(2, 0, 1).float())


def test_transparency_is_dropped_not_blended(photo):
    see_through = photo.copy()
    see_through.putalpha(7)
    assert torch.equal(preprocess([see_through], SIZE), preprocess([photo], SIZE))


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "CMYK", "I;16", "F"])
def test_pictures_of_any_mode_work(photo, mode):
    picture = photo.convert("L").convert(mode) if mode != "P" else photo.convert("P")
    pixels = preprocess([picture], SIZE)
    assert pixels.shape == (1, 3, SIZE, SIZE)
    assert pixels.isfinite().all()


def test_16_bits_are_scaled_not_clipped(photo):
    grey = photo.convert("L")
    deep = Image.fromarray(np.array(grey).astype(np.uint16) * 257)
    assert torch.equal(preprocess([deep], SIZE), preprocess([grey], SIZE))


def test_pictures_are_turned_upright_once(photo):
    """Whoever has turned them already loses nothing."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[274] = 6
    photo.transpose(Image.Transpose.ROTATE_90).save(file, "PNG", exif=exif)
    expected = preprocess([photo], SIZE)
    assert torch.equal(preprocess([Image.open(file)], SIZE), expected)
    assert torch.equal(preprocess([ImageOps.exif_transpose(Image.open(file))], SIZE), expected)


def test_a_damaged_picture_is_our_error(photo):
    file = io.BytesIO()
    photo.save(file, "PNG")
    cut = Image.open(io.BytesIO(file.getvalue()[:-900]))
    with pytest.raises(PictureError, match="damaged or not whole"):
        preprocess([cut], SIZE)


@pytest.mark.parametrize("fit", FITS)
def test_a_side_so_long_that_its_filter_would_fill_the_memory_is_refused(fit):
    """A hundred million pixels of one bit are a small file."""
    for picture in (Image.new("1", (100_000_000, 1)), torch.zeros(1, 3, 1, 1_000_001)):
        with pytest.raises(PictureError, match="0,00[01] x 1 pixels is too long; .* 1,000,000"):
            preprocess(picture if isinstance(picture, torch.Tensor) else [picture], SIZE, fit)


def test_grey_pictures_have_three_equal_channels(photo):
    square = levels(preprocess([photo.convert("L")], SIZE)[0])
    assert torch.equal(square[0], square[1])
    assert torch.equal(square[0], square[2])


def test_grey_and_rgba_batches(photo):
    rgb = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None].float() / 255
    rgba = torch.cat((rgb, torch.full_like(rgb[:, :1], 0.2)), dim=1)
    assert torch.equal(preprocess(rgba, SIZE), preprocess(rgb, SIZE))
    grey = rgb[:, :1]
    assert torch.equal(preprocess(grey, SIZE), preprocess(grey.expand(-1, 3, -1, -1), SIZE))


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(1, 1), (1, 7680), (7680, 1), (2, 3)])
def test_tiny_and_thread_like_pictures_work(size, fit):
    pixels = preprocess([Image.new("RGB", size, "white")], SIZE, fit)
    assert pixels.shape == (1, 3, SIZE, SIZE)
    assert levels(pixels[0]).max() == 255


@pytest.mark.parametrize("fit", FITS)
def test_an_8k_picture_works(fit):
    square = levels(preprocess([halves("red", "blue", 7680, 4320)], SIZE, fit)[0])
    assert square[:, 16, 1].tolist() == [255, 0, 0]
    assert square[:, 16, SIZE - 2].tolist() == [0, 0, 255]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused(bad):
    batch = torch.zeros(2, 3, 8, 8)
    batch[1, 2, 3, 4] = bad
    with pytest.raises(PictureError, match="not finite"):
        preprocess(batch, SIZE)


def test_floats_beyond_the_range_are_clamped():
    wild = torch.tensor([-3.0, 9.0]).view(2, 1, 1, 1).expand(2, 3, 8, 8)
    tame = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 8, 8)
    assert torch.equal(preprocess(wild, SIZE), preprocess(tame, SIZE))


@pytest.mark.parametrize(
    "shape", [(3, 8, 8), (1, 8, 8, 3), (1, 2, 8, 8), (1, 3, 0, 8), (1, 3, 8, 0)]
)
def test_tensors_that_are_no_pictures_are_refused_with_their_shape(shape):
    with pytest.raises(PictureError, match=str(list(shape))[1:-1]):
        preprocess(torch.zeros(shape), SIZE)


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_an_empty_picture_is_refused(size):
    with pytest.raises(PictureError, match="no content"):
        preprocess([Image.new("RGB", size)], SIZE)


def test_no_picture_gives_no_row():
    assert preprocess([], SIZE).shape == (0, 3, SIZE, SIZE)
    assert preprocess(torch.zeros(0, 3, 8, 8), SIZE).shape == (0, 3, SIZE, SIZE)


def test_an_unknown_fit_is_refused_and_the_known_are_listed(photo):
    with pytest.raises(OptionError, match="stretch, crop, pad; got 'squash'"):
        preprocess([photo], SIZE, "squash")


def test_the_caller_keeps_its_tensor(photo):
    batch = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(3))
    before = batch.clone()
    preprocess(batch, SIZE)
    assert torch.equal(batch, before)
