"""The language model's layers where a host does not bring its own: quick on a CPU, and in fp8.

Networks take the place that layers come from as ``operations``: this module, or a host's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from . import fp8
from .products import multiply

Embedding = nn.Embedding


class Linear(nn.Linear):
    """``nn.Linear`` for plain weights and for quantised ones, quick for few rows.

    A weight whose scale is in the state dict too is a quantised one; it stays so.
    """

    weight_scale: torch.Tensor | None  # float32 []; None for a plain weight
    _is_quantized = False

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.register_buffer("weight_scale", None)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        if f"{prefix}weight{fp8.SCALE_SUFFIX}" in state_dict:
            # Without a buffer in its place torch would call the scale unexpected.
            self.weight_scale = torch.empty((), device=self.weight.device)
            self._is_quantized = True
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[..., in_features]`` to ``[..., out_features]``, in the precision of ``x``."""
        scale = self.weight_scale if self._is_quantized else None
        return multiply(x, self.weight, scale, self.bias)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return ``residual`` plus the product; may write over ``residual``."""
        scale = self.weight_scale if self._is_quantized else None
        return multiply(x, self.weight, scale, self.bias, residual)


class RMSNorm(nn.RMSNorm):
    """``nn.RMSNorm``; on a CPU in six calls, where torch makes ten."""

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
