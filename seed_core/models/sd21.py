"""Stable Diffusion 2.1 unCLIP-h as one file in its makers' own format, such as sd21-unclip-h.ckpt.

Such a file holds weights and nothing else, so the sizes stand here. diffusers knows what its own
networks call those weights. Knows this one model, not how a picture is made from it.

Source: Stability-AI/stablediffusion, configs/stable-diffusion/v2-1-stable-unclip-h-inference.yaml at
5ca06055, and the config files of its diffusers folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from ..files import weights
from .unclip import EMPTY_PROMPT

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
_BEGIN, _END, _PAD = 49406, 49407, 0
"""Token ids of the empty prompt; SD 2 fills up with zeros."""

_UNET_PREFIX = "model.diffusion_model."
_LABEL = f"{_UNET_PREFIX}label_emb.0.0.weight"


def is_single_file(path: Path) -> bool:
    """Tell a whole Stable Diffusion by the names of its tensors."""
    return any(key.startswith(_UNET_PREFIX) for key in weights.read_keys(path))


class SingleFile:
    """The tensors of such a file under diffusers' names.

    Attributes:
        networks: of unet and vae, read when they are used.

    Raises:
        CheckpointError: a damaged file, or another Stable Diffusion.
    """

    def __init__(self, path: Path) -> None:
        names = _diffusers_names()
        self._path = path
        self._tensors = dict(weights.read_tensors(path))
        label = self._tensors.get(_LABEL)
        if label is None or label.shape[-1] != UNET["projection_class_embeddings_input_dim"]:
            raise CheckpointError(
                f"{path} is a Stable Diffusion that takes no image embedding of SEED; a decoder is "
                "made of SD 2.1 unCLIP-h (sd21-unclip-h)"
            )
        try:
            self.networks: dict[str, dict[str, torch.Tensor]] = {
                "unet": names.convert_ldm_unet_checkpoint(dict(self._tensors), dict(UNET)),
                "vae": names.convert_ldm_vae_checkpoint(dict(self._tensors), dict(VAE)),
            }
        except (KeyError, AttributeError, IndexError) as error:
            raise CheckpointError(f"{path} lacks parts of the model: {error!r:.200}") from error

    def small_tensors(self) -> dict[str, torch.Tensor]:
        """Return what a decoder needs besides its networks, under a converted model's names.

        This model was trained without statistics of image embeddings.
        """
        width = UNET["cross_attention_dim"]
        return {
            "image_normalizer.mean": torch.zeros(1, width),
            "image_normalizer.std": torch.ones(1, width),
            f"text_encoder.{EMPTY_PROMPT}": self.empty_prompt(),
        }

    def empty_prompt(self) -> torch.Tensor:
        """Return what the text encoder in the file makes of "", float32 ``[1, 77, 1024]``.

        Raises:
            CheckpointError: a file without all of it.
        """
        from transformers import CLIPTextConfig, CLIPTextModel

        with torch.device("meta"):
            encoder: Any = CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER))
        encoder.eval()
        stored = _diffusers_names().convert_open_clip_checkpoint(encoder, self._tensors)
        # transformers 5 leaves out the name of the only part.
        found = {key.removeprefix("text_model."): tensor for key, tensor in stored.items()}
        wanted = {key: key.removeprefix("text_model.") for key in encoder.state_dict()}
        if missing := [key for key in wanted.values() if key not in found]:
            raise CheckpointError(
                f"{self._path} lacks {len(missing)} tensors of its text encoder, such as "
                f"{missing[0]}"
            )
        state = {key: found[short].float() for key, short in wanted.items()}
        encoder.load_state_dict(state, strict=True, assign=True)
        length = TEXT_ENCODER["max_position_embeddings"]
        token_ids = torch.tensor([[_BEGIN, _END, *[_PAD] * (length - 2)]])
        with torch.inference_mode():
            # Positions are given, as the encoder's own were made without memory too.
            encoded: torch.Tensor = encoder(token_ids, position_ids=torch.arange(length)[None])[0]
        return encoded.clone()


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
