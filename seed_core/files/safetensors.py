"""Safetensors files: names and shapes by their header, tensors mapped or copied."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from .foreign import unwrapped
from .side_files import parse_json, unreadable

SAFETENSORS_SUFFIXES = (".safetensors", ".sft")

# Number formats by their names in safetensors files.
STORED_AS = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BOOL": torch.bool},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8},
    "C64": torch.complex64,
}

# Bytes of neighbouring tensors that share a mapping; the parts of a product may have more.
_MAPPED_TOGETHER = 256 * 2**10

# About how many mappings a file gets: neighbours of a large one may take this part of it each.
_MAPPINGS = 128

# Bytes of a header that are read, enough for a hundred thousand tensors.
_LARGEST_HEADER = 16 * 2**20


def read_stand_ins(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield names, number formats and shapes by the header, as tensors on the meta device."""
    with _opened(path) as file:
        fields = _read_header(file).fields
    for key, field in fields.items():
        dtype, shape = _form(field)
        yield key, torch.empty(shape, dtype=dtype, device="meta")


def mapped_tensors(
    path: Path, is_wanted: Callable[[str], bool], joined: Iterable[tuple[str, ...]] = ()
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield tensors as views of the file; `CheckpointError` if it is damaged.

    A file that is cut short while such a view is in use ends the process.

    Args:
        path: the file.
        is_wanted: told a name, says whether that tensor is read.
        joined: names of tensors that share a mapping where they are neighbours.
    """
    with _opened(path) as file:
        start, fields, _ = _read_header(file)
        wanted = {key: field for key, field in fields.items() if is_wanted(key)}
        for stretch in _stretches(wanted, joined):
            tensors = _map(file, {key: wanted[key] for key in stretch}, start)
            while tensors:  # none is kept here once it is yielded
                yield tensors.pop()


def copied_tensors(
    path: Path, is_wanted: Callable[[str], bool]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield tensors in memory of their own; errors are those of `mapped_tensors`."""
    with _opened(path) as file:
        start, fields, _ = _read_header(file)
        for key in sorted(filter(is_wanted, fields), key=lambda key: fields[key]["data_offsets"]):
            begin, end = fields[key]["data_offsets"]
            dtype, shape = _form(fields[key])
            data = torch.empty(end - begin, dtype=torch.uint8)
            memory: Any = data.numpy()
            file.seek(start + begin)
            if file.readinto(memory) != end - begin:
                raise ValueError(f"it ends inside {key}")
            yield key, data.view(dtype).reshape(shape)


def read_metadata(path: Path) -> dict[str, str]:
    """Return what a safetensors file's header says besides its tensors."""
    with _opened(path) as file:
        return _read_header(file).metadata


def _stretches(
    fields: Mapping[str, dict[str, Any]], joined: Iterable[tuple[str, ...]]
) -> list[list[str]]:
    """Return the names of a file's tensors in its order, in groups that are mapped together."""
    products = {key: keys for keys in joined for key in keys}
    size = max((field["data_offsets"][1] for field in fields.values()), default=0)
    most = max(_MAPPED_TOGETHER, size // _MAPPINGS)
    stretches: list[list[str]] = []
    product, begin, end = None, 0, -1
    for key in sorted(fields, key=lambda key: tuple(fields[key]["data_offsets"])):
        before, (first, last) = product, fields[key]["data_offsets"]
        product = products.get(key)
        is_small = last - begin <= most
        if first == end and product == before and (product is not None or is_small):
            stretches[-1].append(key)
        else:
            stretches.append([key])
            begin = first
        end = last
    return stretches


def _map(
    file: BinaryIO, fields: Mapping[str, dict[str, Any]], start: int
) -> list[tuple[str, torch.Tensor]]:
    """Return tensors as views of their stretch of a file, the last one first."""
    # What was read of a mapping counts as memory until the mapping ends, and systems refuse one as
    # large as all their memory, which the library makes of a large file: so a stretch is one tensor.
    # But every mapping takes one of the few files that a process may have open: so small tensors
    # share theirs, and so do those that are joined.
    places = [field["data_offsets"] for field in fields.values()]
    first, end = start + places[0][0], start + places[-1][1]
    before = first % mmap.ALLOCATIONGRANULARITY
    data = torch.empty(0, dtype=torch.uint8)
    if end > first:
        stretch = mmap.mmap(
            file.fileno(), end - first + before, access=mmap.ACCESS_COPY, offset=first - before
        )  # whose pages are copied when they are written to
        data = torch.frombuffer(stretch, dtype=torch.uint8, offset=before)
    tensors = []
    for key, field in fields.items():
        begin, end = field["data_offsets"]
        own = data[begin - places[0][0] : end - places[0][0]]
        dtype, shape = _form(field)
        if own.data_ptr() % dtype.itemsize or own.storage_offset() % dtype.itemsize:
            own = own.clone()
        tensors.append((key, own.view(dtype).reshape(shape)))
    return tensors[::-1]


def _form(field: dict[str, Any]) -> tuple[torch.dtype, list[int]]:
    """Return number format and shape of a tensor; of a format unknown here, those of its bytes."""
    begin, end = field["data_offsets"]
    dtype = STORED_AS.get(field["dtype"])
    return (dtype, field["shape"]) if dtype else (torch.uint8, [end - begin])


class _Header(NamedTuple):
    start: int  # of the tensors
    fields: dict[str, dict[str, Any]]  # of each tensor: dtype, shape, data_offsets
    metadata: dict[str, str]


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    """Open a safetensors file; whatever goes wrong with it is one error."""
    try:
        with path.open("rb") as file:
            yield file
    except (OSError, ValueError, RuntimeError, MemoryError) as error:  # ours among them
        raise unreadable(path, error) from error


def _read_header(file: BufferedReader) -> _Header:
    """Return what the header says, if all of it can be; a ValueError or `SeedError` if not."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if not 8 <= 8 + length <= min(size, _LARGEST_HEADER):
        raise ValueError("it has no header of a safetensors file, or not all of it")
    # The library would map the file, and take one of two tensors with the same name.
    fields = parse_json(file.read(length), "its header")
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(x, str) for x in metadata.values()):
        raise ValueError("its header has something other than text in __metadata__")
    _check_spans(fields, size - 8 - length)
    return _Header(8 + length, unwrapped(fields), metadata)


def _check_spans(fields: Mapping[str, Any], length: int) -> None:
    """Raise a ValueError unless the tensors fill the data from end to end, as the format has it."""
    spans = []
    for key, field in fields.items():
        match field:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]}:
                numbers = [*shape, begin, end]
            case _:
                raise ValueError(f"its header has an entry for {key!r:.80} that cannot be read")
        if not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
            raise ValueError(f"its header gives impossible sizes for {key!r:.80}")
        known = STORED_AS.get(dtype)
        strides = math.prod(max(number, 1) for number in shape)
        if strides >= 2**62 or (known and math.prod(shape) * known.itemsize != end - begin):
            raise ValueError(
                f"its header gives a shape for {key!r:.80} that does not fit its bytes"
            )
        spans.append((begin, end))
    spans.sort()
    ends = [0, *(end for _, end in spans)]
    if [*(begin for begin, _ in spans), length] != ends:
        raise ValueError("its data is shorter or longer than its header says")
