"""Pictures to pixels: what the vision tower sees, bit for bit as the reference prepares it.

The reference resizes with Pillow's 8-bit filters. Resampling tensors gives other numbers, and so
other codes.

Source: AILab-CVC/SEED at 93b3cf4, the ``clip`` transform of its scripts (SEED-2, bilinear), and at
9ab18ae, ``demo_recon.py`` (SEED-1, bicubic).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps

from ..compute.looks import as_it_looks
from ..errors import OptionError, PictureError

LONGEST_SIDE = 1_000_000
"""Pixels of a side; the filters take up to 32 bytes of memory for each."""

# stretch: squash to a square (the reference); crop: centre square; pad: black borders
FITS = ("stretch", "crop", "pad")
# The filters that a tokenizer may have been trained with.
INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def preprocess(
    images: Sequence[Image.Image] | torch.Tensor,
    size: int,
    fit: str = "stretch",
    interpolation: str = "bilinear",
) -> torch.Tensor:
    """Resize pictures to a square and normalise them.

    Args:
        images: PIL pictures, which are taken `as_it_looks`, or float ``[B, C, H, W]`` in 0..1 with
            1, 3 or 4 channels. Transparency is dropped, as in the reference.
        size: side of the square, in pixels.
        fit: one of `FITS`.
        interpolation: one of `INTERPOLATIONS`.

    Returns:
        float32 ``[B, 3, size, size]``, CLIP-normalised RGB.

    Raises:
        OptionError: ``fit`` is unknown.
        PictureError: a tensor is not a batch of pictures, or a picture is empty, damaged, too long
            or of numbers that do not say what white is.
    """
    if fit not in FITS:
        raise OptionError(f"fit must be one of {', '.join(FITS)}; got {fit!r}")
    if isinstance(images, torch.Tensor):
        images = _pictures_from_tensor(images)
    pixels = np.empty((len(images), 3, size, size), dtype=np.float32)
    mean, std = np.array(CLIP_MEAN, np.float32), np.array(CLIP_STD, np.float32)
    for row, image in enumerate(images):
        _check_size(image)
        resized = _to_square(as_it_looks(image), size, fit, INTERPOLATIONS[interpolation])
        scaled = np.asarray(resized, dtype=np.float32) / np.float32(255)  # [S, S, 3]
        pixels[row] = ((scaled - mean) / std).transpose(2, 0, 1)
    return torch.from_numpy(pixels)


def _check_size(image: Image.Image) -> None:
    if min(image.size) < 1:
        raise PictureError(f"a picture of {image.width} x {image.height} pixels has no content")
    if max(image.size) > LONGEST_SIDE:
        raise PictureError(
            f"a picture of {image.width:,} x {image.height:,} pixels is too long; a side may have "
            f"up to {LONGEST_SIDE:,}"
        )


def _to_square(image: Image.Image, size: int, fit: str, filter_: Image.Resampling) -> Image.Image:
    square = (size, size)
    if fit == "crop":
        return ImageOps.fit(image, square, filter_)
    if fit == "pad":
        # Pillow's own padding would lose a strip so thin that its side rounds to no pixel.
        scale = size / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        padded = Image.new("RGB", square)
        corner = ((size - width) // 2, (size - height) // 2)
        padded.paste(image.resize((width, height), filter_), corner)
        return padded
    return image.resize(square, filter_)


def _pictures_from_tensor(images: torch.Tensor) -> list[Image.Image]:
    """Turn a float batch into 8-bit pictures, the form in which the reference resizes."""
    if images.ndim != 4 or images.shape[1] not in (1, 3, 4) or 0 in images.shape[2:]:
        raise PictureError(
            "expected pictures as [batch, channels, height, width] with 1, 3 or 4 channels; "
            f"got {list(images.shape)}"
        )
    return [_picture_from_tensor(image) for image in images]


def _picture_from_tensor(image: torch.Tensor) -> Image.Image:
    if not bool(torch.isfinite(image).all()):
        raise PictureError("a picture holds numbers that are not finite (NaN or infinity)")
    levels = image[:3].float().clamp(0, 1).mul(255).round().to(torch.uint8).cpu()
    return Image.fromarray(levels.expand(3, -1, -1).permute(1, 2, 0).numpy())
