"""What every request has: it can be stopped at any time, and who is busy is asked again.

huggingface_hub makes the connection, because it knows about mirrors, proxies, certificates and
tokens; but its ``http_get`` differs by version in what it tries again, waits for and throws away.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from .failures import BUSY, asked_to_wait, is_broken_connection, status_of

_ATTEMPTS = 6  # in a row that bring nothing
_PAUSE = 1.0  # seconds after the first of them; twice as long after each further one
_LONGEST_WAIT = 120.0  # seconds that a server may ask for; people are told of longer ones
_CHUNK = 64 * 2**10  # bytes that are lost at most where a connection breaks

_Result = TypeVar("_Result")


def persist(
    attempt: Callable[[], _Result],
    stopped: threading.Event,
    has_come_further: Callable[[], bool] | None = None,
) -> _Result:
    """Try again while a server is busy; also where the connection breaks, if that can go on."""
    failed = 0
    while True:
        try:
            return attempt()
        except Exception as error:
            failed = 1 if has_come_further and has_come_further() else failed + 1
            pause = _pause(error, failed, goes_on=has_come_further is not None)
            if pause is None or failed == _ATTEMPTS:
                raise
            if stopped.wait(pause):
                raise InterruptedError("stopped") from error


def _pause(error: Exception, failed: int, goes_on: bool) -> float | None:
    """Return the seconds to wait for the next attempt; None if there is no use in any."""
    wait = _PAUSE * 2 ** (failed - 1)
    status = status_of(error)
    if status is None:
        return wait if goes_on and is_broken_connection(error) else None
    asked = asked_to_wait(error)
    if status not in BUSY or (asked or 0) > _LONGEST_WAIT:
        return None
    return wait if asked is None else asked


@contextmanager
def open_answer(url: str, headers: Mapping[str, str]) -> Iterator[tuple[Any, Iterator[bytes]]]:
    """Ask for a file, and give the answer with its bytes as they arrive."""
    from huggingface_hub import constants, utils

    hub: Any = utils  # its types leave out what its documentation names
    session = hub.get_session()
    # A length that is told is then the file's own.
    wanted = {"Accept-Encoding": "identity", **headers}
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    if callable(session.stream):  # httpx, since 1.0
        with session.stream("GET", url, headers=wanted, timeout=timeout) as answer:
            hub.hf_raise_for_status(answer)
            yield answer, answer.iter_bytes()
    else:
        with session.get(url, headers=wanted, timeout=timeout, stream=True) as answer:
            hub.hf_raise_for_status(answer)
            yield answer, answer.iter_content(_CHUNK)
