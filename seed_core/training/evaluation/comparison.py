"""Our metrics beside published ones or beside another run's, and which of them are too low."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import OptionError, in_one_line
from ...files.side_files import read_json
from ...models.names import bundled
from .metrics import DECIBELS, Metric, difference, from_fields

Metrics = Mapping[str, Mapping[str, Metric]]
"""By task, then by name."""

PUBLISHED_SPLIT = "test"
"""The split of results.json."""

# How far a metric may lie below results.json (as a part of 1). On another split, whose pairs are
# easier or harder, two standard errors of the difference come on top.
POINTS = 0.02

# How far PSNR may lie below: other pairs and places alone move it by 0.5 dB.
MOST_DECIBELS = 1.0

RULE = (
    "equal: the 95 % interval of the difference holds 0; it is of the questions one by one where "
    "both runs have them, else from both intervals; new: only this run has it; missing: only the other run has it"
)
"""What the verdict on a metric means, where another run is set beside ours."""

_MISSING, _LOWER = "missing", "lower"


@dataclass(frozen=True)
class Row:
    """One metric of one task beside another one."""

    task: str  # one of TASKS
    metric: str  # of that task
    ours: Metric | None  # None where only the other run has it
    beside: Metric | None  # None without one
    is_run: bool = False  # the other one is of a run on the same pictures, not of results.json
    split: str = PUBLISHED_SPLIT  # of ours

    @property
    def allowed(self) -> float:
        """How far ours may lie below the published one."""
        # Every reply must hold a whole picture, whatever was published.
        assert self.ours is not None
        assert self.beside is not None
        published = self.beside.value
        if self.metric == "valid":
            return published - 1
        if self.metric in DECIBELS:
            return MOST_DECIBELS
        if self.split == PUBLISHED_SPLIT:
            return POINTS
        of_each = published * (1 - published)
        return POINTS + 2 * math.sqrt(of_each / self.ours.n + of_each / self.beside.n)

    @property
    def verdict(self) -> str:
        """How ours compares with another run's; see `RULE`."""
        if self.ours is None:
            return _MISSING
        if self.beside is None:
            return "new"
        low, high = difference(self.ours, self.beside)
        return "better" if low > 0 else _LOWER if high < 0 else "equal"

    @property
    def holds(self) -> bool:
        """Whether ours is there and no further below than allowed."""
        if self.is_run:
            return self.verdict not in (_MISSING, _LOWER)
        if self.ours is None or self.beside is None:
            return True
        return self.ours.value >= self.beside.value - self.allowed - 1e-4  # of four decimals

    def __str__(self) -> str:
        line = f"{self.task:43}{self.metric:11}{self._ours()}{self._beside()}"
        if self.is_run:
            line += self.verdict
        return line.rstrip() if self.holds or self.ours is None else f"{line.rstrip()}  TOO LOW"

    def _ours(self) -> str:
        if self.ours is None:
            return f"{'':37}"
        low, high = (f"{bound * self._scale:.2f}" for bound in self.ours.bounds)
        interval = f"{low} to {high}" if self.ours.interval else ""
        return f"{self._number(self.ours)}{interval:>20}{self.ours.n:6}"

    def _beside(self) -> str:
        if self.beside is None:
            return f"{'':25}"
        change = "" if self.ours is None else f"{self._change:+.2f}"
        return f"{self._number(self.beside)}{change:>12}  "

    @property
    def _change(self) -> float:
        assert self.ours is not None
        assert self.beside is not None
        return (self.ours.value - self.beside.value) * self._scale

    def _number(self, metric: Metric) -> str:
        return f"{metric.value * self._scale:8.2f} {'dB' if self.metric in DECIBELS else '% '}"

    @property
    def _scale(self) -> float:
        return 1 if self.metric in DECIBELS else 100


def header(is_run: bool) -> str:
    """Return the names of the columns."""
    other = "other" if is_run else "published"
    ours = f"{'ours':>8}   {'95 % interval':>20}{'n':>6}"
    return f"{'task':43}{'metric':11}{ours}{other:>11}{'change':>12}"


def published_metrics() -> Metrics:
    """Return the metrics of results.json."""
    path = bundled("results.json")
    return _metrics(path, read_json(path))


def other_metrics(path: Path, split: str, tasks: Iterable[str]) -> Metrics:
    """Return metrics of a JSON file that ``evaluate`` wrote.

    Raises:
        CheckpointError: the file is missing or is not JSON.
        OptionError: the file is damaged, of another split, or has none of the tasks.
    """
    content = read_json(path)
    metrics = _metrics(path, content)
    if (given := content.get("split")) != split:
        raise OptionError(f"{path} is of the split {given}, which cannot stand beside {split}")
    if not set(metrics) & set(tasks):
        raise OptionError(
            f"{path} has none of the tasks that are measured here; it has "
            f"{in_one_line(', '.join(metrics)) or 'none at all'}"
        )
    return metrics


def _metrics(path: Path, content: Mapping[str, Any]) -> Metrics:
    tasks = content.get("metrics")
    if not isinstance(tasks, dict):
        raise OptionError(f"{path} has no metrics")
    return {task: from_fields(fields, f"{path}: {task}") for task, fields in tasks.items()}


def compare(
    task: str,
    ours: Mapping[str, Metric],
    others: Metrics,
    is_run: bool,
    split: str = PUBLISHED_SPLIT,
) -> list[Row]:
    """Set each metric of a task, measured on a split, beside another one; see `Row`.

    Two metrics in results.json, of embeddings, are not measured here and are left out.
    """
    beside = others.get(task, {})
    names = [*ours, *(name for name in beside if is_run and name not in ours)]
    return [Row(task, name, ours.get(name), beside.get(name), is_run, split) for name in names]


def missing(others: Metrics, measured: Iterable[str]) -> list[Row]:
    """Return a row of each metric whose task only the other run has."""
    left = [task for task in others if task not in set(measured)]
    return [row for task in left for row in compare(task, {}, others, is_run=True)]


def count(rows: Iterable[Row]) -> str:
    """Return how many metrics got each verdict."""
    counts = Counter(row.verdict for row in rows)
    kinds = ("better", "equal", _LOWER, "new", _MISSING)
    return ", ".join(f"{counts[kind]} {kind}" for kind in kinds)
