"""The sizes of a SEED tokenizer: from config.json, or told from the names of its weights.

Source: AILab-CVC/SEED at 93b3cf4 for the sizes of the published tokenizers.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from ..codes.value import CODEBOOK_SIZES, NUM_CODES
from ..errors import CheckpointError
from ..ranges import DEPTH, EPSILON, HEADS, WIDTH, Range, check_number, check_numbers
from .eva_vit import VisionConfig
from .preprocess import INTERPOLATIONS
from .qformer import QFormerConfig

TOKENIZER_LINK = "https://huggingface.co/AILab-CVC/seed-tokenizer-2"
TEXT_FAMILY = "seed-1"  # its codes become a text condition, those of others an image embedding

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


_FIELDS = (
    # in config.json; whose it is; its name there
    ("family", "tokenizer", "family"),
    ("image_size", "vision", "image_size"),
    ("patch_size", "vision", "patch_size"),
    ("vit_width", "vision", "width"),
    ("vit_depth", "vision", "depth"),
    ("vit_heads", "vision", "num_heads"),
    ("vit_mlp_hidden", "vision", "mlp_width"),
    ("vit_norm_eps", "vision", "norm_eps"),
    ("ln_vision_eps", "tokenizer", "image_norm_eps"),
    ("num_query_tokens", "qformer", "num_queries"),
    ("qformer_hidden_size", "qformer", "width"),
    ("qformer_num_layers", "qformer", "depth"),
    ("qformer_num_heads", "qformer", "num_heads"),
    ("qformer_intermediate_size", "qformer", "mlp_width"),
    ("qformer_layer_norm_eps", "qformer", "norm_eps"),
    ("cross_attention_freq", "qformer", "cross_attention_every"),
    ("n_embed", "tokenizer", "codebook_size"),
    ("codebook_embed_dim", "tokenizer", "codebook_dim"),
    ("blocks_{side}_depth", "tokenizer", "decode_depth"),
    ("blocks_{side}_heads", "tokenizer", "decode_heads"),
    ("blocks_{side}_mlp_ratio", "tokenizer", "decode_mlp_ratio"),
    ("blocks_norm_eps", "tokenizer", "decode_norm_eps"),
    ("image_down", "tokenizer", "image_down"),
    ("num_reverse_tokens", "tokenizer", "reverse_queries"),
    ("{side}_features_dim", "tokenizer", "embedding_dim"),
    ("interpolation", "tokenizer", "interpolation"),
)
# What a config.json means that was written before it had these fields.
_OLDER_FILES = {"image_down": (), "num_reverse_tokens": 1, "interpolation": "bilinear"}


def _fields(embeds_text: bool) -> list[tuple[str, str, str]]:
    """Return `_FIELDS` with the names of the decode side that the family has."""
    side = "text" if embeds_text else "image"
    return [(key.format(side=side), owner, name) for key, owner, name in _FIELDS]


@dataclass(frozen=True)
class TokenizerConfig:
    """Sizes of a tokenizer; the defaults are SEED-2's."""

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
    # The decode blocks' tokens are reduced one by one to these widths. Without any, a reverse
    # Q-Former reads them.
    image_down: tuple[int, ...] = (256, 128, 32)
    reverse_depth: int = 0  # layers
    reverse_queries: int = 1  # or as many as CLIP has text tokens
    embedding_dim: int = 1024
    interpolation: str = "bilinear"  # how pictures are resized

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
                f"image_down lists {len(self.image_down)} widths; a SEED tokenizer has at most "
                f"{_LONGEST_REDUCTION}"
            )
        width = self.qformer.width
        if width % self.decode_heads or int(width * self.decode_mlp_ratio) < 1:
            raise CheckpointError(
                f"the decode blocks' width {width} does not fit their {self.decode_heads} heads and "
                f"MLP ratio {self.decode_mlp_ratio}"
            )

    @property
    def embeds_text(self) -> bool:
        """Whether codes become what SD 1.x's text encoder makes, instead of an image embedding."""
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
            CheckpointError: a field is missing, or its value has the wrong type.
        """
        try:
            return cls._from_dict(fields)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the tokenizer's config.json is incomplete or wrong: {error!r}"
            ) from error

    @classmethod
    def _from_dict(cls, fields: dict[str, Any]) -> TokenizerConfig:
        fields = _OLDER_FILES | fields
        sizes: dict[str, dict[str, Any]] = {"tokenizer": {}, "vision": {}, "qformer": {}}
        for key, owner, name in _fields(fields["family"] == TEXT_FAMILY):
            sizes[owner][name] = fields[key]
        own, vision = sizes["tokenizer"], VisionConfig(**sizes["vision"])
        qformer = QFormerConfig(context_width=vision.width, **sizes["qformer"])
        own |= {name: str(own[name]) for name in ("family", "interpolation")}
        own["image_down"] = tuple(own["image_down"])
        return cls(vision=vision, qformer=qformer, **own)

    def to_dict(self) -> dict[str, Any]:
        """Return what `from_dict` reads."""
        owners = {"tokenizer": self, "vision": self.vision, "qformer": self.qformer}
        found = {
            key: getattr(owners[owner], name) for key, owner, name in _fields(self.embeds_text)
        }
        return found | {"image_down": list(self.image_down)}

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

        Raises:
            CheckpointError: the head is missing, or belongs to another family.
        """
        if _hold_text_head(keys) != self.embeds_text:
            raise CheckpointError(
                f"config.json says that this is a {self.family} tokenizer, but the weights are "
                f"{'not ' if self.embeds_text else ''}those of SEED-1"
            )
        # Published code and published weights disagree on the head, so the keys decide. They tell
        # the depth as well: the training code builds another than the inference code.
        if any(key.startswith("image_down.") for key in keys):
            if not self.image_down:
                raise CheckpointError(
                    "the weights hold image_down.*, but config.json does not list its widths"
                )
            return dataclasses.replace(self, reverse_depth=0)
        layers = (_REVERSE_LAYER.match(key) for key in keys)
        depth = 1 + max((int(match[1]) for match in layers if match), default=-1)
        if not depth:
            raise CheckpointError(
                "the file has neither image_down.* nor Reverse_Qformer.*, so it is not a whole "
                f"SEED tokenizer. Download the published one: {TOKENIZER_LINK}"
            )
        return dataclasses.replace(self, image_down=(), reverse_depth=depth)


def _hold_text_head(keys: Collection[str]) -> bool:
    """Tell SEED-1's weights from SEED-2's, which may hold an unused rest of the text branch."""

    def has(*beginnings: str) -> bool:
        return any(key.startswith(beginnings) for key in keys)

    return has("distill_text_proj.") and not has("distill_image_proj.", "image_down.")
