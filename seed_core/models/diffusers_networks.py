"""Networks and schedulers of diffusers and transformers, made from the config files of a decoder.

These libraries check little, so numbers are checked here before anything is built from them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..decoder.preview import COLOURS_KEY
from ..decoder.rehearsal import misfit, misfit_of_noising
from ..errors import CheckpointError
from ..files.folder import ModelFolder
from ..ranges import Range, check_number

# Of sizes in configs whose networks are diffusers'; that of each is known there.
_WHOLE: Range = (-(2**17), 2**17)

# Of sizes that say how many layers are built.
_REPEATS = {
    "layers_per_block": (1, 8),
    "transformer_layers_per_block": (1, 16),
    "reverse_transformer_layers_per_block": (1, 16),
    "num_hidden_layers": (1, 64),
}

# Numbers that are used here too.
_NEEDED: dict[str, dict[str, Range]] = {
    "unet": {"sample_size": (1, 1024), "cross_attention_dim": (1, 2**16)},
    "vae": {"scaling_factor": (1e-6, 1e6)},
    "text_encoder": {"max_position_embeddings": (1, 4096)},
}

# What moves latents in models of other kinds; with it the decoder's would be painted wrongly.
_NOT_SET = {"vae": ("shift_factor", "latents_mean", "latents_std")}

_MOST_BLOCKS = 8
_BLOCKS = ("block_out_channels", "down_block_types", "up_block_types")

# What makes tensors whose numbers do not matter, as a file's come in their place.
_ARBITRARY = {torch.empty, torch.rand, torch.randn, torch.randint, torch.randperm, torch.normal}

_FILLS = {torch.Tensor.fill_, torch.Tensor.zero_}


SCHEDULERS = ("scheduler", "image_noising_scheduler")

_ADVICE = (
    "Put the scheduler_config.json there that came with the decoder, or give it the _class_name of "
    "a scheduler of Stable Diffusion, such as DDIMScheduler or EulerDiscreteScheduler, with the "
    "beta_start, beta_end, beta_schedule and prediction_type that the decoder was trained with; for "
    "image_noising_scheduler, DDPMScheduler"
)


def network_config(folder: ModelFolder, network: str) -> dict[str, Any]:
    """Return the config of unet or vae, or of the text encoder.

    Raises:
        CheckpointError: the config is missing, or has sizes that no such network has.
    """
    name = f"{network}/config.json"
    config = folder.read_json(name)
    where = f"{name} of {folder.path}"
    _check_sizes(config, where)
    _check_colours(config, where)
    for field, allowed in _NEEDED[network].items():
        check_number(f"{field} in {where}", config.get(field), allowed)
    if given := [field for field in _NOT_SET.get(network, ()) if config.get(field)]:
        raise CheckpointError(
            f"{where} sets {', '.join(given)}, which a Stable Diffusion 2.1 decoder does not have: it "
            f"belongs to another kind of model. Use the decoder's own {network} with its config.json."
        )
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


def _check_colours(config: dict[str, Any], where: str) -> None:
    """Refuse colours of latents that are not three numbers for each channel and for none."""
    colours, channels = config.get(COLOURS_KEY), config.get("latent_channels")
    if colours is None:
        return
    rows = colours if isinstance(colours, list) else []
    shape = [len(row) if isinstance(row, list) else 0 for row in rows]
    # Of no number of channels that is one, diffusers says more.
    count = channels + 1 if type(channels) is int and channels > 0 else len(rows)
    if not rows or shape != [3] * count or not {type(x) for x in _flat(rows)} <= {int, float}:
        raise CheckpointError(f"{COLOURS_KEY} in {where} must be {count} rows of three numbers")


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
    """Puts parameters on the meta device and draws no first values for them.

    ``torch.device("meta")`` would leave computed tables empty too, and runs every initialiser.
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


def build_network(kind: Any, config: dict[str, Any]) -> Any:
    """Return one of diffusers' networks on the meta device; `CheckpointError` if it fails."""
    return without_weights(
        lambda: kind.from_config(config), f"diffusers cannot make a {kind.__name__}"
    )


def without_weights(make: Callable[[], Any], failure: str) -> Any:
    """Return what ``make`` makes, on the meta device; ``failure`` begins the error's message."""
    try:
        with _WithoutWeights():
            return make()
    except Exception as error:  # of any kind: these libraries check little
        raise CheckpointError(f"{failure} from its config.json: {error!r:.200}") from error


def read_schedulers(folder: ModelFolder) -> tuple[Any, Any]:
    """Return the `SCHEDULERS` of a folder; see `make_schedulers`."""
    names = [f"{scheduler}/scheduler_config.json" for scheduler in SCHEDULERS]
    configs = [folder.read_json(name) for name in names]
    return make_schedulers(configs, [f"{name} of {folder.path}" for name in names])


def make_schedulers(configs: Sequence[dict[str, Any]], where: Sequence[str]) -> tuple[Any, Any]:
    """Return the scheduler of diffusion, and that of the noise added to embeddings.

    Args:
        configs: of the two.
        where: what each config is, for messages.

    Raises:
        CheckpointError: diffusers has no such scheduler, or it does not fit a decoder.
    """
    made = _make_scheduler(configs[0], where[0]), _make_scheduler(configs[1], where[1])
    why_not = misfit(made[0]), misfit_of_noising(made[1])
    for config, source, why in zip(configs, where, why_not, strict=True):
        if why:
            raise CheckpointError(
                f"{source} names {config['_class_name']}, which does not fit this decoder: {why}. "
                + _ADVICE
            )
    return made


def _make_scheduler(config: dict[str, Any], where: str) -> Any:
    import diffusers

    _check_sizes(config, where)
    if "_class_name" not in config:
        raise CheckpointError(f"{where} names no scheduler: _class_name is missing. {_ADVICE}")
    name = str(config["_class_name"])
    try:
        kind = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
        scheduler = None if kind is None else kind.from_config(config)
    except Exception as error:  # of any kind: diffusers checks little
        raise CheckpointError(
            f"diffusers cannot make a {name} from {where}: {error!r:.200}. {_ADVICE}"
        ) from error
    if scheduler is None:
        raise CheckpointError(
            f"{where} names the scheduler {name!r:.80}, which diffusers {diffusers.__version__} "
            f"lacks. {_ADVICE}"
        )
    if "num_train_timesteps" in scheduler.config:
        steps = scheduler.config.num_train_timesteps
        check_number(f"num_train_timesteps in {where}", steps, (1, 2**16))
    return scheduler
