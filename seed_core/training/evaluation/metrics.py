"""Metrics: each a value with the number of questions that it is of, and its 95 % interval.

Sources: Wilson 1927 (interval of a fraction); Student 1908 (of the average of a few); Newcombe
1998, method 10 (of a difference).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import OptionError

Scores = Mapping[str, float]
"""What one question gives: 1 or 0 for right or wrong, or one of `AVERAGES`."""

DECIBELS = frozenset(["psnr", "psnr_small"])

# Averages of a number that each picture has. All other metrics are fractions of right answers.
AVERAGES = DECIBELS | {"cosine"}

_ERRORS = statistics.NormalDist().inv_cdf(0.975)  # 1.96 standard errors are half of the interval

# The same of 2 to 29 numbers, by Student's distribution: the error that few show is uncertain too.
_STUDENTS = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160),
    *(2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056),
    *(2.052, 2.048),
)
_ERRORS_OF_FEW = dict(enumerate(_STUDENTS, 2))


@dataclass(frozen=True)
class Metric:
    """One metric of one task."""

    value: float  # in 0..1, or in dB
    n: int  # questions, or pictures, that it is of
    interval: tuple[float, float] | None = None  # of 95 %; None for a single picture

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval, or the value itself where none is known."""
        return self.interval or (self.value, self.value)


def fraction(value: float, n: int) -> Metric:
    """Return a fraction of n answers, with Wilson's interval.

    Raises:
        OptionError: it lies outside 0..1, or n is less than 1.
    """
    if not 0 <= value <= 1 or n < 1:
        raise OptionError(
            f"a fraction of answers must lie in 0..1, of 1 or more; got {value} of {n}"
        )
    weight = _ERRORS**2 / n
    middle = (value + weight / 2) / (1 + weight)
    half = math.sqrt(weight * (value * (1 - value) + weight / 4)) / (1 + weight)
    # The bound beside a value of 0 or 1 is exactly that; rounding must not put it inside.
    low, high = min(max(middle - half, 0.0), value), max(min(middle + half, 1.0), value)
    return Metric(value, n, (low, high))


def average(values: Sequence[float]) -> Metric:
    """Return an average, 1.96 standard errors to either side of it; of fewer than 30, more of them.

    The error is that of other pictures of the same world, not of another training run.
    """
    value, n = statistics.fmean(values), len(values)
    if n == 1:
        return Metric(value, n)
    half = _ERRORS_OF_FEW.get(n, _ERRORS) * statistics.stdev(values) / math.sqrt(n)
    return Metric(value, n, (value - half, value + half))


def summarize(scores: Sequence[Scores]) -> dict[str, Metric]:
    """Average each metric over the questions that have it."""
    names = dict.fromkeys(name for score in scores for name in score)
    values = {name: [score[name] for score in scores if name in score] for name in names}
    return {
        name: average(all_) if name in AVERAGES else fraction(statistics.fmean(all_), len(all_))
        for name, all_ in values.items()
    }


def difference(ours: Metric, other: Metric) -> tuple[float, float]:
    """Return the 95 % interval of ours less the other, by Newcombe's method from both intervals."""
    (low, high), (other_low, other_high) = ours.bounds, other.bounds
    middle = ours.value - other.value
    return (
        middle - math.hypot(ours.value - low, other_high - other.value),
        middle + math.hypot(high - ours.value, other.value - other_low),
    )


# ---- in JSON ----

# In results.json alone: the error of embeddings, and how many codes are used.
_PUBLISHED_ONLY = frozenset(["mse", "codes_used_on_test"])

_ABOUT = ("n", "counts", "intervals")  # what a task has beside its metrics


def to_fields(metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """Return a task as it stands in a JSON file.

    ``n`` is its number of questions; ``counts`` has those of metrics that are of fewer.
    """
    n = max((metric.n for metric in metrics.values()), default=0)
    return {
        **{name: metric.value for name, metric in metrics.items()},
        "n": n,
        "counts": {name: metric.n for name, metric in metrics.items() if metric.n != n},
        "intervals": {name: list(m.interval) for name, m in metrics.items() if m.interval},
    }


def from_fields(fields: Mapping[str, Any], where: str) -> dict[str, Metric]:
    """Return a task of a JSON file. A fraction without an interval gets its own.

    Raises:
        OptionError: the fields are not those of `to_fields`; ``where`` says what they are from.
    """
    metrics = {}
    try:
        counts, intervals = fields.get("counts", {}), fields.get("intervals", {})
        for name in fields:
            if name in _ABOUT:
                continue
            value, n = float(fields[name]), int(counts.get(name, fields["n"]))
            if name in intervals:
                low, high = map(float, intervals[name])
                if not -math.inf < low <= value <= high < math.inf:
                    raise OptionError(f"{name} {value} lies outside its interval {low}, {high}")
                metrics[name] = Metric(value, n, (low, high))
            else:
                metrics[name] = (
                    Metric(value, n) if name in AVERAGES | _PUBLISHED_ONLY else fraction(value, n)
                )
    except (KeyError, TypeError, ValueError, AttributeError, OptionError) as error:
        raise OptionError(
            f"{where} does not hold metrics as evaluate writes them: {error}"
        ) from error
    return metrics
