"""What is measured: our networks in the bundled or a published size.

The bundled ones come from their files; all others are filled with random numbers on the device,
tensor by tensor and by name, so that a peer can be given the same ones later. Files are not needed.

Source of the sizes: the config files of AILab-CVC/seed-llama-8b-sft and -14b-sft, of SEED's
tokenizer and of Stable Diffusion 2.1 unCLIP.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..codes.value import CODEBOOK_SIZES, NUM_CODES
from ..compute import fp8, layers
from ..decoder.network import UnclipModel
from ..decoder.runtime import SeedDecoder
from ..files import assemble, side_files
from ..llm.config import LlamaConfig
from ..llm.layout import names_in_file
from ..llm.llama import Llama
from ..llm.sampling import ImageTokens
from ..models import names
from ..models.llm import load_llm, matrix_products
from ..models.sd21 import NOISING_SCHEDULER, SCHEDULER, UNET, VAE
from ..models.tokenizer import load_tokenizer
from ..models.unclip import load_decoder
from ..tokenizer.config import TokenizerConfig
from ..tokenizer.network import TokenizerModel
from ..tokenizer.runtime import SeedTokenizer

MINI = "mini"


def _published(hidden: int, intermediate: int, layers: int, heads: int, eps: float) -> LlamaConfig:
    return LlamaConfig(40194, hidden, intermediate, layers, heads, heads, 2048, eps)


_RANDOM = {
    "300m": _published(1024, 2816, 20, 16, 1e-6),
    "8b": _published(4096, 11008, 32, 32, 1e-6),
    "14b": _published(5120, 13824, 40, 40, 1e-5),
}
SIZES = (MINI, *_RANDOM)
LANGUAGE_ONLY = ("300m",)
"""Sizes that have no tokenizer and no decoder."""

_EMPTY_PROMPT = (1, 77, 1024)

_SPREAD = 0.02
"""Standard deviation of the random weights: that of untrained language models."""

_FP8_SCALE = torch.tensor(2.0**-11)
"""Ten deviations are the largest fp8 number then; a power of two, so that bf16 holds them all."""

_SOURCE = Path("random numbers")


@dataclass(frozen=True)
class Subject:
    """One size on one device.

    Attributes:
        size: one of `SIZES`.
        device: where it computes.
        precision: how the language model's weights are loaded; float8_e4m3fn not for the mini one.
    """

    size: str
    device: torch.device
    precision: torch.dtype

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return fp8.computing_dtype(self.precision)

    @property
    def config(self) -> LlamaConfig:
        """Sizes of the language model."""
        if self.size != MINI:
            return _RANDOM[self.size]
        return LlamaConfig.from_dict(side_files.read_json(names.bundled("llm") / names.CONFIG_FILE))

    @property
    def images(self) -> ImageTokens:
        """Which token ids are pictures: codes and the two markers close every vocabulary."""
        codebook = CODEBOOK_SIZES["seed-mini" if self.size == MINI else "seed-2"]
        begin = self.config.vocab_size - 2
        return ImageTokens(begin, begin + 1, begin - codebook, codebook, NUM_CODES)

    def llama_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the random weights of the language model by their names in a file.

        In the precision computed in, but no finer than they are loaded.
        """
        quantized = self._quantized()
        for name, like in Llama(self.config, nn, device="meta").state_dict().items():
            parts = names_in_file(name)
            for part in parts:
                drawn = self._random(part, (len(like) // len(parts), *like.shape[1:]))
                if name in quantized:
                    drawn = fp8.dequantize(self._store(drawn), _FP8_SCALE, self.dtype)
                yield part, drawn

    def llama(self) -> Llama:
        """Return our language model."""
        if self.size == MINI:
            return load_llm(names.SEED_MINI, self.device, self.precision).module
        quantized = self._quantized()
        stored = {part for name in quantized for part in names_in_file(name)}
        return assemble.assemble(
            lambda given: Llama(self.config, given, device="meta", dtype=self.dtype),
            layers,
            ((key, self._store(x) if key in stored else x) for key, x in self.llama_tensors()),
            self.device,
            _SOURCE,
            names_in_file,
            dict.fromkeys(quantized, _FP8_SCALE),
        )

    def _quantized(self) -> list[str]:
        """Return our names of the weights that are loaded in fp8."""
        return list(matrix_products(self.config)) if self.precision == fp8.FP8 else []

    def _store(self, weight: torch.Tensor) -> torch.Tensor:
        return fp8.quantize(weight, _FP8_SCALE)

    def tokenizer(self) -> SeedTokenizer:
        """Return our image tokenizer."""
        if self.size == MINI:
            return load_tokenizer(names.SEED_MINI, self.device, self.dtype)
        config = TokenizerConfig.seed_2()
        module = self._fill(lambda: TokenizerModel(config, device="meta", dtype=self.dtype))
        return SeedTokenizer(config, module, self.device, self.dtype)

    def decoder(self) -> SeedDecoder:
        """Return our unCLIP decoder."""
        if self.size == MINI:
            return load_decoder(names.SEED_MINI, self.device, self.dtype)
        diffusers: Any = importlib.import_module("diffusers")
        unet = self._fill(lambda: self._empty(diffusers.UNet2DConditionModel, UNET))
        vae = self._fill(lambda: self._empty(diffusers.AutoencoderKL, VAE))
        mean, std = torch.zeros(1, 1024), torch.ones(1, 1024)
        module = UnclipModel(unet, vae, mean, std, torch.zeros(_EMPTY_PROMPT)).to(self.device)
        scheduler = diffusers.PNDMScheduler.from_config(SCHEDULER)
        noising = diffusers.DDPMScheduler.from_config(NOISING_SCHEDULER)
        return SeedDecoder(module, scheduler, noising, self.device, self.dtype)

    def _empty(self, kind: Any, config: dict[str, Any]) -> Any:
        with torch.device("meta"):
            return nn.Module.to(kind(**config), dtype=self.dtype)

    def _fill(self, build: Callable[[], Any]) -> Any:
        shapes = {name: tensor.shape for name, tensor in build().state_dict().items()}
        tensors = ((name, self._random(name, tuple(shape))) for name, shape in shapes.items())
        return assemble.assemble(lambda _: build(), nn, tensors, self.device, _SOURCE)

    def _random(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Return the numbers that always belong to this name; those of norms lie around 1."""
        generator = torch.Generator(self.device).manual_seed(zlib.crc32(name.encode()))
        drawn = torch.randn(shape, generator=generator, device=self.device, dtype=self.dtype)
        is_norm = len(shape) == 1 and name.endswith("weight")
        return drawn.mul_(_SPREAD).add_(float(is_norm))
