"""Pictures in memory, of any mode: turned upright, in 8 bits, as they look."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
from PIL import Image

from ..errors import PictureError, SeedError, in_one_line

Mode = Literal["RGB", "RGBA"]

_ORIENTATION = 274  # the tag of EXIF and of TIFF
_TURNS: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Tags of TIFF that tell how a number looks.
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0

_16_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
# Formats whose numbers Pillow scales to 16 bits although it keeps them in 32.
_16_BITS_IN_32 = ("PNG", "PPM")
# Modes without a way to RGB of their own, and the mode between.
_BETWEEN = {"La": "LA", "RGBa": "RGBA", "PA": "RGBA"}
_32_BITS = ("I", "F")


def as_it_looks(picture: Image.Image, mode: Mode = "RGB") -> Image.Image:
    """Return a picture as a person sees it: upright, and in 8 bits.

    It is turned by its EXIF orientation. 16 bits become 8. RGB keeps the colours under
    transparent pixels, as the reference and ComfyUI's Load Image do.

    Args:
        picture: in any mode; may be its current frame of several, or not loaded yet.
        mode: RGBA keeps the transparency.

    Raises:
        PictureError: it is damaged or too large, or its numbers do not say what white is.
    """
    with in_our_words():
        picture.load()
        turn = _TURNS.get(orientation(picture))
        picture = _in_8_bits(picture, mode)
        if turn is None:
            return picture
        picture = picture.transpose(turn)
        picture.info.clear()  # it would be turned again
        return picture


def orientation(picture: Image.Image) -> object:
    """Return the orientation that a loaded picture states; None if its EXIF data is damaged."""
    try:
        if data := picture.info.get("exif"):
            Image.Exif().load(data)  # raises what `getexif` keeps silent about if asked again
        return picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - damaged data makes Pillow raise almost anything
        return None


@contextmanager
def in_our_words() -> Iterator[None]:
    """Turn what Pillow raises into a `PictureError`; what the system refuses stays an `OSError`."""
    try:
        yield
    except SeedError:
        raise
    except MemoryError as error:
        raise PictureError("there is too little memory for it at the moment") from error
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise PictureError(
            f"it has more than {most:,} pixels, the most that is read; make it smaller"
        ) from error
    except Exception as error:  # a damaged file makes Pillow's readers raise almost anything
        if isinstance(error, OSError) and error.errno is not None:
            raise
        why = in_one_line(str(error)[:200]) or type(error).__name__  # may quote the file
        raise PictureError(
            f"it is damaged or not whole ({why}); get it again, or save it again"
        ) from error


def _in_8_bits(picture: Image.Image, mode: Mode) -> Image.Image:
    if picture.mode in _16_BITS or (picture.mode == "I" and picture.format in _16_BITS_IN_32):
        picture = _from_16_bits(picture)
    if picture.mode in _32_BITS:
        picture = _from_32_bits(picture)
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    elif picture.mode in _BETWEEN:
        picture = picture.convert(_BETWEEN[picture.mode])
    return picture if picture.mode == mode else picture.convert(mode)


def _from_16_bits(picture: Image.Image) -> Image.Image:
    """Return a grey picture of 16 bits in 8."""
    tags = getattr(picture, "tag_v2", {})  # of a TIFF; Pillow leaves these two to us
    top = 2 ** min(tags.get(_BITS, (16,))[0], 16) - 1
    levels = np.arange(2**16, dtype=np.float64).clip(max=top) * (255 / top)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        levels = 255 - levels
    numbers = np.asarray(picture)
    if picture.mode == "I":
        numbers = numbers.clip(0, top)
    return Image.fromarray(np.floor(levels + 0.5).astype(np.uint8)[numbers])


def _from_32_bits(picture: Image.Image) -> Image.Image:
    """Return a picture whose numbers can only be meant as 8 bits; others have no known scale."""
    low, high = picture.getextrema()
    levels = picture.convert("L")
    if not np.array_equal(np.asarray(picture), np.asarray(levels)) or high == 1:
        raise PictureError(
            f"its pixels are numbers of 32 bits from {low:g} to {high:g}, which do not say what "
            "white is; save it with 8 or 16 bits a channel"
        )
    return levels
