"""The Q-Former: learned queries that read image features through cross-attention.

The network serves twice: to make codes, where query j sees queries 0..j, which gives the codes
their order; and as the reverse Q-Former of the decode side, where every query sees all. Post-norm,
as BERT.

Sources: arXiv 2301.12597 (BLIP-2), 2310.01218 (SEED-LLaMA); AILab-CVC/SEED at 93b3cf4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..codes.value import NUM_CODES
from ..errors import CheckpointError
from ..ranges import DEPTH, EPSILON, HEADS, WIDTH, check_numbers
from .eva_vit import attend

_RANGES = {
    "num_queries": (1, 1024),
    "width": WIDTH,
    "context_width": WIDTH,
    "depth": DEPTH,
    "num_heads": HEADS,
    "mlp_width": WIDTH,
    "norm_eps": EPSILON,
    "cross_attention_every": DEPTH,
}


@dataclass(frozen=True)
class QFormerConfig:
    """Sizes of a Q-Former; the defaults are those of SEED-2's causal one."""

    num_queries: int = NUM_CODES
    width: int = 768
    context_width: int = 1408  # of the tokens that cross-attention reads
    depth: int = 12
    num_heads: int = 12
    mlp_width: int = 3072
    norm_eps: float = 1e-12
    cross_attention_every: int = 2  # layers 0, n, 2n ... have cross-attention

    def __post_init__(self) -> None:
        check_numbers("the Q-Former", self, _RANGES)
        if self.width % self.num_heads:
            raise CheckpointError(
                f"the Q-Former's width {self.width} must be a multiple of its {self.num_heads} heads"
            )

    @property
    def is_causal(self) -> bool:
        """The reference ties causality to the number of queries."""
        return self.num_queries == NUM_CODES


class QFormerAttention(nn.Module):
    """Attention, residual and norm; self-attention when no context is given."""

    def __init__(
        self, config: QFormerConfig, context_width: int, operations: Any, **factory: Any
    ) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.query = operations.Linear(width, width, **factory)
        self.key = operations.Linear(context_width, width, **factory)
        self.value = operations.Linear(context_width, width, **factory)
        self.dense = operations.Linear(width, width, **factory)
        self.norm = operations.LayerNorm(width, eps=config.norm_eps, **factory)

    def forward(
        self, x: torch.Tensor, context: torch.Tensor, is_causal: bool = False
    ) -> torch.Tensor:
        """Map ``x [B, Q, D]`` reading ``context [B, P, C]`` to ``[B, Q, D]``."""
        mixed = attend(
            self.query(x), self.key(context), self.value(context), self.num_heads, is_causal
        )
        out: torch.Tensor = self.norm(self.dense(mixed) + x)
        return out


class QFormerLayer(nn.Module):
    """Self-attention, cross-attention in some layers, feed-forward."""

    def __init__(
        self, config: QFormerConfig, has_cross_attention: bool, operations: Any, **factory: Any
    ) -> None:
        super().__init__()
        width = config.width
        self.is_causal = config.is_causal
        self.self_attention = QFormerAttention(config, width, operations, **factory)
        self.cross_attention = (
            QFormerAttention(config, config.context_width, operations, **factory)
            if has_cross_attention
            else None
        )
        self.fc1 = operations.Linear(width, config.mlp_width, **factory)
        self.fc2 = operations.Linear(config.mlp_width, width, **factory)
        self.norm = operations.LayerNorm(width, eps=config.norm_eps, **factory)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Map ``x [B, Q, D]`` reading ``context [B, P, C]`` to ``[B, Q, D]``."""
        x = self.self_attention(x, x, self.is_causal)
        if self.cross_attention is not None:
            x = self.cross_attention(x, context)
        out: torch.Tensor = self.norm(self.fc2(F.gelu(self.fc1(x))) + x)
        return out


class QFormer(nn.Module):
    """Learned queries through all layers."""

    def __init__(self, config: QFormerConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(
            torch.empty(1, config.num_queries, config.width, **factory)
        )
        self.norm = operations.LayerNorm(config.width, eps=config.norm_eps, **factory)
        self.layers = nn.ModuleList(
            QFormerLayer(config, i % config.cross_attention_every == 0, operations, **factory)
            for i in range(config.depth)
        )

    def forward(self, context: torch.Tensor) -> torch.Tensor:
        """Return the query embedding ``[B, Q, D]`` of ``context [B, P, C]``."""
        x: torch.Tensor = self.norm(self.query_tokens.to(context).expand(len(context), -1, -1))
        for layer in self.layers:
            x = layer(x, context)
        return x
