"""Codes drawn as a picture: a grid of cells, each with the code's own sign and its number.

Two cells have the same sign only if their codes are equal. The shape alone tells, so that nobody
needs to tell colours apart. Below the grid stand the words of `describe_distances`.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .edits import select_codes
from .familiarity import FAMILIAR_DISTANCE, describe_distances
from .value import CODEBOOK_SIZES, NUM_CODES, SeedCodes

# Pixels. A node of ordinary width shows one picture at about 60 %, where all of it is legible.
COLUMNS, ROWS = 8, NUM_CODES // 8
CELL_WIDTH, CELL_HEIGHT = 64, 80
_DOT = 9  # a sign is 5 x 5 dots
_SIGN_LEFT, _SIGN_TOP = (CELL_WIDTH - 5 * _DOT) // 2, 8
_NUMBER_MIDDLE = 64
_BAR = (8, 73, 48, 3)  # left, top, full width, height
_LINE = 22
FOOTER_HEIGHT = 2 * _LINE + 8

_PAPER, _CELL, _INK, _SOFT = "#0b0d12", "#1b1f2a", "#ffffff", "#aab2c5"
# Okabe and Ito's palette, safe for colour-blind eyes, with white for its black.
_COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#ffffff")
_FAR = "#d55e00"


def _signs(count: int) -> list[int]:
    """Return ``count`` different signs: 15 bits, the left half and middle column of 5 x 5 dots.

    Each has enough dots, and enough gaps, to be seen; an even number of bits, so that two of them
    differ in two at least. The odd factor walks over all numbers once and makes neighbours unlike.
    """
    numbers = (number * 12_347 % 2**15 for number in range(2**15))
    return [bits for bits in numbers if bits.bit_count() in (6, 8, 10)][:count]


_SIGNS = _signs(max(CODEBOOK_SIZES.values()))


MOST_DRAWN = 256  # 0.6 GB


def draw_codes(codes: SeedCodes, most: int = MOST_DRAWN) -> torch.Tensor:
    """Return one picture of the codes of each picture, of the first ``most`` of them.

    In a batch, a cell is framed if another picture has the same code in the same place.

    Returns:
        float32 ``[min(B, most), H, W, 3]`` in 0..1 on the CPU, codes in reading order.
    """
    count = len(codes)
    shared = _shared(codes.values.cpu(), most)
    codes = select_codes(codes, 0, min(count, most)) if count else codes
    height, width = ROWS * CELL_HEIGHT + FOOTER_HEIGHT, COLUMNS * CELL_WIDTH
    pictures = np.empty((len(codes), height, width, 3), dtype=np.float32)
    values = codes.values.cpu()
    distances, limit = codes.distances.tolist(), FAMILIAR_DISTANCE.get(codes.family)
    for i, (row, fit) in enumerate(zip(values.tolist(), describe_distances(codes), strict=True)):
        picture = Image.new("RGB", (width, height), _PAPER)
        draw = ImageDraw.Draw(picture)
        for position, code in enumerate(row):
            left, top = position % COLUMNS * CELL_WIDTH, position // COLUMNS * CELL_HEIGHT
            _draw_cell(draw, left, top, code, shared[i][position])
            if limit:
                _draw_bar(draw, left, top, distances[i][position], limit)
        title = f"{codes.family}, {NUM_CODES} codes"
        if count > 1:
            number = f"{i + 1} of {count}" if count > most else f"{i + 1}"
            title = (
                f"{codes.family}, picture {number}: {sum(shared[i])} of {NUM_CODES} codes shared"
            )
        for line, text in enumerate((title, fit)):
            _write(draw, (10, ROWS * CELL_HEIGHT + 4 + line * _LINE), text, 16, _INK)
        pictures[i] = np.asarray(picture, dtype=np.float32) / 255
    return torch.from_numpy(pictures)


def _shared(values: torch.Tensor, most: int) -> list[list[bool]]:
    """Return which codes of the pictures to be drawn ``[B, 32]`` another picture has as well."""
    rows = []
    for column in values.T:  # one position of all pictures
        _, which, times = column.unique(return_inverse=True, return_counts=True)
        rows.append(times[which[:most]] > 1)
    return torch.stack(rows, dim=1).tolist()


def colour_of(code: int) -> str:
    """Return the colour of a code's sign."""
    return _COLOURS[code % len(_COLOURS)]


def draw_sign(
    draw: ImageDraw.ImageDraw, left: int, top: int, code: int, dot: int, ink: str
) -> None:
    """Draw a code's sign, 5 x 5 dots of ``dot`` pixels each."""
    for bit in range(15):
        if _SIGNS[code] >> bit & 1:
            row, column = divmod(bit, 3)
            for x in {column, 4 - column}:
                corner = left + x * dot, top + row * dot
                draw.rectangle((*corner, corner[0] + dot - 1, corner[1] + dot - 1), ink)


def _draw_cell(draw: ImageDraw.ImageDraw, left: int, top: int, code: int, is_framed: bool) -> None:
    right, bottom = left + CELL_WIDTH - 1, top + CELL_HEIGHT - 1
    draw.rectangle(
        (left + 1, top + 1, right - 1, bottom - 1),
        _CELL,
        outline=_INK if is_framed else None,
        width=3,
    )
    draw_sign(draw, left + _SIGN_LEFT, top + _SIGN_TOP, code, _DOT, colour_of(code))
    _write(draw, (left + CELL_WIDTH // 2, top + _NUMBER_MIDDLE), str(code), 16, _INK, "mm")


def _draw_bar(
    draw: ImageDraw.ImageDraw, left: int, top: int, distance: float, limit: float
) -> None:
    """Draw a distance as a line: half the cell at the limit of what is familiar. None for NaN."""
    x, y, width, height = _BAR
    if distance > 0:
        length = max(1, round(width * min(distance / (2 * limit), 1)))
        box = (left + x, top + y, left + x + length - 1, top + y + height - 1)
        draw.rectangle(box, _FAR if distance > limit else _SOFT)


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    size: int,
    ink: str,
    anchor: str = "la",
) -> None:
    draw.text(place, text, ink, ImageFont.load_default(size), anchor)
