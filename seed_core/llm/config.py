"""Sizes of a LLaMA network, from a Hugging Face config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError
from ..ranges import DEPTH, EPSILON, HEADS, WIDTH, Range, check_numbers

_RANGES: dict[str, Range] = {
    "vocab_size": (1, 2**20),
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "max_position_embeddings": (1, 2**20),
    "rms_norm_eps": EPSILON,
    "rope_theta": (1.0, 1e9),
}

# Other LLaMA networks may differ in these, and our network would compute them wrongly.
_ONLY = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}

_SAME = {"swish": "silu"}  # two names of one function

# Ways of scaling positions that leave them as they are where their factor is 1.
_BY_FACTOR = ("linear", "dynamic")


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes of the network, named as in a Hugging Face config.json.

    Raises:
        CheckpointError: a size is out of range, or the heads do not divide the width.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int  # the longest sequence it was trained for, in tokens
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        check_numbers("the language model", self, _RANGES)
        if (
            self.hidden_size % (2 * self.num_attention_heads)  # rotations swap halves of a head
            or self.num_attention_heads % self.num_key_value_heads
        ):
            raise CheckpointError(
                f"hidden_size {self.hidden_size}, {self.num_attention_heads} heads and "
                f"{self.num_key_value_heads} key-value heads do not divide one another into heads "
                "of an even width"
            )

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> LlamaConfig:
        """Read the fields of a Hugging Face config.json.

        Raises:
            CheckpointError: they describe another architecture, scale positions, or lack a size.
        """
        if (kind := fields.get("model_type")) != "llama":
            what = "model_type is missing" if kind is None else f"this is a {kind!r:.40} model"
            raise CheckpointError(f"{what}; a SEED-LLaMA has model_type 'llama'")
        for name, value in _ONLY.items():
            given = fields.get(name, value)
            if given is not None and _SAME.get(str(given), given) != value:
                raise CheckpointError(
                    f"the language model's {name} is {fields[name]!r:.40}; a SEED-LLaMA's is "
                    f"{value!r}"
                )
        _check_quantisation(fields)
        _check_positions(fields)
        try:
            heads = fields["num_attention_heads"]
            key_heads = fields.get("num_key_value_heads")
            config = cls(
                vocab_size=fields["vocab_size"],
                hidden_size=fields["hidden_size"],
                intermediate_size=fields["intermediate_size"],
                num_hidden_layers=fields["num_hidden_layers"],
                num_attention_heads=heads,
                num_key_value_heads=heads if key_heads is None else key_heads,
                max_position_embeddings=fields["max_position_embeddings"],
                rms_norm_eps=fields["rms_norm_eps"],
                rope_theta=_theta(fields),
                tie_word_embeddings=fields.get("tie_word_embeddings", False) is True,
            )
        except KeyError as error:
            raise CheckpointError(f"the language model's config.json lacks {error}") from error
        if fields.get("head_dim") not in (None, config.head_dim):
            raise CheckpointError(
                f"the language model's head_dim is {fields['head_dim']!r:.40}; a SEED-LLaMA's is its "
                f"hidden_size divided by its heads, {config.head_dim} here"
            )
        return config

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads


def _check_quantisation(fields: Mapping[str, Any]) -> None:
    quantisation = fields.get("quantization_config")
    if quantisation:
        method = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
        raise CheckpointError(
            f"the language model was quantised by another program ({method or 'unnamed'!r:.40}, as its "
            "config.json says), which this cannot read. Use the model in 16 or 32 bits"
        )


def _theta(fields: Mapping[str, Any]) -> Any:
    """Return the base of positions, which transformers 5 writes beside how they are scaled."""
    places = (fields, fields.get("rope_parameters"), fields.get("rope_scaling"))
    said = [place.get("rope_theta") for place in places if isinstance(place, dict)]
    given = [theta for theta in said if theta is not None]
    if others := [theta for theta in given[1:] if theta != given[0]]:
        raise CheckpointError(
            f"the language model's config.json says rope_theta {given[0]!r:.40} and "
            f"{others[0]!r:.40}: use the one that came with the weights"
        )
    return given[0] if given else 10000.0


def _check_positions(fields: Mapping[str, Any]) -> None:
    """Refuse scaled positions, in any of the forms in which transformers has written them."""
    for name in ("rope_scaling", "rope_parameters"):
        rope = fields.get(name) or {}
        if not isinstance(rope, dict):
            rope = {"type": rope}
        kind = rope.get("rope_type", rope.get("type", "default"))
        is_plain = kind == "default" or (kind in _BY_FACTOR and rope.get("factor") == 1)
        is_by_layer = any(isinstance(value, dict) for value in rope.values())
        if not is_plain or is_by_layer or rope.get("partial_rotary_factor", 1) != 1:
            raise CheckpointError(
                f"the language model's config.json asks for scaled positions in {name} "
                f"({kind!r:.40}); a SEED-LLaMA has none"
            )
