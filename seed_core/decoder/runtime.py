"""unCLIP: an image embedding to a picture, with diffusers' networks and schedulers.

Does what the reference's pipeline does, step for step, with three differences: random numbers come
from the caller's CPU generators, a row's picture never depends on its neighbours (rows are decoded
one at a time, which also keeps memory that of one picture), and the encoding of the empty prompt is
made once at load, after which the text encoder is gone.

Sources: arXiv 2204.06125 (unCLIP); StableUnCLIPImg2ImgPipeline of diffusers; AILab-CVC/SEED at
93b3cf4 for the negative image embedding and the defaults.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..codes.value import MOST_AT_ONCE
from ..compute.threads import threads_for
from ..core import LoadedCore
from ..errors import OptionError
from .denoiser import Denoiser, Look
from .network import UnclipModel
from .noising import noised_labels
from .options import REFERENCE_GUIDANCE, DecodeOptions
from .painter import Painter
from .preview import COLOURS_KEY
from .rehearsal import rehearse

# How often a UNet's call multiplies each weight, for each position of one latent of a pair. Most
# weights see maps of a few positions. Counted in seed-mini's: 0.42.
_TIMES = 0.4

# Of all pictures together, which are kept until the last is painted, in float32: 3.2 GB.
_MOST_PIXELS = 2**28

# diffusers' blocks that can double a map to the odd size that its counterpart had.
_FIT_ODD_SIZES = {"CrossAttnUpBlock2D", "UpBlock2D"}


class SeedDecoder(LoadedCore):
    """A loaded unCLIP decoder."""

    module: UnclipModel
    uses_graphs = True

    def __init__(
        self,
        module: UnclipModel,
        scheduler: Any,  # of diffusion; each call copies it
        noising_scheduler: Any,  # of the noise added to embeddings
        device: torch.device,
        dtype: torch.dtype,
        guidance_scale: float = REFERENCE_GUIDANCE,  # at which it paints best
    ) -> None:
        self.module = module
        self.scheduler = scheduler
        self.noising_scheduler = noising_scheduler
        self._rehearsed: set[int] = set()  # numbers of steps that the scheduler can make
        self.device = device
        self.dtype = dtype
        self.embedding_dim = module.mean.shape[-1]  # width of the image embedding it takes
        self._painter = Painter(module.vae, int(module.unet.config.sample_size), dtype)
        self.size = self._painter.size  # side of the picture it makes by default, in pixels
        self.guidance_scale = guidance_scale  # which it follows an embedding with by default
        colours = getattr(module.vae.config, COLOURS_KEY, None)
        # Of latents, [C + 1, 3], for `preview.rough_picture`; None if nobody measured them.
        self.colours = None if colours is None else torch.tensor(colours, dtype=torch.float32)
        fits = set(module.unet.config.up_block_types) <= _FIT_ODD_SIZES
        halvings = 0 if fits else module.unet.num_upsamplers
        self._side_multiple = self._painter.factor * 2**halvings

    @torch.inference_mode()
    def decode(
        self,
        image_embedding: torch.Tensor,
        negative: torch.Tensor | None = None,
        options: DecodeOptions | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        on_step: Callable[[int, int], None] | None = None,
        make_room: Callable[[int], Any] | None = None,
        on_look: Callable[[Look], Any] | None = None,
    ) -> torch.Tensor:
        """Make one picture for each row.

        A picture that overflows float16 in the VAE is painted again, from the same latents, in
        float32; or in bfloat16 where the card has too little memory for that.

        Args:
            image_embedding: ``[B, embedding_dim]``, un-normalised.
            negative: what to steer away from, likewise or one row for all; None is a zero label.
            options: how pictures are made.
            generator: CPU generators, one a row, or one for all in order; None is seeded with 0.
            on_step: called with network calls done and in total, over all rows; may raise to stop.
            make_room: called with the bytes that painting again needs, before it starts.
            on_look: called before ``on_step`` with a function that returns the latents
                ``[1, C, h, w]`` to which the picture in work leads; see `preview.rough_picture`.

        Returns:
            float32 ``[B, 3, H, W]`` in 0..1, on the decoder's device.

        Raises:
            OptionError: widths or counts do not match, or there are too many steps, noise levels,
                pictures or pixels.
            GenerationError: a picture holds numbers that are not finite in any precision.
        """
        options = options or DecodeOptions()
        self.check_work(len(image_embedding), options)
        width, height = self._pixel_size(options)
        positives = self._rows(image_embedding)
        generators = _row_generators(generator, len(positives))
        negatives = self._negatives(negative, len(positives))
        self._check_noise_level(options.noise_level)
        scheduler = self._scheduler(options.num_inference_steps)
        guidance = self.guidance_scale if options.guidance_scale is None else options.guidance_scale
        *noise, latents = self._draws(generators, negatives is not None, width, height)
        times = _TIMES * latents.shape[-2:].numel()
        with threads_for(self.device, self.module.unet, times):
            labels = self._labels(positives, negatives, noise, options.noise_level, guidance)
        unet, text, latents = self.module.unet, self.module.text, latents.to(self.dtype)
        denoiser = Denoiser(unet, scheduler, text, labels, latents, guidance)
        finished = torch.empty_like(latents)
        pixels = torch.empty(len(positives), 3, height, width, device=self.device)
        calls = len(scheduler.timesteps)
        try:
            for row, row_generator in enumerate(generators):
                step_done = _reporting(row * calls, len(positives) * calls, on_step, on_look)
                with threads_for(self.device, unet, times):
                    finished[row] = denoiser.run(row, row_generator, step_done)[0]
                    pixels[row] = self._painter.paint(finished[row : row + 1])[0]
        finally:
            denoiser.close()
        with threads_for(self.device, unet, times):
            self._painter.mend(pixels, finished, make_room)
        return pixels.div_(2).add_(0.5).clamp_(0, 1)

    def check_work(self, pictures: int, options: DecodeOptions) -> None:
        """Check, before memory is taken, that so many pictures can be painted at once.

        Raises:
            OptionError: there are too many, or too large ones, or their sides do not fit.
        """
        width, height = self._pixel_size(options)
        if pictures > MOST_AT_ONCE or pictures * width * height > _MOST_PIXELS:
            raise OptionError(
                f"{pictures} pictures of {width} x {height} are too many at once: up to "
                f"{MOST_AT_ONCE} pictures and {_MOST_PIXELS:,} pixels in all are painted together. "
                "Paint fewer, some at a time with SEED Select Codes, or smaller ones"
            )

    def memory_required(self, width: int = 0, height: int = 0) -> int:
        """Return the bytes of working memory one picture needs; 0 is the decoder's own size."""
        width, height = width or self.size, height or self.size
        # In maps of its narrowest width; captured as a graph the UNet, which works on a pair of
        # latents with about 27 of them, keeps them while the VAE works.
        unet_width = self.module.unet.config.block_out_channels[0]
        unet = 30 * unet_width * (2 * width * height // self._painter.factor**2)
        painting = self._painter.memory_required(width, height, self.dtype)
        return int(unet) * self.dtype.itemsize + painting

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
        try:
            scheduler.set_timesteps(steps)
            is_beyond = int(scheduler.timesteps.max()) >= scheduler.config.num_train_timesteps
            if not is_beyond and steps not in self._rehearsed:
                rehearse(scheduler, steps)
        except Exception as error:  # of any kind: diffusers checks little
            raise OptionError(
                f"{steps} steps do not work with this decoder's {type(scheduler).__name__}: "
                f"{error!r:.200}. Use another number, such as 20"
            ) from error
        if is_beyond:
            raise OptionError(
                f"{steps} steps are too many for this decoder's scheduler, which was trained with "
                f"{scheduler.config.num_train_timesteps}; use fewer"
            )
        self._rehearsed.add(steps)
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

        Each float32, one row a generator.
        """
        factor, channels = self._painter.factor, self.module.unet.config.in_channels
        shapes: list[tuple[int, ...]] = [(self.embedding_dim,)] * (2 if has_negatives else 1)
        shapes.append((channels, height // factor, width // factor))
        draws = [torch.empty(len(generators), *shape) for shape in shapes]
        # All of a row before the next row, and of every row before the first step, at which some
        # schedulers draw more. On the CPU and in float32, so that every device and precision starts
        # from the same noise.
        for row, generator in enumerate(generators):
            for drawn, shape in zip(draws, shapes, strict=True):
                drawn[row] = _randn((1, *shape), generator)[0]
        return [drawn.to(self.device) for drawn in draws]

    def _labels(
        self,
        positives: torch.Tensor,
        negatives: torch.Tensor | None,
        noise: Sequence[torch.Tensor],
        noise_level: int,
        guidance_scale: float,
    ) -> torch.Tensor:
        """Return class labels ``[B, 2, 2D]``, negatives first; ``[B, 1, 2D]`` unguided."""
        labels = self._noised(positives, noise[0], noise_level)
        if guidance_scale <= 1:
            return labels[:, None].to(self.dtype)
        if negatives is None:
            others = torch.zeros_like(labels)
        else:
            others = self._noised(negatives, noise[1], noise_level)
        return torch.stack((others, labels), dim=1).to(self.dtype)

    def _noised(
        self, embeddings: torch.Tensor, noise: torch.Tensor, noise_level: int
    ) -> torch.Tensor:
        """Return embeddings ``[B, D]`` with their noise and its level, ``[B, 2D]`` float32."""
        mean, std = (x.to(self.device) for x in (self.module.mean, self.module.std))
        level = torch.tensor([noise_level], device=self.device)
        return noised_labels(embeddings, noise, level, mean, std, self.noising_scheduler)


def _reporting(
    before: int,
    total: int,
    on_step: Callable[[int, int], None] | None,
    on_look: Callable[[Look], Any] | None,
) -> Callable[[int, Look], None]:
    """Return what tells of the steps of one row, after those of the rows before."""

    def step_done(done: int, look: Look) -> None:
        if on_look is not None:
            on_look(look)
        if on_step is not None:
            on_step(before + done, total)

    return step_done


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
