"""Random LoRA adapters for a LLaMA of any size, named and saved as peft does."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

PREFIX = "base_model.model."


def projections(config: Any) -> dict[str, tuple[int, int]]:
    """Every matrix that SEED-LLaMA's recipe trains with LoRA: its module and its shape."""
    width, hidden = config.hidden_size, config.intermediate_size
    keys = width // config.num_attention_heads * config.num_key_value_heads
    shapes = {"self_attn.q_proj": (width, width), "self_attn.o_proj": (width, width)}
    shapes |= {"self_attn.k_proj": (keys, width), "self_attn.v_proj": (keys, width)}
    shapes |= {"mlp.gate_proj": (hidden, width), "mlp.up_proj": (hidden, width)}
    shapes |= {"mlp.down_proj": (width, hidden)}
    return {
        f"model.layers.{layer}.{name}": shape
        for layer in range(config.num_hidden_layers)
        for name, shape in shapes.items()
    }


def trained_in_full(config: Any) -> dict[str, tuple[int, ...]]:
    """Every module that the recipe trains besides, and its shape."""
    table, width = (config.vocab_size, config.hidden_size), (config.hidden_size,)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": table, "lm_head": table}
    shapes["model.norm"] = width
    for layer in range(config.num_hidden_layers):
        shapes[f"model.layers.{layer}.input_layernorm"] = width
        shapes[f"model.layers.{layer}.post_attention_layernorm"] = width
    return shapes


def random_tensors(
    config: Any, random: torch.Generator, rank: int = 4, size: float = 0.2, in_full: bool = False
) -> dict[str, torch.Tensor]:
    """An adapter's tensors; with `in_full`, embeddings, head and norms too."""

    def draw(*shape: int) -> torch.Tensor:
        return size * torch.randn(shape, generator=random)

    tensors = {}
    for module, (rows, columns) in projections(config).items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = draw(rank, columns)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = draw(rows, rank)
    for module, shape in trained_in_full(config).items() if in_full else ():
        tensors[f"{PREFIX}{module}.weight"] = draw(*shape) + ("norm" in module)
    return tensors


def save(folder: Path, tensors: dict[str, torch.Tensor], **fields: Any) -> Path:
    """Write a peft folder; without fields, of rank 4 and twice the products."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}  # none may share memory
    save_file(tensors, folder / "adapter_model.safetensors")
    fields = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, **fields}
    (folder / "adapter_config.json").write_text(json.dumps(fields), encoding="utf-8")
    return folder
