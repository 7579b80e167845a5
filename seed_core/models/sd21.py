"""Stable Diffusion 2.1 unCLIP-h as one file in its makers' own format, such as sd21-unclip-h.ckpt.

Such a file holds weights and nothing else, so the sizes stand here. diffusers knows what its own
networks call those weights.

Source: Stability-AI/stablediffusion, configs/stable-diffusion/v2-1-stable-unclip-h-inference.yaml at
5ca06055, and the config files of its diffusers folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ..errors import CheckpointError
from ..files import weights
from ..files.weights import Reader, Tensors
from .empty_prompt import PromptEncoder

UNET: dict[str, Any] = {
    "sample_size": 96,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
    "class_embed_type": "projection",
    "projection_class_embeddings_input_dim": 2048,
}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
    "sample_size": 768,
}
SCHEDULER: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "skip_prk_steps": True,
    "steps_offset": 1,
}
NOISING_SCHEDULER = {"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2"}
TEXT_ENCODER: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,  # of 24: the UNet was trained on what the last but one makes
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "max_position_embeddings": 77,
}
# Token ids of the empty prompt; SD 2 fills up with zeros.
_BEGIN, _END, _PAD = 49406, 49407, 0

_UNET_PREFIX = "model.diffusion_model."
_TEXT_PREFIX = "cond_stage_model."
_LABEL = f"{_UNET_PREFIX}label_emb.0.0.weight"


def is_single_file(path: Path) -> bool:
    """Tell a whole Stable Diffusion by the names of its tensors."""
    return any(key.startswith(_UNET_PREFIX) for key in weights.read_keys(path))


class SingleFile:
    """Where the tensors of such a file go; `CheckpointError` if it is another Stable Diffusion."""

    def __init__(self, path: Path, look: Reader) -> None:
        self._path = path
        stand_ins = dict(look(path, ""))
        label = stand_ins.get(_LABEL)
        if label is None or label.shape[-1] != UNET["projection_class_embeddings_input_dim"]:
            raise CheckpointError(
                f"{path} is a Stable Diffusion that takes no image embedding of SEED; a decoder is "
                "made of SD 2.1 unCLIP-h (sd21-unclip-h)"
            )
        try:
            self._places = _places(stand_ins)
        except (KeyError, AttributeError, IndexError) as error:
            raise CheckpointError(f"{path} lacks tensors of the model: {error!r:.200}") from error
        length = TEXT_ENCODER["max_position_embeddings"]
        token_ids = [_BEGIN, _END, *[_PAD] * (length - 2)]
        self.prompt = PromptEncoder(TEXT_ENCODER, token_ids, path)
        self.prompt.check(self._text_tensors(look))

    def networks(self, read: Reader) -> Tensors:
        """Yield the tensors of UNet and VAE, one at a time, under the names of a converted model."""
        for key, tensor in read(self._path, ""):
            for name, shape in self._places.get(key, ()):
                yield name, tensor.reshape(shape)

    def encode_prompt(self, read: Reader) -> torch.Tensor | None:
        """Return what the text encoder makes of "", float32 ``[1, 77, 1024]``, or a stand-in."""
        return self.prompt.encode(self._text_tensors(read))

    def _text_tensors(self, read: Reader) -> Tensors:
        """Return the tensors of the text encoder under transformers' names."""
        encoder = SimpleNamespace(config=SimpleNamespace(**TEXT_ENCODER))
        stored = dict(read(self._path, _TEXT_PREFIX))
        convert = _diffusers_names().convert_open_clip_checkpoint
        try:
            found: dict[str, torch.Tensor] = convert(encoder, stored)
        except IndexError as error:
            raise CheckpointError(f"{self._path}: its text encoder is damaged: {error}") from error
        return found.items()


def _places(
    stand_ins: Mapping[str, torch.Tensor],
) -> dict[str, list[tuple[str, tuple[int, ...]]]]:
    """Return by each name in the file where diffusers has that tensor: names and shapes.

    diffusers renames whole tables of tensors. Given stand-ins, it shows where each one goes, and
    the tensors themselves can follow one at a time.
    """
    names = _diffusers_names()
    found = {
        "unet": names.convert_ldm_unet_checkpoint(dict(stand_ins), dict(UNET)),
        "vae": names.convert_ldm_vae_checkpoint(dict(stand_ins), dict(VAE)),
    }
    # It may cut off dimensions of size 1, which makes a view with the storage of the stand-in.
    keys = {tensor.untyped_storage()._cdata: key for key, tensor in stand_ins.items()}
    places: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for network, tensors in found.items():
        for name, tensor in tensors.items():
            key = keys[tensor.untyped_storage()._cdata]
            if tensor.numel() != stand_ins[key].numel():
                raise IndexError(f"{key} {list(stand_ins[key].shape)}")
            places.setdefault(key, []).append((f"{network}.{name}", tuple(tensor.shape)))
    return places


def _diffusers_names() -> Any:
    """Return diffusers' own tables of names, which have no types."""
    from diffusers.loaders import single_file_utils

    return single_file_utils


def side_files() -> dict[str, bytes]:
    """Return the small files that a diffusers folder of this model has."""
    contents = {
        "model_index.json": {"_class_name": "StableUnCLIPImg2ImgPipeline"},
        "unet/config.json": UNET,
        "vae/config.json": VAE,
        "scheduler/scheduler_config.json": SCHEDULER,
        "image_noising_scheduler/scheduler_config.json": NOISING_SCHEDULER,
    }
    return {name: json.dumps(fields, indent=1).encode() for name, fields in contents.items()}
