"""The networks of a SEED tokenizer: vision tower, Q-Former, codebook and decode head in a row.

Sources: arXiv 2307.08041 (SEED), 2310.01218 (SEED-LLaMA); AILab-CVC/SEED at 93b3cf4.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from ..codes.value import NUM_CODES
from .codebook import Codebook
from .config import TokenizerConfig
from .eva_vit import Block, EvaVit
from .qformer import QFormer


class PictureEncoder(nn.Module):
    """Vision tower, Q-Former and encode head: pixels to vectors near those of the codebook."""

    def __init__(self, config: TokenizerConfig, operations: Any = nn, **factory: Any) -> None:
        super().__init__()
        width = config.qformer.width
        linear = operations.Linear
        self.visual_encoder = EvaVit(config.vision, operations, **factory)
        self.image_norm = operations.LayerNorm(
            config.vision.width, eps=config.image_norm_eps, **factory
        )
        factory = _after_tower(config, factory)
        self._dtype_after_tower = factory["dtype"]
        self.qformer = QFormer(config.qformer, operations, **factory)
        self.encode_head = nn.Sequential(
            linear(width, width, **factory),
            nn.Tanh(),
            linear(width, config.codebook_dim, **factory),
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return ``[B, 32, codebook_dim]`` of pixels ``[B, 3, S, S]``."""
        features = self.image_norm(self.visual_encoder(pixels))  # [B, P, D]
        queries: torch.Tensor = self.encode_head(self.qformer(features.to(self._dtype_after_tower)))
        return queries


class CodeEmbedder(nn.Module):
    """Codebook and decode head: codes to the embedding that a diffusion model paints from."""

    def __init__(self, config: TokenizerConfig, operations: Any = nn, **factory: Any) -> None:
        super().__init__()
        width, dim = config.qformer.width, config.codebook_dim
        linear = operations.Linear
        factory = _after_tower(config, factory)
        self._dtype = factory["dtype"]
        # Called so in checkpoints of training, which people have saved.
        self.quantizer = Codebook(config.codebook_size, dim, **factory)
        self.decode_head = nn.Sequential(
            linear(dim, dim, **factory), nn.Tanh(), linear(dim, width, **factory)
        )
        self.decode_pos_embed = nn.Parameter(torch.empty(1, NUM_CODES, width, **factory))
        mlp_width = int(width * config.decode_mlp_ratio)
        self.decode_blocks = nn.ModuleList(
            Block(
                width, config.decode_heads, mlp_width, config.decode_norm_eps, operations, **factory
            )
            for _ in range(config.decode_depth)
        )
        self.image_down: nn.Sequential | None = None
        self.reverse_qformer: QFormer | None = None
        if config.reverse_depth:
            reverse = dataclasses.replace(
                config.qformer,
                num_queries=config.reverse_queries,
                context_width=width,
                depth=config.reverse_depth,
            )
            self.reverse_qformer = QFormer(reverse, operations, **factory)
            joined = width
        else:
            self.image_down = _reduction(width, config.image_down, linear, **factory)
            joined = NUM_CODES * config.image_down[-1]
        self.projection = linear(joined, config.embedding_dim, **factory)
        self._embedding_shape = config.embedding_shape

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the embedding ``[B, *embedding_shape]`` of codes ``[B, 32]``."""
        vectors = self.quantizer.lookup(codes).to(self._dtype)
        return self.embed_decoded(self.decode_head(vectors))

    def embed_decoded(self, x: torch.Tensor) -> torch.Tensor:
        """Return the embedding ``[B, *embedding_shape]`` of the head's output ``[B, 32, D]``."""
        x = x + self.decode_pos_embed.to(x)
        for block in self.decode_blocks:
            x = block(x)
        if self.reverse_qformer is not None:
            joined = self.reverse_qformer(x)  # [B, reverse_queries, D]
        else:
            assert self.image_down is not None
            joined = self.image_down(x).flatten(1)  # [B, 32 * last width], token-major
        embedding: torch.Tensor = self.projection(joined)
        return embedding.reshape(len(x), *self._embedding_shape)


class TokenizerModel(nn.Module):
    """Both networks of a tokenizer. They share nothing, so a host may move each by itself."""

    # operations: where Linear, Conv2d and LayerNorm come from; factory: device and dtype of weights
    def __init__(self, config: TokenizerConfig, operations: Any = nn, **factory: Any) -> None:
        super().__init__()
        self.encoder = PictureEncoder(config, operations, **factory)
        self.embedder = CodeEmbedder(config, operations, **factory)

    def encode(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return int64 codes ``[B, 32]`` of pixels ``[B, 3, S, S]``, and their float32 distances."""
        queries = self.encoder(pixels)  # [B, 32, codebook_dim]
        codebook = self.embedder.quantizer
        codes = codebook.nearest(queries)
        return codes, (queries.float() - codebook.lookup(codes)).norm(dim=-1)


def _after_tower(config: TokenizerConfig, factory: dict[str, Any]) -> dict[str, Any]:
    """Return the factory of what follows the vision tower."""
    # The reference halves all of SEED-2, but only the tower of SEED-1.
    dtype = torch.float32 if config.embeds_text else factory.get("dtype") or torch.float32
    return {**factory, "dtype": dtype}


def _reduction(width: int, widths: tuple[int, ...], linear: Any, **factory: Any) -> nn.Sequential:
    layers: list[nn.Module] = []
    for out in widths:
        layers += [linear(width, out, bias=False, **factory), nn.ReLU()]
        width = out
    return nn.Sequential(*layers[:-1])
