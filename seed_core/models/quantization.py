"""Quantised weights in safetensors files, as ComfyUI stores them.

``<layer>.weight`` is float8_e4m3fn, ``<layer>.weight_scale`` a float32 scalar, and the header lists
the layers. Source: Comfy-Org/ComfyUI at 4f874c5e, QUANTIZATION.md.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import torch

from ..command import command_line
from ..compute import fp8
from ..errors import CheckpointError
from ..files import assemble, weights
from ..files.folder import TensorFiles
from ..files.weights import Reader

FORMAT = "float8_e4m3fn"
# What ComfyUI is told of a layer.
LAYER = {"format": FORMAT}

_WEIGHT = ".weight"

HOW_TO_CONVERT = "in a terminal: " + command_line(
    *("convert", "FOLDER", "-o", "NEW_FILE.safetensors", "--precision", "fp8")
)


def header(names: Iterable[str]) -> dict[str, str]:
    """Return what a file's header says of the quantised weights in it."""
    layers = {name.removesuffix(_WEIGHT): LAYER for name in names}
    return {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}


def read_scales(files: TensorFiles, look: Reader) -> dict[str, torch.Tensor]:
    """Return the scales of a model's quantised weights, float32 ``[]``, by the weights' names.

    Raises:
        CheckpointError: a file is damaged, or a weight has more than one scale.
    """
    ending = f"{_WEIGHT}{fp8.SCALE_SUFFIX}"
    scales = {}
    for path in files.files:
        names = [name for name, _ in look(path, "") if name.endswith(ending)]
        for name, scale in weights.read_copied(path, names):
            if scale.numel() != 1:
                raise CheckpointError(
                    f"{path} has {scale.numel()} scales for one tensor ({name}), a kind of "
                    f"quantisation this cannot read. Convert the 16-bit model, {HOW_TO_CONVERT}"
                )
            assemble.check_kind(name, scale, path)
            scale = scale.to(torch.float32).reshape(())
            assemble.check_finite(name, scale, path)
            scales[name.removesuffix(fp8.SCALE_SUFFIX)] = scale
    return scales


def dequantized(
    tensors: weights.Tensors,
    scales: Mapping[str, torch.Tensor],
    source: Path,
    kept: Collection[str] = (),
) -> weights.Tensors:
    """Yield the tensors of a model without its scales, quantised ones in float32.

    Args:
        tensors: names and tensors as the model's files have them.
        scales: see `read_scales`.
        source: the file or folder, for messages.
        kept: names of those to leave quantised.

    Raises:
        CheckpointError: a float8 tensor has no scale, or it is another kind of quantisation.
    """
    own = {f"{name}{fp8.SCALE_SUFFIX}" for name in scales}
    for name, tensor in tensors:
        if name in own:
            continue
        scale = scales.get(name)
        is_float8 = tensor.is_floating_point() and tensor.itemsize == 1
        if is_float8 or scale is not None:
            _check(name, tensor, scale, source)
        if scale is None or name in kept:
            yield name, tensor
        else:
            yield name, fp8.dequantize(tensor, scale, torch.float32)


def _check(name: str, tensor: torch.Tensor, scale: torch.Tensor | None, source: Path) -> None:
    if tensor.dtype == fp8.FP8 and scale is not None:
        return
    raise CheckpointError(
        f"{source} holds {name} as {str(tensor.dtype).removeprefix('torch.')} "
        f"{'without a' if scale is None else 'with a'} scale; this reads {FORMAT} with a "
        f"scale, or 16 and 32 bits. Convert the 16-bit model, {HOW_TO_CONVERT}"
    )
