"""Pictures a second of the tokenizer."""

from __future__ import annotations

from functools import partial

import torch

from ...tokenizer.runtime import SeedTokenizer
from .. import peers
from ..table import OURS, Figure
from ..work import Bench

BATCHES = (1, 8, 64)
TOWER = "transformers' Blip2 tower"


def encode(bench: Bench) -> None:
    """Pictures a second, ours and with transformers' tower in the place of ours."""
    tokenizer = bench.subject.tokenizer()
    shape = (max(BATCHES), 3, tokenizer.image_size, tokenizer.image_size)
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(tokenizer.device)
    _encoding(bench, OURS, tokenizer, pixels)
    codes = tokenizer.encode(pixels[:8])

    def theirs() -> None:
        peers.put_tower(tokenizer)
        _encoding(bench, TOWER, tokenizer, pixels)
        same = Figure.of([float((tokenizer.encode(pixels[:8]) == codes).sum())], "codes")
        bench.table.add("equal codes", TOWER, same, f"of {codes.numel()}")

    bench.meter.free()
    bench.peer("encode", TOWER, theirs)


def _encoding(bench: Bench, who: str, tokenizer: SeedTokenizer, pixels: torch.Tensor) -> None:
    for batch in BATCHES:
        some = pixels[:batch]
        rate = bench.meter.rate(batch, "pictures/s", partial(tokenizer.encode, some))
        bench.table.add(f"encode, batch {batch}", who, rate)
