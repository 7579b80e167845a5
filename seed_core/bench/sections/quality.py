"""What shorter precisions change."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from ...compute import fp8
from ...files.pictures import read_picture
from ...models import names
from ...models.convert import convert_model, plan_conversion
from ...models.llm import load_llm
from ...models.tokenizer import load_tokenizer
from ..quality import Quality, Question, divergences, measure_quality
from ..replies import long_prompt, read
from ..subject import MINI
from ..table import OURS, Figure
from ..work import Bench


def quality(bench: Bench) -> None:
    """What shorter precisions change: of seed-mini's own replies, or of random weights' choices."""
    (_mini_quality if bench.subject.size == MINI else _random_quality)(bench)


def _mini_quality(bench: Bench) -> None:
    device = bench.subject.device
    with tempfile.TemporaryDirectory() as folder:
        quantised = Path(folder) / "fp8.safetensors"
        convert_model(plan_conversion(names.bundled("llm"), fp8.FP8), quantised)
        sources = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp8": fp8.FP8}
        reference, questions = load_llm(names.SEED_MINI, device), _questions()
        for name, dtype in sources.items():
            path = quantised if name == "fp8" else names.SEED_MINI
            measured = measure_quality(reference, load_llm(path, device, dtype), questions)
            _add(bench, f"{OURS}, {name}", measured)


def _add(bench: Bench, who: str, measured: Quality) -> None:
    note = f"{measured.tokens} tokens, perplexity in fp32 {measured.reference_perplexity:.4f}"
    figures = {
        "perplexity": Figure.of([measured.perplexity], ""),
        "tokens as in fp32": Figure.of([100 * measured.agreement], "%"),
        "KL divergence from fp32": Figure.of([measured.divergence], "nats"),
    }
    for measure, figure in figures.items():
        bench.table.add(measure, who, figure, note)


def _questions() -> list[Question]:
    """Return two for each sample picture: to say what it shows, and to draw that."""
    tokenizer, paths = load_tokenizer(names.SEED_MINI), names.sample_pictures()
    codes = tokenizer.encode(tokenizer.preprocess([read_picture(p) for p in paths.values()]))
    told = [Question("What is this?", row[None]) for row in codes]
    return told + [Question(f"Draw a {name.replace('_', ' ')}") for name in paths]


def _random_quality(bench: Bench) -> None:
    """Compare fp8 with 16 bits at full size: what is expected after each token of a random text."""
    text, logits = long_prompt(bench.subject), []
    for precision in (fp8.COMPUTING_DTYPE, fp8.FP8):
        subject = replace(bench.subject, precision=precision)
        found = read(subject, subject.llama(), text, all_positions=True)[0]  # [T, V]
        logits.append(found.float().cpu())
        bench.meter.free()
    same = logits[0].argmax(-1) == logits[1].argmax(-1)
    figures = {
        "tokens as in bf16": Figure.of([100 * float(same.float().mean())], "%"),
        "KL divergence from bf16": Figure.of([float(divergences(*logits).mean())], "nats"),
    }
    note = f"{len(text)} tokens; of random weights, whose likeliest tokens are hardly likelier"
    for measure, figure in figures.items():
        bench.table.add(measure, f"{OURS}, fp8", figure, note)
