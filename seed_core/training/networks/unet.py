"""The diffusion model of a decoder: noise to latents, conditioned on an image embedding.

It learns to predict v from latents at any of a thousand noise levels; the last level is pure noise.
Its label is a noised image embedding beside the level of that noise. All zeros stand for no
condition.

Sources: arXiv 2204.06125 (unCLIP), 2202.00512 (v), 2305.08891 (zero terminal SNR, trailing steps),
2207.12598 (dropped conditions); StableUnCLIPImg2ImgPipeline of diffusers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from torch import nn

from ...decoder.noising import noised_labels
from ...errors import OptionError
from ...tokenizer.network import TokenizerModel
from ..settings import check_at_least, check_groups
from ..world.noised import LEVELS
from .averaging import WeightAverage
from .losses import each_on
from .teacher import Teacher

# Added to an error before its logarithm: what is as small cannot get much better. The variance of v
# is 1, and seed-mini's pictures are 0.02 off.
_LEAST_ERROR = 1e-3


@dataclass(frozen=True)
class UnetSizes:
    """Sizes of a UNet2DConditionModel; the defaults are seed-mini's."""

    block_out_channels: tuple[int, ...] = (64, 96, 112)  # width of each level
    layers_per_block: int = 1  # residual blocks of a level
    attention_head_dim: int = 16  # width of a head
    norm_num_groups: int = 16  # of the group norms
    text_width: int = 32  # of the prompt's encoding, which the pipeline wants and nothing reads

    def __post_init__(self) -> None:
        names = (field.name for field in dataclasses.fields(self))
        check_at_least(1, self, *names, group="the UNet's ")
        check_groups("UNet", self.block_out_channels, self.norm_num_groups)

    def build(self, sample_size: int, channels: int, embedding_dim: int) -> Any:
        """Return a UNet2DConditionModel with random weights."""
        kind: Any = UNet2DConditionModel
        attended = len(self.block_out_channels) - 1
        return kind(
            sample_size=sample_size,
            in_channels=channels,
            out_channels=channels,
            down_block_types=("DownBlock2D",) + ("AttnDownBlock2D",) * attended,
            mid_block_type="UNetMidBlock2D",
            up_block_types=("AttnUpBlock2D",) * attended + ("UpBlock2D",),
            block_out_channels=self.block_out_channels,
            layers_per_block=self.layers_per_block,
            attention_head_dim=self.attention_head_dim,
            norm_num_groups=self.norm_num_groups,
            cross_attention_dim=self.text_width,
            class_embed_type="projection",
            projection_class_embeddings_input_dim=2 * embedding_dim,
            resnet_time_scale_shift="scale_shift",
        )


def diffusion_scheduler() -> Any:
    """Return the schedule of the noise in latents: v-prediction, down to no signal at all."""
    kind: Any = DDIMScheduler
    return kind(
        num_train_timesteps=LEVELS,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
    )


def noising_scheduler() -> Any:
    """Return the schedule of the noise in embeddings."""
    kind: Any = DDPMScheduler
    return kind(num_train_timesteps=LEVELS, beta_schedule="squaredcos_cap_v2")


class Embedder(nn.Module):
    """Gives pictures their image embeddings, from codes and from the teacher; frozen."""

    def __init__(self, tokenizer: TokenizerModel, teacher: Teacher | None = None) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.teacher = teacher
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return float32 ``[B, N, D]``: the tokenizer's embedding, then the teacher's if any.

        Args:
            pixels: ``[B, 3, S, S]``, CLIP-normalised.
        """
        # In 16 bits about one code in a hundred would be another.
        with torch.autocast(pixels.device.type, enabled=False):
            codes, _ = self.tokenizer.encode(pixels)
            embeddings = [self.tokenizer.embedder(codes)]
            if self.teacher is not None:
                embeddings.append(self.teacher.embed(pixels))
        return torch.stack(embeddings, dim=1)

    def measure(self, batches: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation of the tokenizer's embeddings, float32 ``[1, D]``.

        Raises:
            OptionError: a number of the embeddings is the same for every picture.
        """
        rows = torch.cat([self(pixels)[:, 0] for pixels in batches]).double()
        std, mean = torch.std_mean(rows, dim=0, keepdim=True, correction=0)
        if constant := int((std <= 0).sum()):
            raise OptionError(
                f"{constant} of the {std.numel()} numbers of the tokenizer's embeddings are the "
                "same for every picture; train it longer, or measure more pictures"
            )
        return mean.float().cpu(), std.float().cpu()


@dataclass(frozen=True)
class VelocityLoss:
    """How far predicted v is from the right ones."""

    object: float = 0.0  # factor of the error on the objects alone, where small ones count as much
    # Take the mean of the errors' logarithms, as PSNR does, and not of the errors: a picture that is
    # nearly right counts as much as one that is far off, or that nothing was said of.
    logarithmic: bool = False

    def __post_init__(self) -> None:
        check_at_least(0, self, "object", group="unet.loss.")

    def __call__(
        self, predicted: torch.Tensor, wanted: torch.Tensor, cover: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the loss of ``[B, C, h, w]``; without a cover, that of the whole alone.

        Args:
            predicted: by the network.
            wanted: likewise.
            cover: ``[B, 1, h, w]`` in 0..1, how much of each place the object covers.
        """
        errors = (predicted.float() - wanted.float()).square()
        loss = self._mean(errors.mean(dim=(1, 2, 3)))
        if cover is None or not self.object:
            return loss
        return loss + self.object * self._mean(each_on(errors, cover))

    def _mean(self, of_each: torch.Tensor) -> torch.Tensor:
        return ((of_each + _LEAST_ERROR).log() if self.logarithmic else of_each).mean()


class UnetLearner(nn.Module):
    """A diffusion model in training, with its schedules and the embeddings' mean and deviation.

    Args:
        unet: a UNet2DConditionModel.
        mean: of image embeddings, ``[1, D]``.
        std: of image embeddings, ``[1, D]``.
        diffusion: schedule of the noise in latents; by default `diffusion_scheduler`'s.
        noising: schedule of the noise in embeddings; by default `noising_scheduler`'s.
        average: decay of the average of its weights, see `WeightAverage`; 0 for none.
        loss: of v; by default the mean squared error.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        unet: Any,
        mean: torch.Tensor,
        std: torch.Tensor,
        diffusion: Any = None,
        noising: Any = None,
        average: float = 0.0,
        loss: VelocityLoss | None = None,
    ) -> None:
        super().__init__()
        self.unet = unet.requires_grad_(True)
        self.average = WeightAverage(unet, average) if average else None
        self._loss = loss or VelocityLoss()
        self.register_buffer("mean", mean.float())
        self.register_buffer("std", std.float())
        self.diffusion = diffusion or diffusion_scheduler()
        self.noising = noising or noising_scheduler()

    def forward(
        self,
        latents: torch.Tensor,  # [B, C, h, w]
        embeddings: torch.Tensor,  # [B, D]
        noise: torch.Tensor,  # [B, C, h, w]
        timestep: torch.Tensor,  # int64 [B]
        embedding_noise: torch.Tensor,  # [B, D]
        embedding_level: torch.Tensor,  # int64 [B]
        is_dropped: torch.Tensor,  # bool [B]
        cover: torch.Tensor | None = None,  # [B, 1, h, w], how much of each place the object covers
    ) -> torch.Tensor:
        """Return the loss of v, for scaled latents and the numbers of `Draws`."""
        labels = self.labels(embeddings, embedding_noise, embedding_level, is_dropped)
        noised = self.diffusion.add_noise(latents, noise, timestep)
        wanted = self.diffusion.get_velocity(latents, noise, timestep)
        text = latents.new_zeros(len(latents), 1, self.unet.config.cross_attention_dim)
        predicted = self.unet(
            noised, timestep, encoder_hidden_states=text, class_labels=labels
        ).sample
        return self._loss(predicted, wanted, cover)

    def step_done(self) -> None:
        """Let the average follow a step of the optimizer."""
        if self.average is not None:
            self.average.update(self.unet)

    @property
    def painter(self) -> Any:
        """The UNet to paint with: the average if there is one."""
        return self.unet if self.average is None else self.average.network

    def labels(
        self,
        embeddings: torch.Tensor,
        noise: torch.Tensor,
        level: torch.Tensor,
        is_dropped: torch.Tensor,
    ) -> torch.Tensor:
        """Return what the network is told of pictures, ``[B, 2D]``; zeros where it is nothing."""
        labels = noised_labels(embeddings, noise, level, self.mean, self.std, self.noising)
        return labels.masked_fill(is_dropped[:, None], 0)
