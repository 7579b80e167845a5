"""The LLaMA network: token ids to logits, with a static key-value cache.

Parameter names are Hugging Face's, so its checkpoints load without renaming. Knows token ids only,
neither text nor codes, nor how the next token is chosen.

Sources: arXiv 2302.13971 (LLaMA), 2104.09864 (RoPE); agrees with transformers' LlamaForCausalLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .errors import CheckpointError


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes of the network, named as in a Hugging Face config.json.

    Attributes:
        max_position_embeddings: the longest sequence it was trained for, in tokens.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        if (
            self.hidden_size % self.num_attention_heads
            or self.num_attention_heads % self.num_key_value_heads
        ):
            raise CheckpointError(
                f"hidden_size {self.hidden_size}, {self.num_attention_heads} heads and "
                f"{self.num_key_value_heads} key-value heads do not divide one another"
            )

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> LlamaConfig:
        """Read a Hugging Face config.json.

        Raises:
            CheckpointError: another architecture, a missing field, or scaled positions.
        """
        if fields.get("model_type") != "llama":
            raise CheckpointError(
                f"this is a {fields.get('model_type')!r} model; a SEED-LLaMA has model_type 'llama'"
            )
        rope = fields.get("rope_parameters") or {}
        if fields.get("rope_scaling") or rope.get("rope_type", "default") != "default":
            raise CheckpointError("LLaMA models with scaled positions are no SEED-LLaMA")
        try:
            heads = int(fields["num_attention_heads"])
            return cls(
                vocab_size=int(fields["vocab_size"]),
                hidden_size=int(fields["hidden_size"]),
                intermediate_size=int(fields["intermediate_size"]),
                num_hidden_layers=int(fields["num_hidden_layers"]),
                num_attention_heads=heads,
                num_key_value_heads=int(fields.get("num_key_value_heads") or heads),
                max_position_embeddings=int(fields["max_position_embeddings"]),
                rms_norm_eps=float(fields["rms_norm_eps"]),
                rope_theta=float(fields.get("rope_theta") or rope.get("rope_theta", 10000.0)),
                tie_word_embeddings=bool(fields.get("tie_word_embeddings", False)),
            )
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise CheckpointError(
                f"the language model's config.json is incomplete or wrong: {error!r}"
            ) from error

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    def cache_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        """Return the size of a `KVCache`."""
        per_position = 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim
        return per_position * batch * length * dtype.itemsize


class KVCache:
    """Keys and values of every position so far, allocated once.

    Args:
        config: the network's sizes.
        batch: rows.
        length: most positions it can hold, in tokens.
        device: where it lives.
        dtype: the network's precision.
    """

    def __init__(
        self,
        config: LlamaConfig,
        batch: int,
        length: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (
            config.num_hidden_layers,
            batch,
            config.num_key_value_heads,
            length,
            config.head_dim,
        )
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.cos, self.sin = _rotations(config, length, device, dtype)

    @property
    def length(self) -> int:
        """Most positions it can hold."""
        return self.keys.shape[3]

    def write(
        self, layer: int, start: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store ``[B, heads, T, head_dim]`` at ``start`` and return everything up to there."""
        end = start + key.shape[2]
        self.keys[layer, :, :, start:end] = key
        self.values[layer, :, :, start:end] = value
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def repeat_rows(self, batch: int) -> None:
        """Copy the one row of a shared prompt to ``batch`` rows."""
        if batch == 1:
            return
        self.keys = self.keys.repeat(1, batch, 1, 1, 1)
        self.values = self.values.repeat(1, batch, 1, 1, 1)


def _rotations(
    config: LlamaConfig, length: int, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and sines ``[length, head_dim]`` of every position, computed in float32."""
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device)
    frequency = 1.0 / config.rope_theta ** (exponent / config.head_dim)
    position = torch.arange(length, dtype=torch.float32, device=device)
    angle = torch.outer(position, frequency).repeat(1, 2)  # halves, as Hugging Face orders heads
    return angle.cos().to(dtype), angle.sin().to(dtype)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn each head of ``[B, heads, T, head_dim]`` by its position."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class LlamaAttention(nn.Module):
    """Causal attention with rotary positions; key-value heads may be shared by several queries."""

    def __init__(self, config: LlamaConfig, layer: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        width, head_dim = config.hidden_size, config.head_dim
        kv_width = config.num_key_value_heads * head_dim
        self.layer = layer
        self.head_dim = head_dim
        self.is_grouped = config.num_key_value_heads != config.num_attention_heads
        self.q_proj = operations.Linear(width, width, bias=False, **factory)
        self.k_proj = operations.Linear(width, kv_width, bias=False, **factory)
        self.v_proj = operations.Linear(width, kv_width, bias=False, **factory)
        self.o_proj = operations.Linear(width, width, bias=False, **factory)

    def forward(self, x: torch.Tensor, cache: KVCache, start: int) -> torch.Tensor:
        """Map ``[B, T, D]`` at positions ``start ..`` to the same shape, extending the cache."""
        query, key, value = (
            project(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )  # [B, heads, T, head_dim]
        length = x.shape[1]
        cos, sin = cache.cos[start : start + length], cache.sin[start : start + length]
        keys, values = cache.write(self.layer, start, _rotate(key, cos, sin), value)
        mixed = F.scaled_dot_product_attention(
            _rotate(query, cos, sin),
            keys,
            values,
            attn_mask=_causal_mask(length, start, x.device),
            is_causal=length > 1 and start == 0,
            enable_gqa=self.is_grouped,
        )
        out: torch.Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out


def _causal_mask(length: int, start: int, device: torch.device) -> torch.Tensor | None:
    """Return a mask only where torch's own causal one does not fit: several tokens, not at 0."""
    if length == 1 or start == 0:
        return None
    allowed = torch.ones(length, start + length, dtype=torch.bool, device=device)
    return allowed.tril(diagonal=start)


class LlamaMlp(nn.Module):
    """The gated feed-forward."""

    def __init__(self, config: LlamaConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        width, hidden = config.hidden_size, config.intermediate_size
        self.gate_proj = operations.Linear(width, hidden, bias=False, **factory)
        self.up_proj = operations.Linear(width, hidden, bias=False, **factory)
        self.down_proj = operations.Linear(hidden, width, bias=False, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[B, T, D]`` to the same shape."""
        out: torch.Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class LlamaLayer(nn.Module):
    """A pre-norm block."""

    def __init__(self, config: LlamaConfig, layer: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = operations.RMSNorm(width, eps=eps, **factory)
        self.self_attn = LlamaAttention(config, layer, operations, **factory)
        self.post_attention_layernorm = operations.RMSNorm(width, eps=eps, **factory)
        self.mlp = LlamaMlp(config, operations, **factory)

    def forward(self, x: torch.Tensor, cache: KVCache, start: int) -> torch.Tensor:
        """Map ``[B, T, D]`` to the same shape, extending the cache."""
        x = x + self.self_attn(self.input_layernorm(x), cache, start)
        out: torch.Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class LlamaTrunk(nn.Module):
    """Embedding, layers and final norm; the part Hugging Face keeps under ``model.``."""

    def __init__(self, config: LlamaConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.embed_tokens = operations.Embedding(config.vocab_size, config.hidden_size, **factory)
        self.layers = nn.ModuleList(
            LlamaLayer(config, layer, operations, **factory)
            for layer in range(config.num_hidden_layers)
        )
        self.norm = operations.RMSNorm(config.hidden_size, eps=config.rms_norm_eps, **factory)


class Llama(nn.Module):
    """The whole network.

    Args:
        config: the sizes.
        operations: where Linear, Embedding and RMSNorm come from, ``torch.nn`` or the host's.
        factory: ``device`` and ``dtype`` of the weights.
    """

    def __init__(self, config: LlamaConfig, operations: Any = nn, **factory: Any) -> None:
        super().__init__()
        self.config = config
        self.model = LlamaTrunk(config, operations, **factory)
        self.lm_head = operations.Linear(
            config.hidden_size, config.vocab_size, bias=False, **factory
        )

    def forward(
        self, token_ids: torch.Tensor, cache: KVCache, start: int, all_positions: bool = False
    ) -> torch.Tensor:
        """Return logits of the token that follows.

        Args:
            token_ids: int64 ``[B, T]``, standing at positions ``start .. start + T - 1``.
            cache: holds positions ``0 .. start - 1`` and receives these.
            start: how many positions the cache already holds.
            all_positions: also return those of every earlier position.

        Returns:
            ``[B, vocab_size]``, or ``[B, T, vocab_size]`` with ``all_positions``.
        """
        x = self.model.embed_tokens(token_ids)  # [B, T, D]
        for layer in self.model.layers:
            x = layer(x, cache, start)
        x = self.model.norm(x if all_positions else x[:, -1])
        logits: torch.Tensor = self.lm_head(x)
        return logits
