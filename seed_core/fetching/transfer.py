"""One file from a server: all that it still lacks, or a part of it.

huggingface_hub does it, because it knows about mirrors, proxies and tokens; but not with its
``hf_hub_download``, whose recent versions throw an interrupted file away.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import DownloadError
from ..files.writer import sha256_of
from .downloads import HubSource, Source
from .failures import Listener
from .plan import File

_TELL_EVERY = 0.2  # seconds


def get_file(source: Source, file: File, path: Path, listener: Listener) -> None:
    """Append to an unfinished file what it still lacks, and check the whole.

    Raises:
        DownloadError: it arrived damaged, and was deleted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _Stoppable(path) as stream:
        if stream.tell() > file.size:  # a server that began anew where it was asked to go on
            stream.truncate(0)
        resume = stream.seek(0, os.SEEK_END)
        _in_background(lambda: _http_get(source, file, stream, resume, file.size), stream, listener)
    size = path.stat().st_size
    if size == file.size and file.sha256 in (None, sha256_of(path, listener)):
        return
    path.unlink()
    raise DownloadError(
        f"{file.name} arrived damaged: {size} bytes that are not the {file.size} published ones. "
        "It was deleted; run the same command again"
    )


def get_part(source: Source, file: File, begin: int, length: int) -> bytes:
    """Return some bytes of a file.

    Raises:
        NotImplementedError: the server sends no parts.
    """
    from huggingface_hub import utils

    hub: Any = utils
    part = _Limited(length)
    hub.disable_progress_bars("huggingface_hub.http_get")
    try:
        _http_get(source, file, part, 0, length, Range=f"bytes={begin}-{begin + length - 1}")
    finally:
        hub.enable_progress_bars("huggingface_hub.http_get")
    return part.getvalue()


def _http_get(
    source: Source, file: File, stream: Any, resume: int, size: int, **headers: str
) -> None:
    from huggingface_hub import utils
    from huggingface_hub.file_download import http_get

    hub: Any = utils  # its types leave out what its documentation names
    own = hub.build_hf_headers() if isinstance(source, HubSource) else {}
    http_get(
        file.url,
        stream,
        resume_size=resume,
        headers={**own, **headers},
        expected_size=size,
        displayed_filename=file.name,
    )


class _Stoppable(io.FileIO):
    """A file that grows at its end until it is stopped; counts what is written."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "ab")
        self._lock = threading.Lock()
        self._is_stopped = False
        self._new = 0

    def write(self, data: Any) -> int:
        with self._lock:
            if self._is_stopped:
                raise InterruptedError("stopped")
            view = memoryview(data)
            while view:  # a system may take less than it is given
                view = view[super().write(view) :]
            self._new += len(data)
        return len(data)

    def stop(self) -> None:
        """Write no more; a write that has begun is waited for."""
        with self._lock:
            self._is_stopped = True

    def take_count(self) -> int:
        """Return the bytes that were written since this was last asked."""
        with self._lock:
            new, self._new = self._new, 0
        return new


def _in_background(work: Callable[[], None], stream: _Stoppable, listener: Listener) -> None:
    """Run a transfer while the listener is told of it.

    A server may be silent for a long time. Who wants to stop does not wait for it: the transfer
    then ends by itself, when it next has something to write.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again where the work is waited for
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_TELL_EVERY)
            listener(stream.take_count())
    finally:
        stream.stop()
    for error in raised:
        raise error


class _Limited(io.BytesIO):
    """Takes a part of a file, and not the file that a server without parts would send."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self._most:
            raise NotImplementedError("the server sends no parts")
        return super().write(data)
