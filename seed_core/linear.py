"""Layers of the language model where no host provides them: torch's, but quick for few rows.

A step multiplies every weight with one row a variation. torch's CPU product for that uses one core,
and leaves most of the memory's speed unused; the same product in as many pieces as there are cores
uses them all. Knows nothing of what the layers compute.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

Embedding = nn.Embedding
RMSNorm = nn.RMSNorm

_FEW_ROWS = 4
"""Above, pieces are no quicker than torch's own product; measured with weights 1024 wide."""


class Linear(nn.Linear):
    """``nn.Linear``, quick for few rows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[..., in_features]`` to ``[..., out_features]``."""
        return product(x, self.weight, self.bias)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return ``residual`` plus the product; may write over ``residual``."""
        return add_product(residual, x, self.weight, self.bias)


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Map ``[..., in]`` to ``[..., out]`` by ``[out, in]``; in pieces where a CPU has few rows."""
    width, features = weight.shape
    rows = x.numel() // features
    if x.device.type != "cpu" or not 0 < rows <= _FEW_ROWS or bias is not None:
        return F.linear(x, weight, bias)
    pieces = _largest_divisor(width, torch.get_num_threads())
    columns = x.reshape(rows, -1).T.expand(pieces, -1, -1)  # [pieces, in, rows]
    out = torch.bmm(weight.view(pieces, -1, features), columns).view(width, rows)
    return out.T.reshape(*x.shape[:-1], width)


def add_product(
    residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Return ``residual`` plus the product; may write over ``residual``."""
    if x.device.type == "cpu" or bias is not None:
        return residual.add_(product(x, weight, bias))
    rows = residual.view(-1, residual.shape[-1])
    rows.addmm_(x.reshape(-1, x.shape[-1]), weight.t())  # one launch on a card instead of two
    return residual


def _largest_divisor(number: int, limit: int) -> int:
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)
