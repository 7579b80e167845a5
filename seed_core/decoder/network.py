"""The networks of an unCLIP decoder, held together for a host that moves them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class UnclipModel(nn.Module):
    """The networks of a decoder and the numbers that come with them.

    Args:
        unet: UNet2DConditionModel.
        vae: AutoencoderKL.
        mean: of image embeddings, ``[1, embedding_dim]``.
        std: of image embeddings, ``[1, embedding_dim]``.
        text: encoding of the empty prompt, ``[1, tokens, width]``.
    """

    mean: torch.Tensor
    std: torch.Tensor
    text: torch.Tensor

    def __init__(
        self, unet: Any, vae: Any, mean: torch.Tensor, std: torch.Tensor, text: torch.Tensor
    ) -> None:
        super().__init__()
        self.unet = unet
        self.vae = vae
        # Small, wanted in float32 and at hand whatever a host does with the weights.
        for name, value in (("mean", mean), ("std", std), ("text", text)):
            self.register_buffer(name, value.float(), persistent=False)
