"""A diffusers folder of an unCLIP pipeline: its networks, its numbers and its schedulers.

Knows the folder's layout, and how to read it without a second copy of the weights; not how a
picture is made from it (see ``decoder``).

Source: the layout of diffusers' StableUnCLIPImg2ImgPipeline.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import checkpoints
from .errors import CheckpointError
from .model_folder import ModelFolder

DECODER_LINK = "https://huggingface.co/sd2-community/stable-diffusion-2-1-unclip"

_WEIGHTS = ("diffusion_pytorch_model", "diffusion_pytorch_model.fp16")

EMPTY_PROMPT = "empty_prompt"
_TEXT_ENCODER = "text_encoder/config.json"
SCHEDULERS = ("scheduler", "image_noising_scheduler")

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


def find_unclip_folder(path: str | Path) -> ModelFolder:
    """Return the folder of a decoder, or the one file that stands for it.

    Raises:
        CheckpointError: no such folder, or a converted model of another part.
    """
    place = checkpoints.bundled("decoder") if path == checkpoints.SEED_MINI else Path(path)
    if not place.exists():
        raise CheckpointError(f"there is no folder {place}; get a decoder from {DECODER_LINK}")
    return ModelFolder(place).require("decoder")


def read_unclip_folder(
    folder: ModelFolder, device: torch.device, dtype: torch.dtype
) -> UnclipFolder:
    """Load every part of an unCLIP folder.

    Raises:
        CheckpointError: a missing, damaged, unsafe or incomplete file, or another pipeline's.
    """
    import diffusers

    check_pipeline(folder)
    unet = _load_network(folder, "unet", diffusers.UNet2DConditionModel, device, dtype)
    vae = _load_network(folder, "vae", diffusers.AutoencoderKL, device, dtype)
    mean, std = normalizer(folder)
    _check_widths(folder.path, unet, mean.shape[-1])
    text = empty_prompt(folder, unet.config.cross_attention_dim)
    module = UnclipModel(unet, vae, mean, std, text).to(device)
    return UnclipFolder(module, *(_scheduler(folder, part) for part in SCHEDULERS))


def check_pipeline(folder: ModelFolder) -> None:
    """Refuse a folder of another pipeline.

    Raises:
        CheckpointError: it is one.
    """
    kind = folder.read_json("model_index.json").get("_class_name")
    if kind != "StableUnCLIPImg2ImgPipeline":
        raise CheckpointError(
            f"{folder.path} is a {kind}; this needs a StableUnCLIPImg2ImgPipeline, such as "
            f"{DECODER_LINK}"
        )


def build_network(kind: Any, config: dict[str, Any], dtype: torch.dtype) -> Any:
    """Return one of diffusers' networks on the meta device."""
    with torch.device("meta"):
        network = kind.from_config(config)
    return nn.Module.to(network, dtype=dtype)  # diffusers' own method warns about each cast


def network_shapes(folder: ModelFolder, part: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what `network_tensors` yields."""
    shapes = folder.weights(_WEIGHTS, part).shapes()
    return {_present_name(key): shape for key, shape in shapes.items()}


def small_shapes(folder: ModelFolder, unet_config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what `small_tensors` yields, without running the text encoder."""
    mean, std = normalizer(folder)
    width = int(unet_config["cross_attention_dim"])
    if folder.part is not None:
        text = folder.weights(_WEIGHTS, "text_encoder").shapes()[EMPTY_PROMPT]
    elif folder.has(_TEXT_ENCODER):
        tokens = int(folder.read_json(_TEXT_ENCODER)["max_position_embeddings"])
        text = (1, tokens, width)
    else:
        text = (1, 1, width)
    names = ("image_normalizer.mean", "image_normalizer.std", f"text_encoder.{EMPTY_PROMPT}")
    return dict(zip(names, (tuple(mean.shape), tuple(std.shape), text), strict=True))


def small_tensors(folder: ModelFolder, unet_config: dict[str, Any]) -> checkpoints.Tensors:
    """Yield what a decoder needs besides its networks, under the names in a converted model."""
    mean, std = normalizer(folder)
    yield "image_normalizer.mean", mean
    yield "image_normalizer.std", std
    width = int(unet_config["cross_attention_dim"])
    yield f"text_encoder.{EMPTY_PROMPT}", empty_prompt(folder, width)


def network_tensors(folder: ModelFolder, part: str) -> checkpoints.Tensors:
    """Yield the tensors of one of diffusers' networks, under the names of its present releases."""
    for key, tensor in folder.weights(_WEIGHTS, part).tensors():
        yield _present_name(key), tensor


def _load_network(
    folder: ModelFolder, part: str, kind: Any, device: torch.device, dtype: torch.dtype
) -> Any:
    """Load one of diffusers' networks without a second copy of its weights."""
    config = folder.read_json(f"{part}/config.json")

    build = partial(build_network, kind, config, dtype)
    source = folder.path / part if folder.part is None else folder.path
    return checkpoints.assemble(
        lambda _: build(), nn, network_tensors(folder, part), device, source
    )


def _present_name(key: str) -> str:
    head, attentions, tail = key.rpartition(".attentions.")
    block, _, layer = tail.partition(".")
    for old, new in _OLD_ATTENTION_NAMES.items() if attentions else ():
        if layer.startswith(old):
            return f"{head}.attentions.{block}.{new}{layer[len(old) :]}"
    return key


def normalizer(folder: ModelFolder) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of image embeddings, float32 ``[1, D]``."""
    tensors = dict(folder.weights(_WEIGHTS, "image_normalizer").tensors())
    try:
        return tensors["mean"].float().reshape(1, -1), tensors["std"].float().reshape(1, -1)
    except KeyError as error:
        raise CheckpointError(
            f"{folder.path / 'image_normalizer'} lacks {error} of the image embeddings"
        ) from error


def _check_widths(folder: Path, unet: Any, embedding_dim: int) -> None:
    label = unet.config.projection_class_embeddings_input_dim
    if label != 2 * embedding_dim:
        raise CheckpointError(
            f"{folder}: the UNet takes labels {label} wide, but the image normaliser's embeddings "
            f"are {embedding_dim}, so {2 * embedding_dim} with their noise level"
        )


def _scheduler(folder: ModelFolder, part: str) -> Any:
    """Return the scheduler that a config names."""
    import diffusers

    config = folder.read_json(f"{part}/scheduler_config.json")
    name = str(config.get("_class_name"))
    kind = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if kind is None:
        raise CheckpointError(
            f"{folder.path / part} names the scheduler {name!r}, which diffusers lacks"
        )
    return kind.from_config(config)


def empty_prompt(folder: ModelFolder, width: int) -> torch.Tensor:
    """Return the encoding of "" ``[1, tokens, width]``; zeros where there is no text encoder.

    A converted model holds it in the place of the text encoder.
    """
    if folder.part is not None:
        return dict(folder.weights(_WEIGHTS, "text_encoder").tensors())[EMPTY_PROMPT].float()
    if not folder.has(_TEXT_ENCODER):
        return torch.zeros(1, 1, width)
    words = folder.path / "tokenizer"
    if not any((words / name).is_file() for name in ("vocab.json", "tokenizer.json")):
        # transformers would go on with an empty vocabulary, and every picture be a little wrong
        raise CheckpointError(
            f"{folder.path} has a text encoder, but no vocab.json in {words.name}"
        )
    encoded = _encode_nothing(words, folder.path / "text_encoder")
    if encoded.shape[-1] != width:
        raise CheckpointError(
            f"{folder.path}: the text encoder is {encoded.shape[-1]} wide, the UNet takes {width}"
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
