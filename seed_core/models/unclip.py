"""Opening and loading an unCLIP decoder: a diffusers folder, a converted model, or SD 2.1's one file.

Source: the layout of diffusers' StableUnCLIPImg2ImgPipeline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..compute.casting import adopt
from ..decoder.network import UnclipModel
from ..decoder.options import MOST_GUIDANCE, REFERENCE_GUIDANCE
from ..decoder.runtime import SeedDecoder
from ..errors import CheckpointError
from ..files import assemble
from ..files.assemble import EmptyNetwork
from ..files.folder import ModelFolder, TensorFiles, read_header
from ..files.weights import Reader, Tensors, looks
from . import empty_prompt, names, sd21
from .diffusers_networks import (
    SCHEDULERS,
    build_network,
    make_schedulers,
    network_config,
    read_schedulers,
)
from .opened import Opened

DECODER_LINK = "https://huggingface.co/sd2-community/stable-diffusion-2-1-unclip"

INDEX_FILE = "model_index.json"
GUIDANCE_KEY = "_guidance_scale"  # in that file; diffusers passes over names that begin so

_STEMS = ("diffusion_pytorch_model",)
_NETWORKS = ("unet", "vae")

_MEAN, _STD = "image_normalizer.mean", "image_normalizer.std"
_PROMPT = "text_encoder.empty_prompt"

# The names in `UnclipModel` and in a converted model of what is not a network's.
_SMALL = {"mean": _MEAN, "std": _STD, "text": _PROMPT}

# Names in VAE files written before diffusers 0.18, SD 2.1's among them.
_OLD_ATTENTION_NAMES = {
    "query.": "to_q.",
    "key.": "to_k.",
    "value.": "to_v.",
    "proj_attn.": "to_out.0.",
}


@dataclass(frozen=True, kw_only=True)
class OpenedDecoder(Opened):
    """An unCLIP decoder on disk."""

    scheduler: Any
    noising_scheduler: Any  # of the noise that is added to embeddings
    guidance_scale: float = REFERENCE_GUIDANCE  # at which it paints best


def load_decoder(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    operations: Any = nn,
    is_mapped: bool = True,
) -> SeedDecoder:
    """Load an unCLIP decoder.

    Args:
        path: see `open_decoder`.
        device: where to put the weights.
        dtype: float32, float16 or bfloat16.
        operations: where layers come from, ``torch.nn`` or a host's equivalent.
        is_mapped: whether files may be mapped into memory; see `files.weights.read_tensors`.

    Raises:
        CheckpointError: a file is missing, damaged, unsafe, incomplete or another pipeline's.
    """
    device = torch.device(device)
    opened = open_decoder(path, dtype)
    module = opened.load(device, is_mapped)
    for network in (module.unet, module.vae):
        adopt(network, operations)
    schedulers = opened.scheduler, opened.noising_scheduler
    return SeedDecoder(module, *schedulers, device, dtype, opened.guidance_scale)


def open_decoder(path: str | Path, dtype: torch.dtype = torch.float32) -> OpenedDecoder:
    """Read what describes a decoder, and check that its weights are all there and fit.

    Args:
        path: ``"seed-mini"`` for the bundled one; a diffusers folder of
            StableUnCLIPImg2ImgPipeline; a converted model; or SD 2.1 unCLIP-h as one file.
        dtype: of the networks.

    Raises:
        CheckpointError: a file is missing, damaged, unsafe, incomplete or another pipeline's.
    """
    place = names.place_of(path, "decoder")
    if not place.exists():
        raise CheckpointError(f"{place} does not exist; get a decoder from {DECODER_LINK}")
    if place.is_file() and read_header(place) is None and sd21.is_single_file(place):
        return _open_single_file(place, dtype)
    return _open_folder(ModelFolder(place).require("decoder"), dtype)


def _open_single_file(path: Path, dtype: torch.dtype) -> OpenedDecoder:
    look = looks()
    single = sd21.SingleFile(path, look)
    width = single.prompt.shape[-1]
    # This model was trained without statistics of image embeddings.
    numbers = {_MEAN: torch.zeros(1, width), _STD: torch.ones(1, width)}

    def stream(read: Reader) -> Tensors:
        yield from single.networks(read)
        yield from numbers.items()
        if (encoded := single.encode_prompt(read)) is not None:
            yield _PROMPT, encoded

    schedulers = (sd21.SCHEDULER, sd21.NOISING_SCHEDULER)
    scheduler, noising = make_schedulers(schedulers, (str(path),) * 2)
    configs = {"unet": sd21.UNET, "vae": sd21.VAE}
    return OpenedDecoder(
        kind="decoder",
        source=path,
        files=sd21.side_files(),
        weights=(path,),
        network=_network(configs, numbers, single.prompt.shape, path, dtype),
        stream=stream,
        look=look,
        scheduler=scheduler,
        noising_scheduler=noising,
    )


def _open_folder(folder: ModelFolder, dtype: torch.dtype) -> OpenedDecoder:
    guidance_scale = _check_pipeline(folder)
    look = looks()
    configs = {network: network_config(folder, network) for network in _NETWORKS}
    weights = {network: folder.weights(_STEMS, network) for network in _NETWORKS}
    normalizer = folder.weights(_STEMS, "image_normalizer")
    where = folder.path / "image_normalizer"
    numbers = dict(zip((_MEAN, _STD), _normalizer(normalizer, where), strict=True))
    prompt = _prompt(folder, configs["unet"]["cross_attention_dim"])

    def stream(read: Reader) -> Tensors:
        for network, files in weights.items():
            for key, tensor in files.tensors(read):
                yield f"{network}.{_present_name(key)}", tensor
        yield from numbers.items()
        if (encoded := prompt.encode(read)) is not None:
            yield _PROMPT, encoded

    small = [INDEX_FILE, *(f"{network}/config.json" for network in _NETWORKS)]
    small += [f"{scheduler}/scheduler_config.json" for scheduler in SCHEDULERS]
    files = [file for each in (*weights.values(), normalizer) for file in each.files]
    scheduler, noising = read_schedulers(folder)
    return OpenedDecoder(
        kind="decoder",
        source=folder.path,
        files=folder.read_files(small),
        weights=tuple(dict.fromkeys((*files, *prompt.files))),
        network=_network(configs, numbers, prompt.shape, folder.path, dtype),
        stream=stream,
        look=look,
        scheduler=scheduler,
        noising_scheduler=noising,
        guidance_scale=guidance_scale,
    )


def _network(
    configs: Mapping[str, Mapping[str, Any]],
    numbers: Mapping[str, torch.Tensor],
    prompt: tuple[int, ...],
    source: Path,
    dtype: torch.dtype,
) -> EmptyNetwork[UnclipModel]:
    """Return the networks of these configs, if they fit one another."""
    import diffusers

    unet = build_network(diffusers.UNet2DConditionModel, dict(configs["unet"]))
    vae = build_network(diffusers.AutoencoderKL, dict(configs["vae"]))
    mean, std = (_meta(tuple(numbers[name].shape)) for name in (_MEAN, _STD))
    _check_widths(source, unet.config, vae.config, mean.shape[-1], prompt[-1])
    model = UnclipModel(unet, vae, mean, std, _meta(prompt))

    def names_in_file(name: str) -> tuple[str]:
        return (_SMALL.get(name, name),)

    return EmptyNetwork(lambda _: model, nn, source, names_in_file, dtype=dtype)


def _check_pipeline(folder: ModelFolder) -> float:
    """Return the guidance scale at which the decoder paints best."""
    index = folder.read_json(INDEX_FILE)
    kind = index.get("_class_name")
    if kind != "StableUnCLIPImg2ImgPipeline":
        raise CheckpointError(
            f"{folder.path} is a {kind}; this needs a StableUnCLIPImg2ImgPipeline, such as "
            f"{DECODER_LINK}"
        )
    guidance_scale = index.get(GUIDANCE_KEY, REFERENCE_GUIDANCE)
    if type(guidance_scale) not in (int, float) or not 0 <= guidance_scale <= MOST_GUIDANCE:
        raise CheckpointError(
            f"{folder.path}: {GUIDANCE_KEY} in {INDEX_FILE} must be a number of "
            f"0..{MOST_GUIDANCE}; got {guidance_scale!r:.40}"
        )
    return float(guidance_scale)


def _check_widths(source: Path, unet: Any, vae: Any, embedding_dim: int, text_dim: int) -> None:
    if unet.class_embed_type != "projection":
        raise CheckpointError(
            f"{source}: the UNet takes no image embedding (class_embed_type is "
            f"{unet.class_embed_type!r:.40}, not 'projection'), so this is not an unCLIP decoder"
        )
    if len({unet.in_channels, unet.out_channels, vae.latent_channels}) > 1:
        raise CheckpointError(
            f"{source}: the UNet makes latents of {unet.out_channels} channels from "
            f"{unet.in_channels}, the VAE paints from {vae.latent_channels}"
        )
    label = unet.projection_class_embeddings_input_dim
    if label != 2 * embedding_dim:
        raise CheckpointError(
            f"{source}: the UNet takes labels {label} wide, but the image normaliser's embeddings "
            f"are {embedding_dim}, so {2 * embedding_dim} with their noise level"
        )
    if text_dim != unet.cross_attention_dim:
        raise CheckpointError(
            f"{source}: the text encoder is {text_dim} wide, the UNet takes "
            f"{unet.cross_attention_dim}"
        )


def network_tensors(folder: ModelFolder, network: str) -> Tensors:
    """Yield the tensors of unet or vae, under the names of diffusers' present releases."""
    for key, tensor in folder.weights(_STEMS, network).tensors():
        yield _present_name(key), tensor


def _present_name(key: str) -> str:
    head, attentions, tail = key.rpartition(".attentions.")
    block, _, layer = tail.partition(".")
    for old, new in _OLD_ATTENTION_NAMES.items() if attentions else ():
        if layer.startswith(old):
            return f"{head}.attentions.{block}.{new}{layer[len(old) :]}"
    return key


def _normalizer(files: TensorFiles, where: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of image embeddings, float32 ``[1, D]``."""
    tensors = files.copied("mean", "std")
    try:
        mean, std = (tensors[name].float().reshape(1, -1) for name in ("mean", "std"))
    except KeyError as error:
        raise CheckpointError(f"{where} lacks {error} of the image embeddings") from error
    for name, numbers in (("mean", mean), ("std", std)):
        assemble.check_finite(name, numbers, where)
    if mean.shape != std.shape or not mean.numel() or std.min() <= 0:
        raise CheckpointError(
            f"{where} must hold as many deviations above 0 as means; got {std.numel()} for "
            f"{mean.numel()}, the least {std.min() if std.numel() else None}"
        )
    return mean, std


@dataclass(frozen=True)
class _KnownPrompt:
    """The encoding of an empty prompt, where no text encoder has to run."""

    encoded: torch.Tensor
    files: tuple[Path, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.encoded.shape)

    def encode(self, read: Reader) -> torch.Tensor:
        return self.encoded


def _prompt(folder: ModelFolder, width: int) -> empty_prompt.FolderPrompt | _KnownPrompt:
    """Return the empty prompt of a decoder; zeros ``[1, 1, width]`` without a text encoder."""
    if folder.kind is not None:
        return _KnownPrompt(_stored_prompt(folder).float())
    listed = folder.read_json(INDEX_FILE).get("text_encoder")  # [null, null] of none
    if folder.has(empty_prompt.CONFIG_FILE) or listed not in (None, [None, None]):
        return empty_prompt.FolderPrompt(folder)
    return _KnownPrompt(torch.zeros(1, 1, width))


def _stored_prompt(folder: ModelFolder) -> torch.Tensor:
    """Return the encoding that was made when the model was converted."""
    _, _, own = _PROMPT.partition(".")
    encoded = folder.weights(_STEMS, "text_encoder").copied(own).get(own)
    if encoded is None or encoded.ndim != 3:
        raise CheckpointError(f"{folder.path} lacks {_PROMPT} [1, tokens, width]")
    assemble.check_finite(_PROMPT, encoded, folder.path)
    return encoded


def _meta(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.empty(shape, device="meta")
