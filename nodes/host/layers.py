"""The host's variants of layers: they are cast and streamed wherever the host keeps the weights."""

import json
from typing import Any

import comfy.model_management
import comfy.ops
import torch

from ...seed_core.compute import fp8
from ...seed_core.compute.products import multiply
from ...seed_core.errors import OptionError
from ...seed_core.models import quantization


def _is_at_hand(layer: Any, x: torch.Tensor) -> bool:
    """Whether a layer's weights lie beside its input as they are used: not streamed, not patched."""
    weights = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
    is_patched = layer.weight_function or layer.bias_function
    return not is_patched and all(w.device == x.device and w.dtype == x.dtype for w in weights)


class CastOperations(comfy.ops.manual_cast):
    """Layers that the host can keep in main memory and stream to the device.

    A product whose weight is at hand is ours: the host's way to it takes as long as a small one.
    """

    class Linear(comfy.ops.manual_cast.Linear):
        """A product that is ours where its weight is at hand, and the host's elsewhere."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if _is_at_hand(self, x):
                return multiply(x, self.weight, bias=self.bias)
            return super().forward(x)

        def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            """Return `residual` plus the product; may write over `residual`."""
            if _is_at_hand(self, x):
                return multiply(x, self.weight, bias=self.bias, residual=residual)
            return residual.add_(super().forward(x))


def cast_operations() -> Any:
    """Layers that the host can keep in main memory and stream to the device."""
    return CastOperations


def prefers_fp8() -> bool:
    """Whether weights stored in fp8 should stay so: on every card that can hold them."""
    device = comfy.model_management.get_torch_device()
    return device.type != "cpu" and comfy.model_management.supports_cast(device, fp8.FP8)


def fp8_operations() -> Any:
    """Such layers for weights stored in fp8, which stay so wherever the host keeps them."""
    find_layout = getattr(comfy.ops, "get_layout_class", None)
    if find_layout is None or find_layout("TensorCoreFP8Layout") is None:
        raise OptionError(
            "this ComfyUI has no layers for models in fp8: update it and what its requirements.txt "
            "names, or choose precision bf16 or fp16"
        )
    device = comfy.model_management.get_torch_device()
    if not comfy.model_management.supports_cast(device, fp8.FP8):
        raise OptionError(f"{device} cannot hold fp8 weights: choose precision bf16 or fp16")
    has_units = comfy.model_management.supports_fp8_compute(device)
    operations = comfy.ops.mixed_precision_ops(
        compute_dtype=fp8.COMPUTING_DTYPE, disabled=() if has_units else (quantization.FORMAT,)
    )

    class Linear(operations.Linear):
        def __init__(self, *sizes: int, device: Any = None, **options: Any):
            # The host moves what is loaded to this device, and on "meta" that would be the end.
            super().__init__(*sizes, **options)

        def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any):
            if f"{prefix}weight{fp8.SCALE_SUFFIX}" in state_dict:
                text = json.dumps(quantization.LAYER).encode()
                state_dict[f"{prefix}comfy_quant"] = torch.tensor(list(text), dtype=torch.uint8)
            super()._load_from_state_dict(state_dict, prefix, *rest)

        def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
            if _is_at_hand(self, x):
                return multiply(x, *_values_and_scale(self.weight), residual=residual)
            # Streamed or patched. The host's own forward would round the activations of all rows
            # to fp8 with one scale.
            comfy.model_management.throw_exception_if_processing_interrupted()
            weight, bias, stream = comfy.ops.cast_bias_weight(
                self, x, offloadable=True, compute_dtype=x.dtype, want_requant=has_units
            )
            product = multiply(x, *_values_and_scale(weight), residual=residual)
            comfy.ops.uncast_bias_weight(self, weight, bias, stream)
            return product

        def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            """Return `residual` plus the product; may write over `residual`."""
            return self(x, residual)

    operations.Linear = Linear
    return operations


def _values_and_scale(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A weight as core multiplies it; one that the host patched is a plain tensor."""
    if isinstance(weight, comfy.ops.QuantizedTensor):
        return weight._qdata, weight._params.scale
    return weight, None
