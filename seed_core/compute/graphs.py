"""CUDA graphs: the kernels of one call, recorded once and launched together ever after.

A step of a small batch is hundreds of kernels of a few microseconds each; launched one by one they
leave the card waiting for Python.

Sources: "CUDA semantics, CUDA Graphs" of torch's documentation; "Graph Memory Nodes" of the CUDA
programming guide.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

log = logging.getLogger(__name__)

# Memory that must be free for a capture to be tried, beside the work itself, in bytes. Where less is
# free, a host's allocator may wait for the card in order to find more. That breaks a capture, and
# torch may then keep everything that is freed later.
CAPTURE_BYTES = 768 * 2**20

_is_broken = False  # whether a capture failed; torch may not recover, so another is never tried

# One to capture on for each card, as cuBLAS keeps a workspace for every stream it has seen.
_streams: dict[torch.device, torch.cuda.Stream] = {}


def can_capture(module: nn.Module, device: torch.device) -> bool:
    """Tell whether calls of a network can be captured: its weights stay on an NVIDIA card."""
    is_nvidia = device.type == "cuda" and torch.version.hip is None
    # Weights that a host streams to the card layer by layer lie elsewhere between two calls.
    return is_nvidia and all(parameter.is_cuda for parameter in module.parameters())


class GraphedCalls:
    """Calls functions of no arguments, each as a CUDA graph from its second call on.

    What a function reads and writes must stay where it is between calls. It must not wait for the
    device, and tensors that it makes must not outlive it. Where graphs are not ``enabled``, calls
    are plain ones, with the same results.
    """

    def __init__(self, device: torch.device, enabled: bool) -> None:
        self._device = device
        self._enabled = enabled
        self._warm: set[Any] = set()
        self._graphs: dict[Any, torch.cuda.CUDAGraph] = {}
        self._pool: Any = None  # the memory that all of them compute in, one after the other

    def __call__(self, key: Any, function: Callable[[], None]) -> None:
        """Call ``function``; calls under one key must do the same work."""
        if not self._enabled or _is_broken:
            function()
        elif key not in self._warm:
            # Libraries plan and allocate when they first see a shape, which a capture forbids.
            self._warm.add(key)
            self._on_capture_stream(function)
        elif not self._replay(key, function):
            function()

    def close(self) -> None:
        """Wait for the last replay, forget the graphs and return their memory."""
        if not self._graphs:
            return
        try:
            torch.cuda.current_stream(self._device).synchronize()
        finally:
            self._graphs.clear()
            if torch.cuda.get_allocator_backend() != "native":
                _return_graph_memory(self._device)

    def _replay(self, key: Any, function: Callable[[], None]) -> bool:
        """Launch the graph of a call, captured first if it is new; tell whether that worked.

        If it did not, nothing of the call has run.
        """
        try:
            if key not in self._graphs:
                if not self._has_room():
                    return False
                self._graphs[key] = self._capture(function)
            # The first launch is where a graph may take its memory.
            self._graphs[key].replay()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                _give_up(error)
            self._stop_capturing(f"{error}")
            return False
        return True

    def _has_room(self) -> bool:
        free, _ = torch.cuda.mem_get_info(self._device)
        if free >= CAPTURE_BYTES:
            return True
        self._stop_capturing(f"{free / 2**20:.0f} MiB of memory are free")
        return False

    def _stop_capturing(self, reason: str) -> None:
        """Go on with plain calls, which can use memory that a capture cannot."""
        log.info("Going on without CUDA graphs, more slowly: %s", reason)
        self._enabled = False
        self.close()

    def _capture(self, function: Callable[[], None]) -> torch.cuda.CUDAGraph:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph: torch.cuda.CUDAGraph = self._on_capture_stream(
            lambda: _record(function, self._pool, self._device)
        )
        return graph

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


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell it in whichever way it is said: by torch's allocator, or by the driver."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in str(error)


def _give_up(error: Exception) -> None:
    global _is_broken
    _is_broken = True
    log.warning(
        "CUDA graphs failed on this card and are off until the next start, which makes replies "
        "slower. If errors about memory follow, start again. (%s)",
        error,
    )


def _record(function: Callable[[], None], pool: Any, device: torch.device) -> torch.cuda.CUDAGraph:
    # Not torch.cuda.graph(): it collects garbage and empties the allocator's cache each time. The
    # error mode keeps what other threads ask of the device out of the capture.
    graph, generator = torch.cuda.CUDAGraph(), _generator_of(device)
    with _mended(pool, device, generator):
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    try:
        function()
    except BaseException as error:
        # Stop, for one: the capture itself is sound and has to end. Tensors made during it must
        # be gone by then, and the frames of the error hold them.
        traceback.clear_frames(error.__traceback__)
        try:
            with _mended(pool, device, generator):
                graph.capture_end()
        except RuntimeError as failure:
            _give_up(failure)
        raise
    with _mended(pool, device, generator):
        graph.capture_end()
    return graph


@contextlib.contextmanager
def _mended(
    pool: Any, device: torch.device, generator: tuple[torch.Generator, torch.Generator] | None
) -> Iterator[None]:
    """Undo what torch leaves behind where a capture cannot be begun or ended."""
    try:
        yield
    except RuntimeError:
        _leave_pool(pool, device)
        if generator is not None:
            # It would go on counting for the graph, and refuse every later draw on the card.
            owner, outside = generator
            owner.graphsafe_set_state(outside)
        raise


def _leave_pool(pool: Any, device: torch.device) -> None:
    """Have torch's allocator stop filling the memory of a capture that could not be ended."""
    # While one is open, it keeps memory that several streams used, and returns none to the card.
    end_allocation = getattr(torch._C, "_cuda_endAllocateToPool", None)
    if end_allocation is None:
        return
    with contextlib.suppress(RuntimeError):  # raised if torch came as far as that by itself
        end_allocation(_index(device), pool)
    with contextlib.suppress(RuntimeError):
        torch._C._cuda_releasePool(_index(device), pool)


def _generator_of(device: torch.device) -> tuple[torch.Generator, torch.Generator] | None:
    """Return the card's random generator, and its state outside of any capture."""
    generators = torch.cuda.default_generators
    if _index(device) >= len(generators):
        return None
    return generators[_index(device)], generators[_index(device)].clone_state()


def _return_graph_memory(device: torch.device) -> None:
    """Return to the card the memory that forgotten graphs computed in."""
    # CUDA's own allocator keeps it for later graphs, and torch has no call that returns it.
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        handle = ctypes.c_int()
        if driver.cuDeviceGet(ctypes.byref(handle), _index(device)) == 0:
            driver.cuDeviceGraphMemTrim(handle)
    except (OSError, AttributeError) as error:  # a driver in another place, or older than 11.4
        log.debug("the memory of CUDA graphs stays theirs: %s", error)


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index
