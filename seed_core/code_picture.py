"""Codes as a picture for the eye: a grid of coloured cells with their numbers.

The same code always has the same colour, so that what two pictures share stands out. Knows nothing
of what the codes mean.
"""

from __future__ import annotations

import colorsys

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

COLUMNS, ROWS = 8, 4
_CELL = 56  # pixels; the number stays readable in a node of ordinary width
_GOLDEN_RATIO = 0.618033988749895


def draw_codes(values: torch.Tensor) -> torch.Tensor:
    """Return one picture a row of codes.

    Args:
        values: int64 ``[B, 32]``.

    Returns:
        float32 ``[B, 224, 448, 3]`` in 0..1, codes in reading order.
    """
    pictures = [np.asarray(_draw(row), dtype=np.float32) / 255 for row in values.tolist()]
    empty = np.empty((0, ROWS * _CELL, COLUMNS * _CELL, 3), dtype=np.float32)
    return torch.from_numpy(np.stack(pictures) if pictures else empty)


def _draw(codes: list[int]) -> Image.Image:
    picture = Image.new("RGB", (COLUMNS * _CELL, ROWS * _CELL))
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(18)
    for position, code in enumerate(codes):
        left, top = position % COLUMNS * _CELL, position // COLUMNS * _CELL
        fill, ink = _colours(code)
        draw.rectangle((left, top, left + _CELL - 1, top + _CELL - 1), fill, outline=(20, 20, 20))
        centre = (left + _CELL / 2, top + _CELL / 2)
        draw.text(centre, str(code), fill=ink, font=font, anchor="mm")
    return picture


def _colours(code: int) -> tuple[Colour, Colour]:
    """Return a code's colour and the ink that reads well on it.

    Hue steps by the golden ratio, so near numbers look unlike; lightness varies in three levels,
    which also tells cells apart where hues look alike.
    """
    hue = code * _GOLDEN_RATIO % 1
    lightness = (0.38, 0.56, 0.74)[code % 3]
    red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue, lightness, 0.6))
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue
    return (red, green, blue), (0, 0, 0) if luminance > 128 else (255, 255, 255)
