"""Numbers of eight bits: float8_e4m3fn values with one float32 scale a tensor, and their products.

A weight is its values times its scale; ComfyUI stores them the same way.

Sources: arXiv 2209.05433 (FP8 formats); Comfy-Org/ComfyUI at 4f874c5e, QUANTIZATION.md.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

FP8 = torch.float8_e4m3fn
COMPUTING_DTYPE = torch.bfloat16  # of activations, and of the weights that are not quantised
SCALE_SUFFIX = "_scale"  # a weight's name with this is the name of its scale

_LARGEST = torch.finfo(FP8).max  # 448
_SMALLEST_SCALE = 1e-12  # keeps rows of zeros from being divided by zero
_MULTIPLE = 16  # what a card needs every side of a product of float8 matrices to be a multiple of


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
    """Return the largest magnitude of float8 values, or NaN if there is a NaN among them."""
    # Without their sign, float8 values are in the order of their bytes, with NaN last. As int8 the
    # largest byte is that of the largest positive value, as uint8 of the largest negative one.
    ends = [weight.view(kind).max().view(torch.uint8) for kind in (torch.int8, torch.uint8)]
    magnitudes = (torch.stack(ends) & 0x7F).view(FP8)
    return magnitudes.float().max().item()


def scratch_bytes(module: nn.Module, device: torch.device) -> int:
    """Return the memory that a network's largest product takes for its weight in 16 bits."""
    if has_fp8_units(device):
        return 0  # it multiplies float8 as they are
    sizes = [x.numel() for x in module.state_dict().values() if x.dtype == FP8]
    return max(sizes, default=0) * COMPUTING_DTYPE.itemsize


def has_fp8_units(device: torch.device) -> bool:
    """Tell whether a device multiplies float8 matrices: NVIDIA's from Ada (8.9) on."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 9)


def product(
    x: torch.Tensor,  # [..., in_features]
    weight: torch.Tensor,  # float8 [out_features, in_features]
    weight_scale: torch.Tensor,  # float32 []
    residual: torch.Tensor | None = None,  # [..., out_features]; may be written over
) -> torch.Tensor:
    """Return the product ``[..., out_features]`` in the precision of ``x``, plus the residual."""
    if has_fp8_units(x.device) and not any(side % _MULTIPLE for side in weight.shape):
        return scaled_product(x, weight, weight_scale, residual)
    if torch.finfo(x.dtype).max < torch.finfo(COMPUTING_DTYPE).max:
        # Unscaled, the sums would be too large for float16.
        out = F.linear(x, dequantize(weight, weight_scale, x.dtype))
    else:
        # The product is scaled, not the weight: that would write and read the weight once more.
        out = F.linear(x, weight.to(x.dtype)).mul_(weight_scale)
    return out if residual is None else residual.add_(out)


def activation_scales(rows: torch.Tensor) -> torch.Tensor:
    """Return the scale of each row of ``[M, D]``, float32 ``[M, 1]``."""
    # LLaMA makes huge numbers of a first token; with one scale for all rows they would crush the
    # others.
    largest = torch.linalg.vector_norm(rows, torch.inf, -1, keepdim=True, dtype=torch.float32)
    # One launch for largest / 448 + the smallest scale.
    return torch.rsub(largest, _SMALLEST_SCALE, alpha=-1 / _LARGEST)


def scaled_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiply as `product` does, in float8: each row of ``x`` is rounded with its own scale."""
    rows = x.flatten(0, -2)  # [M, in]
    scales = activation_scales(rows)
    count = rows.shape[0]
    # The unused last rows stay as they are: rows are independent, and these are cut off below.
    padded = rows.new_empty(-(-count // _MULTIPLE) * _MULTIPLE, rows.shape[1], dtype=FP8)
    torch.div(rows, scales, out=padded[:count])
    is_one = count == 1  # the product itself takes the scale and the residual of one row
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
