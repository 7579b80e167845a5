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
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..compute import casting
from ..compute.threads import threads_for
from ..errors import GenerationError, OptionError
from .denoiser import Denoiser
from .network import UnclipModel

log = logging.getLogger(__name__)

_TILED_ABOVE = 2.0
"""Pictures of more than so many times the decoder's own area go through the VAE in tiles.

A tile knows nothing of the others, and its colors may differ a little, so moderately large pictures
stay whole: with SD 2.1 (own 768) up to 1086 pixels square, 3.6 GB in 16 bits. 2048 would be 13 GB.
"""

_TIMES = 0.4
"""How often a UNet's call multiplies each weight, for each position of one latent of a pair.

Most weights see maps of a few positions. Counted in seed-mini's: 0.42.
"""

_FIT_ODD_SIZES = {"CrossAttnUpBlock2D", "UpBlock2D"}
"""diffusers' blocks that can double a map to the odd size that its counterpart had."""


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

    uses_graphs = True
    """Whether calls may run as CUDA graphs, for which a host should leave some memory."""

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
        fits = set(module.unet.config.up_block_types) <= _FIT_ODD_SIZES
        self._side_multiple = self._vae_factor * (1 if fits else 2**module.unet.num_upsamplers)
        # A tile of a large picture is one of the decoder's own size.
        module.vae.tile_sample_min_size = self.size
        module.vae.tile_latent_min_size = self.size // self._vae_factor

    @property
    def networks(self) -> tuple[UnclipModel, ...]:
        """What a host may move."""
        return (self.module,)

    @torch.inference_mode()
    def decode(
        self,
        image_embedding: torch.Tensor,
        negative: torch.Tensor | None = None,
        options: DecodeOptions | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        on_step: Callable[[int, int], None] | None = None,
        make_room: Callable[[int], Any] | None = None,
    ) -> torch.Tensor:
        """Make one picture for each row.

        A picture that overflows float16 in the VAE is painted again, from the same latents, in
        float32; or in bfloat16 where the card has too little memory for that.

        For each row the generator is asked for the noise of its embedding, of its negative, then of
        its latents; for every row before the first step, at which some schedulers ask for more.

        Args:
            image_embedding: ``[B, embedding_dim]``, un-normalised.
            negative: what to steer away from, ``[B, embedding_dim]`` or one row for all; zeros
                (of the whole label) where none is given.
            options: how pictures are made.
            generator: CPU generators, one a row; or one for all rows in order. None is the same as
                one seeded with 0.
            on_step: called with network calls done and in total, over all rows; what it raises ends
                the decoding.
            make_room: called with the bytes of working memory that painting again needs, before it
                does; a host may then move weights away.

        Returns:
            float32 ``[B, 3, H, W]`` in 0..1, on the decoder's device.

        Raises:
            OptionError: embeddings of another width, counts that do not match, or more steps or
                noise than the decoder's schedulers have.
            GenerationError: a picture whose numbers are infinite or none in every precision.
        """
        options = options or DecodeOptions()
        positives = self._rows(image_embedding)
        generators = _row_generators(generator, len(positives))
        negatives = self._negatives(negative, len(positives))
        self._check_noise_level(options.noise_level)
        scheduler = self._scheduler(options.num_inference_steps)
        width, height = self._pixel_size(options)
        *noise, latents = self._draws(generators, negatives is not None, width, height)
        times = _TIMES * latents.shape[-2:].numel()
        with threads_for(self.device, self.module.unet, times):
            labels = self._labels(positives, negatives, noise, options)
        pixels = torch.empty(len(positives), 3, height, width, device=self.device)
        finished = torch.empty_like(latents, dtype=self.dtype)
        module, calls = self.module, len(scheduler.timesteps)
        denoiser = Denoiser(
            module.unet,
            scheduler,
            module.text,
            labels,
            latents.to(self.dtype),
            options.guidance_scale,
        )
        try:
            for i, row_generator in enumerate(generators):

                def step_done(done: int, first: int = i * calls) -> None:
                    if on_step is not None:
                        on_step(first + done, calls * len(positives))

                with threads_for(self.device, module.unet, times):
                    finished[i] = denoiser.run(i, row_generator, step_done)[0]
                    pixels[i] = self._to_pixels(finished[i : i + 1])[0]
        finally:
            denoiser.close()
        if broken := _not_finite(pixels):
            with threads_for(self.device, module.unet, times):
                self._paint_again(broken, finished, pixels, make_room)
        return pixels.div_(2).add_(0.5).clamp_(0, 1)

    def memory_required(self, width: int = 0, height: int = 0) -> int:
        """Return the bytes of working memory one picture needs; 0 is the decoder's own size."""
        width, height = width or self.size, height or self.size
        # In maps of its narrowest width; captured as a graph the UNet, which works on a pair of
        # latents with about 27 of them, keeps them while the VAE works.
        unet_width = self.module.unet.config.block_out_channels[0]
        unet = 30 * unet_width * (2 * width * height // self._vae_factor**2)
        return int(unet) * self.dtype.itemsize + self._vae_memory(width, height, self.dtype)

    def _vae_memory(self, width: int, height: int, dtype: torch.dtype) -> int:
        # The VAE is widest at full size: there its last but one width, in about four maps, and six
        # where sixteen bits are computed in more.
        vae_width: int = self.module.vae.config.block_out_channels[:2][-1]
        area = self.size**2 if self._is_tiled(width, height) else width * height
        return int(6 * vae_width * area) * dtype.itemsize

    def _is_tiled(self, width: int, height: int) -> bool:
        own: int = self.size**2
        return width * height > _TILED_ABOVE * own

    def _pixel_size(self, options: DecodeOptions) -> tuple[int, int]:
        width, height = options.width or self.size, options.height or self.size
        if width % self._side_multiple or height % self._side_multiple:
            raise OptionError(
                f"this decoder makes pictures whose sides are multiples of {self._side_multiple} "
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

    def _scheduler(self, steps: int) -> Any:
        """Return a copy of the scheduler with its time steps set."""
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(steps)
        if int(scheduler.timesteps.max()) >= scheduler.config.num_train_timesteps:
            raise OptionError(
                f"{steps} steps are too many for this decoder's scheduler, which was trained with "
                f"{scheduler.config.num_train_timesteps}; use fewer"
            )
        return scheduler

    def _negatives(self, negative: torch.Tensor | None, rows: int) -> torch.Tensor | None:
        if negative is None:
            return None
        checked = self._rows(negative)
        if len(checked) not in (1, rows):
            raise OptionError(
                f"there are {len(checked)} negative pictures for {rows}: give one for all, or one "
                "for each"
            )
        return checked.expand(rows, -1)

    def _draws(
        self, generators: Sequence[torch.Generator], has_negatives: bool, width: int, height: int
    ) -> list[torch.Tensor]:
        """Return the noise of embeddings, of negatives if there are any, and the first latents.

        Each float32 with one row a generator. Drawn on the CPU, so that every device and precision
        starts from the same noise.
        """
        factor, channels = self._vae_factor, self.module.unet.config.in_channels
        shapes: list[tuple[int, ...]] = [(self.embedding_dim,)] * (2 if has_negatives else 1)
        shapes.append((channels, height // factor, width // factor))
        draws = [torch.empty(len(generators), *shape) for shape in shapes]
        for row, generator in enumerate(generators):
            for drawn, shape in zip(draws, shapes, strict=True):
                drawn[row] = _randn((1, *shape), generator)[0]
        return [drawn.to(self.device) for drawn in draws]

    def _labels(
        self,
        positives: torch.Tensor,
        negatives: torch.Tensor | None,
        noise: Sequence[torch.Tensor],
        options: DecodeOptions,
    ) -> torch.Tensor:
        """Return class labels ``[B, 2, 2D]``, negatives first; ``[B, 1, 2D]`` unguided."""
        labels = self._noised(positives, noise[0], options.noise_level)
        if options.guidance_scale <= 1:
            return labels[:, None].to(self.dtype)
        if negatives is None:
            others = torch.zeros_like(labels)
        else:
            others = self._noised(negatives, noise[1], options.noise_level)
        return torch.stack((others, labels), dim=1).to(self.dtype)

    def _noised(
        self, embeddings: torch.Tensor, noise: torch.Tensor, noise_level: int
    ) -> torch.Tensor:
        """Return embeddings ``[B, D]`` with their noise and its level, ``[B, 2D]`` float32."""
        from diffusers.models.embeddings import get_timestep_embedding

        mean, std = (x.to(self.device) for x in (self.module.mean, self.module.std))
        level = torch.tensor([noise_level], device=self.device)
        scaled = (embeddings - mean) / std
        noised: torch.Tensor = self.noising_scheduler.add_noise(scaled, noise, level)
        level_embedding = get_timestep_embedding(
            level, self.embedding_dim, flip_sin_to_cos=True, downscale_freq_shift=0
        )
        return torch.cat((noised * std + mean, level_embedding.expand(len(noised), -1)), dim=1)

    def _to_pixels(self, latents: torch.Tensor) -> torch.Tensor:
        """Return float32 ``[1, 3, H, W]``, black at -1 and white at 1, computed as ``latents`` are."""
        vae = self.module.vae
        height, width = (side * self._vae_factor for side in latents.shape[-2:])
        # Not enable_tiling(): it would stay with the network.
        decode = vae.tiled_decode if self._is_tiled(width, height) else vae.decode
        decoded: torch.Tensor = decode(latents / vae.config.scaling_factor).sample.float()
        return decoded

    def _paint_again(
        self,
        rows: Sequence[int],
        latents: torch.Tensor,
        pixels: torch.Tensor,
        make_room: Callable[[int], Any] | None,
    ) -> None:
        """Put pictures into ``pixels`` for rows that have numbers that are none, or say why not."""
        if broken := _not_finite(latents):
            raise self._not_paintable(broken[0], "diffusion steps", self.dtype)
        if self.dtype != torch.float16:  # the others hold numbers as large as any
            raise self._not_paintable(rows[0], "VAE", self.dtype)
        log.info("fp16 overflowed in the VAE; pictures painted again in fp32: %d", len(rows))
        if make_room is not None:
            height, width = pixels.shape[-2:]
            make_room(self._vae_memory(width, height, torch.float32))
        casting.adopt(self.module.vae, casting)  # where no host has put layers that cast
        with _kept_precise(self.module.vae.decoder):
            for row in rows:
                pixels[row] = self._to_wide_pixels(latents[row : row + 1])[0]
        if broken := _not_finite(pixels):
            raise self._not_paintable(broken[0], "VAE", torch.float32)

    def _to_wide_pixels(self, latents: torch.Tensor) -> torch.Tensor:
        try:
            return self._to_pixels(latents.float())
        except torch.cuda.OutOfMemoryError:
            pass  # here, as the error would keep what was computed
        log.info("too little memory for fp32; painted in bf16")
        return self._to_pixels(latents.bfloat16())

    def _not_paintable(self, row: int, where: str, dtype: torch.dtype) -> GenerationError:
        used = str(dtype).removeprefix("torch.")
        advice = "Its files are damaged: download them again."
        if dtype == torch.float16:
            advice = f"Load the decoder with precision bf16 or fp32. If that fails too: {advice}"
        return GenerationError(
            f"picture {row + 1} cannot be painted: the decoder's {where} gave numbers that are "
            f"infinite or none in {used}. {advice}"
        )


def _not_finite(batch: torch.Tensor) -> list[int]:
    """Return the rows that hold a number that is infinite or none; waits for the device once."""
    is_finite = torch.empty(len(batch), dtype=torch.bool, device=batch.device)
    for row, numbers in enumerate(batch):
        is_finite[row] = numbers.isfinite().all()
    return [row for row, sound in enumerate(is_finite.tolist()) if not sound]


@contextmanager
def _kept_precise(vae_decoder: Any) -> Iterator[None]:
    """Have diffusers' VAE decoder hand on between its blocks what it computed.

    By itself it rounds what comes out of the middle block to the precision of the weights.
    """
    kept: list[torch.Tensor] = []
    hooks = (
        vae_decoder.mid_block.register_forward_hook(lambda _, given, made: kept.append(made)),
        vae_decoder.up_blocks[0].register_forward_pre_hook(
            lambda _, given: (kept.pop(), *given[1:])
        ),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


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


def _randn(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float32)
