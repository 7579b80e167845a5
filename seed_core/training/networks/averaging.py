"""Averages of a network's weights: over its last steps, and with those that it started from.

Sources: arXiv 2006.11239 (diffusion models, whose samples come from an average over steps);
arXiv 2109.01903 (WiSE-FT: the average with the start keeps what fine-tuning would forget).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

# After n steps the average keeps (1 + n) / (10 + n) of itself at most: it looks back over about a
# ninth of a short run.
_AHEAD, _WARM = 1, 10


@torch.no_grad()
def keep_of_start(network: nn.Module, start: Mapping[str, torch.Tensor], part: float) -> None:
    """Move a trained network back towards the weights that it started from.

    Args:
        network: trained.
        start: the parameters before, by name.
        part: fraction of the start's weights in the result.
    """
    for name, weights in network.named_parameters():
        weights.lerp_(start[name].to(weights), part)


class WeightAverage(nn.Module):
    """A copy of a network that follows its weights; what is in it goes into checkpoints.

    Args:
        network: to follow; the average begins with its weights.
        decay: fraction of the average that a step keeps, at most; 1 / (1 - decay) steps count.
    """

    steps: torch.Tensor  # int64 [], updates so far

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        self.network: Any = copy.deepcopy(network).requires_grad_(False)
        self._decay = decay
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move towards the weights after a step of the optimizer; buffers are copied."""
        done = int(self.steps)
        # Early, when the first weights are far off, fewer steps count.
        decay = min(self._decay, (_AHEAD + done) / (_WARM + done))
        for mean, weights in zip(self.network.parameters(), network.parameters(), strict=True):
            mean.lerp_(weights, 1 - decay)
        for kept, numbers in zip(self.network.buffers(), network.buffers(), strict=True):
            kept.copy_(numbers)
        self.steps += 1
