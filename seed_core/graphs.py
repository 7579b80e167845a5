"""CUDA graphs: the kernels of one call, recorded once and launched together ever after.

A step of a small batch is hundreds of kernels of a few microseconds each; launched one by one they
leave the card waiting for Python. Knows nothing of what is computed.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

log = logging.getLogger(__name__)


def can_capture(module: nn.Module, device: torch.device) -> bool:
    """Tell whether calls of a network can be captured: its weights stay on a CUDA device.

    Weights that a host streams to the device layer by layer lie elsewhere between two calls.
    """
    return device.type == "cuda" and all(parameter.is_cuda for parameter in module.parameters())


class GraphedCalls:
    """Calls functions of no arguments, each as a CUDA graph once it is known to work.

    What a function reads and writes must stay where it is between calls, and it must not wait for
    the device. Replays write to the same results, so use one before the next call.

    Args:
        device: where the functions compute.
        enabled: False calls the functions plainly, with the same results.
    """

    def __init__(self, device: torch.device, enabled: bool) -> None:
        self._device = device
        self._enabled = enabled
        self._warm: set[Any] = set()
        self._captured: dict[Any, tuple[torch.cuda.CUDAGraph, Any]] = {}

    def __call__(self, key: Any, function: Callable[[], Any]) -> Any:
        """Call ``function``; calls under one key must do the same work."""
        if not self._enabled:
            return function()
        if not self._warm:
            # Libraries set themselves up during the very first call, which cannot be captured.
            self._warm.add(key)
            return function()
        if key not in self._captured:
            try:
                self._captured[key] = self._capture(function)
            except RuntimeError as error:
                if key in self._warm:
                    log.warning("no CUDA graph on this card, which makes steps slower: %s", error)
                    self._enabled = False
                self._warm.add(key)  # the plain call may be the set-up that another shape lacked
                return function()
        graph, result = self._captured[key]
        graph.replay()
        return result

    def close(self) -> None:
        """Wait for the last replay and forget the graphs with their memory."""
        if self._captured:
            torch.cuda.current_stream(self._device).synchronize()
            self._captured.clear()

    def _capture(self, function: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
        # Not torch.cuda.graph(): it collects garbage and empties the allocator's cache each time.
        # The error mode keeps what other threads ask of the device out of the capture.
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                result = function()
            except BaseException:
                with contextlib.suppress(RuntimeError):  # broken by now; its cause matters more
                    graph.capture_end()
                raise
            graph.capture_end()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        return graph, result
