"""Scenes to paint, each with the random numbers of one step of diffusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from ..loop import Samples
from ..settings import check_at_least, check_fractions
from ..streams import Streams
from .samples import SceneSamples
from .scenes import Scene

# Noise levels, of latents and of embeddings.
LEVELS = 1000


@dataclass(frozen=True)
class Chances:
    """How often the random numbers of a sample have a property."""

    drop: float = 0.1  # fraction without a condition
    noise_embedding: float = (
        0.5  # fraction with a noised embedding; the others have level 0, as in decoding
    )
    teacher: float = 0.0  # fraction with the teacher's embedding, which the tokenizer's imitates
    # Levels of the noise in latents: 1 draws all evenly, 2 half of them from the noisiest quarter.
    high_noise: float = 1.0

    def __post_init__(self) -> None:
        check_fractions(self, "drop", "noise_embedding", "teacher")
        check_at_least(1, self, "high_noise")

    def timestep(self, evenly: torch.Tensor) -> torch.Tensor:
        """Return levels of latents, int64, for numbers drawn evenly from 0..1."""
        level = LEVELS * (1 - evenly.double() ** self.high_noise)
        return level.long().clamp(max=LEVELS - 1)


@dataclass(frozen=True)
class Draws:
    """The random numbers of one sample."""

    noise: torch.Tensor  # [C, h, w], in the latents
    timestep: torch.Tensor  # int64 [], the level of that noise
    embedding_noise: torch.Tensor  # [D]
    embedding_level: torch.Tensor  # int64 [], the level of that noise
    is_dropped: torch.Tensor  # bool [], without the condition
    is_teacher: torch.Tensor  # bool [], with the teacher's embedding

    @classmethod
    def of(
        cls,
        generator: torch.Generator,
        chances: Chances,
        latent_shape: tuple[int, ...],
        embedding_dim: int,
    ) -> Draws:
        """Draw the numbers of one sample."""
        drop, noise_embedding, teacher, evenly = torch.rand(4, generator=generator).unbind()
        level = torch.randint(LEVELS, (), generator=generator)
        return cls(
            noise=torch.randn(latent_shape, generator=generator),
            timestep=chances.timestep(evenly),
            embedding_noise=torch.randn(embedding_dim, generator=generator),
            embedding_level=level * (noise_embedding < chances.noise_embedding),
            is_dropped=drop < chances.drop,
            is_teacher=teacher < chances.teacher,
        )

    @staticmethod
    def batch(draws: Sequence[Draws]) -> dict[str, torch.Tensor]:
        """Return the attributes of several samples, stacked: each has a first dimension more."""
        return {
            field.name: torch.stack([getattr(one, field.name) for one in draws])
            for field in fields(Draws)
        }


class NoisedSamples(Samples):
    """Scenes to paint, each with its random numbers."""

    def __init__(
        self,
        scenes: SceneSamples,
        chances: Chances,
        latent_shape: tuple[int, ...],  # (C, h, w)
        embedding_dim: int,
        draws_per_scene: int = 1,  # consecutive samples that show one scene
        album: int = 0,  # scenes that are shown in all, drawn again and again; 0 for ever new ones
    ) -> None:
        self._scenes = scenes
        self._chances = chances
        self._latent_shape = latent_shape
        self._embedding_dim = embedding_dim
        self._draws_per_scene = draws_per_scene
        self._album = album

    def sample(self, number: int, streams: Streams) -> tuple[Scene, Draws]:
        """Return a scene and its random numbers."""
        place = number // self._draws_per_scene
        if self._album:
            place = streams.in_rounds("album", place, self._album)
        scene = self._scenes.sample(place, streams)
        generator = streams.tensors_of("noise", number)
        return scene, Draws.of(generator, self._chances, self._latent_shape, self._embedding_dim)


def collate_noised(samples: Sequence[tuple[Scene, Draws]]) -> dict[str, Any]:
    """Return a batch: ``scenes``, and the attributes of `Draws`, stacked."""
    scenes, draws = zip(*samples, strict=True)
    return {"scenes": list(scenes), **Draws.batch(draws)}
