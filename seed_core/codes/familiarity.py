"""Whether a tokenizer knows the kind of picture that codes were made of.

It gives 32 codes to any picture, even to one unlike everything it was trained on. The distance to
the nearest thing it has codes for tells the two apart.
"""

from __future__ import annotations

import math

from .value import SeedCodes

_MOST_NAMED = 10  # pictures in a sentence

FAMILIAR_DISTANCE = {"seed-mini": 0.23}
"""Largest mean distance of a picture whose kind a family knows, for the families it was measured of.

All of 1152 held-out pictures of seed-mini's world are nearer; 95 % of 234 photographs, some cropped,
are farther (tests/evaluation).
"""


KNOWN_KINDS = {"seed-mini": "drawings of 192 objects, one at a time, on a plain background"}
"""What a family knows, for those in `FAMILIAR_DISTANCE`."""


def unfamiliar_rows(codes: SeedCodes) -> list[int]:
    """Return which pictures are of a kind that their family does not know, from 0."""
    limit = FAMILIAR_DISTANCE.get(codes.family)
    if limit is None:
        return []
    return [row for row, mean in enumerate(_means(codes)) if mean > limit]


def describe_distances(codes: SeedCodes) -> list[str]:
    """Return a few words on each picture: its distance, and whether the family knows its kind."""
    return [_words(codes.family, mean) for mean in _means(codes)]


def summarize_distances(codes: SeedCodes) -> str:
    """Return in sentences how well the codes fit their pictures, and what is wrong if they do not."""
    family, count = codes.family, len(codes)
    far = unfamiliar_rows(codes)
    if not far:
        return _fits(codes)
    means = _means(codes)
    distances = _span([means[row] for row in far])
    what = "This picture is" if count == 1 else _some_are(far, count)
    return (
        f"{what} of a kind that {family} does not know (distance {distances}, where it knows pictures "
        f"up to {FAMILIAR_DISTANCE[family]}). It knows {KNOWN_KINDS[family]}. What it reads in anything "
        "else, and paints of it, is wrong."
    )


def _fits(codes: SeedCodes) -> str:
    family = codes.family
    known = [mean for mean in _means(codes) if not math.isnan(mean)]
    told = f"distance {_span(known)}" if len(known) else "distance unknown"
    one_or_more = "One picture" if len(codes) == 1 else f"{len(codes)} pictures"
    if family not in FAMILIAR_DISTANCE or len(known) < len(codes):
        return f"{one_or_more} in codes of {family}: {told}."
    return (
        f"{one_or_more} of the kind that {family} knows: {told}, up to {FAMILIAR_DISTANCE[family]}."
    )


def _some_are(rows: list[int], count: int) -> str:
    named = ", ".join(str(row + 1) for row in rows[:_MOST_NAMED])
    more = ", ..." if len(rows) > _MOST_NAMED else ""
    return (
        f"{len(rows)} of these {count} pictures ({named}{more}) {'is' if len(rows) == 1 else 'are'}"
    )


def _means(codes: SeedCodes) -> list[float]:
    """Return the mean distance of each picture; NaN where it is unknown."""
    means: list[float] = codes.distances.mean(1).tolist()
    return means


def _span(distances: list[float]) -> str:
    low, high = (f"{each:.2f}" for each in (min(distances), max(distances)))
    return low if low == high else f"{low} to {high}"


def _words(family: str, distance: float) -> str:
    if distance != distance:  # NaN
        return "distance unknown"
    if family not in FAMILIAR_DISTANCE:
        return f"distance {distance:.2f}"
    limit = FAMILIAR_DISTANCE[family]
    kind = "unlike what" if distance > limit else "of the kind"
    return f"distance {distance:.2f}: {kind} {family} knows (up to {limit})"
