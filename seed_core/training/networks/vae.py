"""The autoencoder of a decoder: pictures to latents and back.

It learns from plain errors of pixels, of their differences and of areas, without an adversary or
another network's judgement. Nothing pulls its latents towards a normal distribution, so
`standardize` gives them mean 0 and deviation 1 afterwards.

Source: arXiv 2112.10752 (latent diffusion); AutoencoderKL of diffusers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.nn import functional as F

from ...errors import OptionError
from ..settings import check_at_least, check_groups
from .losses import mean_on, psnr

# Logarithm of the smallest variance that diffusers lets a latent have.
_NO_VARIANCE = -30.0


@dataclass(frozen=True)
class VaeSizes:
    """Sizes of an AutoencoderKL; the defaults are seed-mini's."""

    image_size: int = 128  # in pixels
    block_out_channels: tuple[int, ...] = (32, 48, 64, 80)  # all but the last level halve the side
    layers_per_block: int = 1  # residual blocks of a level
    latent_channels: int = 4  # numbers at each place of the latents
    norm_num_groups: int = 8  # of the group norms

    def __post_init__(self) -> None:
        names = ("image_size", "block_out_channels", "layers_per_block", "latent_channels")
        check_at_least(1, self, *names, "norm_num_groups", group="the VAE's ")
        factor = 2 ** (len(self.block_out_channels) - 1)
        if self.image_size % factor:
            raise OptionError(
                f"a VAE of {len(self.block_out_channels)} levels halves its pictures to 1/{factor}; "
                f"image_size {self.image_size} must be a multiple of {factor}"
            )
        check_groups("VAE", self.block_out_channels, self.norm_num_groups)

    def build(self) -> Any:
        """Return an AutoencoderKL with random weights."""
        kind: Any = AutoencoderKL
        levels = len(self.block_out_channels)
        return kind(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=self.block_out_channels,
            layers_per_block=self.layers_per_block,
            latent_channels=self.latent_channels,
            norm_num_groups=self.norm_num_groups,
            sample_size=self.image_size,
            force_upcast=False,
        )


@dataclass(frozen=True)
class PictureLoss:
    """How far a picture is from its original: a sum of terms with these factors.

    All are of pixels in -1..1. All but ``object`` are means over the whole picture, most of which
    is background.
    """

    l1: float = 1.0  # absolute differences
    l2: float = 1.0  # squared differences
    gradient: float = 1.0  # absolute differences of steps between neighbouring pixels: soft edges
    low_frequency: float = 1.0  # squared differences between the means of areas: wrong colours
    object: float = 0.0  # absolute differences on the object, see losses.mean_on
    area: int = 8  # side of those areas, in pixels

    def __post_init__(self) -> None:
        factors = ("l1", "l2", "gradient", "low_frequency", "object")
        check_at_least(0, self, *factors, group="loss.")
        check_at_least(1, self, "area", group="loss.")

    def terms(
        self, pictures: torch.Tensor, wanted: torch.Tensor, cover: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Return the terms by name, unweighted; ``object`` only if a cover is given.

        Args:
            pictures: ``[B, 3, H, W]`` in -1..1.
            wanted: likewise.
            cover: ``[B, 1, H, W]``, how much of each pixel the object covers.
        """
        error = pictures.float() - wanted.float()
        right, down = error.diff(dim=-1), error.diff(dim=-2)
        terms = {
            "l1": error.abs().mean(),
            "l2": error.square().mean(),
            "gradient": right.abs().mean() + down.abs().mean(),
            "low_frequency": F.avg_pool2d(error, self.area).square().mean(),
        }
        return terms if cover is None else {**terms, "object": mean_on(error.abs(), cover)}

    def __call__(
        self, pictures: torch.Tensor, wanted: torch.Tensor, cover: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss and its terms."""
        terms = self.terms(pictures, wanted, cover)
        loss: torch.Tensor = torch.stack(
            [getattr(self, name) * term for name, term in terms.items()]
        ).sum()
        return loss, terms


class VaeLearner(nn.Module):
    """An autoencoder in training; ``decoder_alone`` keeps the latents as they are."""

    def __init__(self, vae: Any, loss: PictureLoss, decoder_alone: bool) -> None:
        super().__init__()
        self.vae = vae
        self._loss = loss
        vae.requires_grad_(True)
        if decoder_alone:
            vae.encoder.requires_grad_(False)
            vae.quant_conv.requires_grad_(False)

    def forward(self, pictures: torch.Tensor, cover: torch.Tensor | None = None) -> dict[str, Any]:
        """Return the loss of pictures ``[B, 3, H, W]`` in -1..1 and its terms."""
        painted = self.vae.decode(latents_of(self.vae, pictures)).sample
        loss, terms = self._loss(painted, pictures, cover)
        terms = {name: term.detach() for name, term in terms.items()}
        return {"loss": loss, "terms": terms | {"psnr": psnr(painted.detach() / 2, pictures / 2)}}


def latents_of(vae: Any, pictures: torch.Tensor) -> torch.Tensor:
    """Return the unscaled latents ``[B, C, h, w]`` of pictures in -1..1."""
    latents: torch.Tensor = vae.encode(pictures).latent_dist.mode()
    return latents


@torch.no_grad()
def standardize(vae: Any, batches: Iterable[torch.Tensor]) -> None:
    """Give latents mean 0 in each channel, and deviation 1 over all once they are scaled.

    The pictures stay the same: one 1x1 convolution subtracts from the latents what the other adds
    again. The deviation goes into the config, as ``scaling_factor``.

    Args:
        vae: an AutoencoderKL, changed in place.
        batches: pictures ``[B, 3, H, W]`` in -1..1 to measure the latents of.

    Raises:
        OptionError: no pictures are given, or all have the same latents.
    """
    channels = vae.config.latent_channels
    count, total, squares = 0, torch.zeros(channels, dtype=torch.float64), 0.0
    for pictures in batches:
        latents = latents_of(vae, pictures).double().cpu().transpose(0, 1).flatten(1)  # [C, n]
        count += latents.shape[1]
        total += latents.sum(dim=1)
        squares += float(latents.square().sum())
    if not count:
        raise OptionError("latents need at least one picture to be measured on")
    mean = total / count
    variance = squares / (count * channels) - float(mean.square().mean())
    if not variance > 0:
        raise OptionError("this VAE makes the same latents of every picture; train it longer")
    _shift(vae, mean)
    vae.register_to_config(scaling_factor=variance**-0.5)


def _shift(vae: Any, mean: torch.Tensor) -> None:
    """Subtract a mean from the latents of each channel, and keep the pictures as they are."""
    before, after = vae.quant_conv, vae.post_quant_conv
    channels = len(mean)
    mean = mean.to(before.bias)
    after.bias += after.weight[:, :, 0, 0] @ mean
    before.bias[:channels] -= mean
    before.weight[channels:] = 0  # it was trained on the means of its latents, without variance
    before.bias[channels:] = _NO_VARIANCE
