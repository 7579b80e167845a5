"""The LLaMA network: token ids to logits.

Parameter names are Hugging Face's, but for the products that are fused here: query, key and value
into one, gate and up into one (see `layout`).

Sources: arXiv 2302.13971 (LLaMA), 2104.09864 (RoPE); agrees with transformers' LlamaForCausalLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .cache import KVCache
from .config import LlamaConfig


@dataclass(frozen=True)
class _Place:
    """Where the tokens of one pass stand; made once for all layers."""

    index: torch.Tensor | slice  # positions: int64 [1] of a step; of a prompt a slice, a plain copy
    cos: torch.Tensor  # of the positions, [T, 1, head_dim]
    sin: torch.Tensor  # likewise
    matrices: torch.Tensor | None = None  # the rotation of a step's one token; None: cos and sin
    attended: int | None = None  # positions a step's token looks at; None: a prompt, at itself only
    mask: torch.Tensor | None = None  # where among them, see `KVCache.mask`; None: everywhere


def _add_product(residual: torch.Tensor, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    add_to = getattr(layer, "add_to", None)  # our layers and our host's do both at once
    out: torch.Tensor = residual + layer(x) if add_to is None else add_to(residual, x)
    return out


class LlamaAttention(nn.Module):
    """Causal attention with rotary positions; key-value heads may be shared by several queries."""

    def __init__(self, config: LlamaConfig, layer: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        width = config.hidden_size
        self.layer = layer
        self.head_dim = config.head_dim
        self.query_heads = config.num_attention_heads
        self.key_heads = config.num_key_value_heads
        # torch 2.4 lacks this word; the published models share no heads, and so run there too.
        self.sharing = {"enable_gqa": True} if self.query_heads != self.key_heads else {}
        fused = (self.query_heads + 2 * self.key_heads) * self.head_dim
        self.qkv_proj = operations.Linear(width, fused, bias=False, **factory)
        self.o_proj = operations.Linear(width, width, bias=False, **factory)

    def forward(
        self, x: torch.Tensor, cache: KVCache, place: _Place, residual: torch.Tensor
    ) -> torch.Tensor:
        """Return ``residual`` plus the attention of ``[B, T, D]``, extending the cache."""
        product = self.qkv_proj(x)
        turn = self._turn_by_formula if place.matrices is None else self._turn_by_product
        query, pairs = turn(product, place)
        cache.write(self.layer, place.index, pairs)
        if place.attended is not None:
            pairs = cache.pairs[self.layer, :, :, :, : place.attended]
        mixed = F.scaled_dot_product_attention(
            query,  # [B, query heads, T, head_dim]
            pairs[0],
            pairs[1],
            attn_mask=place.mask,
            is_causal=place.attended is None,
            **self.sharing,
        )
        return _add_product(residual, self.o_proj, mixed.transpose(1, 2).flatten(2))

    def _turn_by_formula(
        self, product: torch.Tensor, place: _Place
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return queries ``[B, heads, T, head_dim]``, keys and values ``[2, B, heads, T, ...]``."""
        # Both are views of `product`, in which queries and keys are turned in place.
        heads = product.unflatten(-1, (-1, self.head_dim))  # [B, T, heads, head_dim]
        turned = heads[:, :, : self.query_heads + self.key_heads]
        swapped = turned.roll(self.head_dim // 2, -1)
        turned.mul_(place.cos).addcmul_(swapped, place.sin)
        query, pairs = heads.split((self.query_heads, 2 * self.key_heads), dim=2)
        pairs = pairs.unflatten(2, (2, self.key_heads)).permute(2, 0, 3, 1, 4)
        return query.transpose(1, 2), pairs

    def _turn_by_product(
        self, product: torch.Tensor, place: _Place
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # The same for one token a row.
        assert place.matrices is not None
        rows, groups = len(product), len(place.matrices)
        heads = product.view(rows, groups, self.key_heads, self.head_dim).transpose(0, 1)
        turned = torch.bmm(heads.reshape(groups, -1, self.head_dim), place.matrices)
        turned = turned.view(groups, rows, self.key_heads, 1, self.head_dim)
        return turned[:-2].transpose(0, 1).flatten(1, 2), turned[-2:]


class LlamaMlp(nn.Module):
    """The gated feed-forward."""

    def __init__(self, config: LlamaConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        width, hidden = config.hidden_size, config.intermediate_size
        self.gate_up_proj = operations.Linear(width, 2 * hidden, bias=False, **factory)
        self.down_proj = operations.Linear(hidden, width, bias=False, **factory)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Return ``residual`` plus the feed-forward of ``[B, T, D]``."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return _add_product(residual, self.down_proj, F.silu(gate) * up)


class LlamaLayer(nn.Module):
    """A pre-norm block."""

    def __init__(self, config: LlamaConfig, layer: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = operations.RMSNorm(width, eps=eps, **factory)
        self.self_attn = LlamaAttention(config, layer, operations, **factory)
        self.post_attention_layernorm = operations.RMSNorm(width, eps=eps, **factory)
        self.mlp = LlamaMlp(config, operations, **factory)

    def forward(self, x: torch.Tensor, cache: KVCache, place: _Place) -> torch.Tensor:
        """Map ``[B, T, D]`` to the same shape, extending the cache; may write over ``x``."""
        x = self.self_attn(self.input_layernorm(x), cache, place, residual=x)
        out: torch.Tensor = self.mlp(self.post_attention_layernorm(x), residual=x)
        return out


class LlamaTrunk(nn.Module):
    """Embedding, layers and final norm, which Hugging Face keeps under ``model.``."""

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

    Linear, Embedding and RMSNorm come from ``operations``: ``torch.nn``, `compute.layers` or a
    host's. ``factory`` is the device and dtype of the weights.
    """

    def __init__(self, config: LlamaConfig, operations: Any = nn, **factory: Any) -> None:
        super().__init__()
        self.config = config
        self.model = LlamaTrunk(config, operations, **factory)
        self.lm_head = operations.Linear(
            config.hidden_size, config.vocab_size, bias=False, **factory
        )

    def prefill(
        self, token_ids: torch.Tensor, cache: KVCache, all_positions: bool = False
    ) -> torch.Tensor:
        """Read a prompt ``[B, T]`` in one pass, into the cache; one row fills every row of it.

        Returns:
            Logits of the token that follows, ``[B, vocab_size]``; with ``all_positions`` those at
            the earlier positions too, ``[B, T, vocab_size]``.
        """
        length = token_ids.shape[1]
        cos, sin = cache.rotations[:length, :, None].unbind(1)
        place = _Place(slice(length), cos, sin)
        x = self._trunk(token_ids, cache, place)
        return self._logits(x if all_positions else x[:, -1])

    def decode(
        self, token_ids: torch.Tensor, cache: KVCache, position: torch.Tensor, length: int
    ) -> torch.Tensor:
        """Go on by one token a row, ``[B]``, without waiting for the device.

        The cache holds every earlier position and receives this one, int64 ``[1]``. ``length`` is
        how much of it to look at: `attended_length` of ``position + 1``.

        Returns:
            Logits of the token that follows, ``[B, vocab_size]``.
        """
        cos, sin = cache.rotations.index_select(0, position)[:, :, None].unbind(1)
        matrices = None if cache.turns is None else cache.turns.matrices(cos[0], sin[0])
        if position.device.type == "cpu":  # which looks at exactly the positions in use
            place = _Place(position, cos, sin, matrices, int(position) + 1)
        else:
            mask = cache.mask(position, length)
            place = _Place(position, cos, sin, matrices, length, mask)
        return self._logits(self._trunk(token_ids[:, None], cache, place)[:, -1])

    def _trunk(self, token_ids: torch.Tensor, cache: KVCache, place: _Place) -> torch.Tensor:
        x: torch.Tensor = self.model.embed_tokens(token_ids)  # [B, T, D]
        for layer in self.model.layers:
            x = layer(x, cache, place)
        return x

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.lm_head(self.model.norm(x))
        return logits
