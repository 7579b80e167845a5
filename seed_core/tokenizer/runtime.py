"""The SEED image tokenizer: pixels to codes, and codes to an embedding.

Sources: arXiv 2307.08041 (SEED), 2310.01218 (SEED-LLaMA); AILab-CVC/SEED at 93b3cf4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import nn

from ..codes.value import NUM_CODES, SeedCodes, codes_values
from ..compute.threads import threads_for
from ..core import CodesCore
from ..errors import PictureError
from .config import TokenizerConfig
from .network import TokenizerModel
from .preprocess import preprocess

_PICTURES_AT_ONCE = 64  # they fill any card, and take 0.8 GB in 16 bits

# Called after every chunk of pictures: how many are done, of how many.
OnStep = Callable[[int, int], None]


class SeedTokenizer(CodesCore):
    """A loaded image tokenizer."""

    module: TokenizerModel

    def __init__(
        self,
        config: TokenizerConfig,
        module: TokenizerModel,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.config = config
        self.module = module
        self.device = device  # where `encode` and `embed` compute; a host may change it
        # Of the networks; of SEED-1 only of the vision tower. Codes are searched in float32 always.
        self.dtype = dtype
        self.family = config.family
        self.codebook_size = config.codebook_size

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """What a host may move, each by itself: `encode` needs both, `embed` only the second."""
        return self.module.encoder, self.module.embedder

    @property
    def image_size(self) -> int:
        """Side of the square that the tower sees, in pixels."""
        return self.config.vision.image_size

    @property
    def embedding_shape(self) -> tuple[int, ...]:
        """Shape of one picture's embedding: ``(1024,)``, seed-mini's ``(256,)`` or ``(77, 768)``."""
        return self.config.embedding_shape

    @property
    def pictures_at_once(self) -> int:
        """How many pictures make a chunk, which goes through the tower together."""
        # On a CPU a batch gains nothing, and at full size one picture takes seconds.
        return 1 if self.device.type == "cpu" else _PICTURES_AT_ONCE

    def preprocess(
        self, images: Sequence[Image.Image] | torch.Tensor, fit: str = "stretch"
    ) -> torch.Tensor:
        """Return pixels ``[B, 3, S, S]`` for `encode`; see `preprocess.preprocess`."""
        return preprocess(images, self.image_size, fit, self.config.interpolation)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return codes, int64 ``[B, 32]``, of pixels ``[B, 3, S, S]`` from `preprocess`.

        Raises:
            PictureError: the pixels have another shape.
        """
        return self.encode_with_distances(pixels)[0]

    def encode_with_distances(
        self, pixels: torch.Tensor, on_step: OnStep | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return codes as `encode` does, and the distances of `SeedCodes`, float32 ``[B, 32]``.

        Raises:
            PictureError: the pixels have another shape.
        """
        size = self.image_size
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, size, size):
            raise PictureError(
                f"expected pixels [batch, 3, {size}, {size}] as preprocess makes them; "
                f"got {list(pixels.shape)}"
            )
        return self._encode_chunks(len(pixels), lambda rows: pixels[rows], on_step)

    def encode_pictures(
        self,
        images: Sequence[Image.Image] | torch.Tensor,
        fit: str = "stretch",
        on_step: OnStep | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`preprocess` and `encode_with_distances`, chunk by chunk, so that a long batch can stop.

        Raises:
            OptionError: ``fit`` is unknown.
            PictureError: a tensor is not a batch of pictures, or a picture is empty.
        """
        return self._encode_chunks(
            len(images), lambda rows: self.preprocess(images[rows], fit), on_step
        )

    @torch.inference_mode()
    def _encode_chunks(
        self, total: int, pixels_of: Callable[[slice], torch.Tensor], on_step: OnStep | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        codes = torch.empty(total, NUM_CODES, dtype=torch.int64, device=self.device)
        distances = torch.empty(total, NUM_CODES, device=self.device)
        at_once = self.pictures_at_once
        with threads_for(self.device, self.module, at_once * self.config.vision.num_tokens):
            for start in range(0, total, at_once):
                rows = slice(start, start + at_once)
                chunk = pixels_of(rows).to(device=self.device, dtype=self.dtype)
                codes[rows], distances[rows] = self.module.encode(chunk)
                if on_step is not None:
                    on_step(min(rows.stop, total), total)
        return codes, distances

    @torch.inference_mode()
    def embed(self, codes: torch.Tensor | SeedCodes) -> torch.Tensor:
        """Return the embedding of codes that a diffusion model paints from.

        With SEED-2 and seed-mini it is an image embedding, un-normalised, in the CLIP space of their
        decoder; with SEED-1 a sequence that stands for the hidden states of SD 1.x's text encoder.

        Args:
            codes: int64 ``[B, 32]``.

        Returns:
            float32 ``[B, *embedding_shape]`` on this tokenizer's device.

        Raises:
            CodesError: the codes are out of range, or of another number or family.
        """
        values = codes_values(codes, self.family, self.codebook_size, "This tokenizer")
        embeddings = torch.empty(len(values), *self.embedding_shape, device=self.device)
        values = values.to(self.device)
        with threads_for(self.device, self.module, NUM_CODES):
            for i in range(len(values)):
                # Alone: in a batch the last bits of a row, and so its picture, depend on the others.
                embeddings[i] = self.module.embedder(values[i : i + 1])[0]
        return embeddings

    def memory_required(self, pictures: int) -> int:
        """Return the bytes of working memory `encode` needs for so many pictures on any device."""
        vision, size = self.config.vision, self.dtype.itemsize
        at_once = min(pictures, _PICTURES_AT_ONCE)
        # In a block: the residual before and after, the norm, a rest; and both sides of the GELU.
        widest = 4 * vision.width + max(4 * vision.width, 2 * vision.mlp_width)
        tower = at_once * vision.num_tokens * widest * size
        distances = at_once * NUM_CODES * self.codebook_size * 4 * 3
        return tower + distances
