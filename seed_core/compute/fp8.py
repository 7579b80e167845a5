"""Weights of eight bits: float8_e4m3fn values with one float32 scale a tensor, and their products.

A weight is its values times its scale; ComfyUI stores them the same way. Knows how such weights are
made and multiplied, nothing of files (see ``fp8_files``) nor of which weights a network has in it.
Like ``linear``, the module is where layers come from.

Sources: arXiv 2209.05433 (FP8 formats); Comfy-Org/ComfyUI at 4f874c5e, QUANTIZATION.md.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from . import linear

Embedding = nn.Embedding
RMSNorm = linear.RMSNorm

FP8 = torch.float8_e4m3fn
COMPUTING_DTYPE = torch.bfloat16
"""Precision of everything but the quantised weights: what activations and the other weights have."""

SCALE_SUFFIX = "_scale"
"""A weight's name with this is the name of its scale."""

_LARGEST = torch.finfo(FP8).max
_SMALLEST_SCALE = 1e-12
"""Of activations, so that rows of zeros are not divided by zero."""

_MULTIPLE = 16
"""What every side of a product of 8-bit matrices must be a multiple of."""


def computing_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision of activations where weights are loaded as ``dtype``."""
    return COMPUTING_DTYPE if dtype == FP8 else dtype


def scale_of(largest: float) -> torch.Tensor:
    """Return the scale, float32 ``[]``, that maps the largest magnitude of a weight to 448."""
    return torch.tensor(max(largest / _LARGEST, torch.finfo(torch.float32).tiny))


def quantize(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the float8 values nearest to ``weight / scale``."""
    return (weight.to(torch.float32) / scale).to(FP8)


def dequantize(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return ``weight * scale``, computed in float32 and rounded once."""
    return weight.to(torch.float32).mul_(scale).to(dtype)


def largest(weight: torch.Tensor) -> float:
    """Return the largest magnitude of float8 values, NaN where one is no number.

    Without their sign they are in the order of their bytes, and the last of all is the NaN. As
    whole numbers with a sign, the largest is that of the positive ones; without, of the negative.
    """
    ends = [weight.view(kind).max().view(torch.uint8) for kind in (torch.int8, torch.uint8)]
    magnitudes = (torch.stack(ends) & 0x7F).view(FP8)
    return magnitudes.float().max().item()


def scratch_bytes(module: nn.Module, device: torch.device) -> int:
    """Return the memory that the largest product of a network takes for its weight in 16 bits.

    A device that multiplies float8 matrices itself needs none.
    """
    if has_fp8_units(device):
        return 0
    sizes = [x.numel() for x in module.state_dict().values() if x.dtype == FP8]
    return max(sizes, default=0) * COMPUTING_DTYPE.itemsize


class Linear(linear.Linear):
    """A linear layer whose weight is float8 with a scale where its state dict has one.

    Attributes:
        weight_scale: float32 ``[]``; None where the weight is a plain one.
    """

    weight_scale: torch.Tensor | None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.register_buffer("weight_scale", None)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        # Without a buffer in its place the scale would count as unexpected.
        if f"{prefix}weight{SCALE_SUFFIX}" in state_dict:
            self.weight_scale = torch.empty((), device=self.weight.device)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[..., in_features]`` to ``[..., out_features]``, in the precision of ``x``."""
        if self.weight_scale is None:
            return super().forward(x)
        out = product(x, self.weight, self.weight_scale)
        return out if self.bias is None else out + self.bias

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return ``residual`` plus the product; may write over ``residual``."""
        if self.weight_scale is None or self.bias is not None:
            return super().add_to(residual, x)
        return product(x, self.weight, self.weight_scale, residual)


def has_fp8_units(device: torch.device) -> bool:
    """Tell whether a device multiplies float8 matrices: NVIDIA's from Ada (8.9) on."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 9)


def product(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiply by a quantised weight in the way that its device is best at.

    Args:
        x: ``[..., in_features]``.
        weight: float8 ``[out_features, in_features]``.
        weight_scale: float32 ``[]``.
        residual: ``[..., out_features]`` to add, which may be written over; None adds nothing.

    Returns:
        ``[..., out_features]`` in the precision of ``x``.
    """
    if has_fp8_units(x.device) and not any(side % _MULTIPLE for side in weight.shape):
        return scaled_product(x, weight, weight_scale, residual)
    if torch.finfo(x.dtype).max < torch.finfo(COMPUTING_DTYPE).max:
        # Unscaled, the sums would be too large for float16.
        out = F.linear(x, dequantize(weight, weight_scale, x.dtype))
    else:
        # The scale is left to the product: so a weight is read once, and written and read in 16 bits.
        out = F.linear(x, weight.to(x.dtype)).mul_(weight_scale)
    return out if residual is None else residual.add_(out)


def activation_scales(rows: torch.Tensor) -> torch.Tensor:
    """Return the scale of each row of ``[M, D]``, float32 ``[M, 1]``.

    A row of its own scale is not crushed by the huge ones that LLaMA makes of a first token.
    """
    largest = torch.linalg.vector_norm(rows, torch.inf, -1, keepdim=True, dtype=torch.float32)
    # One launch for largest / 448 + the smallest scale.
    return torch.rsub(largest, _SMALLEST_SCALE, alpha=-1 / _LARGEST)


def scaled_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiply as float8, without waiting for the device.

    Args:
        x: ``[..., in_features]``; each row is rounded to float8 with a scale of its own.
        weight: float8 ``[out_features, in_features]``.
        weight_scale: float32 ``[]``.
        residual: ``[..., out_features]`` to add, which may be written over; None adds nothing.

    Returns:
        ``[..., out_features]`` in the precision of ``x``.
    """
    rows = x.flatten(0, -2)  # [M, in]
    scales = activation_scales(rows)
    count = rows.shape[0]
    # Rows are independent: what the unused last ones hold reaches no result.
    padded = rows.new_empty(-(-count // _MULTIPLE) * _MULTIPLE, rows.shape[1], dtype=FP8)
    torch.div(rows, scales, out=padded[:count])
    is_one = count == 1  # whose scale and residual the product itself can take
    out: torch.Tensor = torch._scaled_mm(
        padded,
        weight.t(),
        scale_a=scales if is_one else torch.ones_like(weight_scale),
        scale_b=weight_scale,
        bias=residual.flatten() if is_one and residual is not None else None,
        out_dtype=x.dtype,
    )[:count]
    if not is_one:
        out = out.mul_(scales)
    out = out.view(*x.shape[:-1], -1)
    return out if residual is None or is_one else residual.add_(out)
