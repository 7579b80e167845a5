"""Stands in for torch.cuda: a card's properties, its free memory, streams, events and graphs.

Nothing is computed and nothing takes time, so all a stream, an event or a graph does is to tell the
record that somebody waited, captured or replayed.
"""

import contextlib
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from .cards import Graph, Row
from .memory import CardMemory

_INITIALISERS = ("normal_", "uniform_", "kaiming_uniform_", "xavier_uniform_", "zeros_", "ones_")
"""What layers fill their weights with before these are loaded; here it would only take time."""


class WaitedInCaptureError(RuntimeError):
    """What CUDA raises where a capture is asked for a value or to wait."""

    def __init__(self, what: str) -> None:
        super().__init__(f"CUDA error: operation not permitted when stream is capturing ({what})")


class Cuda:
    """One card as torch.cuda shows it.

    Attributes:
        memory: how full it is.
        on_wait: told what the processor waited for.
        on_capture: told of each capture that begins and ends.
        is_capturing: whether kernels are recorded now, not run.
    """

    def __init__(self, row: Row, memory: CardMemory) -> None:
        self.row = row
        self.memory = memory
        self.on_wait: Callable[[str], None] = lambda what: None
        self.on_capture: Callable[[Graph | None], None] = lambda graph: None
        self.is_capturing = False
        self._stream = Stream(self)

    def wait(self, what: str) -> None:
        """The processor waits for the card."""
        if self.is_capturing:
            raise WaitedInCaptureError(what)
        self.on_wait(what)

    def install(self) -> None:
        """Put the card in the place of torch's own, which has none."""
        model, row, memory = self.row.model, self.row, self.memory
        properties = SimpleNamespace(
            name=f"NVIDIA GeForce {row.card}",
            major=model.capability[0],
            minor=model.capability[1],
            total_memory=memory.total,
            multi_processor_count=46,
        )
        stand_ins: dict[str, Any] = {
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "is_bf16_supported": lambda *options, **named: True,
            "current_device": lambda: 0,
            "device_count": lambda: 1,
            "set_device": lambda device: None,
            "get_device_properties": lambda device=None: properties,
            "get_device_name": lambda device=None: properties.name,
            "get_device_capability": lambda device=None: model.capability,
            "get_allocator_backend": lambda: row.allocator,
            "mem_get_info": lambda device=None: (memory.free, memory.total),
            "memory_stats": lambda device=None: self._statistics(),
            "memory_allocated": lambda device=None: memory.live,
            "memory_reserved": lambda device=None: memory.live + memory.graphs,
            "synchronize": lambda device=None: self.wait("the device"),
            "empty_cache": lambda: None,
            "ipc_collect": lambda: None,
            "cudart": lambda: _Runtime(),
            "Stream": lambda *options, **named: Stream(self),
            "Event": lambda *options, **named: Event(self),
            "current_stream": lambda device=None: self._stream,
            "default_stream": lambda device=None: self._stream,
            "stream": lambda stream: contextlib.nullcontext(),
            "device": lambda device: contextlib.nullcontext(),
            "is_current_stream_capturing": lambda: self.is_capturing,
            "graph_pool_handle": object,
            "CUDAGraph": lambda *options, **named: CudaGraph(self),
        }
        for name, stand_in in stand_ins.items():
            setattr(torch.cuda, name, stand_in)
        torch.version.cuda = torch.version.cuda or "13.0"  # by which the host knows NVIDIA
        torch.backends.mps.is_available = lambda: False  # on a Mac, which would come first
        self._teach_fake_tensors()

    def _statistics(self) -> dict[str, int]:
        live, reserved = self.memory.live, self.memory.live + self.memory.graphs
        return {
            "active_bytes.all.current": live,
            "allocated_bytes.all.current": live,
            "reserved_bytes.all.current": reserved,
        }

    def _teach_fake_tensors(self) -> None:
        # These know that there is no driver to ask by torch.cuda.is_available, which now says yes.
        fake_tensor.init_gpu_context = lambda *device: None
        FakeTensorMode.avoid_device_init = True
        # Under inference mode aten.to is one operation, and the check for small constants knows it
        # only in its parts.
        FakeTensorMode.may_turn_const = lambda mode, tensor: False
        # Something unique, as what the host pins is remembered by its address.
        FakeTensor.data_ptr = lambda tensor: tensor.untyped_storage()._cdata
        FakeTensor.data = property(_get_data, _set_data)
        FakeTensor.__format__ = _format
        FakeTensor.tolist = _tolist
        torch.nn.Module._apply = _apply
        torch.Generator = _Generator
        for name in _INITIALISERS:
            setattr(torch.nn.init, name, lambda tensor, *options, **named: tensor)


_data = torch._C.TensorBase.data


def _get_data(self: FakeTensor) -> torch.Tensor:
    return _data.__get__(self)


def _set_data(self: FakeTensor, value: FakeTensor) -> None:
    """As torch's own, which knows nothing of where an invented tensor is said to be."""
    _data.__set__(self, value)
    self.fake_device = value.fake_device


_tolist_each = FakeTensor.tolist


def _tolist(self: FakeTensor) -> Any:
    """As torch's own, which copies once; that of invented tensors would read each number."""
    return _tolist_each(self.cpu())


def _format(self: FakeTensor, spec: str) -> str:
    """As torch's own, which asks for the type of a plain tensor."""
    return format(self.item(), spec) if self.dim() == 0 else object.__format__(self, spec)


def _apply(self: torch.nn.Module, fn: Any, recurse: bool = True) -> torch.nn.Module:
    """As torch's own, but parameters are replaced: invented ones cannot be changed in place."""
    for child in self.children() if recurse else ():
        child._apply(fn)
    for name, parameter in self._parameters.items():
        if parameter is not None:
            with torch.no_grad():
                moved = torch.nn.Parameter(fn(parameter), parameter.requires_grad)
            self._parameters[name] = moved
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = fn(buffer)
    return self


class _Generator(torch.Generator):
    """A source of random numbers in main memory, whatever place it is asked for."""

    def __new__(cls, device: object = "cpu") -> "_Generator":
        return super().__new__(cls, "cpu")


class _Runtime:
    """CUDA's own functions that the host calls: pinning always works."""

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802 - CUDA's
        return 0

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802 - CUDA's
        return 0


class Stream:
    """A queue of kernels, always empty."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.cuda_stream = id(self)
        self.device = torch.device("cuda", 0)

    def synchronize(self) -> None:
        self._cuda.wait("a stream")

    def wait_stream(self, other: "Stream") -> None:
        """Streams wait for each other without the processor."""

    def wait_event(self, event: "Event") -> None:
        """So they do for events."""

    def record_event(self, event: "Event | None" = None) -> "Event":
        return event or Event(self._cuda)

    def query(self) -> bool:
        return True

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *error: object) -> None:
        pass


class Event:
    """A mark in a queue, always reached."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda

    def record(self, stream: Stream | None = None) -> None:
        """Marks the queue."""

    def wait(self, stream: Stream | None = None) -> None:
        """Has a stream wait."""

    def synchronize(self) -> None:
        self._cuda.wait("an event")

    def query(self) -> bool:
        return True


class CudaGraph:
    """A capture. What it computes in stays its own until it is gone, or always under CUDA's own
    allocator."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._record = Graph(launches=0)
        self._pool: Any = None

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
        if capture_error_mode != "thread_local":
            raise AssertionError("other threads of the host would break this capture")
        self._pool = pool
        self._before = self._cuda.memory.live
        self._cuda.memory.forget_peak()
        self._cuda.is_capturing = True
        self._cuda.on_capture(self._record)

    def capture_end(self) -> None:
        self._cuda.is_capturing = False
        self._cuda.on_capture(None)
        memory = self._cuda.memory
        kept = max(0, memory.peak - memory.graphs - self._before)
        memory.graphs += kept
        if self._cuda.row.allocator == "native":
            weakref.finalize(self, _give_back, memory, kept)

    def pool(self) -> Any:
        return self._pool

    def replay(self) -> None:
        self._record.replays += 1

    def reset(self) -> None:
        """Ends the graph; its memory goes with the object."""


def _give_back(memory: CardMemory, size: int) -> None:
    memory.graphs -= size
