"""How many of a processor's threads work uses: as many as the host set, or one where it is small.

A small network computes thousands of products of some microseconds, and after each of them every
thread waits for the last. Where other programs run too, that one may lack a core for milliseconds.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

# A call of a network with fewer multiply-adds, 5 ms of one core, runs on one thread. Measured on
# two cores: alone, the second makes smaller calls 1.1 to 1.6 times as fast, and larger ones 1.5 to
# 1.8 times. Beside two busy processes, one of seed-mini's drawings takes 1.8 times as long on one
# thread as alone, and on two threads 5 to 20 times (`benchmarks/busy.py`).
SMALL = 450_000_000

_READ = 12  # multiply-adds that take as long as reading their weight from memory


def takes_one_thread(device: torch.device, module: nn.Module, times: float) -> bool:
    """Tell whether `threads_for` lets such calls have one thread where there are more."""
    if device.type != "cpu" or torch.get_num_threads() == 1:
        return False
    weights = sum(parameter.numel() for parameter in module.parameters())
    return weights * (times + _READ) < SMALL


@contextmanager
def threads_for(device: torch.device, module: nn.Module, times: float) -> Iterator[None]:
    """Let this thread compute on one thread where calls are small, and as before afterwards.

    ``times`` is how often a call multiplies each weight: tokens, or positions of a map.
    """
    if not takes_one_thread(device, module, times):
        yield
        return
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        # That has also set what new threads begin with, and those are the host's.
        _in_a_thread_of_its_own(before)
        yield
    finally:
        torch.set_num_threads(before)


def _in_a_thread_of_its_own(threads: int) -> None:
    """Set what threads begin with, without changing it for this one."""
    other = threading.Thread(target=torch.set_num_threads, args=(threads,))
    other.start()
    other.join()
