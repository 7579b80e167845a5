"""The measurements, one function a part of the table: load, encode, decode, draw, quality.

Each runs ours, frees it, then runs the peer. A peer that fails becomes a text in the table.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from ..codes.value import NUM_CODES
from ..compute import fp8
from ..compute.graphs import can_capture
from ..compute.threads import takes_one_thread, threads_for
from ..decoder.options import DecodeOptions
from ..decoder.runtime import SeedDecoder
from ..files.pictures import read_picture
from ..llm.cache import KVCache
from ..llm.generation import DecodeRequest, generate_tokens
from ..llm.llama import Llama
from ..llm.sampling import GenerationOptions, ImageTokens
from ..models import names
from ..models.convert import convert_model, plan_conversion
from ..models.llm import load_llm
from ..models.tokenizer import load_tokenizer
from ..tokenizer.runtime import SeedTokenizer
from . import peers
from .meter import Meter
from .quality import Question, measure_quality
from .subject import MINI, Subject
from .table import LIMIT, OURS, Figure, Table

BATCHES = (1, 8, 64)
VARIATIONS = (1, 4, 8)

COMPARED_WITH = ("all", "eager", "none")
"""Which peers run: all; none that compiles, which takes minutes on a card; none."""

_TRANSFORMERS = peers.TRANSFORMERS
_STATIC = f"{_TRANSFORMERS}, static"
_CACHES = {_TRANSFORMERS: None, _STATIC: "static"}
_ONE_THREAD = f"{_TRANSFORMERS}, one thread"
"""A peer has all threads as it has outside, and once more as few as ours takes for small work."""

_TOWER = "transformers' Blip2 tower"
_PREFILL = "prefill"
_END = 2
"""The token that ends replies; nobody may choose it here, so that all replies are equally long."""

_PROMPT = 16
"""Tokens of the prompt that replies begin with."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Work:
    """How much is measured.

    Attributes:
        tokens: new tokens of a timed reply; equality is checked over four times as many.
        steps: diffusion steps of a picture.
        peers: one of `COMPARED_WITH`.
    """

    tokens: int = 128
    steps: int = 20
    peers: str = COMPARED_WITH[0]

    @property
    def has_peers(self) -> bool:
        """Whether anything is compared with."""
        return self.peers != "none"

    @property
    def caches(self) -> dict[str, str | None]:
        """How transformers generates, by what it is called in the table."""
        return {who: x for who, x in _CACHES.items() if self.peers == "all" or who != _STATIC}


@dataclass(frozen=True)
class Bench:
    """What every section needs."""

    subject: Subject
    meter: Meter
    table: Table
    work: Work

    def speed(self, measure: str, who: str, amount: int, call: Callable[[], object]) -> None:
        """Add the tokens a second of a call that makes or reads so many; ours must not fail."""
        rate = partial(self.meter.rate, amount, "tokens/s", call)
        self.table.add(measure, who, rate() if who.startswith(OURS) else attempt(rate))

    def peer(self, measure: str, who: str, call: Callable[[], None]) -> None:
        """Run a peer's part of the table; add why where it cannot go on."""
        if self.work.has_peers and isinstance(failure := attempt(call), str):
            self.table.add(measure, who, failure)

    @property
    def longest(self) -> int:
        """Tokens over which ours and the peer's are compared."""
        return min(4 * self.work.tokens, self.subject.config.max_position_embeddings - _PROMPT)


def load(bench: Bench) -> None:
    """Time and memory of loading each part; random weights are put in place the same way."""
    subject = bench.subject
    origin = "from its files" if subject.size == MINI else "random weights put in place"
    _loading(bench, "language model", subject.llama, lambda: peers.load_llama(subject), origin)
    if subject.size == MINI:
        _loading(bench, "decoder", subject.decoder, lambda: peers.load_pipeline(subject), origin)
        _loading(bench, "tokenizer", subject.tokenizer, None, origin)


def _loading(
    bench: Bench,
    part: str,
    ours: Callable[[], object],
    theirs: Callable[[], object] | None,
    origin: str,
) -> None:
    who = "diffusers" if part == "decoder" else "transformers"
    for measure, figure in bench.meter.loading(ours).items():
        bench.table.add(f"load {part}, {measure}", OURS, figure, origin)
    if theirs is None or not bench.work.has_peers:
        return
    found = attempt(lambda: bench.meter.loading(theirs))
    figures = {"time": found} if isinstance(found, str) else found
    for measure, peer in figures.items():
        bench.table.add(f"load {part}, {measure}", who, peer, origin)


def encode(bench: Bench) -> None:
    """Pictures a second, ours and with transformers' tower in the place of ours."""
    tokenizer = bench.subject.tokenizer()
    shape = (max(BATCHES), 3, tokenizer.image_size, tokenizer.image_size)
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(tokenizer.device)
    _encoding(bench, OURS, tokenizer, pixels)
    codes = tokenizer.encode(pixels[:8])

    def theirs() -> None:
        peers.put_tower(tokenizer)
        _encoding(bench, _TOWER, tokenizer, pixels)
        same = _count(tokenizer.encode(pixels[:8]) == codes, "codes")
        bench.table.add("equal codes", _TOWER, same, f"of {codes.numel()}")

    bench.meter.free()
    bench.peer("encode", _TOWER, theirs)


def _encoding(bench: Bench, who: str, tokenizer: SeedTokenizer, pixels: torch.Tensor) -> None:
    for batch in BATCHES:
        some = pixels[:batch]
        rate = bench.meter.rate(batch, "pictures/s", partial(tokenizer.encode, some))
        bench.table.add(f"encode, batch {batch}", who, rate)


def _count(equal: torch.Tensor, unit: str) -> Figure:
    return Figure.of([float(equal.sum())], unit)


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
    start, text = _start(subject), _long_prompt(subject)
    graphs = can_capture(model, subject.device)

    def write(rows: int, use_graphs: bool, new_tokens: int = tokens) -> list[int]:
        return our_tokens(subject, model, start, rows, new_tokens, use_graphs=use_graphs)

    bench.speed(_PREFILL, OURS, len(text), lambda: _read(subject, model, text))
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
    start, text = _start(subject), _long_prompt(subject)

    def write(rows: int, cache: str | None, new_tokens: int = tokens) -> list[int]:
        return peers.generate(model, start, rows, new_tokens, _END, cache)

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
    return _count(same.cumprod(0), "tokens")


def draw(bench: Bench) -> None:
    """Seconds a picture: prompt, the tokens of a picture, its embedding, its pixels."""
    subject, steps = bench.subject, bench.work.steps
    tokenizer, decoder = subject.tokenizer(), subject.decoder()
    measure = f"draw, {decoder.size} pixels, {steps} steps"
    bench.table.add(measure, OURS, _our_drawing(bench, tokenizer, decoder))
    if not bench.work.has_peers:
        return
    bench.meter.free()
    theirs = attempt(lambda: _their_drawing(bench, tokenizer, decoder))
    note = "transformers' tokens, our embedding, StableUnCLIPImg2ImgPipeline"
    bench.table.add(measure, "transformers, diffusers", theirs, note)
    small = subject.device, decoder.module.unet, 1
    if takes_one_thread(*small):
        with threads_for(*small):
            theirs = attempt(lambda: _their_drawing(bench, tokenizer, decoder))
        bench.table.add(measure, "transformers, diffusers, one thread", theirs)


def _our_drawing(bench: Bench, tokenizer: SeedTokenizer, decoder: SeedDecoder) -> Figure:
    subject, start = bench.subject, _start(bench.subject)
    model, images = subject.llama(), subject.images
    options = DecodeOptions(num_inference_steps=bench.work.steps)
    graphs = can_capture(model, subject.device)

    def picture() -> torch.Tensor:
        token_ids = our_tokens(subject, model, start, 1, NUM_CODES + 2, images, use_graphs=graphs)
        embedding = tokenizer.embed(torch.tensor([token_ids[1:-1]]) - images.first_code)
        return decoder.decode(embedding, options=options)

    return bench.meter.seconds(picture)


def _their_drawing(bench: Bench, tokenizer: SeedTokenizer, decoder: SeedDecoder) -> Figure:
    start, steps = _start(bench.subject), bench.work.steps
    model, pipeline = peers.load_llama(bench.subject), peers.pipeline_around(decoder)
    codes = torch.zeros(1, NUM_CODES, dtype=torch.int64)  # its own tokens may be no picture

    def picture() -> torch.Tensor:
        peers.generate(model, start, 1, NUM_CODES + 2, _END)
        return peers.draw(pipeline, decoder, tokenizer.embed(codes), steps)

    return bench.meter.seconds(picture)


def quality(bench: Bench) -> None:
    """What shorter precisions change: of seed-mini's own replies, or of random weights' choices."""
    (_mini_quality if bench.subject.size == MINI else _random_quality)(bench)


def _mini_quality(bench: Bench) -> None:
    subject = bench.subject
    with tempfile.TemporaryDirectory() as folder:
        quantised = Path(folder) / "fp8.safetensors"
        convert_model(plan_conversion(names.bundled("llm"), fp8.FP8), quantised)
        sources = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp8": fp8.FP8}
        reference, questions = load_llm(names.SEED_MINI, subject.device), _questions()
        for name, dtype in sources.items():
            path = quantised if name == "fp8" else names.SEED_MINI
            measured = measure_quality(reference, load_llm(path, subject.device, dtype), questions)
            note = (
                f"{measured.tokens} tokens, perplexity in fp32 {measured.reference_perplexity:.4f}"
            )
            perplexity = Figure.of([measured.perplexity], "")
            bench.table.add("perplexity", f"{OURS}, {name}", perplexity, note)
            agreed = Figure.of([100 * measured.agreement], "%")
            bench.table.add("tokens as in fp32", f"{OURS}, {name}", agreed, note)


def _questions() -> list[Question]:
    """Return two for each sample picture, named after what it shows: to tell it, and to draw it."""
    tokenizer, paths = load_tokenizer(names.SEED_MINI), names.sample_pictures()
    codes = tokenizer.encode(tokenizer.preprocess([read_picture(p) for p in paths.values()]))
    told = [Question("What is this?", row[None]) for row in codes]
    return told + [Question(f"Draw a {name.replace('_', ' ')}") for name in paths]


def _random_quality(bench: Bench) -> None:
    """Compare fp8 with 16 bits at full size: the likeliest token after each of a random text."""
    text, choices = _long_prompt(bench.subject), []
    for precision in (fp8.COMPUTING_DTYPE, fp8.FP8):
        subject = replace(bench.subject, precision=precision)
        choices.append(_read(subject, subject.llama(), text, all_positions=True).argmax(-1))
        bench.meter.free()
    agreed = 100 * float((choices[0] == choices[1]).float().mean())
    note = f"{len(text)} tokens; of random weights, whose likeliest tokens are hardly likelier"
    bench.table.add("tokens as in bf16", f"{OURS}, fp8", Figure.of([agreed], "%"), note)


def our_tokens(
    subject: Subject,
    model: Llama,
    prompt: Sequence[int],
    rows: int,
    new_tokens: int,
    images: ImageTokens | None = None,
    use_graphs: bool = False,
) -> list[int]:
    """Return the greedy tokens of the first of several equal rows, as generation.py makes them.

    Args:
        subject: the size.
        model: our language model.
        prompt: token ids.
        rows: how many are made together.
        new_tokens: how many follow the prompt.
        images: which ids are pictures, to have one; None for a reply in which every id but `_END`
            may come, for the peer has no picture grammar.
        use_graphs: whether steps are CUDA graphs.
    """
    request = DecodeRequest(
        prompt=prompt,
        tokens=images or ImageTokens(_END, _END, 0, 0, NUM_CODES),
        end_ids=frozenset({-1}),
        options=GenerationOptions("image" if images else "auto", new_tokens, temperature=0),
        generators=[torch.Generator() for _ in range(rows)],
    )
    with torch.inference_mode():
        return generate_tokens(
            model, request, subject.device, subject.dtype, use_graphs=use_graphs
        )[0]


def _read(
    subject: Subject, model: Llama, prompt: Sequence[int], all_positions: bool = False
) -> torch.Tensor:
    with torch.inference_mode(), threads_for(subject.device, model, len(prompt)):
        cache = KVCache(subject.config, 1, len(prompt), subject.device, subject.dtype)
        token_ids = torch.tensor([prompt], device=subject.device)
        return model.prefill(token_ids, cache, all_positions)


def _start(subject: Subject) -> list[int]:
    return _prompt(subject, _PROMPT)


def _long_prompt(subject: Subject) -> list[int]:
    return _prompt(subject, subject.config.max_position_embeddings // 4)


def _prompt(subject: Subject, length: int) -> list[int]:
    """Return text tokens at random; ``_END`` is not among them."""
    generator = torch.Generator().manual_seed(0)
    high = subject.images.first_code
    return torch.randint(_END + 1, high, (length,), generator=generator).tolist()


def attempt(call: Callable[[], Result]) -> Result | str:
    """Call a peer; return what it raised as a text."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001 - a peer may fail in any way, and the rest goes on
        first = (str(error).strip().splitlines() or [""])[0]
        return f"{type(error).__name__}: {first}"[:120]


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "load": load,
    "encode": encode,
    "decode": decode,
    "draw": draw,
    "quality": quality,
}

NEEDED: dict[str, tuple[str, ...]] = {
    "load": peers.PEERS,
    "encode": (_TRANSFORMERS,),
    "decode": (_TRANSFORMERS,),
    "draw": peers.PEERS,
    "quality": (),
}
"""The libraries that each part is compared with."""
