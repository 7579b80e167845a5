"""Mixtures: which source each number is from, and how many numbers that source had before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

from ..streams import Streams

_BLOCK = 256  # numbers in a row that are shuffled together


class Mixture:
    """Sources by number, as often as their weights say.

    Each source has a counter of its own, so it gives its documents in their order and leaves out
    none. After every 256 numbers each source has had its part of them, give or take a document for
    every source; within these 256 their order is left to chance.

    Args:
        weights: of the sources, over 0.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        later = [*accumulate(reversed(weights))][::-1]
        self._parts = tuple(w / rest for w, rest in zip(weights, later, strict=True))

    def at(self, number: int, streams: Streams) -> tuple[int, int]:
        """Return the source of a number, and the source's own number there."""
        block, place = divmod(number, _BLOCK)
        sources, counts = _block(self._parts, block, streams)
        return sources[place], counts[place]


@lru_cache(maxsize=4)
def _block(parts: tuple[float, ...], block: int, streams: Streams) -> tuple[list[int], list[int]]:
    """Return the sources of a block's numbers, and their own numbers."""
    before, after = (_shares(parts, count * _BLOCK) for count in (block, block + 1))
    sources = [i for i in range(len(parts)) for _ in range(before[i], after[i])]
    streams.of("order of sources", block).shuffle(sources)
    counts = []
    for i in sources:
        counts.append(before[i])
        before[i] += 1
    return sources, counts


def _shares(parts: Sequence[float], count: int) -> list[int]:
    """Split the first ``count`` numbers among sources; a share never falls as the count grows.

    Args:
        parts: the weight of each source as a fraction of its own and all later ones'.
        count: how many numbers.
    """
    shares = []
    for part in parts:
        shares.append(math.floor(count * part + 0.5))
        count -= shares[-1]
    return shares
