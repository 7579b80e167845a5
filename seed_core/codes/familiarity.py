"""Whether a tokenizer knows the kind of picture that codes were made of.

It gives 32 codes to any picture, even to one unlike everything it was trained on. The distance to
the nearest thing it has codes for tells the two apart.
"""

from __future__ import annotations

from .value import SeedCodes

FAMILIAR_DISTANCE = {"seed-mini": 0.23}
"""Largest mean distance of a picture whose kind a family knows, for the families it was measured of.

All of 1152 held-out pictures of seed-mini's world are nearer; 95 % of 234 photographs, some cropped,
are farther (tests/evaluation).
"""


def describe_distances(codes: SeedCodes) -> list[str]:
    """Return a few words on each picture: its distance, and whether the family knows its kind."""
    return [_words(codes.family, distance) for distance in codes.distances.mean(1).tolist()]


def summarize_distances(codes: SeedCodes) -> str:
    """Return one line on all pictures."""
    if len(codes) == 1:
        return describe_distances(codes)[0]
    distances, limit = codes.distances.mean(1), FAMILIAR_DISTANCE.get(codes.family)
    if limit is None:
        return f"{len(codes)} pictures, distances {distances.min():.2f} to {distances.max():.2f}"
    far = int((distances > limit).sum())
    return f"{len(codes)} pictures, {far or 'none'} of them unlike what {codes.family} knows"


def _words(family: str, distance: float) -> str:
    if distance != distance:  # NaN
        return "distance unknown"
    if family not in FAMILIAR_DISTANCE:
        return f"distance {distance:.2f}"
    limit = FAMILIAR_DISTANCE[family]
    kind = "unlike what" if distance > limit else "of the kind"
    return f"distance {distance:.2f}: {kind} {family} knows (up to {limit})"
