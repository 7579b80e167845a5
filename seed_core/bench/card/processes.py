"""One command in a process of its own, which is gone with all it started when its time is over."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TAIL = 25  # lines of a log that are told
GRACE = 3.0  # seconds to say where it hangs, and for its memory on the card to be free again


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        seconds: how long it ran.
        code: its exit status; None where its time was over.
    """

    seconds: float
    code: int | None


def run(
    command: Sequence[str], log: Path, limit: float, folder: Path, environment: Mapping[str, str]
) -> Ended:
    """Run a command with its output in a file, for so many seconds at most.

    Args:
        command: the program and its arguments.
        log: where what it says goes.
        limit: seconds.
        folder: where it runs.
        environment: set besides ours.
    """
    start = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, "PYTHONFAULTHANDLER": "1", **environment},
            start_new_session=True,
        )
        code: int | None = None
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            _ask_where_it_hangs(process)
        finally:
            _end(process)
    return Ended(time.monotonic() - start, code)


def tail(log: Path) -> list[str]:
    """Return the last lines of a log."""
    if not log.is_file():
        return []
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line[:300] for line in lines if line.strip()][-TAIL:]


def _ask_where_it_hangs(process: subprocess.Popen[bytes]) -> None:
    """Have Python write its stack into the log, which it does on this signal and then ends."""
    if os.name == "posix":
        process.send_signal(signal.SIGABRT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started."""
    if os.name != "posix":
        process.kill()
        process.wait()
        return
    deadline = time.monotonic() + GRACE
    with contextlib.suppress(ProcessLookupError, PermissionError):
        while time.monotonic() < deadline:
            os.killpg(process.pid, signal.SIGKILL)  # until the group has ended
            process.poll()
            time.sleep(0.05)
    process.wait()
