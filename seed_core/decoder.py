"""unCLIP: an image embedding to a picture, with diffusers' networks and schedulers.

Does what the reference's pipeline does, step for step, with three differences: random numbers come
from the caller's CPU generators, a row's picture never depends on its neighbours (rows are decoded
one at a time, which also keeps memory that of one picture), and the encoding of the empty prompt is
made once at load, after which the text encoder is gone. Knows nothing of codes.

Sources: arXiv 2204.06125 (unCLIP); StableUnCLIPImg2ImgPipeline of diffusers; AILab-CVC/SEED at
93b3cf4 for the negative image embedding and the defaults.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import checkpoints
from .errors import OptionError
from .unclip_folder import UnclipModel, read_unclip_folder


@dataclass(frozen=True)
class DecodeOptions:
    """How a picture is made; the defaults are the reference's.

    Attributes:
        num_inference_steps: diffusion steps; some schedulers call the network once more.
        guidance_scale: how strongly the embedding is followed; 1 and below is no guidance.
        noise_level: noise added to the embedding, 0..999; level 0 still adds a trace.
        width: pixels, a multiple of 8; 0 is the decoder's own.
        height: pixels, a multiple of 8; 0 is the decoder's own.

    Raises:
        OptionError: a value outside its range.
    """

    num_inference_steps: int = 20
    guidance_scale: float = 10.0
    noise_level: int = 0
    width: int = 0
    height: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.num_inference_steps <= 1000:
            raise OptionError(f"steps must lie in 1..1000; got {self.num_inference_steps}")
        if not 0 <= self.guidance_scale <= 1000:
            raise OptionError(f"guidance_scale must lie in 0..1000; got {self.guidance_scale}")
        if not 0 <= self.noise_level <= 999:
            raise OptionError(f"noise_level must lie in 0..999; got {self.noise_level}")
        for name, side in (("width", self.width), ("height", self.height)):
            if side < 0 or side % 8:
                raise OptionError(
                    f"{name} must be 0 (the decoder's own) or a multiple of 8 pixels; got {side}"
                )


class SeedDecoder:
    """A loaded unCLIP decoder.

    Attributes:
        module: the networks; a host may move them.
        scheduler: the diffusion scheduler of its folder; copied for every picture.
        noising_scheduler: the schedule of the noise added to embeddings.
        device: where `decode` computes.
        dtype: precision of the networks.
        embedding_dim: width of the image embedding it takes.
        size: side of the picture it makes by default, in pixels.
    """

    def __init__(
        self,
        module: UnclipModel,
        scheduler: Any,
        noising_scheduler: Any,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.module = module
        self.scheduler = scheduler
        self.noising_scheduler = noising_scheduler
        self.device = device
        self.dtype = dtype
        self.embedding_dim = module.mean.shape[-1]
        self._vae_factor = 2 ** (len(module.vae.config.block_out_channels) - 1)
        self.size = int(module.unet.config.sample_size) * self._vae_factor

    @torch.inference_mode()
    def decode(
        self,
        image_embedding: torch.Tensor,
        negative: torch.Tensor | None = None,
        options: DecodeOptions | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> torch.Tensor:
        """Make one picture for each row.

        For each row the generator is asked for the noise of its embedding, of its negative, then of
        its latents.

        Args:
            image_embedding: ``[B, embedding_dim]``, un-normalised.
            negative: what to steer away from, ``[B, embedding_dim]`` or one row for all; zeros
                (of the whole label) where none is given.
            options: how pictures are made.
            generator: CPU generators, one a row; or one for all rows in order. None is the same as
                one seeded with 0.
            on_step: called with network calls done and in total, over all rows; what it raises ends
                the decoding.

        Returns:
            float32 ``[B, 3, H, W]`` in 0..1, on the decoder's device.

        Raises:
            OptionError: embeddings of another width, counts that do not match, or more steps or
                noise than the decoder's schedulers have.
        """
        options = options or DecodeOptions()
        rows = self._rows(image_embedding)
        generators = _row_generators(generator, len(rows))
        negatives = self._negatives(negative, len(rows))
        self._check_noise_level(options.noise_level)
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(options.num_inference_steps, device=self.device)
        calls = len(scheduler.timesteps)
        if int(scheduler.timesteps.max()) >= scheduler.config.num_train_timesteps:
            raise OptionError(
                f"{options.num_inference_steps} steps are too many for this decoder's scheduler, "
                f"which was trained with {scheduler.config.num_train_timesteps}; use fewer"
            )
        pictures = []
        for i, row in enumerate(rows):
            label = self._label(row, negatives[i], options, generators[i])
            scheduler.set_timesteps(options.num_inference_steps, device=self.device)

            def step_done(done: int, first: int = i * calls) -> None:
                if on_step is not None:
                    on_step(first + done, calls * len(rows))

            latents = self._denoise(label, options, scheduler, generators[i], step_done)
            pictures.append(self._to_pixels(latents))
        if not pictures:
            width, height = self._pixel_size(options)
            return torch.empty(0, 3, height, width, device=self.device)
        return torch.cat(pictures)

    def memory_required(self, width: int = 0, height: int = 0) -> int:
        """Return the bytes of working memory one picture needs; 0 is the decoder's own size."""
        width, height = width or self.size, height or self.size
        area = width * height
        # The VAE's last block works at full size on maps twice its narrowest width: input, norm,
        # convolution and workspace come to about sixteen narrow ones. The UNet works on a pair of
        # latents 1 / vae_factor as wide, at about ten maps of its narrowest width.
        vae = area * 16 * self.module.vae.config.block_out_channels[0]
        unet = 2 * area // self._vae_factor**2 * 10 * self.module.unet.config.block_out_channels[0]
        return int(max(vae, unet)) * self.dtype.itemsize

    def _pixel_size(self, options: DecodeOptions) -> tuple[int, int]:
        width, height = options.width or self.size, options.height or self.size
        if width % self._vae_factor or height % self._vae_factor:
            raise OptionError(
                f"this decoder makes pictures whose sides are multiples of {self._vae_factor} "
                f"pixels; got {width} x {height}"
            )
        return width, height

    def _rows(self, embedding: torch.Tensor) -> torch.Tensor:
        if embedding.ndim != 2 or embedding.shape[1] != self.embedding_dim:
            raise OptionError(
                f"this decoder takes image embeddings [pictures, {self.embedding_dim}]; got "
                f"{list(embedding.shape)}. Tokenizer and decoder must be of the same family."
            )
        return embedding.to(device=self.device, dtype=torch.float32)

    def _check_noise_level(self, noise_level: int) -> None:
        levels = self.noising_scheduler.config.num_train_timesteps
        if noise_level >= levels:
            raise OptionError(
                f"noise_level {noise_level} is too high for this decoder, which was trained with "
                f"0..{levels - 1}; use less"
            )

    def _negatives(self, negative: torch.Tensor | None, rows: int) -> Sequence[torch.Tensor | None]:
        if negative is None:
            return [None] * rows
        checked = self._rows(negative)
        if len(checked) not in (1, rows):
            raise OptionError(
                f"there are {len(checked)} negative pictures for {rows}: give one for all, or one "
                "for each"
            )
        return list(checked.expand(rows, -1))

    def _label(
        self,
        embedding: torch.Tensor,
        negative: torch.Tensor | None,
        options: DecodeOptions,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """Return the UNet's class label ``[2, 2D]``, negative first; ``[1, 2D]`` unguided."""
        positive = self._noised(embedding, options.noise_level, generator)
        if negative is not None:
            other = self._noised(negative, options.noise_level, generator)
        else:
            other = torch.zeros_like(positive)
        if options.guidance_scale <= 1:
            return positive.to(self.dtype)
        return torch.cat((other, positive)).to(self.dtype)

    def _noised(
        self, embedding: torch.Tensor, noise_level: int, generator: torch.Generator
    ) -> torch.Tensor:
        """Return an embedding ``[D]`` with its noise and noise level, ``[1, 2D]`` float32."""
        from diffusers.models.embeddings import get_timestep_embedding

        mean, std = (x.to(self.device) for x in (self.module.mean, self.module.std))
        noise = _randn((1, self.embedding_dim), generator, self.device)
        level = torch.tensor([noise_level], device=self.device)
        scaled = (embedding[None] - mean) / std
        noised: torch.Tensor = self.noising_scheduler.add_noise(scaled, noise, level)
        level_embedding = get_timestep_embedding(
            level, self.embedding_dim, flip_sin_to_cos=True, downscale_freq_shift=0
        )
        return torch.cat((noised * std + mean, level_embedding), dim=1)

    def _denoise(
        self,
        label: torch.Tensor,
        options: DecodeOptions,
        scheduler: Any,
        generator: torch.Generator,
        step_done: Callable[[int], None],
    ) -> torch.Tensor:
        """Return the latents ``[1, C, h, w]`` of one picture."""
        unet, pair = self.module.unet, len(label)
        width, height = self._pixel_size(options)
        shape = (1, unet.config.in_channels, height // self._vae_factor, width // self._vae_factor)
        latents: torch.Tensor = _randn(shape, generator, self.device).to(self.dtype)
        latents = latents * scheduler.init_noise_sigma
        text = self.module.text.to(latents).expand(pair, -1, -1)
        takes_generator = "generator" in inspect.signature(scheduler.step).parameters
        extra = {"generator": generator} if takes_generator else {}
        for i, timestep in enumerate(scheduler.timesteps):
            model_input = scheduler.scale_model_input(latents.expand(pair, -1, -1, -1), timestep)
            prediction = unet(
                model_input, timestep, encoder_hidden_states=text, class_labels=label
            ).sample
            if pair == 2:
                away, toward = prediction.chunk(2)
                prediction = away + options.guidance_scale * (toward - away)
            stepped = scheduler.step(prediction, timestep, latents, **extra)
            latents = stepped.prev_sample
            step_done(i + 1)
        return latents

    def _to_pixels(self, latents: torch.Tensor) -> torch.Tensor:
        """Return float32 ``[1, 3, H, W]`` in 0..1."""
        vae = self.module.vae
        decoded: torch.Tensor = vae.decode(latents / vae.config.scaling_factor).sample.float()
        return decoded.div(2).add(0.5).clamp(0, 1)


def _row_generators(
    generator: torch.Generator | Sequence[torch.Generator] | None, rows: int
) -> Sequence[torch.Generator]:
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    if isinstance(generator, torch.Generator):
        return [generator] * rows
    if len(generator) != rows:
        raise OptionError(f"there are {len(generator)} generators for {rows} pictures")
    return generator


def _randn(
    shape: tuple[int, ...], generator: torch.Generator, device: torch.device
) -> torch.Tensor:
    """Draw float32 on the CPU, so that every device and precision starts from the same noise."""
    return torch.randn(shape, generator=generator, dtype=torch.float32).to(device)


def load_decoder(
    path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> SeedDecoder:
    """Load an unCLIP decoder.

    Args:
        path: ``"seed-mini"`` for the bundled one; or a diffusers folder of
            StableUnCLIPImg2ImgPipeline.
        device: where to put the weights.
        dtype: float32, float16 or bfloat16.

    Raises:
        CheckpointError: a missing, damaged, unsafe or incomplete file, or another pipeline's.
    """
    folder = checkpoints.bundled("decoder") if path == checkpoints.SEED_MINI else Path(path)
    device = torch.device(device)
    parts = read_unclip_folder(folder, device, dtype)
    return SeedDecoder(parts.module, parts.scheduler, parts.noising_scheduler, device, dtype)
