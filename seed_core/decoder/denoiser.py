"""Diffusion steps: first latents to those of a picture, under a label, with diffusers' UNet.

The UNet reads its inputs from where they lie from the first step of the first picture to the last
step of the last, so that its calls can be captured once and replayed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch

from ..compute.graphs import GraphedCalls, can_capture
from .preview import latents_at_the_end

Look: TypeAlias = Callable[[], torch.Tensor]


def diffuse(
    scheduler: Any,  # its time steps set
    noise: torch.Tensor,  # standard normal
    generator: torch.Generator,  # from which some schedulers draw at each step
    predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],  # from a sample and a time step
    # Called with the number of predictions so far, and a function for the latents they lead to.
    step_done: Callable[[int, Look], None],
) -> torch.Tensor:
    """Return the latents that a scheduler's steps lead to."""
    scheduler.set_timesteps(scheduler.num_inference_steps)  # forgets the picture before
    taken = inspect.signature(scheduler.step).parameters
    # As diffusers' pipeline has it; eta is the noise that some add anew, each with its own default.
    offered = {"generator": generator, "eta": 0.0}
    extra = {name: value for name, value in offered.items() if name in taken}
    latents: torch.Tensor = noise * scheduler.init_noise_sigma
    for done, timestep in enumerate(scheduler.timesteps, start=1):
        sample = scheduler.scale_model_input(latents, timestep)
        prediction = predict(sample, timestep)
        latents = scheduler.step(prediction, timestep, latents, **extra).prev_sample
        step_done(done, partial(latents_at_the_end, scheduler, sample, prediction, timestep))
    return latents


class Denoiser:
    """Guided diffusion of one picture after another, all of one size."""

    def __init__(
        self,
        unet: Any,  # a UNet2DConditionModel
        scheduler: Any,  # its time steps set
        text: torch.Tensor,  # encoding of the prompt, [1, tokens, width]
        labels: torch.Tensor,  # class labels [B, 2, L], negatives first; unguided [B, 1, L]
        latents: torch.Tensor,  # standard normal noise [B, C, h, w], in the UNet's precision
        guidance_scale: float,  # how strongly a label is followed, away from its negative
    ) -> None:
        # A scheduler's tables and time steps stay on the CPU: it looks numbers up and branches on
        # them, each of which would be a wait for another device.
        self._unet = unet
        self._scheduler = scheduler
        self._labels, self._latents = labels, latents
        self._guidance_scale = guidance_scale
        pair, device = labels.shape[1], latents.device
        self._text = text.to(latents).expand(pair, -1, -1)
        self._label = labels.new_empty(labels.shape[1:])
        self._sample = latents.new_empty(pair, *latents.shape[1:])
        self._timestep = torch.empty((), dtype=scheduler.timesteps.dtype, device=device)
        self._prediction = torch.empty_like(latents[:1])
        self._calls = GraphedCalls(device, can_capture(unet, device))
        self._pace = _Pace(device)

    def run(
        self, row: int, generator: torch.Generator, step_done: Callable[[int, Look], None]
    ) -> torch.Tensor:
        """Return the latents ``[1, C, h, w]`` of the picture of one row.

        Some schedulers draw from ``generator`` at each step. ``step_done`` is called with the
        number of UNet calls so far and a function that returns the latents they lead to; what it
        raises ends the steps.
        """
        self._label.copy_(self._labels[row])

        def predict(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            self._sample.copy_(sample)  # to both of a pair
            self._timestep.fill_(timestep)
            self._calls("unet", self._predict)
            # The next call writes over the prediction, and some schedulers keep the last few.
            return self._prediction.clone()

        def paced(done: int, look: Look) -> None:
            self._pace.step()
            step_done(done, look)

        noise = self._latents[row : row + 1]
        return diffuse(self._scheduler, noise, generator, predict, paced)

    def close(self) -> None:
        """Free what captured calls hold."""
        self._calls.close()

    def _predict(self) -> None:
        prediction: torch.Tensor = self._unet(
            self._sample,
            self._timestep,
            encoder_hidden_states=self._text,
            class_labels=self._label,
        ).sample
        if len(prediction) == 1:
            self._prediction.copy_(prediction)
            return
        away, toward = prediction.chunk(2)
        self._prediction.copy_(away + self._guidance_scale * (toward - away))


class _Pace:
    """Lets a CUDA device have the next step queued, and no more: Stop must not wait for a queue."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        self._previous: torch.cuda.Event | None = None

    def step(self) -> None:
        """Wait until the step before the one just queued is done."""
        if self._stream is None:
            return
        queued = self._stream.record_event()
        if self._previous is not None:
            self._previous.synchronize()
        self._previous = queued
