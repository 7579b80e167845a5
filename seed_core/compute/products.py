"""Products of activations and weights, plain or quantised, each in its quickest way.

A step of the language model multiplies every weight with one row a variation. torch's CPU product
of so few rows uses one core, and so leaves most of the memory's speed unused; cut into pieces, the
same product uses all cores.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from . import fp8

# A weight of fewer numbers lies in the processor's cache: on one thread, pieces cost more in calls
# than they save in waiting.
_SMALL = 2**20
_COLUMNS = 4  # so many rows or fewer are quicker as columns beside a piece of the weight
_PIECE = 256  # most outputs of a piece; quickest for weights from 1024 x 3072 to 2816 x 1024
_THIN = 16  # fewest outputs of a piece; thinner pieces cost more than an idle core
_BUSY = 0.85  # least share of the threads' turns that pieces must fill
_MANY_ROWS = 256  # above, torch's own product uses all cores and pieces gain less than a tenth


def multiply(
    x: torch.Tensor,  # [..., in]
    weight: torch.Tensor,  # [out, in], float8 where it has a scale
    scale: torch.Tensor | None = None,  # float32 []
    bias: torch.Tensor | None = None,  # [out]
    residual: torch.Tensor | None = None,  # [..., out]; may be written over
) -> torch.Tensor:
    """Return the product ``[..., out]`` in the precision of ``x``, plus bias and residual."""
    if scale is not None:
        out = fp8.product(x, weight, scale, residual)
        return out if bias is None else out.add_(bias)
    if residual is None:
        return _product(x, weight, bias)
    if x.is_cpu or bias is not None:
        return residual.add_(_product(x, weight, bias))
    rows = residual.view(-1, residual.shape[-1])
    rows.addmm_(x.reshape(-1, x.shape[-1]), weight.t())  # one launch on a card instead of two
    return residual


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Multiply by a plain weight, in pieces where a CPU has few rows."""
    threads = torch.get_num_threads()
    if not x.is_cpu or bias is not None or (threads == 1 and weight.numel() < _SMALL):
        return F.linear(x, weight, bias)
    if x.dtype != torch.float32:  # oneDNN computes those, and uses all cores by itself
        return F.linear(x, weight)
    width, features = weight.shape
    rows = x.numel() // features
    if not 0 < rows <= _MANY_ROWS or (threads == 1 and rows > _COLUMNS):
        return F.linear(x, weight)
    in_pieces = _with_columns if rows <= _COLUMNS else _with_rows
    return in_pieces(x.reshape(rows, features), weight, threads).view(*x.shape[:-1], width)


def _with_columns(rows: torch.Tensor, weight: torch.Tensor, threads: int) -> torch.Tensor:
    """Multiply each piece of the weight with ``[rows, in]`` as columns."""
    # Two pieces even on one thread: a single one goes to torch's product with a vector, a third
    # slower.
    width, features = weight.shape
    pieces = _largest_divisor(width, max(threads, 2))
    columns = rows.T.expand(pieces, -1, -1)  # [pieces, in, rows]
    out = torch.bmm(weight.view(pieces, -1, features), columns)
    return out.view(width, len(rows)).T.contiguous()


def _with_rows(rows: torch.Tensor, weight: torch.Tensor, threads: int) -> torch.Tensor:
    """Multiply ``[rows, in]`` as they are with each piece of the weight."""
    width, features = weight.shape
    pieces = _pieces(width, threads)
    cut = weight.view(pieces, -1, features).transpose(1, 2)  # [pieces, in, out / pieces]
    out = torch.bmm(rows.expand(pieces, -1, -1), cut)  # [pieces, rows, out / pieces]
    return out.transpose(0, 1).reshape(len(rows), width)


def _largest_divisor(number: int, limit: int) -> int:
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)


def _pieces(outputs: int, threads: int) -> int:
    """Return the fewest equal pieces of `_PIECE` at most that keep all threads busy to the end."""
    for pieces in range(max(threads, -(-outputs // _PIECE)), outputs // _THIN + 1):
        turns = -(-pieces // threads)
        if outputs % pieces == 0 and pieces >= _BUSY * turns * threads:
            return pieces
    return _largest_divisor(outputs, threads)
