"""A picture while it is painted: what a prediction leads to, in colours that latents have.

A VAE's colours are a linear map from latents to pixels, found by least squares. A pixel of it stands
for a patch of the picture, and all is a product of a few numbers: nothing beside a diffusion step.
"""

from __future__ import annotations

from typing import Any

import torch

# In a VAE's config, [C + 1, 3]: what a latent's channels add to red, green and blue in -1..1, and
# what there is without any. diffusers passes over names that begin so.
COLOURS_KEY = "_latent_colours"

_LEAST_SIGNAL = 1e-3  # below it noise says nothing of the picture


def latents_at_the_end(
    scheduler: Any, sample: torch.Tensor, prediction: torch.Tensor, timestep: torch.Tensor
) -> torch.Tensor:
    """Return the latents ``[1, C, h, w]`` that a UNet's prediction leads to at once, float32.

    Args:
        scheduler: with noise levels of Stable Diffusion.
        sample: what the UNet was given.
        prediction: what it made of it.
        timestep: between two of the training's it is rounded down.
    """
    sample, prediction = sample.float(), prediction.float()
    kind = getattr(scheduler.config, "prediction_type", "epsilon")
    if kind == "sample":
        return prediction
    level = float(scheduler.alphas_cumprod[int(timestep)])
    latents: torch.Tensor
    signal, noise = level**0.5, (1 - level) ** 0.5
    if kind == "epsilon":
        latents = (sample - noise * prediction) / max(signal, _LEAST_SIGNAL)
    else:
        latents = signal * sample - noise * prediction
    return latents


def rough_picture(latents: torch.Tensor, colours: torch.Tensor) -> torch.Tensor:
    """Return latents ``[1, C, h, w]`` as a picture, float32 ``[h, w, 3]`` in 0..1 on the CPU."""
    *factors, ground = colours.to(latents).unbind()
    pixels = latents[0].movedim(0, -1) @ torch.stack(factors) + ground
    return pixels.div_(2).add_(0.5).clamp_(0, 1).cpu()
