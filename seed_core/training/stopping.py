"""A run that is told to stop writes a checkpoint first: SIGTERM is what ``kill`` and schedulers send."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from transformers import TrainerCallback

from .processes import share


class _StopWithCheckpoint(TrainerCallback):
    """Once asked, stops after the next step whose row of the log is whole, with a checkpoint."""

    def __init__(self) -> None:
        self._is_asked = False

    def ask(self) -> None:
        """Ask for the end."""
        self._is_asked = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._is_asked and state.global_step % args.logging_steps == 0:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # By an exception: a loop that just ended would look like one that is done, and a stage with
        # two trainings would begin the second.
        if self._is_asked:
            raise KeyboardInterrupt


Begin = Callable[[int], object]  # what torch calls in a process that makes samples, with its number


@contextmanager
def sample_processes() -> Iterator[Callable[[Begin | None, int], None]]:
    """Yield what is called at the beginning of each process that makes samples.

    Schedulers send SIGTERM to all processes of a run, but the last steps before a checkpoint need
    these. So they ignore it, and end when this context does, or the process that trains.
    """
    end, kept = multiprocessing.Pipe(duplex=False)
    try:
        yield partial(_begin, end, kept)
    finally:
        kept.close()
        end.close()


def _begin(end: Connection, kept: Connection, begin: Begin | None, number: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    kept.close()  # the pipe ends with the last process that keeps its other end
    threading.Thread(target=_exit_after, args=(end,), daemon=True).start()
    if begin is not None:
        begin(number)


def _exit_after(end: Connection) -> None:
    with suppress(EOFError, OSError):
        end.recv_bytes()
    os._exit(0)


@contextmanager
def stop_at_sigterm() -> Iterator[TrainerCallback]:
    """Ask a callback for the end when SIGTERM comes, where this process alone trains.

    Several processes get the signal at different steps and would wait for one another.
    """
    callback = _StopWithCheckpoint()
    if share()[1] > 1 or threading.current_thread() is not threading.main_thread():
        yield callback
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: callback.ask())
    try:
        yield callback
    finally:
        signal.signal(signal.SIGTERM, previous)
