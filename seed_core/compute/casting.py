"""Layers that compute where their input lies, in its precision, and how a built network gets them.

diffusers builds its networks of torch's layers. A host such as ComfyUI can keep weights in main
memory, and bring them to the card layer by layer, only if the layers are its own: `adopt` puts the
host's into a loaded network. This module's own layers do the same without a host.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


class Linear(nn.Linear):
    """``nn.Linear`` in the precision and on the device of its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[..., in_features]`` to ``[..., out_features]``."""
        return F.linear(x, *_like(x, self))


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` in the precision and on the device of its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[B, in_channels, H, W]`` to ``[B, out_channels, H', W']``."""
        weight, bias = _like(x, self)
        made: torch.Tensor = self._conv_forward(x, weight, bias)
        return made


class GroupNorm(nn.GroupNorm):
    """``nn.GroupNorm`` in the precision and on the device of its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[B, num_channels, ...]`` to the same shape."""
        return F.group_norm(x, self.num_groups, *_like(x, self), self.eps)


class LayerNorm(nn.LayerNorm):
    """``nn.LayerNorm`` in the precision and on the device of its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[..., *normalized_shape]`` to the same shape."""
        return F.layer_norm(x, self.normalized_shape, *_like(x, self), self.eps)


_OWN = {nn.Linear: Linear, nn.Conv2d: Conv2d, nn.GroupNorm: GroupNorm, nn.LayerNorm: LayerNorm}


def _like(x: torch.Tensor, layer: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    return layer.weight.to(x), None if layer.bias is None else layer.bias.to(x)


def adopt(network: Module, operations: Any) -> Module:
    """Give a network the layers of ``operations`` in place of torch's, and return it.

    ``operations`` has layers under the names of ``torch.nn``: a host, this module, or ``torch.nn``
    itself, which changes nothing. Weights stay as they are.
    """
    if operations.Linear is not nn.Linear:
        for module in _units(network):
            _adopt(module, operations)
    return network


def _units(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the highest modules that have parameters or buffers of their own."""
    if any(
        tensor is not None for tensor in (*module._parameters.values(), *module._buffers.values())
    ):
        yield module
    else:
        for child in module.children():
            yield from _units(child)


def _adopt(module: nn.Module, operations: Any) -> None:
    """Change a layer's class; have any other module's weights brought to its input at each call."""
    name = type(module).__name__
    kind = getattr(nn, name, None)
    if type(module) is kind:
        given = getattr(operations, name, None)
        is_layer = isinstance(given, type) and issubclass(given, kind)
        adopted = given if is_layer else _OWN.get(kind)
        if adopted is not None:
            module.__class__ = adopted
            if not hasattr(module, "bias"):
                module.__dict__["bias"] = None  # a host asks any of its layers for both
            return
    elif kind is not None and isinstance(module, kind):
        return  # adopted before
    if not module.__dict__.get("_follows_input"):
        module.__dict__["_follows_input"] = True
        module.register_forward_pre_hook(_bring, with_kwargs=True)
        module.register_forward_hook(_put_back, always_call=True)


def _bring(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    given = (*args, *kwargs.values())
    like = next((x for x in given if isinstance(x, torch.Tensor)), None)
    for owner in module.modules():
        before = owner.__dict__.setdefault("_before_calls", [])  # a call may lead to another
        before.append((owner._parameters.copy(), owner._buffers.copy()))
        if like is not None:
            _bring_own(owner, like)


def _bring_own(owner: nn.Module, like: torch.Tensor) -> None:
    for name, parameter in owner._parameters.items():
        if parameter is not None:
            brought = nn.Parameter(_brought(parameter, like), requires_grad=False)
            owner._parameters[name] = brought
    for name, buffer in owner._buffers.items():
        if buffer is not None:
            owner._buffers[name] = _brought(buffer, like)


def _brought(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    same_kind = tensor.is_floating_point() and like.is_floating_point()
    return tensor.to(like) if same_kind else tensor.to(like.device)


def _put_back(module: nn.Module, *_: Any) -> None:
    for owner in module.modules():
        if before := owner.__dict__.get("_before_calls"):
            parameters, buffers = before.pop()
            owner._parameters.update(parameters)
            owner._buffers.update(buffers)
