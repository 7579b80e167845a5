"""What attention remembers: keys and values of all positions so far, and how positions turn heads.

The cache is written and read in place at a position that is a tensor, so that a step can be
captured once and replayed.

Source: arXiv 2104.09864 (RoPE).
"""

from __future__ import annotations

import torch

from .config import LlamaConfig

# Attention looks at whole stretches of so many cached tokens, so that its shapes seldom change.
ATTENTION_STEP = 256


def attended_length(used: int) -> int:
    """Return how many positions of the cache attention looks at when so many are in use."""
    return -(-used // ATTENTION_STEP) * ATTENTION_STEP


class KVCache:
    """Keys and values, allocated once and written in place; rotations of all positions beside them.

    It holds ``length`` positions of ``batch`` rows, and up to `ATTENTION_STEP` - 1 positions more.
    """

    def __init__(
        self,
        config: LlamaConfig,
        batch: int,
        length: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        # On a card, attention reads positions not yet written too, and gives them a weight of 0.
        # That needs numbers there: 0 times NaN is NaN.
        allocate = torch.empty if device.type == "cpu" else torch.zeros
        self.pairs = allocate(  # [layers, 2, B, heads, length, head_dim]
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
        self.positions = torch.arange(self.length, device=device)  # int64 [length]
        self.rotations = _rotations(config, self.positions, dtype)  # [length, 2, head_dim]
        # On a card one product turns all heads, one launch instead of three.
        self.turns = None if device.type == "cpu" else _Turns(config, device, dtype)
        self._seen = torch.zeros((), device=device, dtype=dtype)
        self._unseen = torch.full((), -torch.inf, device=device, dtype=dtype)

    @staticmethod
    def bytes_needed(config: LlamaConfig, batch: int, length: int, dtype: torch.dtype) -> int:
        """Return the size of the keys and values of such a cache."""
        per_position = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
        return per_position * batch * attended_length(length) * dtype.itemsize

    @property
    def length(self) -> int:
        """Most positions it can hold."""
        return self.pairs.shape[4]

    def write(self, layer: int, index: torch.Tensor | slice, pairs: torch.Tensor) -> None:
        """Store ``[2, B, heads, T, head_dim]`` at T positions; one row goes to every row."""
        self.pairs[layer][:, :, :, index] = pairs

    def mask(self, position: torch.Tensor, length: int) -> torch.Tensor:
        """Return 0 where a position may look, minus infinity elsewhere, ``[1, 1, 1, length]``."""
        mask = torch.where(self.positions[:length] <= position, self._seen, self._unseen)
        # Attention itself expands it over rows and heads, without a copy; some of torch's
        # implementations refuse a mask whose heads share memory.
        return mask[None, None, None]


def _rotations(config: LlamaConfig, positions: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return cosines and signed sines ``[length, 2, head_dim]``, computed in float32."""
    # A head is turned by x * cos + halves of x swapped * sin, so the first half of the sines is
    # negative.
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=positions.device)
    frequency = 1.0 / config.rope_theta ** (exponent / config.head_dim)
    angle = torch.outer(positions.float(), frequency)  # [length, head_dim / 2]
    cos, sin = angle.cos(), angle.sin()
    pairs = torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)), dim=1)
    return pairs.to(dtype)


class _Turns:
    """Rotations as matrices, one a group of heads; the groups are as wide as the keys."""

    # The last group is that of the values, which the identity leaves as they are. So one product
    # turns all heads and leaves keys and values next to each other.

    def __init__(self, config: LlamaConfig, device: torch.device, dtype: torch.dtype) -> None:
        width = config.head_dim
        groups = config.num_attention_heads // config.num_key_value_heads + 2
        identity = torch.eye(width, device=device, dtype=dtype)
        turning = torch.ones(groups, 1, 1, device=device, dtype=dtype)
        turning[-1] = 0
        self._fixed = identity * (1 - turning)  # [groups, head_dim, head_dim], as the next two
        self._same = identity * turning
        self._swapped = identity.roll(width // 2, 0) * turning

    def matrices(self, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Return ``[groups, head_dim, head_dim]`` of one position's ``[1, head_dim]``."""
        turned = torch.addcmul(self._fixed, self._same, cos)
        return torch.addcmul(turned, self._swapped, sin)
