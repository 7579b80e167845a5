"""Filling a network with the tensors of a file, strictly and without a second copy.

A network is built on the meta device, and tensors are assigned to it one at a time.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from ..compute import fp8
from ..errors import CheckpointError
from . import foreign
from .weights import Tensors

log = logging.getLogger(__name__)

Module = TypeVar("Module", bound=nn.Module)

# Number formats of weights; integers are another program's quantisation.
_STORED_DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
}

# Where layers come from that hold weights from the beginning.
_EAGER = ("torch.", f"{__package__.rpartition('.')[0]}.")


NamesInFile = Callable[[str], tuple[str | None, ...]]


def _same_name(name: str) -> tuple[str | None, ...]:
    return (name,)


class EmptyNetwork(Generic[Module]):
    """A network without its weights: says which tensors it needs, and takes them.

    Args:
        build: makes the network on the meta device, with layers from the operations it is given.
        operations: where its layers come from, ``torch.nn`` or a host's equivalent.
        source: the file or folder of the tensors, for messages.
        names_in_file: maps the network's name of a tensor to the file's. Several are joined by
            rows; None among them stands for zeros.
        scales: of quantised weights, by the network's names. Those weights keep their dtype.
        dtype: of the weights, if it is not that of the network as it is built.
    """

    def __init__(
        self,
        build: Callable[[Any], Module],
        operations: Any,
        source: Path,
        names_in_file: NamesInFile = _same_name,
        scales: Mapping[str, torch.Tensor] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.module = build(operations)  # on the meta device until it is filled
        # A host's layers may hold no weights before they are loaded; torch's then tell the shapes.
        is_whole = operations is nn or _holds_weights(self.module)
        whole = self.module if is_whole else build(nn)
        weights = whole.state_dict()
        # Tables outside the state dict come with the network, unless it was built without them.
        self._tables = {
            name for name, table in whole.named_buffers() if table.is_meta and name not in weights
        }
        self._wanted = {
            name: (tensor.shape, dtype or tensor.dtype) for name, tensor in weights.items()
        }
        for name in self._tables:
            table = whole.get_buffer(name)
            self._wanted[name] = table.shape, table.dtype
        self._pieces = {name: names_in_file(name) for name in self._wanted}
        self._owners = {
            key: name for name, keys in self._pieces.items() for key in keys if key is not None
        }
        self._scales = scales or {}
        self._source = source

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """The number format that each tensor gets, by its name in files."""
        return {key: self._wanted[name][1] for key, name in self._owners.items()}

    @property
    def joined(self) -> list[tuple[str, ...]]:
        """The names in files of tensors that are one in the network."""
        groups = (tuple(key for key in keys if key) for keys in self._pieces.values())
        return [keys for keys in groups if len(keys) > 1]

    def check(self, stand_ins: Tensors) -> None:
        """Raise the `CheckpointError` of `fill` that stand-ins (names and shapes) already show."""
        self._gather(stand_ins, torch.device("meta"))

    def fill(self, tensors: Tensors, device: torch.device) -> Module:
        """Assign tensors to the network, one at a time, and return it on a device.

        Raises:
            CheckpointError: tensors are missing, have another shape, or hold NaN or infinity; they
                are called by their names in the file.
        """
        state, unknown = self._gather(tensors, device)
        if unknown:
            names = ", ".join(unknown)
            log.debug("%s: ignored %d unknown tensors: %s", self._source, len(unknown), names)
        module = self.module
        for name in self._tables:
            place, _, own = name.rpartition(".")
            module.get_submodule(place)._buffers[own] = state.pop(name)
        scales = {f"{name}{fp8.SCALE_SUFFIX}": scale for name, scale in self._scales.items()}
        state |= {name: scale.to(device) for name, scale in scales.items()}
        module.load_state_dict(state, strict=True, assign=True)
        for owner in module.modules():
            for own, table in owner._buffers.items():
                owner._buffers[own] = table if table is None else table.to(device)
        return module.requires_grad_(False).eval()

    def _gather(
        self, tensors: Tensors, device: torch.device
    ) -> tuple[dict[str, torch.Tensor], list[str]]:
        """Return the network's tensors on a device, and the names of those it does not have."""
        found: dict[str, dict[str, torch.Tensor]] = {}
        state: dict[str, torch.Tensor] = {}
        given: set[str] = set()
        unknown: list[str] = []
        for key, tensor in tensors:
            name = self._owners.get(key)
            if name is None:
                unknown.append(key)
                continue
            pieces = found.setdefault(name, {})
            shape, dtype = self._wanted[name]
            check_kind(key, tensor, self._source)
            check_stored(key, tensor, self._source)
            if device.type != "meta":  # there shapes alone matter
                tensor = tensor.to(device, None if name in self._scales else dtype)
                check_finite(key, tensor, self._source)
            pieces[key] = tensor
            given.add(key)
            if all(other is None or other in pieces for other in self._pieces[name]):
                state[name] = _join(self._pieces[name], found.pop(name), shape, self._source)
        check_complete(self._owners, given, self._source, unknown)
        return state, unknown


def assemble(
    build: Callable[[Any], Module],
    operations: Any,
    tensors: Tensors,
    device: torch.device,
    source: Path,
    names_in_file: NamesInFile = _same_name,
    scales: Mapping[str, torch.Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> Module:
    """Build a network and fill it; see `EmptyNetwork` for the arguments and the errors."""
    network = EmptyNetwork(build, operations, source, names_in_file, scales, dtype)
    return network.fill(tensors, device)


def _holds_weights(network: nn.Module) -> bool:
    """Tell whether every layer of a host has a weight already; torch's and ours always have."""
    return all(
        isinstance(getattr(module, "weight", None), torch.Tensor)
        for module in network.modules()
        if not module._modules and not type(module).__module__.startswith(_EAGER)
    )


def check_kind(key: str, tensor: torch.Tensor, source: Path) -> None:
    """Raise a `CheckpointError` for numbers in a format that weights are not published in."""
    if tensor.dtype not in _STORED_DTYPES:
        raise CheckpointError(
            f"{source} holds {key} as {str(tensor.dtype).removeprefix('torch.')}, a format that "
            "weights are not published in: another program quantised it. "
            f"{foreign.FULL_PRECISION}."
        )


def check_stored(key: str, tensor: torch.Tensor, source: Path) -> None:
    """Raise a `CheckpointError` for a tensor without numbers."""
    if not tensor.numel():
        raise CheckpointError(
            f"{source} holds {key} {list(tensor.shape)}, without a number in it. DeepSpeed saves such "
            "files where ZeRO-3 keeps the weights elsewhere: make weights of its checkpoint with "
            "zero_to_fp32.py, or save with stage3_gather_16bit_weights_on_model_save."
        )


def check_finite(key: str, tensor: torch.Tensor, source: Path) -> None:
    """Raise a `CheckpointError` for NaN or infinity, which damage and overflow leave behind."""
    if not math.isfinite(largest(tensor)):
        raise CheckpointError(
            f"{source}: {key} holds NaN or infinity in "
            f"{str(tensor.dtype).removeprefix('torch.')}. The file is damaged, or made for another "
            "precision: try bf16 or fp32, then download it again."
        )


def largest(tensor: torch.Tensor) -> float:
    """Return the largest magnitude in a tensor, NaN if it holds NaN, 0 if it is empty."""
    if not tensor.numel():
        return 0.0
    if tensor.dtype == fp8.FP8:
        return fp8.largest(tensor)
    # One pass without a copy: torch's own isfinite and norms take thirty times as long.
    low, high = torch.aminmax(tensor)
    return torch.maximum(-low, high).item()


def check_complete(
    wanted: Iterable[str],
    given: Collection[str | None],
    source: Path,
    unknown: Iterable[str] = (),  # names of tensors that are there and not wanted
) -> None:
    """Raise a `CheckpointError` that names the tensors that a file lacks."""
    if missing := [key for key in wanted if key not in given]:
        if what := foreign.explain_names(unknown):
            raise CheckpointError(f"{source} {what}")
        raise CheckpointError(
            f"{source}: {_some(missing, 'tensors')} missing. The file is incomplete or belongs to "
            "another model."
        )


def _join(
    keys: Sequence[str | None], found: dict[str, torch.Tensor], wanted: torch.Size, source: Path
) -> torch.Tensor:
    """Return the tensors one below the other, zeros like the first for a key that is None."""
    first = next(iter(found.values()))
    pieces = [torch.zeros_like(first) if key is None else found[key] for key in keys]
    if len(pieces) == 1:
        shape = first.shape
    else:
        shape = torch.Size([sum(piece.shape[0] for piece in pieces), *first.shape[1:]])
    if shape != wanted or any(piece.shape[1:] != first.shape[1:] for piece in pieces):
        have = ", ".join(f"{key} {list(tensor.shape)}" for key, tensor in found.items())
        raise CheckpointError(
            f"{source} holds {have}; this model needs {list(wanted)}"
            f"{' of them together' if len(pieces) > 1 else ''}. The file belongs to a model of "
            "another size; a model of unusual size needs its config.json beside it."
        )
    if len(pieces) == 1:
        return first  # as it is: a pickled one may be transposed
    if all(_follows(piece, before) for before, piece in itertools.pairwise(pieces)):
        return first.as_strided(shape, torch.empty(shape, device="meta").stride())
    return torch.cat(pieces)


def _follows(piece: torch.Tensor, before: torch.Tensor) -> bool:
    """Tell whether a tensor begins in memory where another ends."""
    return (
        piece.untyped_storage().data_ptr() == before.untyped_storage().data_ptr()
        and piece.data_ptr() == before.data_ptr() + before.nbytes
        and piece.dtype == before.dtype
        and piece.is_contiguous()
        and before.is_contiguous()
    )


def _some(names: list[str], what: str) -> str:
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    return f"{len(names)} {what} ({shown})"
