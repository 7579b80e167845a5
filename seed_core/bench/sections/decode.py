"""Tokens a second of the language model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from ...compute.graphs import can_capture
from ...compute.threads import takes_one_thread, threads_for
from .. import peers
from ..replies import END, long_prompt, our_tokens, read, short_prompt
from ..table import LIMIT, OURS, Figure
from ..work import Bench, attempt

VARIATIONS = (1, 4, 8)

_TRANSFORMERS = peers.TRANSFORMERS
# A peer has all threads, as it has outside, and once more as few as ours takes for small work.
_ONE_THREAD = f"{_TRANSFORMERS}, one thread"
_PREFILL = "prefill"


def decode(bench: Bench) -> None:
    """Tokens a second: of a prompt that is read, and of replies that are written."""
    ours, weights = _our_decoding(bench)
    bench.meter.free()
    bandwidth = bench.meter.bandwidth(weights)
    note = f"{bandwidth.median / 1e9:.0f} GB/s, {weights / 1e6:,.0f} MB of weights a token"
    for rows in VARIATIONS:
        bench.table.add(_writing(rows), LIMIT, bandwidth.times(rows / weights, "tokens/s"), note)
    bench.peer("decode", _TRANSFORMERS, lambda: _their_decoding(bench, ours))


def _writing(rows: int) -> str:
    return f"decode, {rows} variation{'s' if rows > 1 else ''}"


def _our_decoding(bench: Bench) -> tuple[list[int], int]:
    """Measure ours; return its greedy tokens, and the bytes it reads for a token."""
    subject, model, tokens = bench.subject, bench.subject.llama(), bench.work.tokens
    start, text = short_prompt(subject), long_prompt(subject)
    graphs = can_capture(model, subject.device)

    def write(rows: int, use_graphs: bool, new_tokens: int = tokens) -> list[int]:
        return our_tokens(subject, model, start, rows, new_tokens, use_graphs=use_graphs)

    bench.speed(_PREFILL, OURS, len(text), lambda: read(subject, model, text))
    for rows in VARIATIONS:
        bench.speed(_writing(rows), OURS, rows * tokens, partial(write, rows, graphs))
        if graphs:
            plain = f"{OURS}, no CUDA graphs"
            bench.speed(_writing(rows), plain, rows * tokens, partial(write, rows, False))
    embedding = model.model.embed_tokens.weight.nbytes
    weights = sum(p.nbytes for p in model.parameters()) - embedding
    return write(1, graphs, bench.longest), weights


def _their_decoding(bench: Bench, ours: list[int]) -> None:
    """Measure transformers, and count the greedy tokens it has in common with ours."""
    subject, model, tokens = bench.subject, peers.load_llama(bench.subject), bench.work.tokens
    start, text = short_prompt(subject), long_prompt(subject)

    def write(rows: int, cache: str | None, new_tokens: int = tokens) -> list[int]:
        return peers.generate(model, start, rows, new_tokens, END, cache)

    bench.speed(_PREFILL, _TRANSFORMERS, len(text), lambda: peers.prefill(model, text))
    for who, cache in bench.work.caches.items():
        for rows in VARIATIONS:
            bench.speed(_writing(rows), who, rows * tokens, partial(write, rows, cache))
            bench.meter.free()
        theirs = attempt(partial(write, 1, cache, bench.longest))
        equal = theirs if isinstance(theirs, str) else _equal(ours, theirs)
        bench.table.add("equal greedy tokens", who, equal, f"of {len(ours)}")
    for rows in VARIATIONS:
        if takes_one_thread(subject.device, model, rows):
            with threads_for(subject.device, model, rows):
                call = partial(write, rows, None)
                bench.speed(_writing(rows), _ONE_THREAD, rows * tokens, call)
    if subject.device.type == "cuda":
        torch.compiler.reset()  # what was compiled for the static cache holds on to the weights


def _equal(ours: Sequence[int], theirs: Sequence[int]) -> Figure:
    """Return how many tokens are the same before the first that is not."""
    same = torch.tensor(ours) == torch.tensor(theirs)
    return Figure.of([float(same.cumprod(0).sum())], "tokens")
