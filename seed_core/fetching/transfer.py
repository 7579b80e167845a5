"""One file from a server: all that it still lacks, or a part of it.

huggingface_hub does it, because it knows about mirrors, proxies and tokens; but not with its
``hf_hub_download``, whose recent versions throw an interrupted file away.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from ..errors import DownloadError
from ..files.writer import sha256_of
from .downloads import HubSource, Source
from .failures import Listener
from .plan import File


def get_file(source: Source, file: File, path: Path, listener: Listener) -> None:
    """Append to an unfinished file what it still lacks, and check the whole.

    Raises:
        DownloadError: it arrived damaged, and was deleted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _Watched(path.open("ab", buffering=0), listener) as stream:
        if stream.tell() > file.size:  # a server that began anew where it was asked to go on
            stream.truncate(0)
        _http_get(source, file, stream, stream.seek(0, os.SEEK_END), file.size)
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


class _Watched(io.BufferedWriter):
    """A file that tells how much is written to it."""

    def __init__(self, raw: Any, listener: Listener) -> None:
        super().__init__(raw)
        self._listener = listener

    def write(self, data: Any) -> int:
        written = super().write(data)
        self._listener(written)
        return written


class _Limited(io.BytesIO):
    """Takes a part of a file, and not the file that a server without parts would send."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self._most:
            raise NotImplementedError("the server sends no parts")
        return super().write(data)
