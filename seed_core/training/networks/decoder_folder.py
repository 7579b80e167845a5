"""Decoders on disk: diffusers' folder of a StableUnCLIPImg2ImgPipeline, written from trained parts.

There is no text encoder in it; the pipeline then takes an encoded prompt, which seed-mini's UNet
does not look at. What reads such a folder is `decoder.load_decoder`.

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
from ...models.unclip import network_tensors
from .unet import UnetLearner

_ABSENT = ("feature_extractor", "image_encoder", "tokenizer", "text_encoder")
"""Parts of the pipeline that a decoder does without."""


def write_decoder(folder: Path, learner: UnetLearner, vae: Any, half: bool) -> None:
    """Write a decoder; an earlier one in the folder is overwritten.

    Args:
        folder: where to.
        learner: the diffusion model with its schedules and numbers.
        vae: what makes pictures of its latents.
        half: write the weights of both networks in float16.
    """
    normalizer = StableUnCLIPImageNormalizer(embedding_dim=learner.mean.shape[-1])
    normalizer.mean.data = learner.mean.reshape(1, -1).cpu().clone()
    normalizer.std.data = learner.std.reshape(1, -1).cpu().clone()
    parts = {
        "image_normalizer": normalizer,
        "image_noising_scheduler": learner.noising,
        "unet": _to_write(learner.unet, half),
        "scheduler": learner.diffusion,
        "vae": _to_write(vae, half),
    }
    kind: Any = StableUnCLIPImg2ImgPipeline
    kind(**parts, **dict.fromkeys(_ABSENT)).save_config(folder)
    for name, part in parts.items():
        part.save_pretrained(folder / name)


def write_vae(folder: Path, vae: Any, half: bool) -> None:
    """Write an autoencoder into the folder ``vae`` of a folder, as a decoder has it."""
    _to_write(vae, half).save_pretrained(folder / "vae")


def _to_write(network: Any, half: bool) -> Any:
    """Return a copy on the CPU, as training goes on with the network itself."""
    copied = copy.deepcopy(network).cpu()
    return nn.Module.to(copied, dtype=torch.float16 if half else torch.float32)


def read_vae(path: str | Path) -> Any:
    """Load the AutoencoderKL of a decoder, or of a folder that `write_vae` wrote into, in float32.

    Args:
        path: the folder, or ``"seed-mini"`` for the bundled decoder.

    Raises:
        CheckpointError: a missing, damaged, unsafe or incomplete file.
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
