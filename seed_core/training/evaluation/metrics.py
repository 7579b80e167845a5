"""Metrics: each a value with the number of questions that it is of, and its 95 % interval.

Sources: Wilson 1927 (interval of a fraction); Student 1908 (of the average of a few); Newcombe
1998, method 10 (of a difference), and method 4 (of a fraction, with correction for continuity).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    # What each question gave, in the order of the questions; None where one has no such metric.
    scores: tuple[float | None, ...] = field(default=(), compare=False)

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
    metrics = {}
    for name in names:
        values = [score[name] for score in scores if name in score]
        is_average = name in AVERAGES
        metric = average(values) if is_average else fraction(statistics.fmean(values), len(values))
        metrics[name] = replace(metric, scores=tuple(score.get(name) for score in scores))
    return metrics


def pairs_of(ours: Metric, other: Metric) -> list[tuple[float, float]]:
    """Return the scores of the questions that both were asked, or nothing if these are unknown."""
    # Other numbers of questions are other questions. Of as many others, as of another world, the
    # pairs have nothing in common, and their interval is as wide as without pairs.
    if len(ours.scores) != len(other.scores):
        return []
    return [
        (one, two)
        for one, two in zip(ours.scores, other.scores, strict=True)
        if one is not None and two is not None
    ]


def difference(ours: Metric, other: Metric) -> tuple[float, float]:
    """Return the 95 % interval of ours less the other.

    Where both have scores of the same questions, it is that of the differences: of an average their
    own, of a fraction Wilson's, corrected for continuity, of the questions that only one of them
    got right. Otherwise it is Newcombe's, from both intervals.
    """
    if pairs := pairs_of(ours, other):
        if all(score in (0, 1) for pair in pairs for score in pair):
            return _difference_of_right(pairs)
        if interval := average([one - two for one, two in pairs]).interval:
            return interval
    (low, high), (other_low, other_high) = ours.bounds, other.bounds
    middle = ours.value - other.value
    return (
        middle - math.hypot(ours.value - low, other_high - other.value),
        middle + math.hypot(high - ours.value, other.value - other_low),
    )


def _difference_of_right(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    ours_alone = sum(one > two for one, two in pairs)
    only_one = sum(one != two for one, two in pairs)
    if not only_one:
        return 0.0, 0.0
    # Without the correction, 4 to 0 would count as better, which chance alone brings in 1 of 8.
    low = fraction(max(ours_alone - 0.5, 0) / only_one, only_one).bounds[0]
    high = fraction(min(ours_alone + 0.5, only_one) / only_one, only_one).bounds[1]
    part = only_one / len(pairs)
    return (2 * low - 1) * part, (2 * high - 1) * part


# ---- in JSON ----

# In results.json alone: the error of embeddings, and how many codes are used.
_PUBLISHED_ONLY = frozenset(["mse", "codes_used_on_test"])

_ABOUT = ("n", "counts", "intervals", "scores")  # what a task has beside its metrics


def to_fields(metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """Return a task as it stands in a JSON file.

    ``n`` is its number of questions; ``counts`` has those of metrics that are of fewer. ``scores``
    has what each question gave, in their order, with null for a question without the metric.
    """
    n = max((metric.n for metric in metrics.values()), default=0)
    return {
        **{name: metric.value for name, metric in metrics.items()},
        "n": n,
        "counts": {name: metric.n for name, metric in metrics.items() if metric.n != n},
        "intervals": {name: list(m.interval) for name, m in metrics.items() if m.interval},
        "scores": {name: list(m.scores) for name, m in metrics.items() if m.scores},
    }


def from_fields(fields: Mapping[str, Any], where: str) -> dict[str, Metric]:
    """Return a task of a JSON file. A fraction without an interval gets its own.

    Raises:
        OptionError: the fields are not those of `to_fields`; ``where`` says what they are from.
    """
    metrics = dict[str, Metric]()
    try:
        counts, intervals = fields.get("counts", {}), fields.get("intervals", {})
        scores = fields.get("scores", {})
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
            metrics[name] = replace(metrics[name], scores=_scores(scores.get(name, ()), n))
    except (KeyError, TypeError, ValueError, AttributeError, OptionError) as error:
        raise OptionError(
            f"{where} does not hold metrics as evaluate writes them: {error}"
        ) from error
    return metrics


def _scores(fields: Sequence[Any], n: int) -> tuple[float | None, ...]:
    scores = tuple(None if score is None else float(score) for score in fields)
    known = [score for score in scores if score is not None]
    if not all(map(math.isfinite, known)) or (scores and len(known) != n):
        raise OptionError(f"{n} finite scores were expected")
    return scores
