"""What opening a model gives: all that can be known before its tensors are read.

Loading, conversion and the early check of a loader node start from it. The tensors were checked
against the network by their names, number formats and shapes, so what could be opened can be loaded,
unless a number in it is NaN or infinite.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..files.assemble import EmptyNetwork
from ..files.weights import Reader, Tensors, read_tensors
from ..files.writer import Entry


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A model on disk.

    Attributes:
        kind: tokenizer, llm or decoder.
        source: its file or folder.
        files: its small files by their names in a folder; with the tensors they are all of it.
        weights: the files that hold its tensors.
        network: the network without its weights.
        stream: yields all tensors under the names that `network` knows, with whatever has to be
            done to them, from files read by the `Reader` it is given.
        look: the reader of stand-ins that was used for opening.
        copies: names under which `stream` yields a tensor for the second time.

    Raises:
        CheckpointError: tensors are missing, or have another shape or number format.
    """

    kind: str
    source: Path
    files: Mapping[str, bytes]
    weights: tuple[Path, ...]
    network: EmptyNetwork[Any]
    stream: Callable[[Reader], Tensors]
    look: Reader
    copies: Collection[str] = ()

    def __post_init__(self) -> None:
        self.network.check(self.stand_ins())

    def stand_ins(self) -> Tensors:
        """Yield names, number formats and shapes, as tensors on the meta device."""
        return self.stream(self.look)

    def tensors(self) -> Tensors:
        """Yield all tensors, one at a time, on the CPU.

        Raises:
            CheckpointError: a file is damaged.
        """
        return self.stream(partial(read_tensors, joined=self.network.joined))

    def layout(self) -> dict[str, Entry]:
        """Return the form of every tensor in a file of this model, in the network's precision."""
        shapes = {key: tuple(tensor.shape) for key, tensor in self.stand_ins()}
        dtypes = self.network.dtypes
        return {key: Entry(dtypes[key], shapes[key]) for key in dtypes if key not in self.copies}

    def load(self, device: torch.device) -> Any:
        """Fill the network, once, and return it.

        Raises:
            CheckpointError: a file is damaged, or holds NaN or infinity.
        """
        return self.network.fill(self.tensors(), device)
