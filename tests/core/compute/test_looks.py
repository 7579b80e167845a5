"""Pictures of every mode and orientation become upright 8-bit RGB, as they look."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from seed_core.compute.looks import as_it_looks
from seed_core.errors import PictureError

WIDTH, HEIGHT = 24, 16


def fox() -> Image.Image:
    """A colourful picture without any symmetry."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    levels = np.stack([x * 10, y * 15, 255 - x * 5 - y * 5], axis=-1).clip(0, 255)
    levels[:4, :6] = [250, 20, 20]
    return Image.fromarray(levels.astype(np.uint8))


def grey16() -> np.ndarray:
    """16-bit levels over the whole range, with numbers that no 8-bit level stands for."""
    return (np.arange(WIDTH * HEIGHT).reshape(HEIGHT, WIDTH) * 170.7).astype(np.uint16)


def levels(picture: Image.Image) -> np.ndarray:
    assert picture.mode == "RGB"
    return np.asarray(picture).astype(int)


def reopened(picture: Image.Image, form: str, **options) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return Image.open(io.BytesIO(file.getvalue()))


def expected16(numbers: np.ndarray) -> np.ndarray:
    """What 16 bits look like in 8, in exact arithmetic."""
    return np.repeat(((numbers.astype(int) * 255 * 2 + 65535) // (2 * 65535))[..., None], 3, axis=2)


# --- 16 bits and more ---


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B"])
def test_16_bits_are_scaled_never_clipped(mode):
    order = ">u2" if mode == "I;16B" else "<u2"
    picture = Image.frombytes(mode, (WIDTH, HEIGHT), grey16().astype(order).tobytes())
    assert np.array_equal(levels(as_it_looks(picture)), expected16(grey16()))


@pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG2000"])
def test_a_16_bit_grey_file_looks_as_in_8_bits(form):
    options = {"irreversible": False} if form == "JPEG2000" else {}
    seen = levels(as_it_looks(reopened(Image.fromarray(grey16()), form, **options)))
    assert np.array_equal(seen, expected16(grey16()))


def test_a_pgm_of_any_depth_looks_as_in_8_bits():
    for top in (1000, 65535):
        numbers = (grey16().astype(int) * top // 65535).astype(">u2")
        content = f"P5 {WIDTH} {HEIGHT} {top}\n".encode() + numbers.tobytes()
        seen = levels(as_it_looks(Image.open(io.BytesIO(content))))
        assert abs(seen[..., 0] - numbers.astype(float) * 255 / top).max() <= 0.51


def tiff(order: str, photometric: int, bits: int, data: bytes, **tags: int) -> Image.Image:
    """A grey TIFF written by hand, in kinds that Pillow reads and does not write."""
    entries = {256: WIDTH, 257: HEIGHT, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1}
    entries |= {278: HEIGHT, 279: len(data), **{int(name[1:]): tag for name, tag in tags.items()}}
    text = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(data)) + data
    text += struct.pack(order + "H", len(entries))
    for tag, number in sorted(entries.items()):
        text += struct.pack(order + "HHII", tag, 4, 1, number)
    return Image.open(io.BytesIO(text + bytes(4)))


def test_a_16_bit_tiff_in_which_white_is_zero_is_no_negative():
    picture = tiff("<", 0, 16, (65535 - grey16()).astype("<u2").tobytes())
    assert np.array_equal(levels(as_it_looks(picture)), expected16(grey16()))


def test_a_12_bit_tiff_is_not_dark():
    white = tiff("<", 1, 12, b"\xff" * (WIDTH * HEIGHT * 3 // 2))
    assert levels(as_it_looks(white)).min() == 255


def test_a_16_bit_colour_png_looks_as_in_8_bits():
    import zlib

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels(fox()) * 257)

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0))
    text = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert np.array_equal(levels(as_it_looks(Image.open(io.BytesIO(text)))), levels(fox()))


@pytest.mark.parametrize(
    "numbers",
    [
        np.full((4, 4), 300, np.int32),
        np.full((4, 4), -1, np.int32),
        np.full((4, 4), 1, np.int32),
        np.full((4, 4), 0.5, np.float32),
        np.full((4, 4), 65535, np.float32),
        np.full((4, 4), np.nan, np.float32),
        np.full((4, 4), np.inf, np.float32),
    ],
    ids=lambda numbers: f"{numbers.dtype} {numbers[0, 0]}",
)
@pytest.mark.parametrize("is_file", [True, False])
def test_numbers_that_do_not_say_what_white_is_are_refused(numbers, is_file):
    picture = Image.fromarray(numbers)
    with pytest.raises(PictureError, match="do not say what white is; save it with 8 or 16 bits"):
        as_it_looks(reopened(picture, "TIFF") if is_file else picture)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_8_bits_kept_in_32_are_read(mode):
    grey = fox().convert("L")
    assert np.array_equal(levels(as_it_looks(grey.convert(mode))), levels(grey.convert("RGB")))


def test_signed_16_bits_are_refused():
    with pytest.raises(PictureError, match="numbers of 32 bits from -22016 to 25343"):
        as_it_looks(tiff("<", 1, 16, grey16().tobytes()[::-1], t339=2))


# --- modes ---


def see_through(alpha: int = 0) -> Image.Image:
    picture = fox()
    picture.putalpha(Image.linear_gradient("L").resize(picture.size).point(lambda a: max(a, alpha)))
    return picture


def test_colours_under_transparent_pixels_are_kept():
    assert np.array_equal(levels(as_it_looks(see_through())), levels(fox()))
    assert np.array_equal(levels(as_it_looks(reopened(see_through(), "PNG"))), levels(fox()))
    exact = reopened(see_through(), "WEBP", lossless=True, exact=True)
    assert np.array_equal(levels(as_it_looks(exact)), levels(fox()))


def test_colours_multiplied_by_their_transparency_are_divided_again():
    multiplied = see_through(100).convert("RGBa")
    assert abs(levels(as_it_looks(multiplied)) - levels(fox())).max() <= 2
    grey = see_through(100).convert("LA")
    expected = levels(grey.convert("RGB"))
    assert abs(levels(as_it_looks(grey.convert("La"))) - expected).max() <= 2


@pytest.mark.parametrize("transparency", [0, 3, bytes([0, 128, 255])])
def test_palettes_keep_their_colours_whatever_is_transparent(transparency):
    palette = fox().convert("P", palette=Image.Palette.ADAPTIVE)
    picture = reopened(palette, "PNG", transparency=transparency)
    assert "transparency" in picture.info
    assert np.array_equal(levels(as_it_looks(picture)), levels(palette.convert("RGB")))


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
@pytest.mark.parametrize("level", [0, 200, 65535])
def test_one_transparent_colour_changes_no_other(mode, level):
    picture = fox().convert(mode)
    named = (level,) * 3 if mode == "RGB" else level
    seen = as_it_looks(reopened(picture, "PNG", transparency=named))
    assert np.array_equal(levels(seen), levels(picture.convert("RGB")))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "PA", "RGBX", "CMYK", "HSV", "YCbCr"])
def test_other_modes_look_as_pillow_shows_them(mode):
    picture = fox().convert(mode)
    shown = levels(picture.convert("RGB"))
    assert np.array_equal(levels(as_it_looks(picture)), shown)
    if mode not in ("1", "L", "LA", "PA"):  # of these PA has few colours, the others none
        assert abs(shown - levels(fox())).mean() < 4


def test_lab_has_the_colours_it_names():
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    picture = ImageCms.applyTransform(fox(), ImageCms.buildTransform(srgb, lab, "RGB", "LAB"))
    assert abs(levels(as_it_looks(reopened(picture, "TIFF"))) - levels(fox())).mean() < 2


def test_a_print_jpeg_of_adobe_is_no_negative():
    picture = reopened(fox().convert("CMYK"), "JPEG", quality=95, subsampling=0)
    assert picture.mode == "CMYK"
    assert picture.info["adobe"]
    assert abs(levels(as_it_looks(picture)) - levels(fox())).mean() < 3


def test_transparency_can_be_kept():
    seen = as_it_looks(see_through().convert("RGBa"), "RGBA")
    assert seen.mode == "RGBA"
    assert np.array_equal(
        np.asarray(seen.getchannel("A")), np.asarray(see_through().getchannel("A"))
    )
    assert as_it_looks(fox(), "RGBA").getchannel("A").getextrema() == (255, 255)


# --- upright ---

# What an upright picture has to be turned by to be stored so.
STORED = {
    1: lambda picture: picture,
    2: ImageOps.mirror,
    3: lambda picture: picture.rotate(180),
    4: ImageOps.flip,
    5: lambda picture: ImageOps.mirror(picture).rotate(90, expand=True),
    6: lambda picture: picture.rotate(90, expand=True),
    7: lambda picture: ImageOps.mirror(picture).rotate(-90, expand=True),
    8: lambda picture: picture.rotate(-90, expand=True),
}


def stored(number: int) -> tuple[Image.Image, Image.Exif]:
    exif = Image.Exif()
    exif[274] = number
    return STORED[number](fox()), exif


@pytest.mark.parametrize("number", STORED)
@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("JPEG", {"quality": 100, "subsampling": 0}),
        ("MPO", {"quality": 100, "subsampling": 0}),
    ],
    ids=["png", "webp", "tiff", "packed tiff", "jpeg", "mpo"],
)
def test_a_phone_photo_stands_upright(number, form, options):
    picture, exif = stored(number)
    seen = levels(as_it_looks(reopened(picture, form, exif=exif, **options)))
    assert seen.shape == (HEIGHT, WIDTH, 3)
    assert abs(seen - levels(fox())).max() <= (24 if form in ("JPEG", "MPO") else 0)


@pytest.mark.skipif("AVIF" not in Image.registered_extensions().values(), reason="an old Pillow")
def test_an_avif_stands_upright():
    picture, exif = stored(6)
    seen = levels(as_it_looks(reopened(picture, "AVIF", exif=exif, quality=100)))
    assert abs(seen - levels(fox())).mean() < 6


def test_what_stands_upright_is_not_turned_again():
    picture, exif = stored(6)
    seen = as_it_looks(reopened(picture, "PNG", exif=exif))
    assert np.array_equal(levels(as_it_looks(seen)), levels(fox()))
    turned = ImageOps.exif_transpose(reopened(picture, "PNG", exif=exif))
    assert np.array_equal(levels(as_it_looks(turned)), levels(fox()))


def test_orientation_beside_16_bits_and_palettes():
    exif = Image.Exif()
    exif[274] = 3
    grey = Image.fromarray(grey16()[::-1, ::-1].copy())
    assert np.array_equal(
        levels(as_it_looks(reopened(grey, "PNG", exif=exif))), expected16(grey16())
    )
    palette = fox().convert("P", palette=Image.Palette.ADAPTIVE)
    seen = as_it_looks(reopened(palette.rotate(180), "PNG", exif=exif, transparency=1))
    assert np.array_equal(levels(seen), levels(palette.convert("RGB")))


@pytest.mark.parametrize("number", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(number):
    exif = Image.Exif()
    exif[274] = number
    assert np.array_equal(levels(as_it_looks(reopened(fox(), "PNG", exif=exif))), levels(fox()))


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0nonsense",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 30,
        b"Exif\0\0II*\0\xff\xff\xff\x7f",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x03ab\0\0\0\0\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x0c\0\x01\0\0\0\xff\xff\xff\xff\0\0\0\0",
    ],
    ids=["empty", "nonsense", "many tags", "far away", "of letters", "a number far away"],
)
@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_picture_with_damaged_exif_is_read_as_it_lies(exif, form):
    options = {"PNG": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    seen = levels(as_it_looks(reopened(fox(), form, exif=exif, **options[form])))
    assert abs(seen - levels(fox())).max() <= (24 if form == "JPEG" else 0)


# --- refused ---


def test_what_pillow_raises_is_a_picture_error(monkeypatch):
    for error, words in (
        (SyntaxError("broken PNG file"), r"damaged or not whole \(broken PNG file\)"),
        (struct.error("unpack requires 4 bytes"), "damaged or not whole"),
        (EOFError(), r"\(EOFError\)"),
        (OSError("image file is truncated"), "is truncated"),
        (MemoryError(), "too little memory"),
        (Image.DecompressionBombError("Image size"), "more than 178,956,970 pixels"),
    ):

        class Broken(Image.Image):
            def load(self, error=error):
                raise error

        with pytest.raises(PictureError, match=words):
            as_it_looks(Broken())


def test_what_the_system_refuses_stays_its_error():
    class OnALostDisk(Image.Image):
        def load(self):
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error") as caught:
        as_it_looks(OnALostDisk())
    assert not isinstance(caught.value, PictureError)
