"""Schedulers tried without a network: what one does is known by where its steps arrive.

diffusers has some fifty. Many are for other kinds of model: their time steps mean something else, or
they want other arguments, and the picture is noise or an error.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from .denoiser import diffuse

# Schedulers that paint end 0.06 at most from the answer, as the noise of the first time step is left.
# The others end at the noise, whose deviation is 1, or beyond. Likewise the factor: up to 1.3, or
# above 3.
_FARTHEST = 0.3
_LARGEST_FACTOR = 2.0
_SEEN = 0.01  # share of noise in latents from which on it can be told from the answer

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")

_OTHER_KIND = "it is for models of another kind than Stable Diffusion, such as flow matching"

_STEPS = 10
_SHAPE = (1, 4, 4, 4)  # of latents; some schedulers look at the number of channels
_TINY = 1e-8


def rehearse(scheduler: Any, steps: int) -> tuple[torch.Tensor, float]:
    """Go a number of steps with a network that knows the answer; raises what the scheduler raises.

    Returns:
        The latents at the end; and by which factor, at most, the noise that the network saw was more
        or less than that of the time step which it was told; infinite if it never saw any.
    """
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(_SHAPE, generator=generator)
    oracle = _Oracle(scheduler)
    latents = diffuse(scheduler, first, generator, oracle, lambda done, look: None)
    return latents, max(oracle.factors, default=np.inf)


def misfit(scheduler: Any) -> str:
    """Return why a decoder cannot paint with a scheduler; an empty text if it can."""
    if not _has_betas(scheduler):
        return _OTHER_KIND
    if (kind := _prediction_type(scheduler)) not in PREDICTION_TYPES:
        return f"prediction_type is {kind!r:.40} and not one of {', '.join(PREDICTION_TYPES)}"
    try:
        with torch.random.fork_rng(devices=[]):  # some draw from the global generator
            steps = min(_STEPS, scheduler.config.num_train_timesteps)
            (once, factor), (again, _) = (rehearse(scheduler, steps) for _ in range(2))
    except Exception as error:  # noqa: BLE001 - of any kind: diffusers checks little
        return f"its steps fail with {error!r:.200}"
    if not (once - _answer()).square().mean().sqrt() <= _FARTHEST:
        return "its steps do not lead to a picture"
    if not factor <= _LARGEST_FACTOR:
        return "its time steps are not those of the noise in what it gives the network"
    if not torch.equal(once, again):
        return "it draws random numbers of its own, so a seed would not give the same picture again"
    return ""


def misfit_of_noising(scheduler: Any) -> str:
    """Return why a scheduler cannot add noise to image embeddings; an empty text if it can."""
    if not _has_betas(scheduler):
        return _OTHER_KIND
    one, nothing = torch.ones(2, 4), torch.zeros(2, 4)
    try:
        levels = torch.tensor([0, scheduler.config.num_train_timesteps - 1])
        signal = scheduler.add_noise(one, nothing, levels)
        noise = scheduler.add_noise(nothing, one, levels)
    except Exception as error:  # noqa: BLE001 - of any kind
        return f"it adds no noise but fails with {error!r:.200}"
    if signal.shape != one.shape or not torch.allclose(signal**2 + noise**2, one, atol=1e-3):
        return "what it adds is not noise in place of signal"
    return ""


def _has_betas(scheduler: Any) -> bool:
    """Whether noise levels are those of Stable Diffusion, from a table of betas."""
    betas, levels = (getattr(scheduler, name, None) for name in ("betas", "alphas_cumprod"))
    if not isinstance(betas, torch.Tensor) or not isinstance(levels, torch.Tensor):
        return False
    return torch.allclose((1 - betas).cumprod(0), levels, atol=1e-4)


def _prediction_type(scheduler: Any) -> Any:
    return getattr(scheduler.config, "prediction_type", PREDICTION_TYPES[0])


def _answer() -> torch.Tensor:
    return torch.linspace(-0.8, 0.8, 64).reshape(_SHAPE)


class _Oracle:
    """Predicts what leads to the answer, as a UNet does that was trained to perfection."""

    def __init__(self, scheduler: Any) -> None:
        signal = scheduler.alphas_cumprod.double().clamp(_TINY, 1 - _TINY).numpy()
        self._log_odds = np.log(signal / (1 - signal))
        self._kind = _prediction_type(scheduler)
        self.factors: list[float] = []

    def __call__(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        # A time step may lie between two of the training's.
        log_odds = np.interp(float(timestep), np.arange(len(self._log_odds)), self._log_odds)
        signal = float(1 / (1 + np.exp(-log_odds)))
        answer = _answer()
        noise: torch.Tensor = (sample - signal**0.5 * answer) / (1 - signal) ** 0.5
        factor = float(noise.square().mean().sqrt())
        if 1 - signal > _SEEN:
            self.factors.append(max(factor, 1 / max(factor, _TINY)))
        velocity: torch.Tensor = signal**0.5 * noise - (1 - signal) ** 0.5 * answer
        predictions = (noise, answer, velocity)
        return predictions[PREDICTION_TYPES.index(self._kind)]
