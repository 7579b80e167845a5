"""Layers of the language model where no host provides them: torch's, but quick on a CPU.

A step multiplies every weight with one row a variation. torch's CPU product of few rows uses one
core, however many there are, and so leaves most of the memory's speed unused; the same product in
pieces uses them all. Knows nothing of what the layers compute.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Embedding = nn.Embedding

_SMALL = 2**20
"""Numbers of a weight below which one thread multiplies it in one go.

It lies in the processor's cache then, and pieces cost more in calls than they save in waiting.
"""

_COLUMNS = 4
"""Most rows that are quicker as columns beside a piece of the weight than as rows before it."""

_PIECE = 256
"""Most outputs of a piece with rows before it; weights of 1024 x 3072 to 2816 x 1024 are quickest so."""

_THIN = 16
"""Fewest outputs of a piece; thinner ones are slower than too few."""

_BUSY = 0.85
"""Share of the threads' turns that pieces fill at least."""

_MANY_ROWS = 256
"""Above, pieces gain less than a tenth: torch's own product uses all cores by itself."""


class Linear(nn.Linear):
    """``nn.Linear``, quick for few rows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[..., in_features]`` to ``[..., out_features]``."""
        return product(x, self.weight, self.bias)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return ``residual`` plus the product; may write over ``residual``."""
        return add_product(residual, x, self.weight, self.bias)


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Map ``[..., in]`` to ``[..., out]`` by ``[out, in]``; in pieces where a CPU has few rows.

    Only in float32: torch hands products in 16 bits to oneDNN, which uses all cores by itself.
    """
    threads = torch.get_num_threads()
    if not x.is_cpu or bias is not None or (threads == 1 and weight.numel() < _SMALL):
        return F.linear(x, weight, bias)
    if x.dtype != torch.float32:
        return F.linear(x, weight)
    width, features = weight.shape
    rows = x.numel() // features
    if not 0 < rows <= _MANY_ROWS or (threads == 1 and rows > _COLUMNS):
        return F.linear(x, weight)
    in_pieces = _with_columns if rows <= _COLUMNS else _with_rows
    return in_pieces(x.reshape(rows, features), weight, threads).view(*x.shape[:-1], width)


def add_product(
    residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Return ``residual`` plus the product; may write over ``residual``."""
    if x.is_cpu or bias is not None:
        return residual.add_(product(x, weight, bias))
    rows = residual.view(-1, residual.shape[-1])
    rows.addmm_(x.reshape(-1, x.shape[-1]), weight.t())  # one launch on a card instead of two
    return residual


def _with_columns(rows: torch.Tensor, weight: torch.Tensor, threads: int) -> torch.Tensor:
    """Multiply each piece of the weight with ``[rows, in]`` as columns."""
    # Two also on one thread: one alone is handed to a product with a vector, a third slower.
    width, features = weight.shape
    pieces = _largest_divisor(width, max(threads, 2))
    columns = rows.T.expand(pieces, -1, -1)  # [pieces, in, rows]
    out = torch.bmm(weight.view(pieces, -1, features), columns)
    return out.view(width, len(rows)).T.contiguous()


def _with_rows(rows: torch.Tensor, weight: torch.Tensor, threads: int) -> torch.Tensor:
    """Multiply ``[rows, in]`` as they are with each piece of the weight."""
    width, features = weight.shape
    pieces = _pieces(width, threads)
    parts = weight.view(pieces, -1, features).transpose(1, 2)
    out = torch.bmm(rows.expand(pieces, -1, -1), parts)  # [pieces, rows, out / pieces]
    return out.transpose(0, 1).reshape(len(rows), width)


class RMSNorm(nn.RMSNorm):
    """``nn.RMSNorm``; on a CPU, where torch composes it of ten calls, of five."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._is_composed = self.eps is not None and len(self.normalized_shape) == 1
        self._epsilon = torch.tensor([self.eps or 0.0], dtype=torch.float32, device="cpu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[..., D]`` to the same shape, computed in float32 and rounded once."""
        if not (x.is_cpu and self._is_composed):
            return super().forward(x)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        mean_square = torch.addcmul(self._epsilon, length, length, value=1 / x.shape[-1])
        out = x * mean_square.rsqrt_()
        return out.mul_(self.weight).to(x.dtype)


def _largest_divisor(number: int, limit: int) -> int:
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)


def _pieces(outputs: int, threads: int) -> int:
    """Return the fewest equal pieces of `_PIECE` at most that keep all threads busy to the end."""
    for pieces in range(max(threads, -(-outputs // _PIECE)), outputs // _THIN + 1):
        turns = -(-pieces // threads)
        if outputs % pieces == 0 and pieces >= _BUSY * turns * threads:
            return pieces
    return _largest_divisor(outputs, threads)
