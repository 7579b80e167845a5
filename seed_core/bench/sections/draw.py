"""Seconds a picture, from prompt to pixels."""

from __future__ import annotations

import torch

from ...codes.value import NUM_CODES
from ...compute.graphs import can_capture
from ...compute.threads import takes_one_thread, threads_for
from ...decoder.options import DecodeOptions
from ...decoder.runtime import SeedDecoder
from ...tokenizer.runtime import SeedTokenizer
from .. import peers
from ..replies import END, our_tokens, short_prompt
from ..table import OURS, Figure
from ..work import Bench, attempt


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
    subject, start = bench.subject, short_prompt(bench.subject)
    model, images = subject.llama(), subject.images
    options = DecodeOptions(num_inference_steps=bench.work.steps)
    graphs = can_capture(model, subject.device)

    def picture() -> torch.Tensor:
        token_ids = our_tokens(subject, model, start, 1, NUM_CODES + 2, images, use_graphs=graphs)
        embedding = tokenizer.embed(torch.tensor([token_ids[1:-1]]) - images.first_code)
        return decoder.decode(embedding, options=options)

    return bench.meter.seconds(picture)


def _their_drawing(bench: Bench, tokenizer: SeedTokenizer, decoder: SeedDecoder) -> Figure:
    start, steps = short_prompt(bench.subject), bench.work.steps
    model, pipeline = peers.load_llama(bench.subject), peers.pipeline_around(decoder)
    codes = torch.zeros(1, NUM_CODES, dtype=torch.int64)  # its own tokens may be no picture

    def picture() -> torch.Tensor:
        peers.generate(model, start, 1, NUM_CODES + 2, END)
        return peers.draw(pipeline, decoder, tokenizer.embed(codes), steps)

    return bench.meter.seconds(picture)
