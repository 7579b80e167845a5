"""Our metrics beside published ones, and how far they may fall short."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...errors import OptionError
from ...files.side_files import read_json
from ...models.names import bundled
from .measure import UNKNOWN_OBJECTS

# How far a metric may lie below results.json (as a part of 1); its objects stood at other places.
# It may lie above: those numbers are without the picture grammar, which turns replies that were
# lost to a broken picture into good ones. Beside another run, of the same pictures, it may not lie
# below at all.
POINTS = 0.02

# How far PSNR may lie below: other positions alone move it by 0.5 dB.
DECIBELS = 1.0


@dataclass(frozen=True)
class Row:
    """One metric of one task beside another one."""

    task: str  # one of TASKS
    metric: str  # of that task
    ours: float  # in 0..1, or in dB
    published: float | None  # the one beside it; None without one
    n: int  # number of questions
    is_strict: bool = False  # the other one is of the same pictures, so ours may not lie below

    @property
    def is_decibels(self) -> bool:
        """Whether the metric is in dB: ``psnr``, or ``psnr_small`` of small objects alone."""
        return self.metric.startswith("psnr")

    @property
    def allowed(self) -> float:
        """How far ours may lie below."""
        # Every reply must hold a whole picture, whatever was published. The twenty unknown things
        # are not the published twenty, so they get two standard errors more.
        published = self.published or 0.0
        if self.is_strict:
            return 0.0
        if self.metric == "valid":
            return published - 1
        if self.is_decibels:
            return DECIBELS
        if self.task in UNKNOWN_OBJECTS:
            return POINTS + 2 * math.sqrt(published * (1 - published) / self.n)
        return POINTS

    @property
    def holds(self) -> bool:
        """Whether ours lies no further below than allowed."""
        if self.published is None:
            return True
        return self.ours >= self.published - self.allowed - 1e-4  # they publish four decimals

    def __str__(self) -> str:
        scale, unit = (1, "dB") if self.is_decibels else (100, "% ")
        line = f"{self.task:44}{self.metric:12}{self.ours * scale:8.2f} {unit}"
        if self.published is None:
            return f"{line}{'':19}{self.n:6}"
        difference = (self.ours - self.published) * scale
        line += f"{self.published * scale:8.2f} {unit}{difference:+8.2f}{self.n:6}"
        return line if self.holds else f"{line}  TOO LOW"


HEADER = f"{'task':44}{'metric':12}{'ours':>10} {'published':>10} {'difference':>8}{'n':>4}"


def published_metrics(
    path: Path | None = None, split: str | None = None
) -> dict[str, dict[str, float]]:
    """Return metrics by task, of results.json or of a JSON file that ``evaluate`` wrote.

    Raises:
        CheckpointError: the file is missing or is not JSON.
        OptionError: the file lacks metrics, or is of another split than ``split``.
    """
    content = read_json(path or bundled("results.json"))
    metrics = content.get("metrics")
    if not isinstance(metrics, dict):
        raise OptionError(f"{path} has no metrics")
    if path is not None and split not in (None, content.get("split")):
        raise OptionError(
            f"{path} is of the split {content.get('split')}, which cannot stand beside {split}"
        )
    return metrics


def compare(
    task: str,
    ours: Mapping[str, float],
    published: Mapping[str, Mapping[str, float]],
    is_strict: bool = False,
) -> list[Row]:
    """Set each metric of a task beside another one; see `Row`."""
    beside = published.get(task, {})
    return [
        Row(task, metric, value, beside.get(metric), int(ours["n"]), is_strict)
        for metric, value in ours.items()
        if metric != "n"
    ]
