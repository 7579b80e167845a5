"""What Pillow warns of while it reads, heard by the thread that reads.

Python's own `warnings.catch_warnings` changes the whole process, and several threads read pictures
at once. So the first reader opens one for all, the last closes it, and each hears only itself.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from PIL import Image


class _Reader(threading.local):
    heard: list[str] | None = None  # of the thread; None while it reads no picture


_reader = _Reader()
_lock = threading.Lock()
_reading = 0
_opened: warnings.catch_warnings[None]
_show = warnings.showwarning


@contextmanager
def pillow_warnings() -> Iterator[list[str]]:
    """Give a list that fills with what Pillow warns of in this thread; it may not be nested.

    That a picture is large is left out: it is read or refused by its pixels.
    """
    _open()
    heard: list[str] = []
    _reader.heard = heard
    try:
        yield heard
    finally:
        _reader.heard = None
        _close()


def _open() -> None:
    global _reading, _opened, _show
    with _lock:
        if _reading == 0:
            _opened = warnings.catch_warnings()
            _opened.__enter__()
            _show = warnings.showwarning
            warnings.showwarning = _hear
            warnings.filterwarnings("always", module=r"PIL\.")
        _reading += 1


def _close() -> None:
    global _reading
    with _lock:
        _reading -= 1
        if _reading == 0:
            _opened.__exit__(None, None, None)


def _hear(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if _reader.heard is None:  # of another thread, about something else
        _show(message, category, filename, lineno, file, line)
    elif not issubclass(category, Image.DecompressionBombWarning):
        text = " ".join(str(message).split())
        if text not in _reader.heard:
            _reader.heard.append(text)
