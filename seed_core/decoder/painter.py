"""The VAE: latents to pixels, in tiles if large, and again in float32 where float16 overflows.

Source: AutoencoderKL of diffusers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..compute import casting
from ..compute.graphs import is_out_of_memory
from ..errors import GenerationError

log = logging.getLogger(__name__)

# Pictures of more than so many times the decoder's own area go through the VAE in tiles. A tile
# knows nothing of the others, and its colors may differ a little, so moderately large pictures stay
# whole: with SD 2.1 (own 768) up to 1086 pixels square, 3.6 GB in 16 bits. 2048 would be 13 GB.
_TILED_ABOVE = 2.0


class Painter:
    """Paints pictures with an AutoencoderKL, whose weights are of ``dtype``.

    ``latent_size`` is the side of the latents of a picture of the decoder's own size.
    """

    def __init__(self, vae: Any, latent_size: int, dtype: torch.dtype) -> None:
        self._vae = vae
        self._dtype = dtype
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)  # pixels a latent, each way
        self.size: int = latent_size * self.factor  # side of a picture, in pixels
        # A tile of a large picture is one of the decoder's own size.
        vae.tile_sample_min_size = self.size
        vae.tile_latent_min_size = latent_size

    def paint(self, latents: torch.Tensor) -> torch.Tensor:
        """Return float32 ``[1, 3, H, W]``, black at -1 and white at 1, computed as latents are."""
        height, width = (side * self.factor for side in latents.shape[-2:])
        # Not enable_tiling(): it would stay with the network.
        decode = self._vae.tiled_decode if self._is_tiled(width, height) else self._vae.decode
        decoded: torch.Tensor = decode(latents / self._vae.config.scaling_factor).sample.float()
        return decoded

    def mend(
        self,
        pixels: torch.Tensor,  # [B, 3, H, W]
        latents: torch.Tensor,  # [B, C, h, w], from which they were painted
        make_room: Callable[[int], Any] | None = None,  # called with the bytes that this needs
    ) -> None:
        """Paint again, in ``pixels``, the pictures that overflowed float16.

        Raises:
            GenerationError: a picture holds numbers that are not finite in any precision.
        """
        rows = _not_finite(pixels)
        if not rows:
            return
        if broken := _not_finite(latents):
            raise _not_paintable(broken[0], "diffusion steps", self._dtype)
        if self._dtype != torch.float16:  # the others hold numbers as large as any
            raise _not_paintable(rows[0], "VAE", self._dtype)
        log.info("fp16 overflowed in the VAE; pictures painted again in fp32: %d", len(rows))
        if make_room is not None:
            height, width = pixels.shape[-2:]
            make_room(self.memory_required(width, height, torch.float32))
        casting.adopt(self._vae, casting)  # where no host has put layers that cast
        with _kept_precise(self._vae.decoder):
            for row in rows:
                pixels[row] = self._paint_wide(latents[row : row + 1])[0]
        if broken := _not_finite(pixels):
            raise _not_paintable(broken[0], "VAE", torch.float32)

    def memory_required(self, width: int, height: int, dtype: torch.dtype) -> int:
        """Return the bytes of working memory that painting takes, sides in pixels."""
        # The VAE is widest at full size: there its last but one width, in about four maps, and six
        # where sixteen bits are computed in more.
        vae_width: int = self._vae.config.block_out_channels[:2][-1]
        area = self.size**2 if self._is_tiled(width, height) else width * height
        return int(6 * vae_width * area) * dtype.itemsize

    def _paint_wide(self, latents: torch.Tensor) -> torch.Tensor:
        try:
            return self.paint(latents.float())
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            # Nothing more in here: the error keeps what was computed.
        log.info("too little memory for fp32; painted in bf16")
        return self.paint(latents.bfloat16())

    def _is_tiled(self, width: int, height: int) -> bool:
        return width * height > _TILED_ABOVE * self.size**2


def _not_paintable(row: int, where: str, dtype: torch.dtype) -> GenerationError:
    used = str(dtype).removeprefix("torch.")
    advice = "Its files are damaged: download them again."
    if dtype == torch.float16:
        advice = f"Load the decoder with precision bf16 or fp32. If that fails too: {advice}"
    return GenerationError(
        f"picture {row + 1} cannot be painted: the decoder's {where} computed numbers that are not "
        f"finite in {used}. {advice}"
    )


def _not_finite(batch: torch.Tensor) -> list[int]:
    """Return the rows that hold a number that is not finite; waits for the device once."""
    is_finite = torch.empty(len(batch), dtype=torch.bool, device=batch.device)
    for row, numbers in enumerate(batch):
        is_finite[row] = numbers.isfinite().all()
    return [row for row, sound in enumerate(is_finite.tolist()) if not sound]


@contextmanager
def _kept_precise(vae_decoder: Any) -> Iterator[None]:
    """Have diffusers' VAE decoder hand on between its blocks what it computed."""
    # By itself it rounds what comes out of the middle block to the precision of the weights.
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
