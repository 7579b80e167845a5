"""What each published part takes on the disk, and on a card beside its weights.

    python benchmarks/sizes.py

Weights are counted from the networks themselves, built without memory; the working memory is what
the nodes ask ComfyUI for. Nothing is downloaded and nothing is timed.
"""

import math

import diffusers
import torch

from seed_core.bench import subject
from seed_core.decoder import SeedDecoder
from seed_core.llama import Llama
from seed_core.llm_folder import HEAD, matrix_products
from seed_core.tokenizer import SeedTokenizer
from seed_core.tokenizer_network import TokenizerConfig, TokenizerModel
from seed_core.unclip_folder import UnclipModel
from seed_core.unclip_single_file import UNET, VAE

GIB = 2**30
CPU = torch.device("cpu")
HALF = torch.float16
LONGEST = 2048  # tokens of a conversation


def stored(module, dtype, quantised=()):
    """Bytes of a converted file."""
    total = 0
    for name, tensor in module.state_dict().items():
        if name in quantised:
            total += tensor.numel() + 4
        else:
            # What is kept in float32 in every precision, such as a codebook, is so already.
            kept = tensor.dtype == torch.float32 and dtype != torch.float32
            total += tensor.numel() * (4 if kept else dtype.itemsize)
    return total


def row(name, sizes, work):
    cells = [f"{size / GIB:.1f}" if size else "" for size in sizes]
    return f"| {name} | {' | '.join(cells)} | {work} |"


def tokenizer(name, config):
    module = TokenizerModel(config, device="meta", dtype=HALF)
    work = SeedTokenizer(config, module, CPU, HALF).memory_required
    sizes = [stored(TokenizerModel(config, device="meta"), torch.float32), stored(module, HALF), 0]
    return row(name, sizes, f"{work(1) / GIB:.2f} a picture, {work(64) / GIB:.1f} for 64 and more")


def language_model(name, size):
    config = subject.Subject(size, CPU, HALF).config
    module = Llama(config, device="meta", dtype=HALF)
    quantised = set(matrix_products(config)) - {HEAD}
    sizes = [stored(module.float(), torch.float32), 0, 0]
    module = Llama(config, device="meta", dtype=HALF)
    sizes[1:] = stored(module, HALF), stored(module, HALF, quantised)
    cache = config.cache_bytes(1, LONGEST, HALF)
    return row(name, sizes, f"{cache / GIB:.1f} for {LONGEST} tokens")


def decoder():
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**UNET)
        vae = diffusers.AutoencoderKL(**VAE)
    empty = torch.zeros(1, 1024)
    module = UnclipModel(unet, vae, empty, empty, empty[None])
    scheduler = diffusers.PNDMScheduler()
    painter = SeedDecoder(module, scheduler, scheduler, CPU, HALF)
    numbers = sum(math.prod(tensor.shape) for tensor in module.state_dict().values())
    work = painter.memory_required(0, 0) / GIB
    return row("SD 2.1 unCLIP", [4 * numbers, 2 * numbers, 0], f"{work:.1f} for 768 x 768")


print("| part | fp32 | fp16, bf16 | fp8 | to work with, fp16 |")
print("|---|---|---|---|---|")
print(tokenizer("SEED-2 tokenizer", TokenizerConfig.seed_2()))
print(tokenizer("SEED-1 tokenizer", TokenizerConfig.seed_1()))
print(language_model("SEED-LLaMA 8B", "8b"))
print(language_model("SEED-LLaMA 14B", "14b"))
print(decoder())
