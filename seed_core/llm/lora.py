"""LoRA adapters: what they do to the weights of a language model.

An adapter holds pairs of narrow matrices, whose products are added to weights, and tensors that
were trained in full and take the place of the model's. Source: arXiv 2106.09685 (LoRA).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..compute import fp8
from .layout import WeightPart


@dataclass(frozen=True, eq=False)
class LowRankProduct:
    """A product of two narrow matrices, to be added to rows of a weight."""

    part: WeightPart  # the rows that it is added to
    down: torch.Tensor  # [rank, in_features]
    up: torch.Tensor  # [out_features, rank]
    scale: float

    def apply_to(self, rows: torch.Tensor, strength: float) -> None:
        """Change float32 rows in place."""
        down, up = (x.to(rows.device, torch.float32) for x in (self.down, self.up))
        rows.addmm_(up, down, alpha=strength * self.scale)


@dataclass(frozen=True, eq=False)
class Replacement:
    """A tensor that was trained in full; at other strengths than 1 it is mixed with the model's."""

    part: WeightPart  # the rows whose place it takes
    tensor: torch.Tensor  # of their shape, or one row for each of the tokens
    tokens: tuple[int, ...] | None = None  # of the part's rows those that it is; None: all

    def apply_to(self, rows: torch.Tensor, strength: float) -> None:
        """Change float32 rows in place."""
        new = self.tensor.to(rows.device, torch.float32)
        if self.tokens is None:
            rows.lerp_(new, strength)
        else:
            index = torch.tensor(self.tokens, device=rows.device, dtype=torch.long)
            rows.index_copy_(0, index, rows[index].lerp_(new, strength))

    def stretches(self) -> Iterator[tuple[tuple[int, int] | None, torch.Tensor]]:
        """Yield it as neighbouring rows of the weight: the first and their number, or None."""
        tokens = self.tokens
        if tokens is None:
            yield self.part.rows, self.tensor
            return
        start = self.part.rows[0] if self.part.rows else 0
        order = sorted(range(len(tokens)), key=tokens.__getitem__)
        # Neighbours are as far from their place in this order as one another.
        for _, group in itertools.groupby(enumerate(order), lambda at: tokens[at[1]] - at[0]):
            places = [place for _, place in group]
            first = tokens[places[0]]
            yield (start + first, len(places)), self.tensor[places]


@dataclass(frozen=True, eq=False)
class LoraAdapter:
    """What an adapter does to a language model."""

    replacements: tuple[Replacement, ...]  # come first
    products: tuple[LowRankProduct, ...]

    def by_weight(self) -> dict[str, list[Replacement | LowRankProduct]]:
        """Return the changes of each weight, in their order."""
        in_order: tuple[Replacement | LowRankProduct, ...] = (*self.replacements, *self.products)
        changes: dict[str, list[Replacement | LowRankProduct]] = {}
        for change in in_order:
            changes.setdefault(change.part.weight, []).append(change)
        return changes


def merge_lora(module: nn.Module, adapter: LoraAdapter, strength: float = 1.0) -> None:
    """Change a network's weights for good; to undo it, load the network again.

    Args:
        module: a `Llama` of the sizes that the adapter was read for, with layers of this library.
        adapter: see `seed_core.read_lora`.
        strength: 1 is as trained, 0 changes nothing.
    """
    for name, changes in adapter.by_weight().items():
        layer: Any = module.get_submodule(name.removesuffix(".weight"))
        old, scale = layer.weight, getattr(layer, "weight_scale", None)
        if scale is None:
            # computed in float32 and rounded once
            weight = old.detach().to(torch.float32, copy=True)
        else:
            weight = fp8.dequantize(old, scale, torch.float32)
        for change in changes:
            rows = change.part.rows
            change.apply_to(weight if rows is None else weight.narrow(0, *rows), strength)
        if scale is not None:
            # a new scale, as a sum may be larger than the weight
            layer.weight_scale = fp8.scale_of(float(weight.abs().max())).to(old.device)
            weight = fp8.quantize(weight, layer.weight_scale)
        # Not in place: the old one may be shared with another layer, or be the file itself.
        layer.weight = nn.Parameter(weight.to(old.dtype), requires_grad=False)
