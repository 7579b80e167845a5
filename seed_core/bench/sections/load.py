"""Time and memory of loading."""

from __future__ import annotations

from collections.abc import Callable

from .. import peers
from ..subject import MINI
from ..table import OURS
from ..work import Bench, attempt


def load(bench: Bench) -> None:
    """Time and memory of loading each model; random weights are put in place the same way."""
    subject = bench.subject
    origin = "from its files" if subject.size == MINI else "random weights put in place"
    _loading(bench, "language model", subject.llama, lambda: peers.load_llama(subject), origin)
    if subject.size == MINI:
        _loading(bench, "decoder", subject.decoder, lambda: peers.load_pipeline(subject), origin)
        _loading(bench, "tokenizer", subject.tokenizer, None, origin)


def _loading(
    bench: Bench,
    model: str,
    ours: Callable[[], object],
    theirs: Callable[[], object] | None,
    origin: str,
) -> None:
    who = "diffusers" if model == "decoder" else "transformers"
    for measure, figure in bench.meter.loading(ours).items():
        bench.table.add(f"load {model}, {measure}", OURS, figure, origin)
    if theirs is None or not bench.work.has_peers:
        return
    found = attempt(lambda: bench.meter.loading(theirs))
    figures = {"time": found} if isinstance(found, str) else found
    for measure, peer in figures.items():
        bench.table.add(f"load {model}, {measure}", who, peer, origin)
