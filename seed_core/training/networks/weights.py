"""Weights of networks in training: their first values, their checkpoints, their files.

`seed_core`'s networks are built to be filled from files, so their parameters hold nothing at first.
Files get upstream's names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import nn

from ...files import assemble, weights
from ...models import names
from ..processes import is_first_process

Module = TypeVar("Module", bound=nn.Module)

# Standard deviation of new tokens, positions and tables, as in BERT.
TOKEN_STD = 0.02

_TOWER = "visual_encoder."


def initialize(network: nn.Module) -> None:
    """Give a network its first values: truncated normal, biases zero, norms one."""
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias":
                nn.init.zeros_(parameter)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(parameter)
            else:
                # The inverse root of a layer's inputs keeps the size of what passes through. At the
                # reference's widths that is about its 0.02, with which narrow networks hardly
                # learn.
                is_layer = isinstance(module, (nn.Linear, nn.Conv2d))
                std = parameter[0].numel() ** -0.5 if is_layer else TOKEN_STD
                initialize_tokens(parameter, std)


def initialize_tokens(parameter: nn.Parameter, std: float = TOKEN_STD) -> None:
    """Fill with a normal distribution, cut at two standard deviations."""
    nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std)


def materialize(network: nn.Module) -> None:
    """Give memory to the parameters on the meta device; it holds nothing yet."""
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                setattr(module, name, nn.Parameter(torch.empty_like(parameter, device="cpu")))


def leave_out(network: nn.Module, is_left_out: Callable[[str], bool]) -> None:
    """Keep the tensors whose names match out of a network's checkpoints.

    This is for frozen networks, whose values come from their own files, and for shared tensors.
    Loading a checkpoint keeps their values.
    """

    def drop(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
        for key in [k for k in state if is_left_out(k.removeprefix(prefix))]:
            del state[key]

    def put_back(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        for name, tensor in _all_tensors(module):
            if is_left_out(name):
                state.setdefault(prefix + name, tensor)

    network.register_state_dict_post_hook(drop)
    network.register_load_state_dict_pre_hook(put_back)


def _all_tensors(network: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what ``state_dict`` has when nothing is left out."""
    for place, module in network.named_modules(remove_duplicate=False):
        kept = {
            **module._parameters,
            **{
                k: v
                for k, v in module._buffers.items()
                if k not in module._non_persistent_buffers_set
            },
        }
        for name, tensor in kept.items():
            if tensor is not None:
                yield f"{place}.{name}" if place else name, tensor.detach()


def keep_key_bias_zero(tower: nn.Module) -> None:
    """Train a vision tower without the key biases, which its files have no place for."""
    # A key bias shifts all scores of a query alike, so its gradient is only rounding; an optimizer
    # that scales gradients would still move it.
    for name, parameter in tower.named_parameters():
        if name.endswith("qkv.bias"):
            parameter.register_hook(_without_keys)


def _without_keys(gradient: torch.Tensor) -> torch.Tensor:
    query, key, value = gradient.chunk(3)
    return torch.cat((query, torch.zeros_like(key), value))


def upstream_tensors(network: nn.Module, part: str = "") -> dict[str, torch.Tensor]:
    """Return the tensors of a `TokenizerModel` by upstream's names, or of its module ``part``."""
    tensors = {}
    for name, tensor in _all_tensors(network):
        keys = names.upstream_tokenizer_names(f"{part}.{name}" if part else name)
        for key, rows in zip(keys, _rows(tensor, len(keys)), strict=True):
            if key is not None:
                tensors[key] = rows
    return tensors


def _rows(tensor: torch.Tensor, parts: int) -> tuple[torch.Tensor, ...]:
    return (tensor,) if parts == 1 else tensor.chunk(parts)


def write_tensors(
    path: Path, tensors: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32
) -> None:
    """Write a safetensors file; of several processes only the first does."""
    if is_first_process():
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {k: tensor.to("cpu", dtype).contiguous() for k, tensor in tensors.items()}
        save_file(content, path, metadata={"format": "pt"})


def load_module(build: Callable[[Any], Module], part: str, path: Path) -> Module:
    """Fill a module of a tokenizer from a file with upstream's names; it comes frozen.

    Args:
        build: makes the module on the meta device, with the layers that it is given.
        part: the module's name in a `TokenizerModel`: visual_encoder, image_norm or qformer.
        path: the file. The names of a vision tower may lack their beginning, as in EVA's own file.

    Raises:
        CheckpointError: the file is missing, damaged or lacks the module.
    """
    keys = weights.read_keys(path)
    lacks_beginning = part == "visual_encoder" and not _begins(keys, _TOWER)
    tensors = (
        (_TOWER + key if lacks_beginning else key, tensor.clone())
        for key, tensor in weights.read_tensors(path)
    )
    return assemble.assemble(
        build,
        nn,
        tensors,
        torch.device("cpu"),
        path,
        lambda name: names.upstream_tokenizer_names(f"{part}.{name}"),
    )


def _begins(keys: Collection[str], beginning: str) -> bool:
    return any(key.startswith(beginning) for key in keys)
