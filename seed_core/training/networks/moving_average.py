"""A codebook that follows its vectors as a moving average, without gradients.

Its memory is in buffers, so an interrupted run goes on exactly. It learns from the vectors of all
processes, so it is the same in each. Rows that nobody uses start anew.

Sources: arXiv 1711.00937 (VQ-VAE), appendix A.1; 2005.00341 (Jukebox) for the restarts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ...errors import OptionError
from ...tokenizer.codebook import Codebook
from .losses import gather_rows

_LEAST = 1e-6  # vectors per step that a row has at least, so that no mean divides by zero


class MovingAverage(nn.Module):
    """What a codebook's rows were used for lately.

    Args:
        codebook_size: rows.
        codebook_dim: their width.
        decay: fraction of the memory that a step keeps.
        restart_below: rows with fewer vectors per step, on average, become a vector of the batch.
    """

    counts: torch.Tensor  # float [K], vectors per step of each row
    sums: torch.Tensor  # float [K, D], the sum of these
    steps: torch.Tensor  # int64 [], updates so far; also the seed of restarts

    def __init__(
        self, codebook_size: int, codebook_dim: int, decay: float, restart_below: float
    ) -> None:
        super().__init__()
        if not 0 < decay < 1:
            raise OptionError(f"the codebook's decay must lie between 0 and 1; got {decay}")
        if not 0 <= restart_below < 1:
            raise OptionError(
                f"the codebook's restart_below must be at least 0 and less than the one vector that a "
                f"new row counts as; got {restart_below}"
            )
        self.decay = decay
        self.restart_below = restart_below
        self.register_buffer("counts", torch.zeros(codebook_size))
        self.register_buffer("sums", torch.zeros(codebook_size, codebook_dim))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def prepare(self, codebook: Codebook, vectors: torch.Tensor) -> None:
        """Give every row a vector of the first batch ``[B, N, D]``, before anything is looked up."""
        if self.steps == 0:
            self._restart(codebook, torch.ones_like(self.counts, dtype=torch.bool), _rows(vectors))

    @torch.no_grad()
    def update(self, codebook: Codebook, vectors: torch.Tensor, codes: torch.Tensor) -> None:
        """Move every row towards the mean of its vectors.

        Args:
            codebook: changed in place.
            vectors: float ``[B, N, D]`` of this process.
            codes: int64 ``[B, N]``, the row of each vector.
        """
        rows, uses = _rows(vectors), gather_rows(codes.flatten())
        # A product, where adding row by row would be in another order each time on a GPU.
        one_hot = F.one_hot(uses, len(self.counts)).to(rows)  # [B * N of all, K]
        with torch.autocast(rows.device.type, enabled=False):
            sums = one_hot.t() @ rows
        self.counts.lerp_(one_hot.sum(0), 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        codebook.codebook.copy_(self.sums / self.counts.clamp(min=_LEAST)[:, None])
        self.steps += 1
        self._restart(codebook, self.counts < self.restart_below, rows)

    def perplexity(self) -> torch.Tensor:
        """Return how many equally used rows would be as good."""
        shares = self.counts / self.counts.sum().clamp(min=_LEAST)
        entropy: torch.Tensor = torch.special.entr(shares).sum()
        return entropy.exp()

    def _restart(self, codebook: Codebook, is_old: torch.Tensor, rows: torch.Tensor) -> None:
        """Put a random vector in each row that ``is_old``, as if one step had used the row for it."""
        generator = torch.Generator().manual_seed(int(self.steps))
        choice = torch.randint(len(rows), is_old.shape, generator=generator).to(rows.device)
        fresh = rows[choice]
        old = is_old[:, None]
        codebook.codebook.copy_(torch.where(old, fresh, codebook.codebook))
        self.sums.copy_(torch.where(old, fresh, self.sums))
        self.counts.masked_fill_(is_old, 1.0)


def _rows(vectors: torch.Tensor) -> torch.Tensor:
    """Return the vectors of all processes, float ``[B * N, D]``."""
    return gather_rows(vectors.detach().float().flatten(0, 1))
