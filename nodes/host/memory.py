"""Models in the host's memory: it decides what lies on the card, and makes room for the work.

Only the wires keep a model alive. A node that computes asks for it with `LoadedModel.ready`.
"""

import copy
import functools
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import comfy.weight_adapter
import torch

from ...seed_core import LoadedCore, LoraAdapter
from ...seed_core.compute import graphs
from ...seed_core.compute.precision import LLM_PRECISIONS
from ...seed_core.errors import OptionError

Core = TypeVar("Core", bound=LoadedCore)


def choose_dtype(precision: str, preferred: str) -> torch.dtype:
    """The dtype of a precision widget; "auto" is fp32 on a CPU, else `preferred` if it is fast."""
    if precision != "auto":
        return LLM_PRECISIONS[precision]
    device = comfy.model_management.get_torch_device()
    is_fast = {
        "fp16": comfy.model_management.should_use_fp16(device),
        "bf16": comfy.model_management.should_use_bf16(device),
    }
    fast = [name for name in (preferred, "fp16", "bf16") if is_fast[name]]
    return LLM_PRECISIONS[fast[0] if fast else "fp32"]


def may_map_files() -> bool:
    """Whether weight files may be mapped into memory; not when started with --disable-mmap."""
    return not comfy.utils.DISABLE_MMAP


class LoadedModel(Generic[Core]):
    """A model on a wire: the core object, and a patcher of the host for each network of it."""

    def __init__(self, core: Core, stays_whole: bool = False):
        self.core = core
        self.without_lora: LoadedModel[Core] | None = None
        core.device = comfy.model_management.get_torch_device()
        self.patchers = [_patcher(network, stays_whole) for network in core.networks]

    def ready(self, memory_required: int, only: torch.nn.Module | None = None) -> Core:
        """Have the weights on the device, with room for the work, and return the core object.

        `only` is the one network that the work needs, if not all.

        Raises:
            OptionError: the machine has less memory in all than the work needs.
        """
        if self._may_capture():
            memory_required += graphs.CAPTURE_BYTES
        _check_room(memory_required)
        needed = [patcher for patcher in self.patchers if only in (None, patcher.model)]
        comfy.model_management.load_models_gpu(needed, memory_required=memory_required)
        return self.core

    def _may_capture(self) -> bool:
        """Whether calls may run as CUDA graphs: not of weights that are fetched at each call."""
        stays = [p.load_device.type == "cuda" and not p.is_dynamic() for p in self.patchers]
        return self.core.uses_graphs and all(stays)

    def with_lora(self, adapter: LoraAdapter, strength: float) -> "LoadedModel[Core]":
        """This model with an adapter, on the same weights: the host patches them when it is used.

        Whichever of the two is made `ready` has the weights its own way, and unloading undoes it.
        """
        changed = copy.copy(self)
        changed.without_lora = self  # lives on, for loaders to share
        (patcher,) = (patcher.clone() for patcher in self.patchers)
        changed.patchers = [patcher]
        kind = comfy.weight_adapter.LoRAAdapter
        # The host scales a weight by the third argument before it adds the first times the tensor.
        tensors = {
            _patch_key(c.part.weight, rows): ("diff", (tensor,))
            for c in adapter.replacements
            for rows, tensor in c.stretches()
        }
        patcher.add_patches(tensors, strength, 1.0 - strength)
        products = {
            _patch_key(c.part.weight, c.part.rows): kind(
                set(), (c.up, c.down, c.scale * len(c.down), None, None, None)
            )
            for c in adapter.products
        }
        patcher.add_patches(products, strength)
        return changed


def _patch_key(weight: str, rows: tuple[int, int] | None) -> Any:
    """The host's name of a weight, or of some rows of it."""
    return weight if rows is None else (weight, (0, *rows))


_loaded: "weakref.WeakValueDictionary[tuple[Any, ...], LoadedModel[Any]]"
_loaded = weakref.WeakValueDictionary()


def load_model(
    load: Callable[..., Core],
    key: tuple[Any, ...],
    longest_work: Callable[[Core], int] | None = None,
) -> LoadedModel[Core]:
    """Load a model, or share the one that another loader node still holds under the same key.

    When the last wire that holds a model is gone, so is the model. `load(device=...)` makes the
    core object. For a network that is called hundreds of times in a row, `longest_work` gives the
    bytes of its largest work: it stays on the card as a whole, if it fits beside that.
    """
    model = _loaded.get(key)
    if model is None:
        core = load(device=comfy.model_management.unet_offload_device())
        stays_whole = longest_work is not None and _fits_whole(core, longest_work(core))
        model = LoadedModel(core, stays_whole)
        for number, patcher in enumerate(model.patchers):
            patcher.cached_patcher_init = (_reload_patcher, (load, number))
        _loaded[key] = model
    return model


def _fits_whole(core: LoadedCore, work: int) -> bool:
    needed = comfy.model_management.module_size(core.module) + work
    needed += graphs.CAPTURE_BYTES if core.uses_graphs else 0
    device = comfy.model_management.get_torch_device()
    room = comfy.model_management.get_total_memory(device)
    return needed < room - comfy.model_management.minimum_inference_memory()


def _check_room(needed: int) -> None:
    """Refuse work that no memory here could hold, before the system ends the process for it."""
    device, main = comfy.model_management.get_torch_device(), torch.device("cpu")
    room = comfy.model_management.get_total_memory(device)
    if device != main:  # some drivers go on in main memory
        room += comfy.model_management.get_total_memory(main)
    if needed > room:
        raise OptionError(
            f"this needs {needed / 2**30:.1f} GiB of working memory, and there are "
            f"{room / 2**30:.1f}: choose fewer variations, fewer tokens or smaller pictures"
        )


class WholePatcher(comfy.model_patcher.ModelPatcher):
    """Keeps a network on the card, and exchanges adapters there weight by weight.

    The host would take the whole network back to main memory for it.
    """

    def partially_load(
        self, device_to: torch.device, extra_memory: int = 0, force_patch_weights: bool = False
    ) -> int:
        model = self.model
        is_whole = not model.model_lowvram and model.model_loaded_weight_memory > 0
        held = model.current_weight_patches_uuid
        stays = is_whole and model.device == device_to and extra_memory >= 0
        if not stays or held in (None, self.patches_uuid) or force_patch_weights:
            return super().partially_load(device_to, extra_memory, force_patch_weights)
        try:
            self._exchange_patches(device_to)
        except BaseException:
            self.detach()
            raise
        return 0

    def _exchange_patches(self, device: torch.device) -> None:
        for key, kept in self.backup.items():  # which clones share
            comfy.utils.set_attr_param(self.model, key, kept.weight.to(device))
        self.backup.clear()
        for key in self.patches:
            self.patch_weight_to_device(key, device_to=device)
        self.model.current_weight_patches_uuid = self.patches_uuid


@functools.cache
def _exchanging(base: Any) -> Any:
    """A dynamic patcher of the host that fetches only changed weights when adapters change."""

    class DynamicPatcher(base):
        def load(
            self, device_to: Any = None, *args: Any, dirty: bool = False, **named: Any
        ) -> None:
            # With dirty the host has every weight fetched anew.
            super().load(device_to, *args, dirty=False, **named)
            before: set[str] = getattr(self.model, "patched_keys", set())
            if dirty:
                for key in before | set(self.patches):
                    self.model.get_submodule(key.rpartition(".")[0])._v_signature = None
            self.model.patched_keys = set(self.patches)

    return DynamicPatcher


def _patcher(
    network: torch.nn.Module, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    # Dynamic memory fetches every layer at every call, from the card too, so a step of a few
    # milliseconds takes several times as long and cannot be captured as a graph.
    # Looked up at every call: the host rebinds the name at start, and old hosts have only one.
    kind = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    is_dynamic = kind is not comfy.model_patcher.ModelPatcher and not disable_dynamic
    return (_exchanging(kind) if is_dynamic else WholePatcher)(
        network,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


def _reload_patcher(
    load: Callable[..., LoadedCore], number: int, disable_dynamic: bool = False
) -> Any:
    """How the host makes a second copy of a network (several GPUs, no dynamic memory)."""
    core = load(device=comfy.model_management.unet_offload_device())
    return _patcher(core.networks[number], disable_dynamic)
