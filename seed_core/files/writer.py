"""A safetensors file written tensor by tensor, which a later run can go on with.

Its whole layout is fixed before the first tensor, so each one goes to its own place and none is
kept in memory. What is done stands in a journal beside the unfinished file.

Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple

import torch

from ..errors import OptionError
from .safetensors import STORED_AS

_NAMES = {dtype: name for name, dtype in STORED_AS.items()}
_FULL = "the disk of {folder} is full. Make room and run it again: it goes on where it stopped."
_FORBIDDEN = "this program may not write {path}: choose a folder of your own"
# What a user can do about an error of the system.
_REASONS: dict[int | None, str] = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.EROFS: _FORBIDDEN,
    errno.ENAMETOOLONG: "the path {path} is too long for its disk; choose a shorter one",
}

_CHUNK = 16 * 2**20
_SYNCED = 64 * 2**20  # bytes that are waited for until they are on the disk

# Bytes that the first tensor begins at a multiple of: what processors load at once.
_ALIGNMENT = 64


class Entry(NamedTuple):
    """Form of one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes it takes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


class StreamedFile:
    """One file on its way; until it is finished its name has ``.unfinished`` at the end.

    Args:
        path: the file to make.
        layout: form of every tensor.
        metadata: what the header says besides.
    """

    def __init__(
        self, path: Path, layout: Mapping[str, Entry], metadata: Mapping[str, str]
    ) -> None:
        self._path = path
        self._unfinished = _unfinished(path)
        self._journal = path.with_name(f"{path.name}.journal")
        self._layout = layout
        # Readers want each tensor at a multiple of its numbers' size, so large numbers come first.
        ordered = sorted(layout, key=lambda name: -layout[name].dtype.itemsize)
        self._header, self._start = _header(ordered, layout, metadata)
        self.nbytes = len(self._header) + sum(entry.nbytes for entry in layout.values())
        self.done: set[str] = set()

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Begin, or go on where an earlier run with the same header ended.

        Raises:
            OptionError: see `check_output`; or another run is writing the file, or the disk fills.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(f"{self._path}.lock")
        try:
            with lock.acquire(timeout=0):
                try:
                    check_output(self._path, nbytes=self.nbytes)
                    yield from self._opened()
                finally:
                    with contextlib.suppress(OSError):  # Windows removes no open file
                        Path(lock.lock_file).unlink()
        except Timeout as error:
            raise OptionError(f"another run is writing {self._path}; wait for its end") from error
        except OSError as error:
            raise _explained(error, self._path) from error

    def _opened(self) -> Iterator[None]:
        self.done = self._read_journal()
        mode = "r+b" if self.done else "wb"
        with (
            self._unfinished.open(mode) as self._file,
            self._journal.open("a", encoding="utf-8") as self._log,
        ):
            if not self.done:
                self._log.truncate(0)
                self._file.write(self._header)
                self._note(self._signature())
            yield
        self._finish()

    def write(
        self, name: str, tensor: torch.Tensor, on_chunk: Callable[[], None] = lambda: None
    ) -> None:
        """Put a tensor into its place; it has the form that the layout says.

        What ``on_chunk`` raises ends it between two chunks; the tensor is then not done.
        """
        if (tensor.dtype, tuple(tensor.shape)) != self._layout[name]:
            raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}")
        self._file.seek(self._start[name])
        content = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
        for begin in range(0, len(content), _SYNCED):
            if begin:
                on_chunk()
            self._file.write(content[begin : begin + _SYNCED])
            self._file.flush()
            os.fsync(self._file.fileno())  # what the journal tells has to survive a power cut
        self._note(name)
        self.done.add(name)

    def _note(self, line: str) -> None:
        self._log.write(f"{line}\n")
        self._log.flush()

    def _signature(self) -> str:
        return hashlib.sha256(self._header).hexdigest()

    def _read_journal(self) -> set[str]:
        """Return the tensors an earlier run has written whole, if its file was to be this one."""
        if not self._unfinished.exists() or not self._journal.exists():
            return set()
        *lines, _ = self._journal.read_text(encoding="utf-8").split("\n")  # the last may be cut
        if lines[:1] != [self._signature()]:
            return set()
        size = self._unfinished.stat().st_size
        return {
            name
            for name in lines[1:]
            if name in self._layout and self._start[name] + self._layout[name].nbytes <= size
        }

    def _finish(self) -> None:
        if missing := self._layout.keys() - self.done:
            raise ValueError(f"never written: {', '.join(sorted(missing)[:10])}")
        if self._path.exists():  # since this run began; renaming would write over it
            raise OptionError(f"{self._path} has appeared meanwhile; move it away and run again")
        self._unfinished.rename(self._path)
        self._journal.unlink()

    _file: IO[bytes]
    _log: IO[str]


def check_output(path: Path, suffix: str = "", nbytes: int | None = None) -> None:
    """Refuse a file that cannot be written, before anything is read or computed for it.

    Args:
        path: the file to make.
        suffix: how its name has to end.
        nbytes: how many a new file will take. None is for small files, which a user may write over.

    Raises:
        OptionError: its name has another ending, its folder does not exist, a folder has its name,
            a new file exists already, or the disk has too little room.
    """
    if not path.name.endswith(suffix):
        raise OptionError(f"the output must end in {suffix}; got {path.name}")
    try:
        if not path.parent.is_dir():
            raise OptionError(
                f"the folder {path.parent} does not exist: make it, then {path.name} can go there"
            )
        if path.is_dir():
            raise OptionError(f"{path} is a folder; give the name of a file")
        if nbytes is not None:
            _check_new(path, nbytes)
    except OSError as error:
        raise _explained(error, path) from error


def _check_new(path: Path, nbytes: int) -> None:
    if path.exists():
        raise OptionError(f"{path} exists already; give another name, or move it away")
    unfinished = _unfinished(path)
    there = unfinished.stat().st_size if unfinished.exists() else 0
    free = shutil.disk_usage(path.parent).free
    if free + there < nbytes:
        raise OptionError(
            f"{path.name} takes {nbytes / 2**30:.1f} GiB, and the disk of {path.parent} has "
            f"{free / 2**30:.1f} GiB left"
        )


def _explained(error: OSError, path: Path) -> Exception:
    """Return the error in words for a user, or as it is if we have none."""
    reason = _REASONS.get(error.errno)
    return OptionError(reason.format(path=path, folder=path.parent)) if reason else error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield where to write a file whole; it then takes its place, and after an error nothing is left."""
    unfinished = _unfinished(path)
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _unfinished(path: Path) -> Path:
    return path.with_name(f"{path.name}.unfinished")


def _header(
    ordered: list[str], layout: Mapping[str, Entry], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """Return the beginning of the file, and where in it each tensor starts."""
    fields: dict[str, object] = {"__metadata__": dict(metadata)}
    offsets, end = {}, 0
    for name in ordered:
        entry = layout[name]
        offsets[name], end = end, end + entry.nbytes
        fields[name] = {
            "dtype": _NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offsets[name], end],
        }
    text = json.dumps(fields, separators=(",", ":")).encode("utf-8")
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    start = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {k: start + v for k, v in offsets.items()}


def sha256_of(path: Path, on_chunk: Callable[[], None] = lambda: None) -> str:
    """Return the SHA-256 of a file as hexadecimal digits; what ``on_chunk`` raises ends it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            on_chunk()
    return digest.hexdigest()
