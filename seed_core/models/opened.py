"""What opening a model gives: all that can be known before its tensors are read.

Loading, conversion and a loader node's check start from it. Names, number formats and shapes of all
tensors were checked, so what opens can be loaded, unless a number in it is NaN or infinite.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..files.assemble import EmptyNetwork
from ..files.weights import Reader, Tensors, read_tensors
from ..files.writer import Entry


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A model on disk, checked when it is made."""

    kind: str  # tokenizer, llm or decoder
    source: Path  # its file or folder
    files: Mapping[str, bytes] = field(repr=False)  # small ones, by their names in a folder
    weights: tuple[Path, ...]  # the files that hold its tensors
    network: EmptyNetwork[Any]
    # Yields all tensors by the names in `network`, with whatever has to be done to them.
    stream: Callable[[Reader], Tensors]
    look: Reader  # of stand-ins; remembers what opening has read already
    copies: Collection[str] = ()  # names under which a tensor is yielded for the second time

    def __post_init__(self) -> None:
        self.network.check(self.stand_ins())

    def stand_ins(self) -> Tensors:
        """Yield names, number formats and shapes, as tensors on the meta device."""
        return self.stream(self.look)

    def tensors(self, is_mapped: bool = True) -> Tensors:
        """Yield all tensors, one at a time, on the CPU; see `read_tensors`."""
        joined = self.network.joined
        return self.stream(partial(read_tensors, joined=joined, is_mapped=is_mapped))

    def layout(self) -> dict[str, Entry]:
        """Return the form of every tensor in a file of this model, in the network's precision."""
        shapes = {key: tuple(tensor.shape) for key, tensor in self.stand_ins()}
        dtypes = self.network.dtypes
        return {key: Entry(dtypes[key], shapes[key]) for key in dtypes if key not in self.copies}

    def load(self, device: torch.device, is_mapped: bool = True) -> Any:
        """Fill the network, once, and return it; see `EmptyNetwork.fill` and `read_tensors`."""
        return self.network.fill(self.tensors(is_mapped), device)
