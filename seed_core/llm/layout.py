"""Where the network holds the tensors of a Hugging Face file, some of which are fused here."""

from __future__ import annotations

from dataclasses import dataclass

from .config import LlamaConfig
from .llama import Llama

_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def names_in_file(name: str) -> tuple[str, ...]:
    """Return under which names Hugging Face files hold one of our tensors, to be joined by rows."""
    for fused, parts in _FUSED.items():
        if f".{fused}." in name:
            return tuple(name.replace(fused, part) for part in parts)
    return (name,)


@dataclass(frozen=True)
class WeightPart:
    """Where the network holds one tensor of a Hugging Face file."""

    weight: str  # the network's name of the tensor that holds it
    rows: tuple[int, int] | None  # its first row there and how many it has; None: all of them
    shape: tuple[int, ...]  # its own shape


def parts_in_file(config: LlamaConfig) -> dict[str, WeightPart]:
    """Return where each tensor of a Hugging Face file belongs, by its name there."""
    lengths = {
        "q_proj": config.num_attention_heads * config.head_dim,
        "k_proj": config.num_key_value_heads * config.head_dim,
        "v_proj": config.num_key_value_heads * config.head_dim,
        "gate_proj": config.intermediate_size,
        "up_proj": config.intermediate_size,
    }
    parts = {}
    for weight, tensor in Llama(config, device="meta").state_dict().items():
        keys, first = names_in_file(weight), 0
        if len(keys) == 1:
            parts[weight] = WeightPart(weight, None, tuple(tensor.shape))
            continue
        for key in keys:
            length = lengths[key.split(".")[-2]]
            parts[key] = WeightPart(weight, (first, length), (length, *tensor.shape[1:]))
            first += length
    return parts
