"""How much memory is in use while something runs: all of the card's, or a server's own."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch


class Peak:
    """The most bytes that were in use."""

    def __init__(self) -> None:
        self.most = 0


class _Memory:
    every = 0.02  # seconds between two looks

    def used(self) -> int:
        """Return the bytes in use."""
        raise NotImplementedError

    @contextlib.contextmanager
    def peak(self) -> Iterator[Peak]:
        """Look again and again; the peak is known when the block ends."""
        found, is_over = Peak(), threading.Event()

        def look() -> None:
            while not is_over.is_set():
                found.most = max(found.most, self.used())
                is_over.wait(self.every)

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield found
        finally:
            is_over.set()
            thread.join()

    def lowest_within(self, seconds: float) -> int:
        """Return the least that is in use in a time, for memory may be given back late."""
        deadline, lowest = time.monotonic() + seconds, self.used()
        while time.monotonic() < deadline:
            time.sleep(self.every)
            lowest = min(lowest, self.used())
        return lowest


class CardMemory(_Memory):
    """Of the whole card, whoever uses it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()  # ours, of drawing the weights

    def used(self) -> int:
        """Return the bytes in use."""
        free, total = torch.cuda.mem_get_info(self._device)
        return total - free


class ProcessMemory(_Memory):
    """Of a server with the probe, in main memory: on a processor."""

    every = 0.25  # it is the server that has to answer

    def __init__(self, server: Any) -> None:
        self._server = server

    def used(self) -> int:
        """Return the bytes in use."""
        return int(self._server.get("/seed_test/memory")["rss"])
