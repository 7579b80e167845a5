"""Numbers in a model's config: of the right kind, and within what any such model could have.

So a damaged or hostile config ends in one sentence instead of a network that fills the memory.
"""

from __future__ import annotations

from collections.abc import Mapping

from .errors import CheckpointError

Range = tuple[float, float]  # least and most; two ints allow whole numbers only

EPSILON: Range = (0.0, 0.1)
WIDTH: Range = (1, 2**18)
DEPTH: Range = (1, 256)
HEADS: Range = (1, 1024)


def check_number(what: str, value: object, allowed: Range) -> None:
    """Refuse a value of a config that is not a number of the right kind within its range.

    Raises:
        CheckpointError: it is not; the message calls it ``what``.
    """
    low, high = allowed
    is_whole = isinstance(low, int)
    kinds = int if is_whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        raise CheckpointError(
            f"{what} must be a {'whole ' if is_whole else ''}number in {low}..{high}; got "
            f"{value!r:.40}. The config.json is damaged or of another kind of model."
        )


def check_numbers(owner: str, config: object, ranges: Mapping[str, Range]) -> None:
    """Check the fields of a config that ``ranges`` names; see `check_number`."""
    for name, allowed in ranges.items():
        check_number(f"{owner}'s {name}", getattr(config, name), allowed)
