"""The LLaMA network: token ids to logits, with a static key-value cache.

Parameter names are Hugging Face's, but for the products that are fused here: query, key and value
into one, gate and up into one (`names_in_file`). A step writes and reads the cache in place at a
position that is a tensor, so that it can be captured once and replayed. Knows token ids only,
neither text nor codes, nor how the next token is chosen.

Sources: arXiv 2302.13971 (LLaMA), 2104.09864 (RoPE); agrees with transformers' LlamaForCausalLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import CheckpointError
from ..ranges import DEPTH, EPSILON, HEADS, WIDTH, Range, check_numbers

ATTENTION_STEP = 256
"""Attention looks at whole stretches of so many cached tokens, so that its shapes seldom change."""

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

_ONLY = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
"""What other LLaMA networks may have otherwise, and would then be computed wrongly here."""

_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def names_in_file(name: str) -> tuple[str, ...]:
    """Return under which names Hugging Face files hold one of our tensors, to be joined by rows."""
    for fused, parts in _FUSED.items():
        if f".{fused}." in name:
            return tuple(name.replace(fused, part) for part in parts)
    return (name,)


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
        """Read a Hugging Face config.json.

        Raises:
            CheckpointError: another architecture, a missing field, or scaled positions.
        """
        if fields.get("model_type") != "llama":
            raise CheckpointError(
                f"this is a {fields.get('model_type')!r} model; a SEED-LLaMA has model_type 'llama'"
            )
        for name, value in _ONLY.items():
            if fields.get(name, value) != value:
                raise CheckpointError(
                    f"the language model's {name} is {fields[name]!r:.40}; a SEED-LLaMA's is {value!r}"
                )
        rope = fields.get("rope_parameters") or {}
        if (
            fields.get("rope_scaling")
            or not isinstance(rope, dict)
            or rope.get("rope_type", "default") != "default"
        ):
            raise CheckpointError("LLaMA models with scaled positions are no SEED-LLaMA")
        try:
            heads = fields["num_attention_heads"]
            key_heads, theta = fields.get("num_key_value_heads"), fields.get("rope_theta")
            return cls(
                vocab_size=fields["vocab_size"],
                hidden_size=fields["hidden_size"],
                intermediate_size=fields["intermediate_size"],
                num_hidden_layers=fields["num_hidden_layers"],
                num_attention_heads=heads,
                num_key_value_heads=heads if key_heads is None else key_heads,
                max_position_embeddings=fields["max_position_embeddings"],
                rms_norm_eps=fields["rms_norm_eps"],
                rope_theta=rope.get("rope_theta", 10000.0) if theta is None else theta,
                tie_word_embeddings=fields.get("tie_word_embeddings", False) is True,
            )
        except KeyError as error:
            raise CheckpointError(f"the language model's config.json lacks {error}") from error

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    def cache_bytes(self, batch: int, length: int, dtype: torch.dtype) -> int:
        """Return the size of a `KVCache`."""
        per_position = 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim
        return per_position * batch * attended_length(length) * dtype.itemsize


@dataclass(frozen=True)
class WeightPart:
    """Where the network holds one tensor of a Hugging Face file.

    Attributes:
        weight: the network's name of the tensor it is, or is part of.
        rows: its first row there and how many it has; None is all of it.
        shape: its own.
    """

    weight: str
    rows: tuple[int, int] | None
    shape: tuple[int, ...]


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


class KVCache:
    """Keys and values of every position so far, allocated once and written in place.

    Args:
        config: the network's sizes.
        batch: rows.
        length: positions it must hold, in tokens; it holds up to `ATTENTION_STEP` - 1 more.
        device: where it lives.
        dtype: the network's precision.

    Attributes:
        pairs: keys and values, ``[layers, 2, B, heads, length, head_dim]``.
        keys: the keys among them, ``[layers, B, heads, length, head_dim]``.
        values: the values among them, likewise.
        positions: 0 to length - 1, int64 ``[length]``.
        rotations: cosines and signed sines of every position, ``[length, 2, head_dim]``.
        turns: what makes a position's rotation a matrix; None on a CPU, which does not use it.
    """

    def __init__(
        self,
        config: LlamaConfig,
        batch: int,
        length: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        # Zeros where positions not yet written are read too: their weight is 0, times a number.
        self.pairs = (torch.empty if device.type == "cpu" else torch.zeros)(
            config.num_hidden_layers,
            2,
            batch,
            config.num_key_value_heads,
            attended_length(length),
            config.head_dim,
            device=device,
            dtype=dtype,
        )
        self.keys, self.values = self.pairs[:, 0], self.pairs[:, 1]
        self.positions = torch.arange(self.length, device=device)
        self.rotations = _rotations(config, self.positions, dtype)
        self.turns = _Turns(config, device, dtype) if _turns_by_product(device) else None
        self._seen = torch.zeros((), device=device, dtype=dtype)
        self._unseen = torch.full((), -torch.inf, device=device, dtype=dtype)

    @property
    def length(self) -> int:
        """Most positions it can hold."""
        return self.pairs.shape[4]

    def write(self, layer: int, index: torch.Tensor | slice, pairs: torch.Tensor) -> None:
        """Store ``[2, B, heads, T, head_dim]`` at T positions; one row goes to every row."""
        self.pairs[layer][:, :, :, index] = pairs

    def mask(self, position: torch.Tensor, length: int) -> torch.Tensor:
        """Return 0 where a position may look and minus infinity elsewhere, ``[1, 1, 1, length]``.

        It is not expanded over rows and heads: attention does that without a copy, and some of its
        implementations refuse a mask whose heads share memory.
        """
        mask = torch.where(self.positions[:length] <= position, self._seen, self._unseen)
        return mask[None, None, None]


def attended_length(used: int) -> int:
    """Return how many positions of the cache attention looks at when so many are in use."""
    return -(-used // ATTENTION_STEP) * ATTENTION_STEP


def _rotations(config: LlamaConfig, positions: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return cosines and signed sines ``[length, 2, head_dim]`` of every position.

    Computed in float32. A head is turned by ``x * cos + halves of x swapped * sin``, so the first
    half of the sines is negative.
    """
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=positions.device)
    frequency = 1.0 / config.rope_theta ** (exponent / config.head_dim)
    angle = torch.outer(positions.float(), frequency)
    cos, sin = angle.cos(), angle.sin()
    pairs = torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)), dim=1)
    return pairs.to(dtype)


def _turns_by_product(device: torch.device) -> bool:
    """Tell whether a step turns its heads by a matrix: one launch on a card instead of three."""
    return device.type != "cpu"


class _Turns:
    """Rotations as matrices, one a group of heads; the groups are as wide as the keys.

    The last group is that of the values, which the identity leaves as they are. So one product
    turns all heads and leaves keys and values next to each other.
    """

    def __init__(self, config: LlamaConfig, device: torch.device, dtype: torch.dtype) -> None:
        width = config.head_dim
        groups = config.num_attention_heads // config.num_key_value_heads + 2
        identity = torch.eye(width, device=device, dtype=dtype)
        turning = torch.ones(groups, 1, 1, device=device, dtype=dtype)
        turning[-1] = 0
        self._fixed = identity * (1 - turning)
        self._same = identity * turning
        self._swapped = identity.roll(width // 2, 0) * turning

    def matrices(self, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Return ``[groups, head_dim, head_dim]`` of one position's ``[1, head_dim]``."""
        turned = torch.addcmul(self._fixed, self._same, cos)
        return torch.addcmul(turned, self._swapped, sin)


@dataclass(frozen=True)
class _Place:
    """Where the tokens of one pass stand; made once for all layers.

    Attributes:
        index: positions, int64 ``[1]`` of a step; those of a prompt are a slice, a plain copy.
        cos: of the positions, ``[T, 1, head_dim]``.
        sin: of the positions, ``[T, 1, head_dim]``.
        matrices: the rotation of the one token of a step, see `_Turns`; None turns by cos and sin.
        attended: how many positions of the cache the one token of a step looks at; None for a
            prompt, which looks at itself only.
        mask: where among them it may look, see `KVCache.mask`; None is everywhere.
    """

    index: torch.Tensor | slice
    cos: torch.Tensor
    sin: torch.Tensor
    matrices: torch.Tensor | None = None
    attended: int | None = None
    mask: torch.Tensor | None = None


def _add_product(residual: torch.Tensor, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return ``residual + layer(x)``, by the layer's own way to do both at once if it has one.

    That way may write over ``residual``.
    """
    add_to = getattr(layer, "add_to", None)
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
        # A word of torch 2.5. The published models share no heads, and so run on torch 2.4 too.
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
        """Return queries ``[B, heads, T, head_dim]``, and keys and values ``[2, B, heads, T, ...]``.

        Both are views of ``product``, in which queries and keys are turned in place.
        """
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
        """Return the same for one token a row."""
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

    def prefill(
        self, token_ids: torch.Tensor, cache: KVCache, all_positions: bool = False
    ) -> torch.Tensor:
        """Read a prompt in one pass and return logits of the token that follows.

        Args:
            token_ids: int64 ``[B, T]``, standing at positions 0 to T - 1.
            cache: receives them; one row fills every row of it.
            all_positions: also return the logits at every earlier position.

        Returns:
            ``[B, vocab_size]``, or ``[B, T, vocab_size]`` with ``all_positions``.
        """
        length = token_ids.shape[1]
        cos, sin = cache.rotations[:length, :, None].unbind(1)
        place = _Place(slice(length), cos, sin)
        x = self._trunk(token_ids, cache, place)
        return self._logits(x if all_positions else x[:, -1])

    def decode(
        self, token_ids: torch.Tensor, cache: KVCache, position: torch.Tensor, length: int
    ) -> torch.Tensor:
        """Go on by one token a row, without waiting for the device.

        Args:
            token_ids: int64 ``[B]``.
            cache: holds every earlier position and receives these.
            position: where the tokens stand, int64 ``[1]``.
            length: how much of the cache to look at, `attended_length` of ``position + 1``; a CPU
                looks at exactly what is in use.

        Returns:
            Logits of the token that follows, ``[B, vocab_size]``.
        """
        cos, sin = cache.rotations.index_select(0, position)[:, :, None].unbind(1)
        matrices = None if cache.turns is None else cache.turns.matrices(cos[0], sin[0])
        if position.device.type == "cpu":  # where reading a position waits for nothing
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
