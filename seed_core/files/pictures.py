"""Files that people keep: pictures in any format Pillow knows, and codes as JSON."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError

from ..codes.text import codes_from_json, codes_to_json
from ..codes.value import SeedCodes
from ..errors import CodesError, OptionError, PictureError
from .writer import check_output


def read_picture(path: Path) -> Image.Image:
    """Open a picture file; `PictureError` if it is missing or of an unknown format."""
    try:
        picture = Image.open(path)
        picture.load()
    except FileNotFoundError as error:
        raise PictureError(f"the picture {path} does not exist") from error
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise PictureError(f"{path} cannot be read as a picture: {error}") from error
    return picture


def read_codes(path: Path) -> SeedCodes:
    """Read a codes file that ``encode`` or ``chat`` wrote; `CodesError` if it cannot be read."""
    try:
        return codes_from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise CodesError(f"cannot read codes from {path}: {error}") from error


def check_picture_output(path: Path) -> None:
    """Do what `check_output` does, and refuse a suffix that Pillow cannot write in color."""
    try:  # some formats have a writer that knows no color, or that waits for a plug-in
        picture = Image.new("RGB", (1, 1))
        picture.save(io.BytesIO(), Image.registered_extensions()[path.suffix.lower()])
    except (KeyError, OSError, ValueError) as error:
        raise OptionError(
            f"{path.name} has no ending that pictures can be saved with; use one such as .png, "
            ".jpg or .webp"
        ) from error
    check_output(path)


def picture_from_pixels(pixels: torch.Tensor) -> Image.Image:
    """Return the 8-bit picture of ``[3, H, W]`` in 0..1."""
    levels = pixels.mul(255).round().to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(levels.cpu().numpy())


def save_pictures(pixels: torch.Tensor, output: Path) -> list[Path]:
    """Write ``[B, 3, H, W]`` in 0..1 as files; several get a number before the suffix."""
    paths = []
    for i, picture in enumerate(pixels):
        path = output if len(pixels) == 1 else output.with_stem(f"{output.stem}_{i:02d}")
        picture_from_pixels(picture).save(path)
        paths.append(path)
    return paths


def save_codes(codes: SeedCodes, path: Path) -> None:
    """Write codes as JSON."""
    path.write_text(codes_to_json(codes) + "\n", encoding="utf-8")
