"""Random numbers of training: a stream of its own for each thing that is left to chance.

A stream belongs to a seed, to what is drawn from it, and to numbers, such as a sample's. So two
draws depend on one another only if they come from one stream, and nothing depends on what was drawn
before: sample n is the same in every run.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Streams:
    """All streams of a seed, or the streams of one part of what it decides."""

    seed: int
    owner: tuple[str | int, ...] = ()  # the part

    def within(self, *owner: str | int) -> Streams:
        """Return streams that only this part of the owner has."""
        return Streams(self.seed, (*self.owner, *owner))

    def of(self, purpose: str, *numbers: int) -> random.Random:
        """Return the stream of a purpose and of numbers."""
        return random.Random(self._key(purpose, *numbers))

    def tensors_of(self, purpose: str, *numbers: int) -> torch.Generator:
        """Return a stream that torch draws from."""
        return torch.Generator().manual_seed(self.of(purpose, *numbers).getrandbits(63))

    def in_rounds(self, purpose: str, number: int, count: int) -> int:
        """Return one of ``count`` things; each round of ``count`` numbers has all, in a new order."""
        turn, position = divmod(number, count)
        return shuffled(position, count, self._key(purpose, turn))

    def _key(self, *what: str | int) -> str:
        # The quotes and commas of repr keep ("a", 11) apart from ("a", 1, 1) and ("a 1", 1).
        return repr((self.seed, *self.owner, *what))


def shuffled(position: int, count: int, key: str) -> int:
    """Return the number at a position of a random order of ``count`` numbers, without a table.

    Args:
        position: 0 to ``count - 1``.
        count: how many numbers there are.
        key: names the order.
    """
    # A Feistel network permutes the numbers of an even count of bits, and permutes a number that is
    # out of range again until it is in range.
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = position >> half, position & mask
        for turn in range(4):
            digest = hashlib.blake2b(f"{key} {turn} {right}".encode(), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest, "big") & mask)
        position = left << half | right
        if position < count:
            return position
