"""What a decoder's UNet is told of a picture: its image embedding, noised, and how much noise it has.

Source: arXiv 2204.06125 (unCLIP); StableUnCLIPImg2ImgPipeline of diffusers.
"""

from __future__ import annotations

from typing import Any

import torch


def noised_labels(
    embeddings: torch.Tensor,
    noise: torch.Tensor,
    level: torch.Tensor,
    mean: torch.Tensor,
    std: torch.Tensor,
    schedule: Any,
) -> torch.Tensor:
    """Return class labels ``[B, 2D]``: noised embeddings, each beside the embedding of its level.

    Args:
        embeddings: ``[B, D]``, un-normalised.
        noise: standard normal, ``[B, D]``.
        level: of that noise, int64 ``[B]``, or ``[1]`` for all rows; level 0 still adds a trace.
        mean: of image embeddings, ``[1, D]``; noise is added to normalised ones.
        std: of image embeddings, ``[1, D]``.
        schedule: diffusers' scheduler of that noise.
    """
    from diffusers.models.embeddings import get_timestep_embedding

    normalised = (embeddings - mean) / std
    noised = schedule.add_noise(normalised, noise, level) * std + mean
    told = get_timestep_embedding(
        level, embeddings.shape[1], flip_sin_to_cos=True, downscale_freq_shift=0
    )
    return torch.cat((noised, told.expand(len(noised), -1)), dim=1)
