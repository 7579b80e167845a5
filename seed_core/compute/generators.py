"""Random numbers: one CPU generator for each picture or variation.

Row i is seeded with the first seed plus i, so it can be made again alone.
"""

from __future__ import annotations

import torch

_SEEDS = 2**64


def seeded_generators(first: int, count: int) -> list[torch.Generator]:
    """Return CPU generators seeded with ``first``, ``first + 1``, ... (modulo 2**64)."""
    return [torch.Generator().manual_seed((first + i) % _SEEDS) for i in range(count)]
