"""The networks of a SEED tokenizer: vision tower, Q-Former, codebook and decode head in a row.

Knows tensors only: neither files nor pictures (see ``tokenizer``).

Sources: arXiv 2307.08041 (SEED), 2310.01218 (SEED-LLaMA); AILab-CVC/SEED at 93b3cf4.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..codes.value import CODEBOOK_SIZES, NUM_CODES
from ..errors import CheckpointError
from ..ranges import DEPTH, EPSILON, HEADS, WIDTH, Range, check_number, check_numbers
from .codebook import Codebook
from .eva_vit import Block, EvaVit, VisionConfig
from .preprocess import INTERPOLATIONS
from .qformer import QFormer, QFormerConfig

TOKENIZER_LINK = "https://huggingface.co/AILab-CVC/seed-tokenizer-2"
TEXT_FAMILY = "seed-1"
"""The family whose codes become a text condition; those of the others, one image embedding."""

_RANGES: dict[str, Range] = {
    "codebook_dim": WIDTH,
    "decode_depth": DEPTH,
    "decode_heads": HEADS,
    "decode_mlp_ratio": (0.01, 100.0),
    "decode_norm_eps": EPSILON,
    "image_norm_eps": EPSILON,
    "reverse_depth": (0, 256),
    "reverse_queries": (1, 1024),
    "embedding_dim": WIDTH,
}
_LONGEST_REDUCTION = 16

_REVERSE_LAYER = re.compile(r"Reverse_Qformer\.bert\.encoder\.layer\.([0-9]{1,4})\.")


@dataclass(frozen=True)
class TokenizerConfig:
    """Sizes of a tokenizer; the defaults are SEED-2's.

    Attributes:
        image_down: widths of the token-wise reduction before the projection, or empty where the
            reverse Q-Former takes its place.
        reverse_depth: layers of the reverse Q-Former, 0 where there is none.
        reverse_queries: queries of the reverse Q-Former: 1, or as many as CLIP has text tokens.
        embedding_dim: width of the embedding.
        interpolation: how pictures are resized, one of `preprocess.INTERPOLATIONS`.
    """

    family: str = "seed-2"
    vision: VisionConfig = VisionConfig()
    qformer: QFormerConfig = QFormerConfig()
    codebook_size: int = CODEBOOK_SIZES["seed-2"]
    codebook_dim: int = 32
    decode_depth: int = 4
    decode_heads: int = 12
    decode_mlp_ratio: float = 4.0
    decode_norm_eps: float = 1e-6
    image_norm_eps: float = 1e-5
    image_down: tuple[int, ...] = (256, 128, 32)
    reverse_depth: int = 0
    reverse_queries: int = 1
    embedding_dim: int = 1024
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if self.qformer.num_queries != NUM_CODES:
            raise CheckpointError(
                f"a SEED tokenizer has {NUM_CODES} queries; got {self.qformer.num_queries}"
            )
        if self.family not in CODEBOOK_SIZES:
            raise CheckpointError(
                f"unknown tokenizer family {self.family!r}; known: {', '.join(CODEBOOK_SIZES)}"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise CheckpointError(
                f"unknown interpolation {self.interpolation!r}; known: {', '.join(INTERPOLATIONS)}"
            )
        self._check_sizes()

    def _check_sizes(self) -> None:
        check_numbers("the tokenizer", self, _RANGES)
        most = CODEBOOK_SIZES[self.family]
        check_number(f"the number of {self.family} codes", self.codebook_size, (1, most))
        for width in self.image_down[:_LONGEST_REDUCTION]:
            check_number("each width in image_down", width, WIDTH)
        if len(self.image_down) > _LONGEST_REDUCTION:
            raise CheckpointError(
                f"image_down lists {len(self.image_down)} widths; that is no SEED"
            )
        width = self.qformer.width
        if width % self.decode_heads or int(width * self.decode_mlp_ratio) < 1:
            raise CheckpointError(
                f"the decode blocks' width {width} does not fit their {self.decode_heads} heads and "
                f"MLP ratio {self.decode_mlp_ratio}"
            )

    @property
    def embeds_text(self) -> bool:
        """Whether codes become a text condition, as from SD 1.x's CLIP, and no image embedding."""
        return self.family == TEXT_FAMILY

    @property
    def embedding_shape(self) -> tuple[int, ...]:
        """Shape of the embedding of one picture: ``(1024,)`` in SEED-2, ``(77, 768)`` in SEED-1."""
        tokens = (self.reverse_queries,) if self.embeds_text else ()
        return (*tokens, self.embedding_dim)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> TokenizerConfig:
        """Read a tokenizer's config.json.

        Raises:
            CheckpointError: a missing field or one that is no number.
        """
        try:
            return cls._from_dict(fields)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the tokenizer's config.json is incomplete or wrong: {error!r}"
            ) from error

    @classmethod
    def _from_dict(cls, fields: dict[str, Any]) -> TokenizerConfig:
        width = fields["vit_width"]
        side = "text" if fields["family"] == TEXT_FAMILY else "image"
        vision = VisionConfig(
            image_size=fields["image_size"],
            patch_size=fields["patch_size"],
            width=width,
            depth=fields["vit_depth"],
            num_heads=fields["vit_heads"],
            mlp_width=fields["vit_mlp_hidden"],
            norm_eps=fields["vit_norm_eps"],
        )
        qformer = QFormerConfig(
            num_queries=fields["num_query_tokens"],
            width=fields["qformer_hidden_size"],
            context_width=width,
            depth=fields["qformer_num_layers"],
            num_heads=fields["qformer_num_heads"],
            mlp_width=fields["qformer_intermediate_size"],
            norm_eps=fields["qformer_layer_norm_eps"],
            cross_attention_every=fields["cross_attention_freq"],
        )
        return cls(
            family=str(fields["family"]),
            vision=vision,
            qformer=qformer,
            codebook_size=fields["n_embed"],
            codebook_dim=fields["codebook_embed_dim"],
            decode_depth=fields[f"blocks_{side}_depth"],
            decode_heads=fields[f"blocks_{side}_heads"],
            decode_mlp_ratio=fields[f"blocks_{side}_mlp_ratio"],
            decode_norm_eps=fields["blocks_norm_eps"],
            image_norm_eps=fields["ln_vision_eps"],
            image_down=tuple(fields.get("image_down", ())),
            reverse_queries=fields.get("num_reverse_tokens", 1),
            embedding_dim=fields[f"{side}_features_dim"],
            interpolation=str(fields.get("interpolation", "bilinear")),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what `from_dict` reads."""
        vision, qformer = self.vision, self.qformer
        side = "text" if self.embeds_text else "image"
        return {
            "family": self.family,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "vit_width": vision.width,
            "vit_depth": vision.depth,
            "vit_heads": vision.num_heads,
            "vit_mlp_hidden": vision.mlp_width,
            "vit_norm_eps": vision.norm_eps,
            "ln_vision_eps": self.image_norm_eps,
            "num_query_tokens": qformer.num_queries,
            "qformer_hidden_size": qformer.width,
            "qformer_num_layers": qformer.depth,
            "qformer_num_heads": qformer.num_heads,
            "qformer_intermediate_size": qformer.mlp_width,
            "qformer_layer_norm_eps": qformer.norm_eps,
            "cross_attention_freq": qformer.cross_attention_every,
            "n_embed": self.codebook_size,
            "codebook_embed_dim": self.codebook_dim,
            f"blocks_{side}_depth": self.decode_depth,
            f"blocks_{side}_heads": self.decode_heads,
            f"blocks_{side}_mlp_ratio": self.decode_mlp_ratio,
            "blocks_norm_eps": self.decode_norm_eps,
            "image_down": list(self.image_down),
            "num_reverse_tokens": self.reverse_queries,
            f"{side}_features_dim": self.embedding_dim,
            "interpolation": self.interpolation,
        }

    @classmethod
    def seed_1(cls) -> TokenizerConfig:
        """Return the sizes of the published SEED-1 tokenizer."""
        return cls(
            family=TEXT_FAMILY,
            image_down=(),
            reverse_depth=4,
            reverse_queries=77,
            embedding_dim=768,
            interpolation="bicubic",
        )

    @classmethod
    def seed_2(cls) -> TokenizerConfig:
        """Return the sizes of the published SEED-2 tokenizer."""
        return cls()

    @classmethod
    def published(cls, keys: Collection[str]) -> TokenizerConfig:
        """Return the sizes of the published tokenizer that upstream's ``keys`` belong to."""
        return cls.seed_1() if _hold_text_head(keys) else cls.seed_2()

    def with_head_of(self, keys: Collection[str]) -> TokenizerConfig:
        """Return this config with the decode head that a file's upstream ``keys`` hold.

        Published code and published weights disagree on the head, so the keys decide; the training
        code also builds the reverse Q-Former with another depth than the inference code.

        Raises:
            CheckpointError: no head, or one of another family.
        """
        if _hold_text_head(keys) != self.embeds_text:
            raise CheckpointError(
                f"config.json says that this is a {self.family} tokenizer, but the weights are "
                f"{'not ' if self.embeds_text else ''}those of SEED-1"
            )
        if any(key.startswith("image_down.") for key in keys):
            if not self.image_down:
                raise CheckpointError(
                    "the weights hold image_down.*, but config.json no widths of it"
                )
            return dataclasses.replace(self, reverse_depth=0)
        layers = (_REVERSE_LAYER.match(key) for key in keys)
        depth = 1 + max((int(match[1]) for match in layers if match), default=-1)
        if not depth:
            raise CheckpointError(
                "the file has neither image_down.* nor Reverse_Qformer.*, so it is no SEED tokenizer "
                f"or only a part of one. The published one: {TOKENIZER_LINK}"
            )
        return dataclasses.replace(self, image_down=(), reverse_depth=depth)


def _hold_text_head(keys: Collection[str]) -> bool:
    """Tell SEED-1's weights. SEED-2's may hold what is left of its text branch, which is not used."""

    def has(*beginnings: str) -> bool:
        return any(key.startswith(beginnings) for key in keys)

    return has("distill_text_proj.") and not has("distill_image_proj.", "image_down.")


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
        """Return the embedding ``[B, *embedding_shape]`` of the decode head's output ``[B, 32, D]``."""
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
    """Both networks of a tokenizer. They share nothing, so a host may move each by itself.

    Args:
        config: the sizes.
        operations: where Linear, Conv2d and LayerNorm come from, ``torch.nn`` or the host's.
        factory: ``device`` and ``dtype`` of the weights.
    """

    def __init__(self, config: TokenizerConfig, operations: Any = nn, **factory: Any) -> None:
        super().__init__()
        self.encoder = PictureEncoder(config, operations, **factory)
        self.embedder = CodeEmbedder(config, operations, **factory)

    def encode(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return int64 codes ``[B, 32]`` of pixels ``[B, 3, S, S]``, and their float32 distances."""
        queries = self.encoder(pixels)  # [B, 32, codebook_dim]
        quantizer = self.embedder.quantizer
        codes = quantizer.nearest(queries)
        return codes, (queries.float() - quantizer.lookup(codes)).norm(dim=-1)


def _after_tower(config: TokenizerConfig, factory: dict[str, Any]) -> dict[str, Any]:
    """Return the factory of what follows the vision tower.

    The reference halves SEED-2 as a whole, but of SEED-1 only the tower.
    """
    dtype = torch.float32 if config.embeds_text else factory.get("dtype") or torch.float32
    return {**factory, "dtype": dtype}


def _reduction(width: int, widths: tuple[int, ...], linear: Any, **factory: Any) -> nn.Sequential:
    layers: list[nn.Module] = []
    for out in widths:
        layers += [linear(width, out, bias=False, **factory), nn.ReLU()]
        width = out
    return nn.Sequential(*layers[:-1])
