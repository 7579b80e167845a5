"""Runs every network once before the processes are forked, so that they find its operations known.

FakeTensorMode works out what an operation makes of shapes and dtypes once in a process, and a fork
inherits what was worked out. Nothing is measured here.
"""

import importlib
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from .cards import Row
from .cuda import Cuda
from .memory import CardMemory
from .watch import Watch


def rehearse(base: Path) -> None:
    """Encode, embed, answer and paint with seed_core alone, on a card that holds everything."""
    row, card = Row.parse("H100"), torch.device("cuda", 0)
    cuda = Cuda(row, CardMemory(row))
    cuda.install()
    core, models = importlib.import_module("seed_core"), base / "models"
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.inference_mode(), fake, Watch(cuda, fake, {}):
        folder = models / "seed_tokenizer" / "seed-2" / "model.safetensors"
        tokenizer = core.load_tokenizer(folder, card, torch.float16)
        codes = tokenizer.encode(torch.zeros(1, 3, 224, 224))
        embedding = tokenizer.embed(codes)
        decoder = core.load_decoder(
            models / "seed_decoder" / "sd21-unclip.safetensors", card, torch.float16
        )
        decoder.decode(embedding, options=core.DecodeOptions(num_inference_steps=1))
        llm = core.load_llm(models / "seed_llm" / "8b bf16 2 layers", card, torch.bfloat16)
        llm.generate("fox", options=core.GenerationOptions(reply="text", max_new_tokens=4))
