"""The vision tower: EVA-CLIP's ViT-g/14 as BLIP-2 cuts it, pixels to image features.

The class token and the patches leave it as the raw residual stream, without final norm or pooling.

Sources: arXiv 2211.07636 (EVA), 2301.12597 (BLIP-2); AILab-CVC/SEED at 93b3cf4 for the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import CheckpointError
from ..ranges import DEPTH, EPSILON, HEADS, WIDTH, check_numbers

_RANGES = {
    "image_size": (1, 4096),
    "patch_size": (1, 4096),
    "width": WIDTH,
    "depth": DEPTH,
    "num_heads": HEADS,
    "mlp_width": WIDTH,
    "norm_eps": EPSILON,
}


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of the tower; the defaults are SEED-2's."""

    image_size: int = 224  # side of the square input, in pixels
    patch_size: int = 14  # side of a patch, in pixels
    width: int = 1408
    depth: int = 39
    num_heads: int = 16
    mlp_width: int = 6144
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        check_numbers("the vision tower", self, _RANGES)
        if self.width % self.num_heads or self.image_size % self.patch_size:
            raise CheckpointError(
                f"the vision tower's width {self.width} must be a multiple of its {self.num_heads} "
                f"heads, and its image size {self.image_size} of its patch size {self.patch_size}"
            )

    @property
    def num_tokens(self) -> int:
        """Patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, is_causal: bool = False
) -> torch.Tensor:
    """Multi-head attention over ``[B, N, D]`` projections, scaled by head width ** -0.5."""
    mixed = F.scaled_dot_product_attention(
        _to_heads(query, heads), _to_heads(key, heads), _to_heads(value, heads), is_causal=is_causal
    )
    return mixed.transpose(1, 2).flatten(2)  # [B, N, D]


def _to_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    batch, length, width = x.shape
    return x.view(batch, length, heads, width // heads).transpose(1, 2)  # [B, heads, N, D / heads]


class Mlp(nn.Module):
    """Two linear layers around an exact GELU."""

    def __init__(self, width: int, hidden: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.fc1 = operations.Linear(width, hidden, **factory)
        self.fc2 = operations.Linear(hidden, width, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[B, N, D]`` to the same shape."""
        out: torch.Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Attention(nn.Module):
    """Self-attention from one fused product with a bias; rows are ordered q, k, v."""

    def __init__(self, width: int, num_heads: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = operations.Linear(width, 3 * width, **factory)
        self.proj = operations.Linear(width, width, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[B, N, D]`` to the same shape."""
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        out: torch.Tensor = self.proj(attend(query, key, value, self.num_heads))
        return out


class Block(nn.Module):
    """A pre-norm transformer block, shared with the tokenizer's decode side."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_width: int,
        eps: float,
        operations: Any,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.norm1 = operations.LayerNorm(width, eps=eps, **factory)
        self.attn = Attention(width, num_heads, operations, **factory)
        self.norm2 = operations.LayerNorm(width, eps=eps, **factory)
        self.mlp = Mlp(width, mlp_width, operations, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[B, N, D]`` to the same shape."""
        x = x + self.attn(self.norm1(x))
        out: torch.Tensor = x + self.mlp(self.norm2(x))
        return out


class EvaVit(nn.Module):
    """The vision tower."""

    def __init__(self, config: VisionConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        width, patch = config.width, config.patch_size
        self.patch_embed = operations.Conv2d(3, width, patch, stride=patch, **factory)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width, **factory))
        self.pos_embed = nn.Parameter(torch.empty(1, config.num_tokens, width, **factory))
        self.blocks = nn.ModuleList(
            Block(width, config.num_heads, config.mlp_width, config.norm_eps, operations, **factory)
            for _ in range(config.depth)
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return image features ``[B, P, D]`` of pixels ``[B, 3, S, S]``, class token first."""
        x = self._embed(pixels)
        for block in self.blocks:
            x = block(x)
        return x

    def _embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the tokens ``[B, P, D]`` that the first block sees."""
        patches = self.patch_embed(pixels).flatten(2).transpose(1, 2)  # [B, P - 1, D]
        cls_token = self.cls_token.to(patches).expand(len(patches), -1, -1)
        return torch.cat((cls_token, patches), dim=1) + self.pos_embed.to(patches)
