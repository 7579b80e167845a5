"""IP-Adapter files for the image embedding of CLIP ViT-H: opening, checking, and what they compute.

Keys and values depend on the pictures alone, so all of them are made once, weight by weight, and
none of the file stays in memory.

Source: tencent-ailab/IP-Adapter at 62e4af9 and the files of huggingface.co/h94/IP-Adapter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ..compute.products import multiply
from ..decoder.embeddings import IP_ADAPTER_DIM, IP_ADAPTERS, fitting_ip_adapters
from ..decoder.ip_adapter import KeysAndValues, Projection
from ..errors import CheckpointError, OptionError
from ..files import assemble, weights
from .ip_adapter_kinds import why_not

IP_ADAPTER_LINK = "https://huggingface.co/h94/IP-Adapter"

_PROJECTION, _LAYERS = "image_proj.", "ip_adapter."
# In the order of `Projection`.
_PARTS = [
    f"{_PROJECTION}{part}" for part in ("proj.weight", "proj.bias", "norm.weight", "norm.bias")
]
_MOST_TOKENS = 64  # published files make 4
_DAMAGED = "The file is damaged: delete it and download it again."

# Widths of the text's tokens to the models that read them.
_BASES = {768: "SD 1.5", 1024: "SD 2", 2048: "SDXL"}

_Shapes = Mapping[str, torch.Tensor]  # stand-ins


def layer_names(layer: int) -> tuple[str, str]:
    """Return the names of the matrices for keys and values of a cross attention.

    Files count self-attention too, which comes first in each pair and has nothing to store.
    """
    name = f"{_LAYERS}{2 * layer + 1}"
    return f"{name}.to_k_ip.weight", f"{name}.to_v_ip.weight"


@dataclass(frozen=True)
class IpAdapter:
    """An IP-Adapter on disk, of which names, number formats and shapes were checked.

    Attributes:
        path: its file.
        context: width of the text's tokens in the UNet: 768 for SD 1.5, 2048 for SDXL.
        widths: of the UNet's cross attentions, in the file's order: on the way down, on the way up,
            then those between.
    """

    path: Path
    context: int
    widths: tuple[int, ...]

    def check_fits(self, context: int, widths: Sequence[int]) -> None:
        """Check that it was made for a UNet of these widths.

        Raises:
            CheckpointError: it was not, and another file is.
            OptionError: no file is.
        """
        if self.context != context:
            base = _BASES.get(context, f"one whose text has {context} numbers a token")
            if base not in IP_ADAPTERS:
                raise OptionError(
                    f"this model is {base}, and IP-Adapters for codes guide only SD 1.5 and SDXL "
                    "models: connect one"
                )
            own = _BASES.get(self.context, f"models whose text has {self.context} numbers a token")
            raise CheckpointError(
                f"{self.path} is for {own} and this model is {base}: use {IP_ADAPTERS[base]}."
            )
        if self.widths != tuple(widths):
            raise OptionError(
                f"{self.path} has {len(self.widths)} layers, and this model reads its text in "
                f"{len(widths)}, which are not the same ones: the model was cut down or changed. "
                "Connect one with all of them"
            )

    def keys_and_values(
        self, embedding: torch.Tensor, is_mapped: bool = True
    ) -> list[KeysAndValues]:
        """Return what each cross attention reads of pictures, float32 on the CPU.

        Args:
            embedding: of the pictures, ``[B, 1024]``.
            is_mapped: see `files.weights.read_tensors`.

        Raises:
            CheckpointError: the file holds NaN or infinity, or numbers too large to multiply.
        """
        read = partial(weights.read_tensors, self.path, is_mapped=is_mapped)
        parts = {key: self._numbers(key, tensor) for key, tensor in read(_PROJECTION)}
        assemble.check_complete(_PARTS, parts, self.path)
        projection = Projection(*(parts[part] for part in _PARTS))
        tokens = projection.tokens(embedding.to("cpu", torch.float32))
        products = {
            key: self._product(key, tokens, self._numbers(key, weight))
            for key, weight in read(_LAYERS)
        }
        names = [layer_names(layer) for layer in range(len(self.widths))]
        assemble.check_complete([key for pair in names for key in pair], products, self.path)
        return [KeysAndValues(products[keys], products[values]) for keys, values in names]

    def _numbers(self, key: str, tensor: torch.Tensor) -> torch.Tensor:
        numbers = tensor.float()
        self._check_finite(numbers, f"{key} holds NaN or infinity")
        return numbers

    def _product(self, key: str, tokens: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        made = multiply(tokens, weight)
        self._check_finite(made, f"{key} makes numbers of these codes that float32 cannot hold")
        return made

    def _check_finite(self, tensor: torch.Tensor, fault: str) -> None:
        if not math.isfinite(assemble.largest(tensor)):
            raise CheckpointError(f"{self.path}: {fault}. {_DAMAGED}")


def open_ip_adapter(path: str | Path) -> IpAdapter:
    """Read what describes an IP-Adapter, and check that its weights are all there and fit together.

    Args:
        path: a ``.safetensors`` file, or a ``.bin`` as published.

    Raises:
        CheckpointError: it is missing, damaged, unsafe, or another kind of file or of IP-Adapter.
    """
    path = Path(path)
    looks = dict(weights.read_stand_ins(path))
    if what := why_not(looks):
        raise CheckpointError(f"{path} {what} Use {fitting_ip_adapters()}.")
    for key, tensor in looks.items():
        assemble.check_kind(key, tensor, path)
        assemble.check_stored(key, tensor, path)
    context = _check_projection(path, looks)
    layers = math.ceil(sum(key.startswith(_LAYERS) for key in looks) / 2)
    names = [layer_names(layer) for layer in range(layers)]
    wanted = _PARTS + [key for pair in names for key in pair]
    assemble.check_complete(wanted, looks, path)
    if unknown := sorted(looks.keys() - set(wanted)):
        raise CheckpointError(
            f"{path} holds {len(unknown)} tensors that such an IP-Adapter does not have, such as "
            f"{', '.join(f'{key:.80}' for key in unknown[:3])}. Use {fitting_ip_adapters()}."
        )
    widths = [_width(path, looks, pair, context) for pair in names]
    return IpAdapter(path, context, tuple(widths))


def _check_projection(path: Path, looks: _Shapes) -> int:
    """Return the width of the tokens."""
    assemble.check_complete(_PARTS, looks, path)
    shapes = [tuple(looks[name].shape) for name in _PARTS]
    context = math.prod(shapes[-1])
    tokens = math.prod(shapes[1]) // context
    rows = tokens * context
    if shapes != [(rows, IP_ADAPTER_DIM), (rows,), (context,), (context,)] or (
        tokens > _MOST_TOKENS
    ):
        found = ", ".join(
            f"{name} {list(shape)}" for name, shape in zip(_PARTS, shapes, strict=True)
        )
        raise _misfit(path, found)
    return context


def _width(path: Path, looks: _Shapes, names: tuple[str, str], context: int) -> int:
    keys, values = (tuple(looks[name].shape) for name in names)
    if len(keys) != 2 or keys != values or keys[1] != context:
        raise _misfit(path, f"{names[0]} {list(keys)}, {names[1]} {list(values)}")
    return keys[0]


def _misfit(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"{path} holds {found}, which do not fit one another in an IP-Adapter. {_DAMAGED}"
    )
