"""A dispatch mode over FakeTensorMode that sees every operation: launches, copies, waits, memory.

On the card every tensor is invented: it has a shape and a dtype and no numbers. In main memory
small tensors are real, so that schedulers find their tables and sampling its random numbers; large
ones (weights, batches of pictures) are invented too. What the code reads from the card is answered
without numbers (see `Watch._answer`), and counted as a wait.
"""

import linecache
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from .cards import Graph, Record
from .cuda import Cuda

LARGE = 2**22
"""Elements above which a tensor in main memory is invented."""

_PLAIN = (torch.Tensor, torch.nn.Parameter, FakeTensor)
_READS = {"_local_scalar_dense", "item", "is_nonzero", "equal"}
_NEEDS_VALUES = {"nonzero", "masked_select", "unique", "_unique2", "bincount"}
_COPIES = {"to", "_to_copy", "copy_", "copy", "cpu", "cuda"}
_NO_KERNEL = {
    *("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "lift_fresh"),
    *("detach_", "t_", "transpose_", "squeeze_", "unsqueeze_", "as_strided_", "set_", "resize_"),
    "record_stream",
}
_PRODUCTS = {
    *("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum"),
    *("conv1d", "conv2d", "convolution", "scaled_dot_product_attention"),
}
"""Operations whose tensors must be of one dtype; not every shape function checks it."""


class Watch(TorchDispatchMode):
    """Sees every operation while it is entered, above a FakeTensorMode.

    Attributes:
        record: receives what happens.
    """

    def __init__(self, cuda: Cuda, fake: FakeTensorMode, roots: dict[str, Path]) -> None:
        super().__init__()
        self.record = Record("")
        self._cuda, self._fake = cuda, fake
        self._roots = {name: str(path) for name, path in roots.items()}
        self._graph: Graph | None = None
        self._copies: dict[tuple[str, str], list[int]] = {}
        cuda.on_wait = self._waited
        cuda.on_capture = self._captured

    def begin(self, action: str) -> None:
        """Start a new record."""
        self.record, self._copies = Record(action), {}

    def end(self) -> Record:
        """Return the record of everything since `begin`."""
        self.record.copies = [(*key, *sums) for key, sums in self._copies.items()]
        return self.record

    # --- operations ---------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        leaves = _flat((*args, *kwargs.values()))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        if any(type(tensor) not in _PLAIN for tensor in tensors):
            return NotImplemented  # quantised tensors come back here with what they are made of
        name = func.overloadpacket.__name__
        if name == "is_pinned":
            return False
        if name == "detach" and type(tensors[0]) is FakeTensor:
            return tensors[0]  # nothing here has a gradient, and the host detaches by the thousand
        kwargs.pop("pin_memory", None)  # which this build of torch cannot
        if name in _READS:
            return self._read(name, tensors)
        places = {tensor.device.type for tensor in tensors}
        named = {leaf.type for leaf in leaves if isinstance(leaf, torch.device)}
        if "cuda" in places | named:
            return self._on_card(func, name, args, kwargs, tensors)
        if "meta" in places | named or self._is_real(func, name, args, kwargs, tensors):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        out = func(*args, **kwargs)
        _remember_truth(name, args, out)
        return out

    @staticmethod
    def _is_real(
        func: Any, name: str, args: tuple[Any, ...], kwargs: Any, tensors: list[torch.Tensor]
    ) -> bool:
        """Whether an operation in main memory has numbers to work with, and few."""
        if any(isinstance(tensor, FakeTensor) or tensor.numel() > LARGE for tensor in tensors):
            return False
        sizes = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, (list, torch.Size))]
        elements = 1
        for side in (side for size in sizes for side in size if isinstance(side, int)):
            elements *= max(side, 1)
        return elements <= LARGE

    def _on_card(
        self,
        func: Any,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[torch.Tensor],
    ) -> Any:
        if name in _PRODUCTS:
            _check_dtypes(name, tensors)
        if name == "scaled_dot_product_attention":
            self._note_attention(*args, **kwargs)
        if name in _NEEDS_VALUES or _indexes_by_mask(name, args):
            self._cuda.wait(f"{name}, whose shape depends on numbers")
        before = {_storage(tensor) for tensor in tensors if _is_on_card(tensor)}
        if not all(isinstance(tensor, FakeTensor) for tensor in tensors):
            args, kwargs = tree_map(self._invented, (args, kwargs))
        if "generator" in kwargs:
            kwargs["generator"] = None  # of random numbers that nobody draws
        out = func(*args, **kwargs)
        made = [leaf for leaf in _flat((out,)) if isinstance(leaf, torch.Tensor)]
        for tensor in filter(_is_on_card, made):
            self._cuda.memory.hold(tensor)
        crossed = name in _COPIES and self._count_copy(name, args, kwargs, tensors, made)
        changes = func._schema.is_mutable
        is_new = any(_storage(tensor) not in before for tensor in filter(_is_on_card, made))
        if not crossed and name not in _NO_KERNEL and (changes or is_new):
            self._count_launch(name)
        _remember_truth(name, args, out)
        return out

    def _invented(self, leaf: Any) -> Any:
        """A tensor without its numbers."""
        if isinstance(leaf, torch.Tensor) and not isinstance(leaf, FakeTensor):
            return self._fake.from_tensor(leaf)
        return leaf

    def _count_launch(self, name: str) -> None:
        if self._graph is not None:
            self._graph.launches += 1
        else:
            self.record.launches[name] = self.record.launches.get(name, 0) + 1

    def _note_attention(
        self, query: Any, key: Any, value: Any, attn_mask: Any = None, *_: Any, **__: Any
    ) -> None:
        self.record.planned += torch.backends.cuda.cudnn_sdp_enabled()
        if attn_mask is not None and list(attn_mask.shape[:-1]) not in self.record.masks:
            self.record.masks.append(list(attn_mask.shape[:-1]))

    # --- copies -------------------------------------------------------------------------------

    def _count_copy(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[torch.Tensor],
        made: list[torch.Tensor],
    ) -> bool:
        """Note a copy between main memory and the card; whether it was one."""
        source, target = (tensors[1], tensors[0]) if name == "copy_" else (tensors[0], made[0])
        if source.device.type == target.device.type:
            return False
        is_up = target.device.type == "cuda"
        size = target.numel() * target.dtype.itemsize  # the dtype changes before the way
        direction, line = "up" if is_up else "down", self._line()
        sums = self._copies.setdefault((direction, line), [0, 0])
        sums[0] += size
        sums[1] += 1
        setattr(self.record, direction, getattr(self.record, direction) + size)
        if not _is_non_blocking(name, args, kwargs):
            self._cuda.wait(f"a copy {direction}")
        return True

    # --- values and waits ---------------------------------------------------------------------

    def _read(self, name: str, tensors: list[torch.Tensor]) -> Any:
        if any(map(_is_on_card, tensors)):
            self._cuda.wait("a value")
        elif not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            with unset_fake_temporarily():
                return tensors[0].equal(tensors[1]) if name == "equal" else tensors[0].item()
        return self._answer(tensors[0], is_flag=name in ("is_nonzero", "equal"))

    @staticmethod
    def _answer(tensor: torch.Tensor, is_flag: bool) -> Any:
        """What is read of an invented tensor: everything is 0, and a flag what is known of it."""
        if is_flag or tensor.dtype == torch.bool:
            return _is_true(tensor)
        return 0.0 if tensor.is_floating_point() else 0

    def _waited(self, what: str) -> None:
        key = f"{what}: {self._line()}"
        self.record.waits[key] = self.record.waits.get(key, 0) + 1

    def _captured(self, graph: Graph | None) -> None:
        self._graph = graph
        if graph is not None:
            self.record.graphs.append(graph)

    def _line(self) -> str:
        """The nearest line of the pack, the host or diffusers that is running."""
        frame = sys._getframe(1)
        while frame is not None:
            file = frame.f_code.co_filename
            for name, root in self._roots.items():
                if file.startswith(root):
                    code = linecache.getline(file, frame.f_lineno).strip()
                    return f"{name}{file[len(root) :]} {code}"
            frame = frame.f_back
        return "elsewhere"


def _flat(values: Iterable[Any]) -> list[Any]:
    """What operations are called with: values, and lists of them."""
    flat: list[Any] = []
    for value in values:
        if isinstance(value, (list, tuple)):
            flat.extend(value)
        else:
            flat.append(value)
    return flat


def _is_on_card(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.device.type == "cuda"


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _is_non_blocking(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if "non_blocking" in kwargs:
        return bool(kwargs["non_blocking"])
    # Before it come dtype and device, or neither.
    flags = [arg for arg in args if isinstance(arg, bool)]
    return bool(flags and flags[0])


def _indexes_by_mask(name: str, args: tuple[Any, ...]) -> bool:
    if name not in ("index", "index_put", "index_put_") or len(args) < 2:
        return False
    indices = [index for index in args[1] if isinstance(index, torch.Tensor)]
    return any(index.dtype in (torch.bool, torch.uint8) for index in indices)


def _check_dtypes(name: str, tensors: list[torch.Tensor]) -> None:
    kinds = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    if len(kinds) > 1:
        raise RuntimeError(f"{name} of different dtypes: {sorted(map(str, kinds))}")


_TRUE = {"isfinite", "ones", "ones_like"}
_OR = {"any", "logical_or", "bitwise_or", "bitwise_or_", "__or__", "__ior__"}
_NOT = {"logical_not", "bitwise_not"}
_WRITES = {"copy_", "fill_", "index_put_"}


def _is_true(flags: torch.Tensor) -> bool:
    return getattr(flags.untyped_storage(), "is_known_true", False)


def _remember_truth(name: str, args: tuple[Any, ...], out: Any) -> None:
    """Flags: numbers are finite, nothing has ended, and what follows from that.

    Known of a storage, so that views and what is written through them are one.
    """
    if not isinstance(out, FakeTensor) or out.dtype != torch.bool:
        return
    flags = [x for x in _flat(args) if isinstance(x, torch.Tensor) and x.dtype == torch.bool]
    if name in _NOT:
        truth = not _is_true(flags[0])
    elif name in _OR:
        truth = any(map(_is_true, flags))
    elif name in _WRITES:
        truth = _is_true(flags[-1]) if len(flags) > 1 else True in args
    else:
        truth = name in _TRUE or (bool(flags) and all(map(_is_true, flags)))
    out.untyped_storage().is_known_true = truth
