"""IP-Adapter: a picture beside the text that a Stable Diffusion UNet reads.

An image embedding becomes a few tokens. Each cross attention of the UNet has a second pair of
matrices, which makes keys and values of these tokens; what it reads there is added to what it reads
in the text.

Source: arXiv 2308.06721; tencent-ailab/IP-Adapter at 62e4af9.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..compute.products import multiply


class KeysAndValues(NamedTuple):
    """What one cross attention reads of pictures, each ``[B, tokens, width]``."""

    keys: torch.Tensor
    values: torch.Tensor

    def split(self, *counts: int) -> list[KeysAndValues]:
        """Return those of the first so many pictures, of the next, and so on."""
        pairs = zip(self.keys.split(counts), self.values.split(counts), strict=True)
        return [KeysAndValues(*pair) for pair in pairs]


class Projection(NamedTuple):
    """What makes tokens of an image embedding: a linear layer, cut into tokens, and their norm."""

    weight: torch.Tensor  # [tokens * context, D]
    bias: torch.Tensor  # [tokens * context]
    norm_weight: torch.Tensor  # [context]
    norm_bias: torch.Tensor  # [context]

    def tokens(self, embedding: torch.Tensor) -> torch.Tensor:
        """Return tokens ``[B, tokens, context]`` of embeddings ``[B, D]``."""
        context = len(self.norm_weight)
        flat = multiply(embedding, self.weight, bias=self.bias)
        return F.layer_norm(
            flat.view(len(embedding), -1, context), (context,), self.norm_weight, self.norm_bias
        )
