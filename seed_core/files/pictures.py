"""Picture files, in any format Pillow knows: the one place where they are opened."""

from __future__ import annotations

import functools
import io
import logging
from pathlib import Path
from typing import IO

import torch
from PIL import Image, UnidentifiedImageError

from ..compute.looks import Mode, as_it_looks, in_our_words, orientation
from ..errors import OptionError, PictureError, in_one_line
from .impostors import HEAD, begins_as_picture, what_it_is
from .pillow_warnings import pillow_warnings
from .writer import check_output

log = logging.getLogger(__name__)

# Formats that would run another program, that only Windows draws, that do not say what white is, or
# of which Pillow knows the beginning alone.
_NOT_READ = ("EPS", "WMF", "FITS", "BUFR", "GRIB", "HDF5", "MPEG")
# Formats of several pictures in which the first is the whole picture.
_FIRST_IS_WHOLE = ("MPO", "PSD")

# The tag of TIFF that says what a picture is to others in its file, and its bit for a preview.
_SUBFILE_TYPE, _IS_PREVIEW = 254, 1


def is_picture_name(path: Path) -> bool:
    """Return whether the file's ending is one of a picture format."""
    return path.suffix.lower() in Image.registered_extensions()


@functools.cache
def picture_suffixes() -> frozenset[str]:
    """Return the endings, in lower case, of the picture files that can be read."""
    known, read = Image.registered_extensions(), _formats()
    return frozenset(suffix for suffix, name in known.items() if name in read)


def is_picture_file(path: Path) -> bool:
    """Return whether a file has a picture's name, or begins as a picture does."""
    if is_picture_name(path):
        return True
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with path.open("rb") as file:
            return begins_as_picture(file.read(HEAD))
    except OSError:  # whoever reads it says what is wrong
        return False


def read_picture(path: Path, mode: Mode = "RGB") -> Image.Image:
    """Return the picture in a file, `as_it_looks`.

    Raises:
        PictureError: the file is missing, or no picture can be read from it.
    """
    name = in_one_line(path)
    try:
        if path.is_dir():
            raise PictureError("this is a folder; name the pictures in it")
        if path.exists() and not path.is_file():
            raise PictureError("this is not a file but a device or a pipe; save it to a file first")
        # Not by its name: Pillow would map it, and a file that shrinks would end the process.
        with path.open("rb") as file:
            return decode_picture(file, name, mode)
    except FileNotFoundError as error:
        raise PictureError(f"the picture {name} does not exist") from error
    except PictureError as error:
        raise PictureError(f"{name} cannot be read as a picture: {error}") from error
    except OSError as error:
        raise PictureError(f"the picture {name} cannot be read: {error.strerror}") from error


def decode_picture(file: IO[bytes], name: str, mode: Mode = "RGB") -> Image.Image:
    """Return the picture in an open file or in memory, `as_it_looks`; of several, the first.

    Args:
        file: can be sought in.
        name: what warnings call it.
        mode: as in `as_it_looks`.

    Raises:
        PictureError: no picture can be read from it; the message does not name it.
        OSError: the system cannot read the file.
    """
    with pillow_warnings() as warned, in_our_words():
        picture = as_it_looks(_load(file, warned), mode)
        picture.info.clear()  # what it says of the file is no longer true, and may be damaged
    for line in warned:
        log.warning("%s: %s", name, in_one_line(line[:200]))
    return picture


def _load(file: IO[bytes], warned: list[str]) -> Image.Image:
    try:
        picture = Image.open(file, formats=_formats())
    except UnidentifiedImageError as error:
        file.seek(0)
        raise PictureError(what_it_is(file.read(HEAD))) from error
    if getattr(picture, "tag_v2", {}).get(_SUBFILE_TYPE, 0) & _IS_PREVIEW:
        raise PictureError("it shows only a preview, as raw photos do; export it as PNG or JPEG")
    if getattr(picture, "default_image", False):
        picture.seek(1)  # of an animated PNG; before it stands what is never shown with the others
    picture.load()
    if orientation(picture) is None:
        warned.append("its EXIF data is damaged, so it may lie on its side")
    if picture.format not in _FIRST_IS_WHOLE and getattr(picture, "is_animated", False):
        warned.append("only the first of its pictures is read")
    return picture


@functools.cache
def _formats() -> list[str]:
    Image.preinit()  # the most used, so that they come first
    Image.init()
    return [name for name in Image.ID if name not in _NOT_READ]


def check_picture_output(path: Path) -> None:
    """Check that a picture can be written to a path; its ending is the format.

    Raises:
        OptionError: Pillow cannot write colour in that format, or `check_output` refuses the path.
    """
    try:  # some formats have a writer that knows no colour, or that waits for a plug-in
        picture = Image.new("RGB", (1, 1))
        picture.save(io.BytesIO(), Image.registered_extensions()[path.suffix.lower()])
    except (KeyError, OSError, ValueError) as error:
        raise OptionError(
            f"{path.name} does not end as a picture file does; use an ending such as .png, .jpg or "
            ".webp"
        ) from error
    check_output(path)


def picture_from_pixels(pixels: torch.Tensor) -> Image.Image:
    """Return the 8-bit picture of ``[3, H, W]`` in 0..1."""
    levels = pixels.mul(255).round().to(torch.uint8).permute(1, 2, 0)  # [H, W, 3]
    return Image.fromarray(levels.cpu().numpy())


def save_pictures(pixels: torch.Tensor, output: Path) -> list[Path]:
    """Write ``[B, 3, H, W]`` in 0..1 as files; several get a number before the ending."""
    paths = []
    for i, picture in enumerate(pixels):
        path = output if len(pixels) == 1 else output.with_stem(f"{output.stem}_{i:02d}")
        picture_from_pixels(picture).save(path)
        paths.append(path)
    return paths
