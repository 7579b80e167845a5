"""What each published model takes on the disk, and on a card beside its weights.

Weights are counted from the networks themselves, built without memory.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import nn

from ..decoder.network import UnclipModel
from ..decoder.runtime import SeedDecoder
from ..llm.cache import KVCache
from ..llm.llama import Llama
from ..models.llm import HEAD, matrix_products
from ..models.sd21 import UNET, VAE
from ..tokenizer.config import TokenizerConfig
from ..tokenizer.network import TokenizerModel
from ..tokenizer.runtime import SeedTokenizer
from . import peers
from .subject import Subject

GIB = 2**30
LONGEST = 2048  # tokens of a conversation
HEADINGS = ("model, in GiB", "fp32", "fp16, bf16", "fp8", "beside the weights, in 16 bits")

_CPU = torch.device("cpu")
_FULL, _HALF = torch.float32, torch.float16


def table() -> list[str]:
    """Return the table of all published models as lines of Markdown; needs diffusers."""
    rows = [
        _tokenizer("SEED-2 tokenizer", TokenizerConfig.seed_2()),
        _tokenizer("SEED-1 tokenizer", TokenizerConfig.seed_1()),
        _language_model("SEED-LLaMA 8B", "8b"),
        _language_model("SEED-LLaMA 14B", "14b"),
        _decoder("SD 2.1 unCLIP"),
    ]
    return [f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|", *rows]


def _stored(module: nn.Module, quantised: Collection[str] = ()) -> int:
    """Return the bytes of a converted file: a quantised weight takes one a number, its scale four."""
    tensors = module.state_dict().items()
    return sum(t.numel() + 4 if name in quantised else t.nbytes for name, t in tensors)


def _row(name: str, sizes: Sequence[float], work: str) -> str:
    cells = [f"{size / GIB:.1f}" if size else "" for size in sizes]
    return f"| {name} | {' | '.join(cells)} | {work} |"


def _tokenizer(name: str, config: TokenizerConfig) -> str:
    full, half = (TokenizerModel(config, device="meta", dtype=dtype) for dtype in (_FULL, _HALF))
    work = SeedTokenizer(config, half, _CPU, _HALF).memory_required
    sizes = [_stored(full), _stored(half), 0]
    return _row(name, sizes, f"{work(1) / GIB:.2f} a picture, {work(64) / GIB:.1f} for 64 and more")


def _language_model(name: str, size: str) -> str:
    config = Subject(size, _CPU, _HALF).config
    full, half = (Llama(config, device="meta", dtype=dtype) for dtype in (_FULL, _HALF))
    quantised = set(matrix_products(config)) - {HEAD}
    cache = KVCache.bytes_needed(config, 1, LONGEST, _HALF)
    sizes = [_stored(full), _stored(half), _stored(half, quantised)]
    return _row(name, sizes, f"{cache / GIB:.1f} for {LONGEST} tokens")


def _decoder(name: str) -> str:
    diffusers = peers.library(peers.DIFFUSERS)
    with torch.device("meta"):
        unet, vae = diffusers.UNet2DConditionModel(**UNET), diffusers.AutoencoderKL(**VAE)
    empty = torch.zeros(1, 1024)
    module = UnclipModel(unet, vae, empty, empty, empty[None])
    scheduler = diffusers.PNDMScheduler()
    work = SeedDecoder(module, scheduler, scheduler, _CPU, _HALF).memory_required() / GIB
    full = _stored(module)
    return _row(name, [full, full / 2, 0], f"{work:.1f} for 768 x 768")
