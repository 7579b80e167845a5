"""Codes drawn as a picture: a grid of cells, each with the code's own sign and its number.

Two cells have the same sign only if their codes are equal. The shape alone tells, so that nobody
needs to tell colours apart. Frames are around codes that pictures share. Below the grid stand the
words of `describe_distances`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..errors import CodesError
from .edits import count_pairs, join_codes, select_codes
from .familiarity import FAMILIAR_DISTANCE, describe_distances
from .value import CODEBOOK_SIZES, NUM_CODES, SeedCodes

# Pixels. A node of ordinary width shows one picture at about 60 %, where all of it is legible.
COLUMNS, ROWS = 8, NUM_CODES // 8
CELL_WIDTH = 64
_BAR_LEFT, _BAR_WIDTH, _BAR_HEIGHT = 8, 48, 3
_LINE = 22
_GAP = 10  # below the bands of several rows


@dataclass(frozen=True)
class Cell:
    """Where the parts of a cell are, in pixels from its top."""

    height: int
    dot: int  # a sign is 5 x 5 dots
    sign: int
    number: int  # its middle
    number_size: int
    bar: int


CELL = Cell(height=80, dot=9, sign=8, number=64, number_size=20, bar=74)
# Flat, so that two rows are hardly higher than wide; a node does not grow with its picture.
FLAT_CELL = Cell(height=63, dot=7, sign=4, number=48, number_size=22, bar=57)

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


MOST_DRAWN = 256  # pictures; 0.6 GB
MOST_TOGETHER = 4  # rows of codes in one picture; of more, little would be legible in a node


@dataclass(frozen=True)
class _Row:
    """The codes of one picture, and which of them are framed."""

    values: list[int]
    distances: list[float]
    fit: str  # words of `describe_distances`
    is_shared: list[bool]


def draw_codes(codes: SeedCodes, most: int = MOST_DRAWN) -> torch.Tensor:
    """Return one picture of the codes of each picture, of the first ``most`` of them.

    In a batch, a cell is framed if another picture has the same code in the same place.

    Returns:
        float32 ``[min(B, most), H, W, 3]`` in 0..1 on the CPU, codes in reading order.
    """
    count = len(codes)
    of = f" of {count}" if count > most else ""
    panels = []
    for number, row in enumerate(_rows(codes, most), start=1):
        title = f"{codes.family}, {NUM_CODES} codes"
        if count > 1:
            shared = sum(row.is_shared)
            title = f"{codes.family}, picture {number}{of}: {shared} of {NUM_CODES} codes shared"
        panels.append(_draw_panel([row], [title, row.fit], codes.family))
    return _stack(panels, 1)


def draw_together(codes: SeedCodes, most: int = MOST_DRAWN) -> torch.Tensor:
    """Return one picture of a batch, if it is small enough to be read in a node; else `draw_codes`.

    In one picture the rows lie below one another, eight positions at a time, with a frame around
    neighbours that are the same.
    """
    count = len(codes)
    if not 1 < count <= min(most, MOST_TOGETHER):
        return draw_codes(codes, most)
    rows = _rows(codes, count)
    shared = sum(map(any, zip(*(row.is_shared for row in rows), strict=True)))
    title = f"{codes.family}, {count} pictures: {shared} of {NUM_CODES} codes shared"
    lines = [f"{number}: {row.fit}" for number, row in enumerate(rows, start=1)]
    return _stack([_draw_panel(rows, [title, *lines], codes.family)], count)


def draw_comparison(
    codes: SeedCodes, others: SeedCodes, names: tuple[str, str], most: int = MOST_DRAWN
) -> torch.Tensor:
    """Return pictures of codes above those that they are compared with.

    Each pair is one picture, with a frame around both where they are the same.

    Args:
        codes: the upper rows; a single one is drawn above each of the others.
        others: the lower rows, likewise.
        names: of the two in the picture.
        most: pairs that are drawn.

    Returns:
        float32 ``[min(pairs, most), H, W, 3]`` in 0..1 on the CPU.

    Raises:
        CodesError: the families differ, or the numbers of pictures do not pair up.
    """
    count = count_pairs(codes, others)
    if count is None:
        raise CodesError(
            f"{len(codes)} pictures cannot be compared with {len(others)}: give both the same "
            "number, or one of them a single picture, which is then compared with all"
        )
    panels = []
    for number in range(min(count, most)):
        pair = join_codes([select_codes(c, min(number, len(c) - 1), 1) for c in (codes, others)])
        rows = _rows(pair, 2)
        which = f"{codes.family}, picture {number + 1}" if count > 1 else codes.family
        title = f"{which}: {sum(rows[0].is_shared)} of {NUM_CODES} codes are the same"
        lines = [f"{name}: {row.fit}" for name, row in zip(names, rows, strict=True)]
        panels.append(_draw_panel(rows, [title, *lines], codes.family))
    return _stack(panels, 2)


def _rows(codes: SeedCodes, most: int) -> list[_Row]:
    """Return the first rows; a code is shared if any other picture has it in the same place."""
    shared = _shared(codes.values.cpu(), most)
    shown = select_codes(codes, 0, min(len(codes), most)) if len(codes) else codes
    fits = describe_distances(shown)
    return list(map(_Row, shown.values.tolist(), shown.distances.tolist(), fits, shared))


def _shared(values: torch.Tensor, most: int) -> list[list[bool]]:
    """Return which codes of the pictures to be drawn ``[B, 32]`` another picture has as well."""
    rows = []
    for column in values.T:  # one position of all pictures
        _, which, times = column.unique(return_inverse=True, return_counts=True)
        rows.append(times[which[:most]] > 1)
    return torch.stack(rows, dim=1).tolist()


def cell_of(rows: int) -> Cell:
    """Return the kind of cell that so many rows of codes in one picture consist of."""
    return CELL if rows == 1 else FLAT_CELL


def band_height(rows: int) -> int:
    """Return the height in pixels of eight positions of so many rows of codes."""
    return rows * cell_of(rows).height + (_GAP if rows > 1 else 0)


def _stack(panels: list[np.ndarray], rows: int) -> torch.Tensor:
    shape = len(panels), _panel_height(rows), COLUMNS * CELL_WIDTH, 3
    return torch.from_numpy(np.array(panels, dtype=np.float32).reshape(shape))


def _panel_height(rows: int) -> int:
    return ROWS * band_height(rows) + (rows + 1) * _LINE + 8


def _draw_panel(rows: list[_Row], lines: list[str], family: str) -> np.ndarray:
    """Draw rows of codes below one another, band by band, and lines of words below them."""
    count, limit = len(rows), FAMILIAR_DISTANCE.get(family)
    cell, band = cell_of(count), band_height(count)
    picture = Image.new("RGB", (COLUMNS * CELL_WIDTH, _panel_height(count)), _PAPER)
    draw = ImageDraw.Draw(picture)
    for position in range(NUM_CODES):
        left, band_top = position % COLUMNS * CELL_WIDTH, position // COLUMNS * band
        for i, row in enumerate(rows):
            top = band_top + i * cell.height
            _draw_cell(draw, left, top, cell, row.values[position])
            if limit:
                _draw_bar(draw, left, top + cell.bar, row.distances[position], limit)
        for first, last in _runs(rows, position):
            top, height = band_top + first * cell.height, (last - first + 1) * cell.height
            box = left + 1, top + 1, left + CELL_WIDTH - 2, top + height - 2
            draw.rectangle(box, outline=_INK, width=3)
    for line, text in enumerate(lines):
        _write(draw, (10, ROWS * band + 4 + line * _LINE), text, 16, _INK)
    return np.asarray(picture, dtype=np.float32) / 255


def _runs(rows: list[_Row], position: int) -> Iterator[tuple[int, int]]:
    """Yield the first and last row of neighbours that share the same code."""
    column = [(row.is_shared[position], row.values[position]) for row in rows]
    for (is_shared, _), run in groupby(enumerate(column), key=lambda numbered: numbered[1]):
        numbers = [number for number, _ in run]
        if is_shared:
            yield numbers[0], numbers[-1]


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


def _draw_cell(draw: ImageDraw.ImageDraw, left: int, top: int, cell: Cell, code: int) -> None:
    box = left + 1, top + 1, left + CELL_WIDTH - 2, top + cell.height - 2
    draw.rectangle(box, _CELL)
    margin = (CELL_WIDTH - 5 * cell.dot) // 2
    draw_sign(draw, left + margin, top + cell.sign, code, cell.dot, colour_of(code))
    middle = left + CELL_WIDTH // 2, top + cell.number
    _write(draw, middle, str(code), cell.number_size, _INK, "mm")


def _draw_bar(
    draw: ImageDraw.ImageDraw, left: int, top: int, distance: float, limit: float
) -> None:
    """Draw a distance as a line: half the cell at the limit of what is familiar. None for NaN."""
    if distance > 0:
        x = left + _BAR_LEFT
        length = max(1, round(_BAR_WIDTH * min(distance / (2 * limit), 1)))
        box = (x, top, x + length - 1, top + _BAR_HEIGHT - 1)
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
