"""Frozen teachers of image embeddings: a CLIP vision model, or a run of the stage ``tower``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionModelWithProjection

from ...errors import CheckpointError
from ...tokenizer.config import TokenizerConfig
from .teacher import Teacher
from .teacher_folder import SIZES_FILE, check_teacher, load_teacher


class _TeacherEmbedder(nn.Module):
    """Pixels to the embedding of a teacher of the stage ``tower``."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map ``[B, 3, S, S]`` to ``[B, D]``."""
        return self.teacher.embed(pixels)


class _ClipEmbedder(nn.Module):
    """Pixels to the projected image embedding of a CLIP model, unnormalised."""

    def __init__(self, vision: CLIPVisionModelWithProjection) -> None:
        super().__init__()
        self.vision = vision

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map ``[B, 3, S, S]`` to ``[B, D]``."""
        embedding: torch.Tensor = self.vision(pixel_values=pixels).image_embeds
        return embedding


def load_embedder(folder: Path, sizes: TokenizerConfig) -> nn.Module:
    """Load a frozen teacher of image embeddings that sees what the tower sees.

    Raises:
        CheckpointError: the folder holds no teacher.
        OptionError: the teacher has other sizes.
    """
    embedder: nn.Module
    side: Any
    if (folder / SIZES_FILE).is_file():
        teacher = load_teacher(folder)
        side, dim = teacher.image_size, teacher.embedding_dim
        embedder = _TeacherEmbedder(teacher)
    else:
        try:
            vision = CLIPVisionModelWithProjection.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder} holds no CLIP vision model: {error}") from error
        side, dim = vision.config.image_size, vision.config.projection_dim
        embedder = _ClipEmbedder(vision)
    wanted = sizes.vision.image_size, *sizes.embedding_shape
    check_teacher(folder, (side, dim), "network in the recipe", wanted)
    return embedder.requires_grad_(False).eval()
