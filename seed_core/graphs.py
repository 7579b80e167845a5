"""CUDA graphs: the kernels of one call, recorded once and launched together ever after.

A step of a small batch is hundreds of kernels of a few microseconds each; launched one by one they
leave the card waiting for Python. Knows nothing of what is computed.

Source: "CUDA semantics, CUDA Graphs" of torch's documentation.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

log = logging.getLogger(__name__)

_is_broken = False
"""Whether a capture failed: torch may not recover from that, so none is tried again."""

_streams: dict[torch.device, torch.cuda.Stream] = {}
"""One to capture on for each card, as cuBLAS keeps a workspace for every stream it has seen."""


def can_capture(module: nn.Module, device: torch.device) -> bool:
    """Tell whether calls of a network can be captured: its weights stay on an NVIDIA card.

    Weights that a host streams to the card layer by layer lie elsewhere between two calls.
    """
    is_nvidia = device.type == "cuda" and torch.version.hip is None
    return is_nvidia and all(parameter.is_cuda for parameter in module.parameters())


def returns_memory() -> bool:
    """Tell whether what a graph computed in is free again once the graph is gone.

    CUDA's own allocator keeps it for other graphs, out of reach for everything else.
    """
    return torch.cuda.get_allocator_backend() == "native"


class GraphedCalls:
    """Calls functions of no arguments, each as a CUDA graph from its second call on.

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
        if not self._enabled or _is_broken:
            return function()
        if key not in self._warm:
            # Libraries plan and allocate when they first see a shape, which a capture forbids.
            self._warm.add(key)
            return self._on_capture_stream(function)
        if key not in self._captured and not self._capture(key, function):
            return function()
        graph, result = self._captured[key]
        graph.replay()
        return result

    def close(self) -> None:
        """Wait for the last replay and forget the graphs."""
        if self._captured:
            try:
                torch.cuda.current_stream(self._device).synchronize()
            finally:
                self._captured.clear()

    def _on_capture_stream(self, function: Callable[[], Any]) -> Any:
        stream = _streams.get(self._device)
        if stream is None:
            stream = _streams[self._device] = torch.cuda.Stream(self._device)
        current = torch.cuda.current_stream(self._device)
        stream.wait_stream(current)
        try:
            with torch.cuda.stream(stream):
                return function()
        finally:
            current.wait_stream(stream)  # also after Stop: what is freed now is still written to

    def _capture(self, key: Any, function: Callable[[], Any]) -> bool:
        """Capture a call; tell whether that worked."""
        try:
            self._captured[key] = self._on_capture_stream(lambda: _record(function, self._pool()))
        except torch.cuda.OutOfMemoryError:
            self._enabled = False  # a plain call can use memory that a capture cannot
            return False
        except RuntimeError as error:
            _give_up(error)
            return False
        return True

    def _pool(self) -> Any:
        """Return the memory that all graphs of this object compute in, one after the other."""
        for graph, _ in self._captured.values():
            return graph.pool()
        return torch.cuda.graph_pool_handle()


def _give_up(error: Exception) -> None:
    global _is_broken
    _is_broken = True
    log.warning(
        "CUDA graphs failed on this card and are off until the next start, which makes replies "
        "slower. If errors about memory follow, start again. (%s)",
        error,
    )


def _record(function: Callable[[], Any], pool: Any) -> tuple[torch.cuda.CUDAGraph, Any]:
    # Not torch.cuda.graph(): it collects garbage and empties the allocator's cache each time. The
    # error mode keeps what other threads ask of the device out of the capture.
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    try:
        result = function()
    except BaseException as error:
        # Stop, for one: the capture itself is sound and has to end. Tensors made during it must be
        # gone by then, and the frames of the error hold them.
        traceback.clear_frames(error.__traceback__)
        try:
            graph.capture_end()
        except RuntimeError as failure:
            _give_up(failure)
        raise
    graph.capture_end()
    return graph, result
