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

POINTS = 0.02
"""How far a metric may lie below results.json (as a part of 1); its objects stood at other places. It
may lie above: those numbers are without the picture grammar, which turns replies that were lost to a
broken picture into good ones. Beside another run, of the same pictures, it may not lie below at all."""

DECIBELS = 1.0
"""How far PSNR may lie below: other positions alone move it by 0.5 dB."""


@dataclass(frozen=True)
class Row:
    """One metric of one task beside another one.

    Attributes:
        task: one of `TASKS`.
        metric: of that task.
        ours: what was measured, in 0..1, or in dB.
        published: what it stands beside; None where that has no such metric.
        n: number of questions.
        is_strict: whether the other one is of the same pictures, so that ours may not lie below.
    """

    task: str
    metric: str
    ours: float
    published: float | None
    n: int
    is_strict: bool = False

    @property
    def is_decibels(self) -> bool:
        """Whether the metric is in dB: ``psnr``, or ``psnr_small`` of small objects alone."""
        return self.metric.startswith("psnr")

    @property
    def allowed(self) -> float:
        """How far ours may lie below.

        A whole picture in every reply is demanded, whatever was published. The twenty unknown
        things are not the published twenty, so two standard errors come on top.
        """
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
        """Whether ours does not lie further below than allowed, if there is anything beside it."""
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
    """Return metrics by task: those of a JSON file that `run` wrote, or of results.json.

    Args:
        path: the file; results.json if not given.
        split: the one that the file must be of; any if not given.

    Raises:
        CheckpointError: no such file, or no JSON.
        OptionError: a file without metrics, or of another split.
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
