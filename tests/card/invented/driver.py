"""Stands in for comfy_aimdo, the host's driver of dynamic memory: pages on the card, by priority.

Follows src/model-vbar.c of Comfy-Org/comfy-aimdo: pages of 32 MiB, given to weights when they are
asked for; the model used last has priority over the others, and in a model what comes first. A page
that is taken away lowers its model's watermark, above which weights are refused until the model is
used anew, and the host then sends them through a buffer at each call. A page's signature changes
with what lies in it.
"""

import itertools
import weakref
from typing import Any

import torch

from .memory import CardMemory

PAGE = 32 * 2**20
HEADROOM = 256 * 2**20
"""What the driver leaves free."""

Allocation = tuple[Any, int, int]
"""Who owns it, where it begins, bytes."""

_serials = itertools.count(1)


class Driver:
    """All pages and buffers of one card."""

    def __init__(self, memory: CardMemory) -> None:
        self.memory = memory
        self.models: list[weakref.ref[ModelVBAR]] = []  # the lowest priority first
        self.buffers: weakref.WeakSet[VRAMBuffer] = weakref.WeakSet()
        self._views: dict[tuple[int, int, int], torch.Tensor] = {}
        memory.pages = self

    def size(self) -> int:
        """Bytes of pages and buffers."""
        return self.resident() + sum(buffer.size() for buffer in self.buffers)

    def resident(self) -> int:
        """Bytes of pages."""
        return sum(model.loaded_size() for model in self._alive())

    def _alive(self) -> list["ModelVBAR"]:
        return [model for reference in self.models if (model := reference()) is not None]

    def free(self, size: int) -> None:
        """Take pages away, from the lowest priority up and in each model from its end."""
        for model in self._alive():
            while size > 0 and model.watermark > 0:
                size -= model.lower_watermark()

    def room_for(self, pages: int) -> int:
        """Bytes lacking for so many pages; below 0 there are more."""
        return pages * PAGE + HEADROOM - self.memory.free

    def tensor(self, allocation: Allocation, device: torch.device) -> torch.Tensor:
        """The bytes of an allocation; the same ones each time, counted as pages."""
        owner, offset, size = allocation
        key = (id(owner), offset, size)
        if key not in self._views:
            with self.memory.uncounted():
                self._views[key] = torch.empty(size, dtype=torch.uint8, device=device)
        return self._views[key]

    def forget(self, owner: object) -> None:
        """An owner is gone."""
        for key in [key for key in self._views if key[0] == id(owner)]:
            del self._views[key]


class ModelVBAR:
    """The pages of one model."""

    driver: Driver

    def __init__(self, size: int, device: int) -> None:
        self.offset = 0
        self.watermark = self.pages = min(-(-int(size) // PAGE), self.driver.memory.total // PAGE)
        self.resident: dict[int, int] = {}  # page to its serial
        self.pinned: set[int] = set()
        self.driver = type(self).driver  # for as long as this lives
        self._reference = weakref.ref(self)
        self.driver.models.append(self._reference)

    def prioritize(self) -> None:
        self.driver.models.remove(self._reference)
        self.driver.models.append(self._reference)
        self.watermark = self.pages

    def deprioritize(self) -> None:
        self.driver.models.remove(self._reference)
        self.driver.models.insert(0, self._reference)

    def alloc(self, size: int) -> Allocation:
        self.offset = (self.offset + 511) & ~511
        allocation = (self, self.offset, size)
        self.offset += size
        return allocation

    def loaded_size(self) -> int:
        return len(self.resident) * PAGE

    def free_memory(self, size: int) -> int:
        freed = 0
        while freed < size and self.watermark > 0:
            freed += self.lower_watermark()
        return freed

    def lower_watermark(self) -> int:
        """Refuse one more page from the end, and take it away; bytes that this freed."""
        self.watermark -= 1
        if self.watermark in self.pinned:
            return 0
        return PAGE if self.resident.pop(self.watermark, None) else 0

    def fault(self, offset: int, size: int) -> tuple[int, ...] | None:
        """Signature of so many bytes that are on the card now; None where they may not be."""
        wanted = range(offset // PAGE, -(-(offset + size) // PAGE))
        if wanted.stop > self.watermark:
            return None
        absent = [page for page in wanted if page not in self.resident]
        lacking = self.driver.room_for(len(absent)) if absent else 0
        if lacking > 0:
            self.driver.free(lacking)
            if wanted.stop > self.watermark or self.driver.room_for(len(absent)) > 0:
                return None
        self.resident.update((page, next(_serials)) for page in absent)
        self.pinned.update(wanted)
        return tuple(self.resident[page] for page in wanted)

    def unpin(self, offset: int, size: int) -> None:
        for page in range(offset // PAGE, -(-(offset + size) // PAGE)):
            self.pinned.discard(page)
            if page >= self.watermark:
                self.resident.pop(page, None)

    def __del__(self) -> None:
        self.driver.forget(self)
        self.driver.models.remove(self._reference)


class VRAMBuffer:
    """A buffer that grows, for weights on their way through."""

    driver: Driver

    def __init__(self, size: int, device: int) -> None:
        self._size = 0
        self.driver.buffers.add(self)

    def size(self) -> int:
        return self._size

    def get(self, size: int, offset: int = 0) -> Allocation:
        grown = size + offset - self._size
        if grown > 0:
            if grown > self.driver.memory.free:
                self.driver.free(grown - self.driver.memory.free)
            if grown > self.driver.memory.free:
                raise RuntimeError(f"VRAM grow failed: {size + offset} bytes")
            self._size = size + offset
        return (self, offset, size)

    def __del__(self) -> None:
        self.driver.forget(self)


class HostBuffer:
    """Main memory that is pinned as it grows."""

    def __init__(self, *sizes: int, **options: Any) -> None:
        self.size = 0

    def extend(self, size: int, reallocate: bool = False, register: bool = True) -> int:
        self.size += size
        return 0

    def truncate(self, size: int, do_unregister: bool = True) -> None:
        self.size = size

    def get_raw_address(self) -> int:
        return 0


def install(memory: CardMemory) -> Driver:
    """Put the stand-ins in the place of the driver's library."""
    import comfy_aimdo.host_buffer
    import comfy_aimdo.model_vbar
    import comfy_aimdo.torch
    import comfy_aimdo.vram_buffer

    driver = ModelVBAR.driver = VRAMBuffer.driver = Driver(memory)
    vbar = comfy_aimdo.model_vbar
    vbar.ModelVBAR = ModelVBAR
    vbar.vbar_fault = lambda allocation: allocation[0].fault(*allocation[1:])
    vbar.vbar_unpin = lambda allocation: allocation and allocation[0].unpin(*allocation[1:])
    vbar.vbar_signature_compare = lambda a, b: a is not None and a == b
    vbar.vbars_analyze = lambda device=None: driver.resident()
    vbar.vbars_reset_watermark_limits = lambda: None
    comfy_aimdo.vram_buffer.VRAMBuffer = VRAMBuffer
    comfy_aimdo.host_buffer.HostBuffer = HostBuffer
    comfy_aimdo.torch.aimdo_to_tensor = driver.tensor
    comfy_aimdo.torch.hostbuf_to_tensor = lambda buffer: torch.empty(buffer.size, dtype=torch.uint8)
    return driver
