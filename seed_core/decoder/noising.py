"""What a decoder's UNet is told of a picture: its noised image embedding, and the level of noise.

Sources: arXiv 2204.06125 (unCLIP); StableUnCLIPImg2ImgPipeline of diffusers.
"""

from __future__ import annotations

from typing import Any

import torch


def noised_labels(
    embeddings: torch.Tensor,  # [B, D], un-normalised
    noise: torch.Tensor,  # standard normal, [B, D]
    level: torch.Tensor,  # of that noise, int64 [B] or, for all rows, [1]; 0 still adds a trace
    mean: torch.Tensor,  # of image embeddings, [1, D]
    std: torch.Tensor,  # of image embeddings, [1, D]
    schedule: Any,  # diffusers' scheduler of that noise
) -> torch.Tensor:
    """Return class labels ``[B, 2D]``: noised embeddings, each beside that of its level."""
    from diffusers.models.embeddings import get_timestep_embedding

    normalised = (embeddings - mean) / std
    noised = schedule.add_noise(normalised, noise, level) * std + mean
    told = get_timestep_embedding(
        level, embeddings.shape[1], flip_sin_to_cos=True, downscale_freq_shift=0
    )
    return torch.cat((noised, told.expand(len(noised), -1)), dim=1)
