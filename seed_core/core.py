"""What a loaded model is to a host: networks it may move, and where and how they compute."""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch
from torch import nn


class LoadedCore(Protocol):
    """A loaded tokenizer, language model or decoder."""

    module: nn.Module  # all of its networks
    device: torch.device  # where calls compute; a host may change it
    dtype: torch.dtype  # precision of activations
    uses_graphs: ClassVar[bool] = False  # whether a host should leave memory for CUDA graphs

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """What a host may move, each by itself."""
        return (self.module,)


class CodesCore(LoadedCore, Protocol):
    """One that reads or writes codes."""

    family: str
    codebook_size: int
