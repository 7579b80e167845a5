"""Decoders on disk: diffusers' folder of a StableUnCLIPImg2ImgPipeline.

It has no text encoder: the pipeline takes an encoded prompt, which seed-mini's UNet ignores.

Source: the layout of diffusers' StableUnCLIPImg2ImgPipeline.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableUnCLIPImg2ImgPipeline
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
    StableUnCLIPImageNormalizer,
)
from torch import nn

from ...files import assemble
from ...files.folder import ModelFolder
from ...models import names
from ...models.diffusers_networks import build_network, network_config
from ...models.unclip import GUIDANCE_KEY, network_tensors
from .unet import UnetLearner

_ABSENT = ("feature_extractor", "image_encoder", "tokenizer", "text_encoder")
"""Members of the pipeline that a decoder does without."""

_GUIDANCE = 2.0
"""At which seed-mini's decoder, and those trained as it was, paint best."""


def write_decoder(folder: Path, learner: UnetLearner, vae: Any, half: bool) -> None:
    """Write a decoder, over an earlier one in the folder.

    Args:
        folder: receives everything.
        learner: the diffusion model with its schedules and numbers.
        vae: makes pictures of its latents.
        half: write the weights of both networks in float16.
    """
    normalizer = StableUnCLIPImageNormalizer(embedding_dim=learner.mean.shape[-1])
    normalizer.mean.data = learner.mean.reshape(1, -1).cpu().clone()
    normalizer.std.data = learner.std.reshape(1, -1).cpu().clone()
    parts = {
        "image_normalizer": normalizer,
        "image_noising_scheduler": learner.noising,
        "unet": _to_write(learner.painter, half),
        "scheduler": learner.diffusion,
        "vae": _to_write(vae, half),
    }
    kind: Any = StableUnCLIPImg2ImgPipeline
    pipeline = kind(**parts, **dict.fromkeys(_ABSENT))
    pipeline.register_to_config(**{GUIDANCE_KEY: _GUIDANCE})
    pipeline.save_config(folder)
    for name, part in parts.items():
        part.save_pretrained(folder / name)


def write_vae(folder: Path, vae: Any, half: bool) -> None:
    """Write an autoencoder into the folder ``vae`` of a folder, as a decoder has it."""
    _to_write(vae, half).save_pretrained(folder / "vae")


def _to_write(network: Any, half: bool) -> Any:
    """Return a copy on the CPU, since training goes on with the network itself."""
    copied = copy.deepcopy(network).cpu()
    return nn.Module.to(copied, dtype=torch.float16 if half else torch.float32)


def read_vae(path: str | Path) -> Any:
    """Load an AutoencoderKL in float32.

    Args:
        path: the folder of a decoder, one that `write_vae` wrote into, or ``"seed-mini"``.

    Raises:
        CheckpointError: a file is missing, damaged, unsafe or incomplete.
    """
    folder = ModelFolder(names.place_of(path, "decoder"))
    config = network_config(folder, "vae")
    return assemble.assemble(
        lambda _: build_network(AutoencoderKL, config),
        nn,
        network_tensors(folder, "vae"),
        torch.device("cpu"),
        folder.path / "vae",
    )
