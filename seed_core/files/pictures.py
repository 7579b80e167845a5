"""Picture files, in any format Pillow knows."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError

from ..errors import OptionError, PictureError
from .writer import check_output


def is_picture_name(path: Path) -> bool:
    """Return whether the file's ending is one of a picture format."""
    return path.suffix.lower() in Image.registered_extensions()


def read_picture(path: Path) -> Image.Image:
    """Open a picture file.

    Raises:
        PictureError: the file is missing, or Pillow cannot read it.
    """
    try:
        picture = Image.open(path)
        picture.load()
    except FileNotFoundError as error:
        raise PictureError(f"the picture {path} does not exist") from error
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise PictureError(f"{path} cannot be read as a picture: {error}") from error
    return picture


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
