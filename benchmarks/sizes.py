"""What each published part takes on the disk, and on a card beside its weights.

    python benchmarks/sizes.py

Weights are counted from the networks themselves, built without memory; the working memory is what
the nodes ask ComfyUI for. Nothing is downloaded and nothing is timed.
"""

import diffusers
import torch

from seed_core.bench import subject
from seed_core.decoder.network import UnclipModel
from seed_core.decoder.runtime import SeedDecoder
from seed_core.llm.cache import KVCache
from seed_core.llm.llama import Llama
from seed_core.models.llm import HEAD, matrix_products
from seed_core.models.sd21 import UNET, VAE
from seed_core.tokenizer.config import TokenizerConfig
from seed_core.tokenizer.network import TokenizerModel
from seed_core.tokenizer.runtime import SeedTokenizer

GIB = 2**30
CPU = torch.device("cpu")
FULL, HALF = torch.float32, torch.float16
LONGEST = 2048  # tokens of a conversation


def stored(module, quantised=()):
    """Bytes of a converted file: a quantised weight takes one a number, and four for its scale."""
    tensors = module.state_dict().items()
    return sum(t.numel() + 4 if name in quantised else t.nbytes for name, t in tensors)


def row(name, sizes, work):
    cells = [f"{size / GIB:.1f}" if size else "" for size in sizes]
    return f"| {name} | {' | '.join(cells)} | {work} |"


def tokenizer(name, config):
    full, half = (TokenizerModel(config, device="meta", dtype=dtype) for dtype in (FULL, HALF))
    work = SeedTokenizer(config, half, CPU, HALF).memory_required
    sizes = [stored(full), stored(half), 0]
    return row(name, sizes, f"{work(1) / GIB:.2f} a picture, {work(64) / GIB:.1f} for 64 and more")


def language_model(name, size):
    config = subject.Subject(size, CPU, HALF).config
    full, half = (Llama(config, device="meta", dtype=dtype) for dtype in (FULL, HALF))
    quantised = set(matrix_products(config)) - {HEAD}
    cache = KVCache.bytes_needed(config, 1, LONGEST, HALF)
    sizes = [stored(full), stored(half), stored(half, quantised)]
    return row(name, sizes, f"{cache / GIB:.1f} for {LONGEST} tokens")


def decoder():
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**UNET)
        vae = diffusers.AutoencoderKL(**VAE)
    empty = torch.zeros(1, 1024)
    module = UnclipModel(unet, vae, empty, empty, empty[None])
    scheduler = diffusers.PNDMScheduler()
    work = SeedDecoder(module, scheduler, scheduler, CPU, HALF).memory_required() / GIB
    full = stored(module)
    return row("SD 2.1 unCLIP", [full, full / 2, 0], f"{work:.1f} for 768 × 768")


print("| part, in GiB | fp32 | fp16, bf16 | fp8 | beside the weights, in 16 bits |")
print("|---|---|---|---|---|")
print(tokenizer("SEED-2 tokenizer", TokenizerConfig.seed_2()))
print(tokenizer("SEED-1 tokenizer", TokenizerConfig.seed_1()))
print(language_model("SEED-LLaMA 8B", "8b"))
print(language_model("SEED-LLaMA 14B", "14b"))
print(decoder())
