"""One file from a server: all that it still lacks, or a part of it."""

from __future__ import annotations

import io
import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ..errors import DownloadError
from ..waiting import attended
from .connection import open_answer, persist
from .downloads import HubSource, Source
from .failures import Listener, something_else
from .plan import File

_PART = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_WHOLE, _PARTIAL = 200, 206  # what a server says that it sends


def get_file(source: Source, file: File, path: Path, listener: Listener) -> None:
    """Append to an unfinished file what it still lacks, and check the whole.

    Raises:
        DownloadError: it arrived damaged, and was deleted; or a server sends something else.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _Stoppable(path) as stream:
        if stream.tell() > file.size:
            stream.truncate(0)
        begun = stream.seek(0, os.SEEK_END)
        listener.found(begun)
        coming = _Reception(source, file, stream, begun, file.size)
        try:
            if begun < file.size:
                attended(coming.run, lambda: listener(stream.take_count()))
        finally:
            stream.stop()
    if not file.is_at(path, listener):
        path.unlink()
        raise DownloadError(
            f"{file.name} arrived damaged: its {file.size} bytes are not those that {source.page} "
            "publishes. It was deleted; run it again"
        )


def get_part(source: Source, file: File, begin: int, length: int, listener: Listener) -> bytes:
    """Return some bytes of a file.

    Raises:
        DownloadError: a server sends something else.
        NotImplementedError: it sends no parts.
    """
    part = _Part()
    coming = _Reception(source, file, part, begin, begin + length)
    attended(coming.run, listener)
    return part.getvalue()


class _Sink(Protocol):
    def write(self, data: bytes, /) -> int: ...

    def restart(self) -> None: ...


class _Reception:
    """The bytes of a file from one place to another, however often the connection breaks."""

    def __init__(self, source: Source, file: File, sink: _Sink, begin: int, end: int) -> None:
        self._source, self._file, self._sink, self._end = source, file, sink, end
        self._at = self._furthest = begin

    def run(self, stopped: threading.Event) -> None:
        persist(self._go_on, stopped, self._has_come_further)

    def _has_come_further(self) -> bool:
        has = self._at > self._furthest
        self._furthest = max(self._at, self._furthest)
        return has

    def _go_on(self) -> None:
        with open_answer(self._file.url, self._headers()) as (answer, chunks):
            self._check(answer.status_code, answer.headers)
            for chunk in chunks:
                if len(chunk) > self._end - self._at:
                    self._restart()
                    raise self._refused("more bytes than it has")
                self._sink.write(chunk)
                self._at += len(chunk)
        if self._at < self._end:
            raise ConnectionError(f"it broke {self._end - self._at} bytes before the end")

    def _headers(self) -> dict[str, str]:
        from huggingface_hub import utils

        hub: Any = utils  # its types leave out what its documentation names
        # Where an answer points to another server, the HTTP client leaves the token out.
        own = hub.build_hf_headers() if isinstance(self._source, HubSource) else {}
        if self._at == 0 and self._end == self._file.size:
            return {**own}
        last = "" if self._end == self._file.size else self._end - 1
        return {**own, "Range": f"bytes={self._at}-{last}"}

    def _check(self, status: int, headers: Mapping[str, str]) -> None:
        """Check, before any of it is written, that what is sent can be what was asked for."""
        kind = headers.get("Content-Type", "")
        if "html" in kind:
            raise self._refused("a web page")
        size = str(self._file.size)
        if status == _PARTIAL:
            part = _PART.fullmatch(headers.get("Content-Range", ""))
            if part is None or int(part[1]) != self._at:
                raise self._refused("another part of it")
            if part[2] not in ("*", size):
                raise self._refused(f"a file of {part[2]} bytes, not {size}")
            return
        length = headers.get("Content-Length", size)
        if status != _WHOLE or (length != size and "Content-Encoding" not in headers):
            raise self._refused(f"{length} bytes, not {size}")
        if self._at > 0 or self._end < self._file.size:  # a server that sends no parts
            self._restart()

    def _restart(self) -> None:
        self._sink.restart()
        self._at = 0

    def _refused(self, what: str) -> DownloadError:
        return DownloadError(something_else(self._source, self._file.name, what))


class _Stoppable(io.FileIO):
    """A file that grows at its end until it is stopped; counts what is written."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "ab")
        self._lock = threading.Lock()
        self._is_stopped = False
        self._new = self._own = 0

    def write(self, data: Any) -> int:
        with self._lock:
            self._check_going_on()
            view = memoryview(data)
            while view:  # a system may take less than it is given
                view = view[super().write(view) :]
            self._new += len(data)
            self._own += len(data)
        return len(data)

    def restart(self) -> None:
        """Begin anew with an empty file."""
        with self._lock:
            self._check_going_on()
            self._new, self._own = self._new - self._own, 0
            self.truncate(0)
            self.seek(0)

    def stop(self) -> None:
        """Write no more; a write that has begun is waited for."""
        with self._lock:
            self._is_stopped = True

    def take_count(self) -> int:
        """Return the bytes that were written since this was last asked, less what was given up."""
        with self._lock:
            new, self._new = self._new, 0
        return new

    def _check_going_on(self) -> None:
        if self._is_stopped:
            raise InterruptedError("stopped")


class _Part(io.BytesIO):
    """Takes a part of a file, and not the file that a server without parts would send."""

    def restart(self) -> None:
        raise NotImplementedError("the server sends no parts")
