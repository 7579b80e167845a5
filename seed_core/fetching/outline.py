"""Outlines of weight files that are not here yet: as long as the files, and holes but for the tables.

A file of weights says in a few kilobytes which tensors it holds. With those in their places a model
can be opened and checked, and its conversion laid out, before any of the numbers has arrived.
"""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from ..errors import CheckpointError, DownloadError
from ..files.pickled import PICKLED_SUFFIXES
from ..files.safetensors import SAFETENSORS_SUFFIXES, read_stand_ins

_BLOCK = 256 * 2**10

# Of a zip file as torch writes it: the numbers of each tensor.
_NUMBERS = "/data/"

# Asks for the bytes of a file from a position on, as many as given.
Ask = Callable[[int, int], bytes]


class NoOutlineError(Exception):
    """The file is of a form whose table is not in one place, or the server sends no parts."""


def draw(path: Path, size: int, ask: Ask) -> None:
    """Make the outline of a file.

    Args:
        path: where; its ending tells the form of the file.
        size: of the file, in bytes.
        ask: gets parts of it.

    Raises:
        NoOutlineError: the file has to be fetched as a whole to be looked at.
        DownloadError: the disk would give the holes room, too.
    """
    suffix = path.suffix.lower()
    new = path.with_name(f"outline-{path.name}")
    try:
        with new.open("w+b") as stream:
            _let_have_holes(stream)
            stream.truncate(size)
            file = io.BufferedReader(_Partial(stream, size, ask), _BLOCK)
            if suffix in SAFETENSORS_SUFFIXES:
                file.read(8 + int.from_bytes(file.read(8), "little"))
            elif suffix in PICKLED_SUFFIXES:
                _read_tables(file)
            else:
                raise NoOutlineError(path.name)
        if suffix in SAFETENSORS_SUFFIXES:
            list(read_stand_ins(new))
    except (zipfile.BadZipFile, NotImplementedError, EOFError, CheckpointError) as error:
        new.unlink()
        raise NoOutlineError(path.name) from error
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    _check_holes(new, size)
    new.replace(path)


def _read_tables(file: BinaryIO) -> None:
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if _NUMBERS not in member.filename:
                archive.read(member)


class _Partial(io.RawIOBase):
    """A file of which those blocks are fetched, and kept, that somebody reads."""

    def __init__(self, stream: BinaryIO, size: int, ask: Ask) -> None:
        self._stream, self._size, self._ask = stream, size, ask
        self._position = 0
        self._here: set[int] = set()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        end = min(self._position + len(buffer), self._size)
        if end <= self._position:
            return 0
        for block in range(self._position // _BLOCK, -(-end // _BLOCK)):
            if block not in self._here:
                begin = block * _BLOCK
                self._stream.seek(begin)
                self._stream.write(self._ask(begin, min(_BLOCK, self._size - begin)))
                self._here.add(block)
        self._stream.seek(self._position)
        content = self._stream.read(end - self._position)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


def _let_have_holes(stream: BinaryIO) -> None:
    """Mark a file as sparse, which Windows wants to be told; other systems need no mark."""
    if sys.platform == "win32":
        import ctypes
        import msvcrt
        from ctypes import wintypes

        set_sparse = 0x000900C4  # FSCTL_SET_SPARSE
        handle = wintypes.HANDLE(msvcrt.get_osfhandle(stream.fileno()))
        returned = wintypes.DWORD()
        ctypes.windll.kernel32.DeviceIoControl(
            handle, set_sparse, None, 0, None, 0, ctypes.byref(returned), None
        )


def _check_holes(path: Path, size: int) -> None:
    """Refuse a disk on which an outline takes as much room as the file."""
    taken = room_on_disk(path)
    if taken > size // 2 and size > 64 * _BLOCK:
        path.unlink()
        raise DownloadError(
            f"the disk of {path.parent} keeps no files with holes, so nothing can be converted while "
            "it comes. Fetch the model as it is published, and convert it then"
        )


def room_on_disk(path: Path) -> int:
    """Return the bytes that a file takes of its disk, holes left out."""
    if sys.platform != "win32":
        return path.stat().st_blocks * 512
    import ctypes
    from ctypes import wintypes

    high = wintypes.DWORD()
    low = ctypes.windll.kernel32.GetCompressedFileSizeW(str(path), ctypes.byref(high))
    return int(high.value << 32) + int(low & 0xFFFFFFFF)
