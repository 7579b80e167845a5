"""Time, memory and bandwidth of a device. Knows nothing of what is run on it."""

from __future__ import annotations

import ctypes
import gc
import platform
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .table import Figure

_MIB = 2**20
_BLOCK = 2**30
"""Bytes the bandwidth is measured on at most: far more than any cache, and it always fits."""

_PASSES = 8
"""Passes over the block in one measurement, so that launching and waiting count for little."""


class Meter:
    """Measures calls on one device, the first call of each not counted.

    Args:
        device: where the calls compute.
        repeat: how often each is measured.
    """

    def __init__(self, device: torch.device, repeat: int) -> None:
        self._device = device
        self._repeat = repeat

    def seconds(self, call: Callable[[], object]) -> Figure:
        """Return how long a call takes."""
        call()
        return Figure.of([self._time(call) for _ in range(self._repeat)], "s")

    def rate(self, amount: float, unit: str, call: Callable[[], object]) -> Figure:
        """Return how much a call that does ``amount`` does in a second."""
        took = self.seconds(call)
        return Figure(amount / took.median, amount / took.most, amount / took.least, unit)

    def loading(self, load: Callable[[], object]) -> dict[str, Figure]:
        """Return seconds, and what memory grows by at its highest, by kind of memory."""
        load()
        seconds: list[float] = []
        growth: dict[str, list[float]] = {}
        for _ in range(self._repeat):
            self.free()
            before = self._memory()
            self._reset_peaks()
            seconds.append(self._time(load))
            for kind, peak in self._peaks().items():
                growth.setdefault(kind, []).append(max(peak - before[kind], 0) / _MIB)
        self.free()
        figures = {kind: Figure.of(values, "MiB") for kind, values in growth.items()}
        return {"time": Figure.of(seconds, "s"), **figures}

    def bandwidth(self, size: int) -> Figure:
        """Return bytes read a second, from a block of so many bytes where that fits.

        The block is as large as the weights, for a small network's lie in the processor's cache.
        """
        block = torch.ones(min(size, _BLOCK) // 4, device=self._device)
        return self.rate(
            block.nbytes * _PASSES, "B/s", lambda: [block.sum() for _ in range(_PASSES)]
        )

    def free(self) -> None:
        """Give back the memory of everything unused."""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)

    def _time(self, call: Callable[[], Any]) -> float:
        self._wait()
        start = time.perf_counter()
        call()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self._device.type != "cpu":
            getattr(torch, self._device.type).synchronize()

    def _reset_peaks(self) -> None:
        if sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def _memory(self) -> dict[str, int]:
        found = _process_memory("VmRSS")
        if self._device.type == "cuda":
            found["VRAM"] = torch.cuda.memory_allocated(self._device)
        return found

    def _peaks(self) -> dict[str, int]:
        found = _process_memory("VmHWM")
        if self._device.type == "cuda":
            found["VRAM"] = torch.cuda.max_memory_allocated(self._device)
        return found


def _process_memory(field: str) -> dict[str, int]:
    """Return a field of the process's status in bytes; nothing where the system has none."""
    if sys.platform != "linux":
        return {}
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return (
        {"RAM": 1024 * int(match[1])} if (match := re.search(rf"{field}:\s*(\d+)", status)) else {}
    )


def device_name(device: torch.device) -> str:
    """Return what the device calls itself, with the threads used of a processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).is_file():
        listed = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text(encoding="utf-8"))
        name = listed[1] if listed else name
    return f"{name}, {torch.get_num_threads()} threads"
