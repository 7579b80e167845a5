"""What was measured: figures, rows of them, and the table they make. Knows nothing of networks."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

OURS = "ours"
LIMIT = "limit"

_WIDTHS = (30, 25, 9, 20, 10, 7)
_HEADINGS = ("measure", "who", "median", "least to most", "unit", "ours is", "note")


@dataclass(frozen=True)
class Figure:
    """Repeated measurements of one thing.

    Attributes:
        unit: more is better if it ends in ``/s``; otherwise less is.
    """

    median: float
    least: float
    most: float
    unit: str

    @classmethod
    def of(cls, values: Sequence[float], unit: str) -> Figure:
        """Sum up measurements, at least one."""
        return cls(statistics.median(values), min(values), max(values), unit)

    def times(self, factor: float, unit: str) -> Figure:
        """Return the same in another unit."""
        return Figure(self.median * factor, self.least * factor, self.most * factor, unit)

    def better_than(self, other: Figure) -> float | None:
        """Return how many times better this is; None if either is 0."""
        if not (self.median and other.median):
            return None
        ratio = self.median / other.median
        return ratio if self.unit.endswith("/s") else 1 / ratio


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        measure: what was measured.
        who: whose figure it is.
        figure: None if it could not be measured; ``note`` says why.
        ratio: how many times better ours is; for the limit, our share of it.
    """

    measure: str
    who: str
    figure: Figure | None
    ratio: float | None
    note: str

    def cells(self) -> tuple[str, ...]:
        """Return the row as texts."""
        if self.figure is None:
            return self.measure, self.who, "none", "", "", "", self.note
        figure, ratio = self.figure, ""
        if self.ratio is not None and self.who != OURS:
            ratio = f"{self.ratio:.0%}" if self.who == LIMIT else f"{self.ratio:.2f} x"
        extent = f"{_short(figure.least)} to {_short(figure.most)}"
        return (
            self.measure,
            self.who,
            _short(figure.median),
            extent,
            figure.unit,
            ratio,
            self.note,
        )


class Table:
    """Rows, written as Markdown one section after the other.

    Args:
        write: receives each line.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self.rows: list[Row] = []
        self._written = 0
        self._write = write
        write(_line(_HEADINGS))
        write(_line(["-" * width for width in _WIDTHS] + ["----"]))

    def add(self, measure: str, who: str, figure: Figure | str, note: str = "") -> None:
        """Append a row, ours before its peers'. A text in the place of a figure says why it is missing."""
        if isinstance(figure, str):
            self.rows.append(Row(measure, who, None, None, figure))
            return
        ours = next((r for r in self.rows if (r.measure, r.who) == (measure, OURS)), None)
        ratio = ours.figure.better_than(figure) if ours and ours.figure else None
        self.rows.append(Row(measure, who, figure, ratio, note))

    def flush(self) -> None:
        """Write the rows since the last time, those of one measure together."""
        new = self.rows[self._written :]
        order = list(dict.fromkeys(row.measure for row in new))
        for row in sorted(new, key=lambda row: order.index(row.measure)):
            self._write(_line(row.cells()))
        self._written = len(self.rows)

    def to_json(self) -> list[dict[str, Any]]:
        """Return the rows as plain values."""
        return [dataclasses.asdict(row) for row in self.rows]


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _line(cells: Sequence[str]) -> str:
    padded = [cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=False)]
    return "| " + " | ".join([*padded, *cells[len(_WIDTHS) :]]) + " |"
