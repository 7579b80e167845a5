"""Pickled files, as torch saves them: the one place that opens them, without running code in them."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from .foreign import unwrapped
from .side_files import unreadable

PICKLED_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")

# Under which names training scripts save the table: SEED-1's, LAVIS's, SD's, DeepSpeed's.
_TABLES = ("model", "state_dict", "model_state_dict", "module")

# Under which names the parts of one model have a table each: IP-Adapter's.
_PARTS = ("image_proj", "ip_adapter")

# Bytes of a pickled file that are read before its mapping is renewed.
_MAPPED_AT_ONCE = 512 * 2**20


def read_stand_ins(path: Path, is_mapped: bool = True) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield names, number formats and shapes, as tensors on the meta device."""
    for key, tensor in _read_pickled(path, is_mapped).items():
        yield key, torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def copied_tensors(
    path: Path, is_wanted: Callable[[str], bool], joined: Iterable[tuple[str, ...]] = ()
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield copies of tensors; `CheckpointError` for a damaged file or one with program code.

    No more is copied than the file stores, however many names share it.
    """
    content = _read_pickled(path)
    names = list(filter(is_wanted, content))
    copies = _Copies({key: content[key] for key in names})
    for key in names:
        # One mapping holds all of the file, so it is renewed from time to time.
        if copies.nbytes > _MAPPED_AT_ONCE and _is_zip(path):
            content, copies.nbytes = {}, 0  # the old mapping ends before the new one begins
            content = _read_pickled(path)
        yield key, copies.copy(key, content.pop(key))


class _Copies:
    """Copies tensors one at a time; those that overlap share one copy, as in their file."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.nbytes = 0  # copied so far
        by_storage: dict[int, list[str]] = {}
        for key, tensor in tensors.items():
            by_storage.setdefault(tensor.untyped_storage()._cdata, []).append(key)
        # Names that share a storage without overlap, such as slices, need not be kept together.
        self._groups = {
            key: keys
            for keys in by_storage.values()
            if sum(tensors[key].nbytes for key in keys)
            > tensors[keys[0]].untyped_storage().nbytes()
            for key in keys
        }
        self._shared: dict[str, torch.UntypedStorage] = {}  # by the last name that needs it

    def copy(self, key: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return a copy of the next tensor, in the order that was given."""
        if key not in self._groups:
            self.nbytes += tensor.nbytes
            return tensor.clone()
        last = self._groups[key][-1]
        storage = self._shared.pop(last, None)
        if storage is None:
            storage = tensor.untyped_storage().clone()
            self.nbytes += storage.nbytes()
        if key != last:
            self._shared[last] = storage
        form = tensor.storage_offset(), tensor.shape, tensor.stride()
        return torch.empty(0, dtype=tensor.dtype).set_(storage, *form)


def whole_tensors(
    path: Path, is_wanted: Callable[[str], bool]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield tensors in memory of their own, which those of one storage share as in the file."""
    content = _read_pickled(path, is_mapped=False)
    for key in list(content):
        tensor = content.pop(key)  # none is kept here once it is yielded
        if is_wanted(key):
            yield key, tensor


def _read_pickled(path: Path, is_mapped: bool = True) -> dict[str, torch.Tensor]:
    """Read a table of tensors without running code; memory-mapped where the form allows it."""
    check_pickled(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces its own deprecations of old forms
            content = _load_weights_only(path, is_mapped and _is_zip(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} was refused: it is damaged, or it holds program code, and a weight file needs "
            "none. Use the file from its official page, or a .safetensors version of it."
        ) from error
    except Exception as error:  # on a file cut short or overwritten torch raises any kind
        raise unreadable(path, error) from error
    for name in _TABLES:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a table of tensors")
    tensors = {
        k: v.detach()
        for k, v in _flat(content).items()
        if isinstance(k, str) and isinstance(v, torch.Tensor)
    }
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors at its top level: {list(content)[:10]}")
    for key, tensor in tensors.items():
        if not _is_stored(tensor):
            raise CheckpointError(
                f"{path} was refused: {key} stands for more numbers than are stored in the file, or "
                "for a special kind of tensor. Use a .safetensors version of it."
            )
    return unwrapped(tensors)


def _flat(content: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a table with the tables of its parts put in, under the names of safetensors files."""
    parts = {name: content[name] for name in _PARTS if isinstance(content.get(name), dict)}
    inside = {f"{part}.{key}": value for part, own in parts.items() for key, value in own.items()}
    return {key: value for key, value in content.items() if key not in parts} | inside


def _is_stored(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor is plain numbers that its file really holds."""
    is_plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    is_as_stored = not (
        tensor.is_quantized or tensor.is_nested or tensor.is_conj() or tensor.is_neg()
    )
    if not (is_plain and is_as_stored):
        return False
    return tensor.nbytes <= tensor.untyped_storage().nbytes()


def check_pickled(path: Path) -> None:
    """Refuse archives that could be larger inside than they are, before anything unpacks them."""
    with path.open("rb") as file:
        start = file.read(512)
    if start[257:262] == b"ustar":
        raise CheckpointError(
            f"{path} is a tar archive, as PyTorch saved files before 2017; these are refused. Use a "
            ".safetensors version of it."
        )
    if not _is_zip(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception as error:  # zipfile checks little before it computes with what it finds
        raise unreadable(path, error) from error
    size = path.stat().st_size
    is_packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if is_packed or sum(member.file_size for member in members) > size:
        raise CheckpointError(
            f"{path} was refused: it would take more memory than its {size:,} bytes. PyTorch writes "
            "no such files; use the file from its official page."
        )


def _load_weights_only(path: Path, is_mapped: bool) -> Any:
    load: Callable[..., Any] = torch.load  # noqa: TID251 - the one justified use
    return load(path, map_location="cpu", weights_only=True, mmap=is_mapped)


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"
