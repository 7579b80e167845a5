"""The codebook: vectors to their nearest code, codes to their vectors.

It is float32 whatever the precision of the networks around it: in 16 bits close codes are confused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Codebook(nn.Module):
    """A table of ``codebook_size`` vectors of ``codebook_dim`` numbers."""

    def __init__(
        self, codebook_size: int, codebook_dim: int, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        del dtype  # always float32, see the module's docstring
        table = torch.empty(codebook_size, codebook_dim, device=device, dtype=torch.float32)
        self.codebook = nn.Parameter(table)

    def nearest(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return int64 codes ``[B, N]`` of vectors ``[B, N, D]``; on ties, the lowest."""
        vectors = vectors.float()
        table = self.codebook.to(vectors)
        # |v - c|^2, multiplied out, so that a [B, N, K, D] tensor is never made.
        distance = (
            vectors.square().sum(-1, keepdim=True)
            + table.square().sum(-1)
            - 2 * (vectors @ table.t())
        )  # [B, N, K]
        return distance.argmin(-1)

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        """Return float32 vectors ``[B, N, D]`` of codes ``[B, N]``, on the codes' device."""
        table = self.codebook.to(device=codes.device, dtype=torch.float32)
        return table[codes]
