"""Filling a network with the tensors of a file, strictly and without a second copy.

A network is built on the meta device, and tensors are assigned to it one at a time. Knows nothing of
what networks compute.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ..compute import fp8
from ..errors import CheckpointError
from .weights import Tensors

log = logging.getLogger(__name__)

Module = TypeVar("Module", bound=nn.Module)

_STORED_DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
}
"""Number formats of weights; integers are another program's quantisation."""

_EAGER = ("torch.", f"{__package__.rpartition('.')[0]}.")
"""Where layers come from that hold weights from the beginning."""


def _same_name(name: str) -> tuple[str | None, ...]:
    return (name,)


def assemble(
    build: Callable[[Any], Module],
    operations: Any,
    tensors: Tensors,
    device: torch.device,
    source: Path,
    names_in_file: Callable[[str], tuple[str | None, ...]] = _same_name,
    scales: Mapping[str, torch.Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> Module:
    """Build a network on the meta device and assign ``tensors`` to it, in the network's dtypes.

    Args:
        build: makes the network from the operations it is given, on the meta device.
        operations: where its layers come from, ``torch.nn`` or a host's equivalent.
        tensors: names and tensors; every tensor of the network must be among them, names it does
            not have are ignored and logged.
        device: where the weights are to live.
        source: the file or folder, for messages.
        names_in_file: the network's name of a tensor to the file's; several are joined by rows, and
            None among them stands for zeros.
        scales: of quantised weights, by the network's names of those weights, which keep the dtype
            they come in; the network's layers take both.
        dtype: of the weights, where it is another than that of the network as it is built.

    Raises:
        CheckpointError: missing tensors, or one of another shape or with numbers that are none, by
            their names in the file.
    """
    module = build(operations)
    # A host's layers may hold no weights before they are loaded; torch's then tell the shapes.
    is_whole = operations is nn or _holds_weights(module)
    expected = (module if is_whole else build(nn)).state_dict()
    scales = scales or {}
    pieces = {name: names_in_file(name) for name in expected}
    owners = {key: name for name, keys in pieces.items() for key in keys if key is not None}
    found: dict[str, dict[str, torch.Tensor]] = {}
    state: dict[str, torch.Tensor] = {}
    given: set[str] = set()
    unknown: list[str] = []
    for key, tensor in tensors:
        name = owners.get(key)
        if name is None:
            unknown.append(key)
            continue
        parts = found.setdefault(name, {})
        check_kind(key, tensor, source)
        parts[key] = tensor.to(device, None if name in scales else dtype or expected[name].dtype)
        check_finite(key, parts[key], source)
        given.add(key)
        if all(other is None or other in parts for other in pieces[name]):
            state[name] = _join(pieces[name], found.pop(name), expected[name], source)
    if unknown:
        log.debug("%s: ignored %d unknown tensors: %s", source, len(unknown), ", ".join(unknown))
    check_complete(owners, given, source)
    state |= {f"{name}{fp8.SCALE_SUFFIX}": scale.to(device) for name, scale in scales.items()}
    module.load_state_dict(state, strict=True, assign=True)
    return module.requires_grad_(False).eval()


def _holds_weights(network: nn.Module) -> bool:
    """Tell whether every layer of a host has a weight already; torch's and ours always have."""
    return all(
        isinstance(getattr(module, "weight", None), torch.Tensor)
        for module in network.modules()
        if not module._modules and not type(module).__module__.startswith(_EAGER)
    )


def check_kind(key: str, tensor: torch.Tensor, source: Path) -> None:
    """Refuse a tensor of whole numbers or of a format that no weights are published in.

    Raises:
        CheckpointError: naming the tensor and its format.
    """
    if tensor.dtype not in _STORED_DTYPES:
        raise CheckpointError(
            f"{source} holds {key} as {str(tensor.dtype).removeprefix('torch.')}, no number format "
            "of weights: it was quantised by another program. Use the model in 16 or 32 bits."
        )


def check_finite(key: str, tensor: torch.Tensor, source: Path) -> None:
    """Refuse a tensor with numbers that are none, as damage and overflow leave them behind.

    Raises:
        CheckpointError: naming the tensor.
    """
    if not math.isfinite(largest(tensor)):
        raise CheckpointError(
            f"{source}: {key} holds numbers that are infinite or none in "
            f"{str(tensor.dtype).removeprefix('torch.')}. The file is damaged, or made for another "
            "precision: try bf16 or fp32, then download it again."
        )


def largest(tensor: torch.Tensor) -> float:
    """Return the largest magnitude in a tensor, NaN where a number is none; 0 of no numbers.

    One pass without a copy, where torch's own isfinite and norms take thirty times as long.
    """
    if tensor.is_meta or not tensor.numel():
        return 0.0
    if tensor.dtype == fp8.FP8:
        return fp8.largest(tensor)
    low, high = torch.aminmax(tensor)
    return torch.maximum(-low, high).item()


def check_complete(wanted: Iterable[str], given: Collection[str | None], source: Path) -> None:
    """Refuse a file that lacks tensors.

    Raises:
        CheckpointError: naming those that are missing.
    """
    if missing := [key for key in wanted if key not in given]:
        raise CheckpointError(
            f"{source}: {_some(missing, 'tensors')} missing. The file is incomplete or belongs to "
            "another model."
        )


def _join(
    keys: Sequence[str | None], found: dict[str, torch.Tensor], wanted: torch.Tensor, source: Path
) -> torch.Tensor:
    """Return the tensors one below the other, zeros like the first for a key that is None."""
    first = next(iter(found.values()))
    parts = [torch.zeros_like(first) if key is None else found[key] for key in keys]
    if len(parts) == 1:
        shape = first.shape
    else:
        shape = torch.Size([sum(part.shape[0] for part in parts), *first.shape[1:]])
    if shape != wanted.shape or any(part.shape[1:] != first.shape[1:] for part in parts):
        have = ", ".join(f"{key} {list(tensor.shape)}" for key, tensor in found.items())
        raise CheckpointError(
            f"{source} holds {have}; this model needs {list(wanted.shape)}"
            f"{' of them together' if len(parts) > 1 else ''}. The file belongs to a model of "
            "another size; a model of unusual size needs its config.json beside it."
        )
    if all(_follows(part, before) for before, part in itertools.pairwise(parts)):
        return first.as_strided(shape, torch.empty(shape, device="meta").stride())
    return torch.cat(parts)


def _follows(part: torch.Tensor, before: torch.Tensor) -> bool:
    """Tell whether a tensor begins in memory where another ends."""
    return (
        part.untyped_storage().data_ptr() == before.untyped_storage().data_ptr()
        and part.data_ptr() == before.data_ptr() + before.nbytes
        and part.dtype == before.dtype
        and part.is_contiguous()
        and before.is_contiguous()
    )


def _some(names: list[str], what: str) -> str:
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    return f"{len(names)} {what} ({shown})"
