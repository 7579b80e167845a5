"""Waiting for a server, in a way that can be stopped at any time."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

_TELL_EVERY = 0.2  # seconds

_Result = TypeVar("_Result")


def attended(
    work: Callable[[threading.Event], _Result],
    tell: Callable[[], object],
    news: threading.Event | None = None,
) -> _Result:
    """Work in the background; call ``tell`` meanwhile, a few times a second and at the end.

    A server may be silent for a long time. Who wants to stop does not wait for it: what ``tell``
    raises passes through, and the work is left alone, with an event set that it looks at when it
    next wakes up. ``news`` is an event that the work may set to have ``tell`` called at once.
    """
    results: list[_Result] = []
    raised: list[BaseException] = []
    stopped, finished, news = threading.Event(), threading.Event(), news or threading.Event()

    def run() -> None:
        try:
            results.append(work(stopped))
        except BaseException as error:  # noqa: BLE001 - raised again where the work is waited for
            raised.append(error)
        finally:
            finished.set()
            news.set()

    threading.Thread(target=run, daemon=True, name="attended").start()
    try:
        is_over = False
        while not is_over:
            news.wait(_TELL_EVERY)
            news.clear()
            is_over = finished.is_set()
            tell()
    finally:
        stopped.set()
    for error in raised:
        raise error
    return results[0]


def each_attended(items: Iterable[_Result], tell: Callable[[], object]) -> Iterator[_Result]:
    """Yield what takes long to come; see `attended`. What computes it may leave nothing half done."""
    coming = iter(items)
    while found := attended(lambda _: list(islice(coming, 1)), tell):
        yield found[0]


def seconds_asked(told: str) -> float | None:
    """Return for how long a ``Retry-After`` asks to be left alone: a number, or until a time."""
    from email.utils import parsedate_to_datetime  # imports sockets

    told = told.strip()
    try:
        if told.isdecimal():
            seconds = float(told)
        else:
            seconds = parsedate_to_datetime(told).timestamp() - time.time()
    except (TypeError, ValueError, OverflowError):  # neither
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def after(seconds: float) -> str:
    """Return when to come again, in words."""
    minutes = round(seconds / 60)
    return f"after {minutes} minutes" if minutes > 2 else f"after {max(1, round(seconds))} seconds"
