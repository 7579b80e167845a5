"""How many of a processor's threads work uses: as many as the host set, or one where it is small.

A network that is small computes thousands of products of some microseconds, after each of which
every thread waits for the last one. Where other programs run as well, that one may have no core for
milliseconds. Knows nothing of what is computed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

SMALL = 450_000_000
"""Multiply-adds of one call of a network below which it runs on one thread: 5 ms of one core.

Measured on two cores: alone, the second makes smaller calls 1.1 to 1.6 times as fast, and larger ones
1.5 to 1.8 times. Beside two busy processes, one of seed-mini's drawings takes 1.8 times as long on one
thread as alone, and on two threads 5 to 20 times (`benchmarks/busy.py`).
"""

_READ = 12
"""Multiply-adds that take as long as it takes to read the weight for them from memory."""


def takes_one_thread(device: torch.device, module: nn.Module, times: float) -> bool:
    """Tell whether `threads_for` lets such calls have one thread where there are more."""
    if device.type != "cpu" or torch.get_num_threads() == 1:
        return False
    weights = sum(parameter.numel() for parameter in module.parameters())
    return weights * (times + _READ) < SMALL


@contextmanager
def threads_for(device: torch.device, module: nn.Module, times: float) -> Iterator[None]:
    """Let this thread compute on one thread where calls are small, and as before afterwards.

    Args:
        device: where a network computes; on any but a CPU nothing changes.
        module: the network.
        times: how often a call multiplies each weight: tokens, or positions of a map.
    """
    if not takes_one_thread(device, module, times):
        yield
        return
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        # That is also what threads begin with that have not computed yet, and those are the host's.
        _in_a_thread_of_its_own(before)
        yield
    finally:
        torch.set_num_threads(before)


def _in_a_thread_of_its_own(threads: int) -> None:
    """Set what threads begin with, without changing it for this one."""
    other = threading.Thread(target=torch.set_num_threads, args=(threads,))
    other.start()
    other.join()
