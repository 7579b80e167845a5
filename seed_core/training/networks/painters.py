"""A decoder's networks in training: they render scenes where they compute, and learn to paint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ...errors import OptionError
from ..digests import digest
from ..world.closed_world import World
from ..world.rendering import SIDE, normalize
from ..world.scenes import Scene
from .album import Show, Shown
from .unet import Embedder, UnetLearner
from .vae import VaeLearner, latents_of
from .weights import leave_out


def as_vae_input(pictures: torch.Tensor, vae: Any) -> torch.Tensor:
    """Return the world's pictures as an autoencoder takes them, ``[B, 3, H, W]`` in -1..1."""
    return 2 * F.avg_pool2d(pictures, SIDE // vae.config.sample_size) - 1


def check_vae_size(vae: Any) -> None:
    """Refuse an autoencoder that the world's pictures do not fit.

    Raises:
        OptionError: its pictures are not a whole fraction of theirs.
    """
    if SIDE % vae.config.sample_size:
        raise OptionError(
            f"the VAE must be for pictures of {SIDE} pixels a side, as the world has them, or a "
            f"whole fraction of that; this one is for {vae.config.sample_size}"
        )


class SceneVae(nn.Module):
    """An autoencoder in training."""

    def __init__(self, learner: VaeLearner, world: World) -> None:
        super().__init__()
        self.learner = learner
        self._world = world

    def forward(self, scenes: Sequence[Scene]) -> dict[str, Any]:
        """Return the loss of scenes and its terms."""
        shown = as_vae_input(self._world.render(scenes), self.learner.vae)
        cover = F.adaptive_avg_pool2d(self._world.cover(scenes), shown.shape[-1])
        result: dict[str, Any] = self.learner(shown, cover)
        return result

    def gradient_checkpointing_enable(self, **_: Any) -> None:
        """Compute activations again rather than keep them."""
        self.learner.vae.enable_gradient_checkpointing()


class SceneUnet(nn.Module):
    """A diffusion model in training, with the frozen networks that make its latents and embeddings."""

    def __init__(self, learner: UnetLearner, vae: Any, embedder: Embedder, world: World) -> None:
        super().__init__()
        self.learner = learner
        self.vae = vae.requires_grad_(False)
        self.embedder = embedder
        self.album: Show | None = None  # of the scenes, if they are shown from one
        self._world = world
        leave_out(self, lambda name: not name.startswith("learner."))

    def forward(
        self,
        scenes: Sequence[Scene],
        noise: torch.Tensor,
        timestep: torch.Tensor,
        embedding_noise: torch.Tensor,
        embedding_level: torch.Tensor,
        is_dropped: torch.Tensor,
        is_teacher: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Return the loss of scenes with a batch of `Draws`."""
        places = {scene: i for i, scene in enumerate(dict.fromkeys(scenes))}
        rows = [places[scene] for scene in scenes]
        shown = (self.album or self.show)(list(places))
        loss = self.learner(
            shown.latents[rows],
            shown.embeddings[rows, is_teacher.long()],
            noise,
            timestep,
            embedding_noise,
            embedding_level,
            is_dropped,
            shown.cover[rows],
        )
        return {"loss": loss}

    @torch.no_grad()
    def show(self, scenes: Sequence[Scene]) -> Shown:
        """Render scenes and return what is learned from them."""
        pictures = self._world.render(scenes)
        latents = latents_of(self.vae, as_vae_input(pictures, self.vae)).float()
        return Shown(
            latents * self.vae.config.scaling_factor,
            self.embedder(normalize(pictures)),
            F.adaptive_avg_pool2d(self._world.cover(scenes), latents.shape[-1]),
        )

    def origin(self) -> str:
        """Name all that decides what a scene shows: world, artwork and the frozen networks."""
        world = self._world
        objects = [concept["name"] for concept in world.concepts]
        return f"{world.digest} {objects} {digest(self.vae)} {digest(self.embedder)}"

    def step_done(self) -> None:
        """Let the average of the weights follow a step."""
        self.learner.step_done()

    def gradient_checkpointing_enable(self, **_: Any) -> None:
        """Compute activations again rather than keep them."""
        self.learner.unet.enable_gradient_checkpointing()
