"""How well codes fit the pictures they were made of: whether a tokenizer knows such pictures.

A tokenizer gives 32 codes to any picture, also to one unlike everything it was trained on. How far
the picture is from the nearest thing it has codes for tells the two apart.
"""

from __future__ import annotations

from .value import SeedCodes

FAMILIAR_DISTANCE = {"seed-mini": 0.23}
"""Mean distance of a picture (see `SeedCodes`) up to which a family knows its kind, where measured.

All of 1152 held-out pictures of seed-mini's world lie below it, 95 % of 234 photographs and pieces
of photographs above (tests/evaluation).
"""


def describe_fit(codes: SeedCodes) -> list[str]:
    """Return for each picture how well its codes fit, in a few words."""
    return [_words(codes.family, distance) for distance in codes.distances.mean(1).tolist()]


def summarize_fit(codes: SeedCodes) -> str:
    """Return the same of all pictures in one line."""
    if len(codes) == 1:
        return describe_fit(codes)[0]
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
