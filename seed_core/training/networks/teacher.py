"""The teacher of image embeddings: a vision tower, an embedding of its class token, and readers.

Heads read the object, its background, size and place, and a small copy of the picture in the
embedding. Whatever they need, the embedding must hold. It plays the role for seed-mini that CLIP's
image embedding plays for SEED: the tokenizer learns to restore it, and the decoder to paint from
it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...tokenizer.eva_vit import EvaVit, VisionConfig
from ..settings import check_at_least
from ..world.closed_world import World
from ..world.rendering import SIDE, normalize
from ..world.scenes import Scene
from .losses import detached


@dataclass(frozen=True)
class TeacherSizes:
    """Sizes of the layers on top of a tower."""

    objects: int  # that the world has, as backgrounds and sizes
    backgrounds: int
    sizes: int
    embedding_dim: int = 256
    picture_side: int = 16  # of the small copy, in pixels
    picture_width: int = 512  # hidden width of the head that makes the copy


@dataclass(frozen=True)
class HeadLossWeights:
    """Factors of the losses of the heads."""

    object: float = 1.0
    background: float = 0.5
    size: float = 0.5
    position: float = 1.0
    picture: float = 2.0

    def __post_init__(self) -> None:
        names = (field.name for field in dataclasses.fields(self))
        check_at_least(0, self, *names, group="the loss of the head ")


@dataclass(frozen=True)
class Labels:
    """What a batch of scenes shows."""

    objects: torch.Tensor  # int64 [B], numbers of the concepts
    backgrounds: torch.Tensor  # int64 [B], or samples.NOT_NAMED
    sizes: torch.Tensor  # int64 [B]
    positions: torch.Tensor  # float [B, 2], centres right and down of the middle; 1 is the edge
    pictures: torch.Tensor  # float [B, 3, S, S] in 0..1

    @classmethod
    def of(cls, scenes: Sequence[Scene], backgrounds: torch.Tensor, world: World) -> Labels:
        """Render scenes, and say what they show."""
        sides = list(world.sizes.values())
        sizes = [list(world.sizes).index(scene.size) for scene in scenes]
        positions = []
        for scene, size in zip(scenes, sizes, strict=True):
            free = (SIDE - sides[size]) / SIDE
            right, down = (place * free for place in scene.offset)
            positions.append((-right if scene.look.mirrored else right, down))
        device = world.device
        return cls(
            torch.tensor([scene.concept for scene in scenes], device=device),
            backgrounds.to(device),
            torch.tensor(sizes, device=device),
            torch.tensor(positions, device=device),
            world.render(scenes),
        )


class SceneReader(nn.Module):
    """Heads that read an image embedding."""

    def __init__(self, sizes: TeacherSizes) -> None:
        super().__init__()
        dim, self._side = sizes.embedding_dim, sizes.picture_side
        self.object = nn.Linear(dim, sizes.objects)
        self.background = nn.Linear(dim, sizes.backgrounds)
        self.size = nn.Linear(dim, sizes.sizes)
        self.position = nn.Linear(dim, 2)
        self.picture = nn.Sequential(
            nn.Linear(dim, sizes.picture_width),
            nn.GELU(),
            nn.Linear(sizes.picture_width, 3 * sizes.picture_side**2),
        )

    def losses(self, embedding: torch.Tensor, labels: Labels) -> dict[str, torch.Tensor]:
        """Return the losses of the heads on embeddings ``[B, D]``, named as in `HeadLossWeights`."""
        small = F.adaptive_avg_pool2d(labels.pictures, self._side).flatten(1)
        return {
            "object": F.cross_entropy(self.object(embedding), labels.objects),
            "background": _cross_entropy(self.background(embedding), labels.backgrounds),
            "size": F.cross_entropy(self.size(embedding), labels.sizes),
            "position": F.l1_loss(self.position(embedding).float(), labels.positions),
            "picture": F.l1_loss(self.picture(embedding).float(), small),
        }

    @torch.no_grad()
    def accuracy(self, embedding: torch.Tensor, labels: Labels) -> torch.Tensor:
        """Return the fraction of embeddings ``[B, D]`` whose object is named correctly."""
        is_right = self.object(embedding).argmax(1).eq(labels.objects)
        fraction: torch.Tensor = is_right.float().mean()
        return fraction


def _cross_entropy(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    # A row without a label counts 0, so the mean of several processes' losses is that of all rows.
    return F.cross_entropy(scores, labels, reduction="sum") / len(labels)


class Teacher(nn.Module):
    """A vision tower, the image embedding of its class token, and heads that read the embedding."""

    def __init__(self, vision: VisionConfig, sizes: TeacherSizes) -> None:
        super().__init__()
        self.vision = vision
        self.visual_encoder = EvaVit(vision, nn)
        self.projection = nn.Linear(vision.width, sizes.embedding_dim)
        # Without weights, so that every number of the embedding is about as large as another.
        self.norm = nn.LayerNorm(sizes.embedding_dim, elementwise_affine=False)
        self.reader = SceneReader(sizes)

    @property
    def image_size(self) -> int:
        """Side of the pictures that it takes, in pixels."""
        return self.vision.image_size

    @property
    def embedding_dim(self) -> int:
        """Width of the embeddings that it makes."""
        return self.projection.out_features

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return image embeddings ``[B, D]`` of pixels ``[B, 3, S, S]``."""
        return self.embed_features(self.visual_encoder(pixels))

    def embed_features(self, features: torch.Tensor) -> torch.Tensor:
        """Return image embeddings ``[B, D]`` of the tower's features ``[B, P, W]``."""
        embedding: torch.Tensor = self.norm(self.projection(features[:, 0]))
        return embedding


class TeacherLearner(nn.Module):
    """A teacher in training, which renders its scenes where it computes."""

    def __init__(self, teacher: Teacher, weights: HeadLossWeights, world: World) -> None:
        super().__init__()
        self.teacher = teacher
        self._weights = weights
        self._world = world

    def forward(
        self, scenes: list[Scene], backgrounds: torch.Tensor, num_codes: torch.Tensor
    ) -> dict[str, Any]:
        """Return the loss of a batch of `samples.collate_scenes`."""
        del num_codes  # it reads pictures, not codes
        labels = Labels.of(scenes, backgrounds, self._world)
        embedding = self.teacher.embed(normalize(labels.pictures))
        losses = self.teacher.reader.losses(embedding, labels)
        loss = torch.stack([getattr(self._weights, k) * v for k, v in losses.items()]).sum()
        accuracy = self.teacher.reader.accuracy(embedding, labels)
        terms = {**detached(losses), "object_accuracy": accuracy}
        return {"loss": loss, "terms": terms}
