"""The memory of an invented card: what lies on it, how much there was at most, and when it is full.

Tensors are counted by their storage from the operation that made it to the moment it is gone, as a
caching allocator without fragments would. Pages of the host's dynamic driver (see ``driver``) make
room for tensors; tensors never make room for pages.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from .cards import GIB, Row

SYSTEM = int(0.6 * GIB)
"""What a desktop and CUDA's own context take."""


class Pages(Protocol):
    """Memory that is given up for tensors."""

    def size(self) -> int:
        """Bytes it takes now."""
        ...

    def free(self, size: int) -> None:
        """Give up so many bytes, or all there are."""
        ...


class CardMemory:
    """How full a card is.

    Attributes:
        total: bytes of the card.
        live: bytes of tensors on it.
        peak: most of `live`, and of graphs, since `forget_peak`.
        graphs: bytes that captured graphs keep for themselves.
    """

    def __init__(self, row: Row) -> None:
        self.total = row.model.gigabytes * GIB
        self.live = 0
        self.peak = 0
        self.graphs = 0
        self.pages: Pages | None = None
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._is_counting = True

    @property
    def taken(self) -> int:
        """Bytes that are not free."""
        pages = 0 if self.pages is None else self.pages.size()
        return SYSTEM + self.live + self.graphs + pages

    @property
    def free(self) -> int:
        """Bytes that are."""
        return self.total - self.taken

    def forget_peak(self) -> None:
        """Measure the peak from here on."""
        self.peak = self.live + self.graphs

    def hold(self, tensor: torch.Tensor) -> None:
        """Count what an operation made, for as long as it lives.

        Raises:
            torch.OutOfMemoryError: it does not fit.
        """
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return
        if not self._is_counting:
            size = 0
        if size > self.free and self.pages is not None:
            self.pages.free(size - self.free)
        if size > self.free:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {size / GIB:.2f} GiB; "
                f"{self.free / GIB:.2f} of {self.total / GIB:.2f} GiB are free"
            )

        def forget(_: weakref.ref[torch.UntypedStorage]) -> None:
            del self._storages[key]
            self.live -= size

        self._storages[key] = weakref.ref(storage, forget)
        self.live += size
        self.peak = max(self.peak, self.live + self.graphs)

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Make tensors whose memory is counted elsewhere, as pages."""
        self._is_counting = False
        try:
            yield
        finally:
            self._is_counting = True
