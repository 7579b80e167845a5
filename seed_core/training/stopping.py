"""A run that is told to stop writes a checkpoint first: SIGTERM is what ``kill`` and schedulers send."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
        # By an exception: a loop that just ended would look like one that is done.
        if self._is_asked and state.global_step < state.max_steps:
            raise KeyboardInterrupt


def outlive_sigterm(begin: Callable[[int], object] | None, number: int) -> None:
    """Begin a process that makes samples, which the last steps before a checkpoint need.

    Schedulers send SIGTERM to all processes of a run. This one ends with the one that trains.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if begin is not None:
        begin(number)


@contextmanager
def stop_at_sigterm() -> Iterator[TrainerCallback]:
    """Ask a callback for the end when SIGTERM comes, where this process alone trains.

    Several processes get the signal at different steps and would wait for one another.
    """
    callback = _StopWithCheckpoint()
    if share()[1] > 1 or threading.current_thread() is not threading.main_thread():
        yield callback
        return
    trainer = os.getpid()

    def handle(number: int, frame: Any) -> None:
        if os.getpid() == trainer:
            callback.ask()
        else:  # a process that makes samples, which was forked with this handler
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield callback
    finally:
        signal.signal(signal.SIGTERM, previous)
