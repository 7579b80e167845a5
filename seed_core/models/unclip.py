"""A diffusers folder of an unCLIP pipeline: its networks, its numbers and its schedulers.

Knows the folder's layout, and how to read it without a second copy of the weights; not how a
picture is made from it (see ``decoder``).

Source: the layout of diffusers' StableUnCLIPImg2ImgPipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..compute.casting import adopt
from ..errors import CheckpointError
from ..files import assemble, pickled, weights
from ..files.folder import ModelFolder
from ..ranges import Range, check_number
from . import names

DECODER_LINK = "https://huggingface.co/sd2-community/stable-diffusion-2-1-unclip"

_WEIGHTS = ("diffusion_pytorch_model", "diffusion_pytorch_model.fp16")

EMPTY_PROMPT = "empty_prompt"
_TEXT_ENCODER = "text_encoder/config.json"
SCHEDULERS = ("scheduler", "image_noising_scheduler")

_WHOLE: Range = (-(2**17), 2**17)
"""Of sizes in configs whose networks are diffusers'; that of each is known there."""

_REPEATS = {
    "layers_per_block": (1, 8),
    "transformer_layers_per_block": (1, 16),
    "reverse_transformer_layers_per_block": (1, 16),
    "num_hidden_layers": (1, 64),
}
"""Of sizes that say how many layers are built."""

_NEEDED: dict[str, dict[str, Range]] = {
    "unet": {"sample_size": (1, 1024), "cross_attention_dim": (1, 2**16)},
    "vae": {"scaling_factor": (1e-6, 1e6)},
    "text_encoder": {"max_position_embeddings": (1, 4096)},
}
"""Numbers that are used here too."""

_MOST_BLOCKS = 8
_BLOCKS = ("block_out_channels", "down_block_types", "up_block_types")

_OLD_ATTENTION_NAMES = {
    "query.": "to_q.",
    "key.": "to_k.",
    "value.": "to_v.",
    "proj_attn.": "to_out.0.",
}
"""Names in VAE files written before diffusers 0.18, SD 2.1's among them."""


_ARBITRARY = {torch.empty, torch.rand, torch.randn, torch.randint, torch.randperm, torch.normal}
"""What makes tensors whose numbers do not matter, as a file's come in their place."""

_FILLS = {torch.Tensor.fill_, torch.Tensor.zero_}


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
    place = names.bundled("decoder") if path == names.SEED_MINI else Path(path)
    if not place.exists():
        raise CheckpointError(f"there is no folder {place}; get a decoder from {DECODER_LINK}")
    return ModelFolder(place).require("decoder")


def read_unclip_folder(
    folder: ModelFolder, device: torch.device, dtype: torch.dtype, operations: Any = nn
) -> UnclipFolder:
    """Load every part of an unCLIP folder.

    Args:
        folder: see `find_unclip_folder`.
        device: where to put the weights.
        dtype: of the weights.
        operations: whose layers the networks get, ``torch.nn`` or a host's equivalent.

    Raises:
        CheckpointError: a missing, damaged, unsafe or incomplete file, or another pipeline's.
    """
    import diffusers

    check_pipeline(folder)
    unet = _load_network(folder, "unet", diffusers.UNet2DConditionModel, device, dtype)
    vae = _load_network(folder, "vae", diffusers.AutoencoderKL, device, dtype)
    schedulers = check_fit(folder, unet, vae)
    mean, std = normalizer(folder)
    text = empty_prompt(folder, unet.config.cross_attention_dim)
    numbers = (numbers.to(device) for numbers in (mean, std, text))
    module = UnclipModel(adopt(unet, operations), adopt(vae, operations), *numbers)
    return UnclipFolder(module, *schedulers)


def check_fit(folder: ModelFolder, unet: Any, vae: Any) -> list[Any]:
    """Return the two schedulers of a decoder whose parts belong together.

    Raises:
        CheckpointError: they do not, or a scheduler that is missing or unknown.
    """
    mean, _ = normalizer(folder)
    _check_widths(folder.path, unet, vae, mean.shape[-1])
    return [read_scheduler(folder, part) for part in SCHEDULERS]


def weight_files(folder: ModelFolder) -> tuple[Path, ...]:
    """Return every weight file of a decoder."""
    parts = [folder.weights(_WEIGHTS, part) for part in ("unet", "vae", "image_normalizer")]
    files = [file for weights in parts for file in weights.files]
    if folder.part is None:
        files += sorted((folder.path / "text_encoder").glob("*.safetensors"))
    return tuple(dict.fromkeys(files))


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


def network_config(folder: ModelFolder, part: str) -> dict[str, Any]:
    """Return the config of unet or vae, or of the text encoder.

    Raises:
        CheckpointError: none there, or sizes that no such network has.
    """
    name = f"{part}/config.json"
    config = folder.read_json(name)
    where = f"{name} of {folder.path}"
    _check_sizes(config, where)
    for field, allowed in _NEEDED[part].items():
        check_number(f"{field} in {where}", config.get(field), allowed)
    return config


def _check_sizes(config: dict[str, Any], where: str) -> None:
    """Refuse numbers that would have a library build a network without end."""
    for name, value in config.items():
        if name in _BLOCKS and (not isinstance(value, list) or len(value) > _MOST_BLOCKS):
            raise CheckpointError(f"{where} must list up to {_MOST_BLOCKS} blocks in {name}")
        for number in _flat(value):
            if isinstance(number, float):
                check_number(f"{name} in {where}", number, (-1e9, 1e9))
            elif isinstance(number, int) and not isinstance(number, bool):
                check_number(f"{name} in {where}", number, _REPEATS.get(name, _WHOLE))


def _flat(value: Any) -> Iterator[Any]:
    """Yield what a value of JSON holds, at any depth."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for inside in value:
            yield from _flat(inside)
    else:
        yield value


class _WithoutWeights(TorchFunctionMode):
    """Puts parameters on the meta device and draws no first values for them; tables are computed.

    ``torch.device("meta")`` would make tables too of nothing, and runs every initialiser.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _ARBITRARY and kwargs.get("device") is None:
            return func(*args, **{**kwargs, "device": "meta"})
        if getattr(func, "__module__", None) == nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        if func in _FILLS and args[0].is_meta:
            return args[0]
        return func(*args, **kwargs)


def build_network(kind: Any, config: dict[str, Any], dtype: torch.dtype = torch.float32) -> Any:
    """Return one of diffusers' networks on the meta device.

    Raises:
        CheckpointError: a config that diffusers cannot build from.
    """
    try:
        with _WithoutWeights():
            network = kind.from_config(config)
    except Exception as error:  # of any kind: diffusers checks little
        raise CheckpointError(
            f"diffusers can make no {kind.__name__} from its config.json: {error!r:.200}"
        ) from error
    if next(network.parameters()).dtype == dtype:
        return network
    return nn.Module.to(network, dtype=dtype)  # diffusers' own method warns about each cast


def network_shapes(folder: ModelFolder, part: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what `network_tensors` yields."""
    shapes = folder.weights(_WEIGHTS, part).shapes()
    return {_present_name(key): shape for key, shape in shapes.items()}


def small_shapes(folder: ModelFolder, unet_config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what `small_tensors` yields, without running the text encoder."""
    mean, std = normalizer(folder)
    width = unet_config["cross_attention_dim"]
    if folder.part is not None:
        text = tuple(_stored_prompt(folder).shape)
    elif folder.has(_TEXT_ENCODER):
        tokens = network_config(folder, "text_encoder")["max_position_embeddings"]
        text = (1, tokens, width)
    else:
        text = (1, 1, width)
    names = ("image_normalizer.mean", "image_normalizer.std", f"text_encoder.{EMPTY_PROMPT}")
    return dict(zip(names, (tuple(mean.shape), tuple(std.shape), text), strict=True))


def small_tensors(folder: ModelFolder, unet_config: dict[str, Any]) -> weights.Tensors:
    """Yield what a decoder needs besides its networks, under the names in a converted model."""
    mean, std = normalizer(folder)
    yield "image_normalizer.mean", mean
    yield "image_normalizer.std", std
    width = unet_config["cross_attention_dim"]
    yield f"text_encoder.{EMPTY_PROMPT}", empty_prompt(folder, width)


def network_tensors(folder: ModelFolder, part: str) -> weights.Tensors:
    """Yield the tensors of one of diffusers' networks, under the names of its present releases."""
    for key, tensor in folder.weights(_WEIGHTS, part).tensors():
        yield _present_name(key), tensor


def _load_network(
    folder: ModelFolder, part: str, kind: Any, device: torch.device, dtype: torch.dtype
) -> Any:
    """Load one of diffusers' networks without a second copy of its weights."""
    config = network_config(folder, part)
    source = folder.path / part if folder.part is None else folder.path
    network = assemble.assemble(
        lambda _: build_network(kind, config),
        nn,
        network_tensors(folder, part),
        device,
        source,
        dtype=dtype,
    )
    tables = list(network.named_buffers())
    if lost := [name for name, table in tables if table.is_meta]:
        raise CheckpointError(f"{source} has no {lost[0]}, which its network draws at random")
    return nn.Module.to(network, device) if tables else network


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
    where = folder.path / "image_normalizer"
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


def _check_widths(folder: Path, unet: Any, vae: Any, embedding_dim: int) -> None:
    if unet.config.class_embed_type != "projection":
        raise CheckpointError(
            f"{folder}: the UNet takes no image embedding (class_embed_type is "
            f"{unet.config.class_embed_type!r:.40}, not 'projection'), so it is no unCLIP decoder"
        )
    channels = {unet.config.in_channels, unet.config.out_channels, vae.config.latent_channels}
    if len(channels) > 1:
        raise CheckpointError(
            f"{folder}: the UNet makes latents of {unet.config.out_channels} channels from "
            f"{unet.config.in_channels}, the VAE paints from {vae.config.latent_channels}"
        )
    label = unet.config.projection_class_embeddings_input_dim
    if label != 2 * embedding_dim:
        raise CheckpointError(
            f"{folder}: the UNet takes labels {label} wide, but the image normaliser's embeddings "
            f"are {embedding_dim}, so {2 * embedding_dim} with their noise level"
        )


def read_scheduler(folder: ModelFolder, part: str) -> Any:
    """Return the scheduler that a config names.

    Raises:
        CheckpointError: one that diffusers lacks, or cannot make from its config.
    """
    import diffusers

    config = folder.read_json(f"{part}/scheduler_config.json")
    where = f"{part}/scheduler_config.json of {folder.path}"
    _check_sizes(config, where)
    name = str(config.get("_class_name"))
    kind = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if kind is None:
        raise CheckpointError(
            f"{folder.path / part} names the scheduler {name!r}, which diffusers lacks"
        )
    try:
        scheduler = kind.from_config(config)
    except Exception as error:  # of any kind: diffusers checks little
        raise CheckpointError(f"{where} makes no {name}: {error!r:.200}") from error
    check_number(
        f"num_train_timesteps in {where}", scheduler.config.num_train_timesteps, (1, 2**16)
    )
    return scheduler


def empty_prompt(folder: ModelFolder, width: int) -> torch.Tensor:
    """Return the encoding of "" ``[1, tokens, width]``; zeros where there is no text encoder.

    A converted model holds it in the place of the text encoder.
    """
    if folder.part is not None:
        return _stored_prompt(folder).float()
    if not folder.has(_TEXT_ENCODER):
        return torch.zeros(1, 1, width)
    words = folder.path / "tokenizer"
    if not any((words / name).is_file() for name in ("vocab.json", "tokenizer.json")):
        # transformers would go on with an empty vocabulary, and every picture be a little wrong
        raise CheckpointError(
            f"{folder.path} has a text encoder, but no vocab.json in {words.name}"
        )
    network = folder.path / "text_encoder"
    tokens = network_config(folder, "text_encoder")["max_position_embeddings"]
    for file in network.glob("*.bin"):
        pickled.check_pickled(file)
    encoded = _encode_nothing(words, network, tokens)
    if encoded.shape[-1] != width:
        raise CheckpointError(
            f"{folder.path}: the text encoder is {encoded.shape[-1]} wide, the UNet takes {width}"
        )
    return encoded


def _stored_prompt(folder: ModelFolder) -> torch.Tensor:
    """Return what `empty_prompt` was when the model was converted."""
    encoded = dict(folder.weights(_WEIGHTS, "text_encoder").tensors()).get(EMPTY_PROMPT)
    if encoded is None or encoded.ndim != 3:
        raise CheckpointError(f"{folder.path} lacks text_encoder.{EMPTY_PROMPT} [1, tokens, width]")
    assemble.check_finite(EMPTY_PROMPT, encoded, folder.path)
    return encoded


def _encode_nothing(words: Path, network: Path, length: int) -> torch.Tensor:
    """Return what a text encoder makes of "", float32 ``[1, length, width]``."""
    from transformers import CLIPTextModel, CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(words, local_files_only=True)
        load: Any = CLIPTextModel.from_pretrained  # its types do not know output_loading_info
        encoder, report = load(network, local_files_only=True, output_loading_info=True)
        if tokenizer.model_max_length != length:  # its config is damaged, and may pad otherwise too
            raise ValueError(f"{length} tokens are encoded, {tokenizer.model_max_length} made")
        tokens = tokenizer("", padding="max_length", max_length=length, return_tensors="pt")
        with torch.inference_mode():
            encoded: torch.Tensor = encoder(tokens.input_ids)[0]
    except Exception as error:  # of any kind: tokenizers raises nothing narrower
        raise CheckpointError(f"{network} and {words} cannot be read: {error}") from error
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(f"{network} lacks {len(missing)} tensors: {', '.join(missing[:10])}")
    return encoded.float().clone()
