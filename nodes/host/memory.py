"""Everything this pack asks of ComfyUI: folders, devices, memory, progress, Stop, live text, layouts.

`comfy.*` has no deprecation policy, so this is the only file that imports it. It knows how the
host moves weights and lays out pictures, and nothing of what the models compute.
"""

import copy
import functools
import html
import itertools
import json
import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import comfy.weight_adapter
import folder_paths
import torch
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ..seed_core import LoraAdapter, SeedCodes
from ..seed_core.compute import fp8, graphs, linear
from ..seed_core.compute.precision import LLM_PRECISIONS
from ..seed_core.errors import CodesError, OptionError, PictureError
from ..seed_core.models import quantization as fp8_files

TEXT_INTERVAL = 0.25  # seconds between two live texts

# --- model folders -----------------------------------------------------------------------------


def register_model_folders(suffixes: dict[str, set[str]]) -> None:
    """Add our folders to the host's, after any that extra_model_paths.yaml named."""
    for name, known in suffixes.items():
        folder_paths.add_model_folder_path(name, os.path.join(folder_paths.models_dir, name))
        folder_paths.folder_names_and_paths[name] = (folder_paths.get_folder_paths(name), known)


def model_folders(name: str) -> list[str]:
    """Every place the host looks for models of this kind."""
    return folder_paths.get_folder_paths(name)


# --- input and output folders -------------------------------------------------------------------


def input_files(suffix: str) -> list[str]:
    """Names of the files right in the input folder, as the host's own loaders list them."""
    folder = Path(folder_paths.get_input_directory())
    if not folder.is_dir():
        return []
    return sorted(f.name for f in folder.iterdir() if f.suffix == suffix and f.is_file())


def input_file(name: str) -> Path:
    """The path of a file in the input folder (or of "name [output]" in the output folder)."""
    folders = folder_paths.get_input_directory(), folder_paths.get_output_directory()
    try:
        path = Path(folder_paths.get_annotated_filepath(name)).resolve()
        # Hosts before 0.29 let a name lead out of the folder.
        if path.is_file() and any(path.is_relative_to(Path(root).resolve()) for root in folders):
            return path
    except ValueError:
        pass  # a path out of the folder, or none at all
    raise CodesError(
        f"there is no file '{name}' in {folder_paths.get_input_directory()}. Copy a file that SEED "
        "Save Codes wrote from the output folder to there, then press R to refresh the list."
    )


def new_output_file(prefix: str, suffix: str) -> tuple[Path, dict[str, str]]:
    """A path in the output folder that no file has yet, and what the frontend is told of it."""
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory()
    )
    # For a prefix that ends in a folder the host starts at 1 each time, and calls an empty one ".".
    name = "SEED" if name == "." else name
    names = (f"{name}_{number:05}_{suffix}" for number in itertools.count(counter))
    file = next(file for file in names if not (Path(folder) / file).exists())
    return Path(folder) / file, {"filename": file, "subfolder": subfolder, "type": "output"}


# --- devices and memory ------------------------------------------------------------------------


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


class LoadedModel:
    """A model on a wire: the core object, and a patcher of the host for each network of it."""

    def __init__(self, core: Any, keep_whole: bool = False):
        self.core = core
        self.without_lora: LoadedModel | None = None
        core.device = comfy.model_management.get_torch_device()
        is_whole = keep_whole and _fits_whole(core)
        self.patchers = [_patcher(network, is_whole) for network in core.networks]

    def ready(self, memory_required: int, only: torch.nn.Module | None = None) -> Any:
        """Have the weights on the device, with room for the work, and return the core object.

        `only` is the one network that the work needs, if not all.
        """
        if self._may_capture():
            memory_required += graphs.CAPTURE_BYTES
        needed = [patcher for patcher in self.patchers if only in (None, patcher.model)]
        comfy.model_management.load_models_gpu(needed, memory_required=memory_required)
        return self.core

    def _may_capture(self) -> bool:
        """Whether calls may run as CUDA graphs: not of weights that are fetched at each call."""
        stays = [p.load_device.type == "cuda" and not p.is_dynamic() for p in self.patchers]
        return self.core.uses_graphs and all(stays)

    def with_lora(self, adapter: LoraAdapter, strength: float) -> "LoadedModel":
        """This model with an adapter, on the same weights: the host patches them when it is used.

        Whichever of the two is made `ready` has the weights its own way, and unloading undoes it.
        """
        changed = copy.copy(self)
        changed.without_lora = self  # lives on, for loaders to share
        (patcher,) = (patcher.clone() for patcher in self.patchers)
        changed.patchers = [patcher]
        kind = comfy.weight_adapter.LoRAAdapter
        # The host scales a weight by the third argument before it adds the first times the tensor.
        tensors = {_patch_key(c.part): ("diff", (c.tensor,)) for c in adapter.replacements}
        patcher.add_patches(tensors, strength, 1.0 - strength)
        products = {
            _patch_key(c.part): kind(set(), (c.up, c.down, c.scale * len(c.down), None, None, None))
            for c in adapter.products
        }
        patcher.add_patches(products, strength)
        return changed


def _patch_key(part: Any) -> Any:
    """The host's name of a weight, or of some rows of it."""
    return part.weight if part.rows is None else (part.weight, (0, *part.rows))


_loaded: "weakref.WeakValueDictionary[tuple[Any, ...], LoadedModel]" = weakref.WeakValueDictionary()


def load_model(
    load: Callable[..., Any], key: tuple[Any, ...], keep_whole: bool = False
) -> LoadedModel:
    """Load a model, or share the one that another loader node still holds under the same key.

    Only the wires keep a model alive: when the last one is gone, so is the model.
    `load(device=...)` makes the core object. `keep_whole` is for a network that is called hundreds
    of times in a row: where it fits, it is brought to the card whole and stays there.
    """
    model = _loaded.get(key)
    if model is None:
        core = load(device=comfy.model_management.unet_offload_device())
        model = LoadedModel(core, keep_whole)
        for number, patcher in enumerate(model.patchers):
            patcher.cached_patcher_init = (_reload_patcher, (load, number))
        _loaded[key] = model
    return model


def _is_at_hand(layer: Any, x: torch.Tensor) -> bool:
    """Whether a layer's weights lie beside its input as they are used: not streamed, not patched."""
    weights = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
    is_patched = layer.weight_function or layer.bias_function
    return not is_patched and all(w.device == x.device and w.dtype == x.dtype for w in weights)


class CastOperations(comfy.ops.manual_cast):
    """Layers that the host can keep in main memory and stream to the device.

    A product whose weight is at hand is ours: the host's way to it takes as long as a small one.
    """

    class Linear(comfy.ops.manual_cast.Linear):
        """A product that is ours where its weight is at hand, and the host's elsewhere."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if _is_at_hand(self, x):
                return linear.product(x, self.weight, self.bias)
            return super().forward(x)

        def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            """Return `residual` plus the product; may write over `residual`."""
            if _is_at_hand(self, x):
                return linear.add_product(residual, x, self.weight, self.bias)
            return residual.add_(super().forward(x))


def cast_operations() -> Any:
    """Layers that the host can keep in main memory and stream to the device."""
    return CastOperations


def prefers_fp8() -> bool:
    """Whether weights stored in fp8 should stay so: on every card that can hold them."""
    device = comfy.model_management.get_torch_device()
    return device.type != "cpu" and comfy.model_management.supports_cast(device, fp8.FP8)


def fp8_operations() -> Any:
    """Such layers for weights stored in fp8, which stay so wherever the host keeps them."""
    find_layout = getattr(comfy.ops, "get_layout_class", None)
    if find_layout is None or find_layout("TensorCoreFP8Layout") is None:
        raise OptionError(
            "this ComfyUI has no layers for models in fp8: update it and what its requirements.txt "
            "names, or choose precision bf16 or fp16"
        )
    device = comfy.model_management.get_torch_device()
    if not comfy.model_management.supports_cast(device, fp8.FP8):
        raise OptionError(f"{device} cannot hold fp8 weights: choose precision bf16 or fp16")
    has_units = comfy.model_management.supports_fp8_compute(device)
    operations = comfy.ops.mixed_precision_ops(
        compute_dtype=fp8.COMPUTING_DTYPE, disabled=() if has_units else (fp8_files.FORMAT,)
    )

    class Linear(operations.Linear):
        def __init__(self, *sizes: int, device: Any = None, **options: Any):
            # The host moves what is loaded to this device, and on "meta" that would be the end.
            super().__init__(*sizes, **options)

        def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any):
            if f"{prefix}weight{fp8.SCALE_SUFFIX}" in state_dict:
                text = json.dumps(fp8_files.LAYER).encode()
                state_dict[f"{prefix}comfy_quant"] = torch.tensor(list(text), dtype=torch.uint8)
            super()._load_from_state_dict(state_dict, prefix, *rest)

        def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
            if _is_at_hand(self, x):
                return _multiply(x, self.weight, residual)
            # Streamed or patched. The host's own forward would round the activations of all rows
            # to fp8 with one scale.
            comfy.model_management.throw_exception_if_processing_interrupted()
            weight, bias, stream = comfy.ops.cast_bias_weight(
                self, x, offloadable=True, compute_dtype=x.dtype, want_requant=has_units
            )
            product = _multiply(x, weight, residual)
            comfy.ops.uncast_bias_weight(self, weight, bias, stream)
            return product

        def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            """Return `residual` plus the product; may write over `residual`."""
            return self(x, residual)

    operations.Linear = Linear
    return operations


def _multiply(x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
    """The product with a weight on the device; one that the host patched is a plain tensor."""
    if isinstance(weight, comfy.ops.QuantizedTensor):
        return fp8.product(x, weight._qdata, weight._params.scale, residual)
    if residual is None:
        return linear.product(x, weight, None)
    return linear.add_product(residual, x, weight, None)


def _fits_whole(llm: Any) -> bool:
    """Whether a language model fits on the device, with its longest conversation."""
    needed = comfy.model_management.module_size(llm.module)
    needed += llm.memory_required(llm.config.max_position_embeddings)
    device = comfy.model_management.get_torch_device()
    room = comfy.model_management.get_total_memory(device)
    return needed < room - comfy.model_management.minimum_inference_memory()


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
            before = getattr(self.model, "patched_keys", set())
            if dirty:
                for key in before | set(self.patches):
                    self.model.get_submodule(key.rpartition(".")[0])._v_signature = None
            self.model.patched_keys = set(self.patches)

    return DynamicPatcher


def _patcher(module: torch.nn.Module, disable_dynamic: bool = False) -> Any:
    # Dynamic memory fetches every layer at every call, from the card too, so a step of a few
    # milliseconds takes several times as long and cannot be captured as a graph.
    # Looked up at every call: the host rebinds the name at start, and old hosts have only one.
    kind = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    is_dynamic = kind is not comfy.model_patcher.ModelPatcher and not disable_dynamic
    return (_exchanging(kind) if is_dynamic else WholePatcher)(
        module,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


def _reload_patcher(load: Callable[..., Any], number: int, disable_dynamic: bool = False) -> Any:
    """How the host makes a second copy of a network (several GPUs, no dynamic memory)."""
    core = load(device=comfy.model_management.unet_offload_device())
    return _patcher(core.networks[number], disable_dynamic)


# --- progress, Stop, live text -----------------------------------------------------------------


class Progress:
    """One node's progress bar and live text; every call of `step` is a chance to Stop."""

    def __init__(self, total: int):
        self._bar = comfy.utils.ProgressBar(total)
        self._next_text = 0.0

    def step(self, done: int, total: int) -> None:
        """Move the bar. Raises the host's interruption when Stop was pressed."""
        self._bar.update_absolute(done, total)
        # The bar skips updates that come too fast, and with them the check.
        comfy.model_management.throw_exception_if_processing_interrupted()

    def show(self, text: Callable[[], str], is_final: bool = False) -> None:
        """Write on the node, a few times a second at most."""
        now = time.monotonic()
        if is_final or now >= self._next_text:
            self._next_text = now + TEXT_INTERVAL
            show_text(text())


def show_text(text: str) -> None:
    """Write on the node that is running. The frontend reads markup, where <image> would vanish."""
    context = get_executing_context()
    if context is not None:
        server = PromptServer.instance
        escaped = html.escape(text, quote=False)
        server.send_progress_text(escaped, context.node_id, server.client_id)


# --- wires -------------------------------------------------------------------------------------


def to_wire(tensor: torch.Tensor) -> torch.Tensor:
    """Move a result to where the host keeps what travels between nodes."""
    return tensor.to(comfy.model_management.intermediate_device())


def codes_to_wire(
    values: torch.Tensor, model: Any, distances: torch.Tensor | None = None
) -> SeedCodes:
    """Codes of the tokenizer or language model that made them."""
    distances = None if distances is None else to_wire(distances)
    return SeedCodes(to_wire(values), model.family, model.codebook_size, distances)


def image_to_pixels(image: torch.Tensor) -> torch.Tensor:
    """View IMAGE [B, H, W, C] as RGB [B, 3, H, W]; grey repeated, alpha dropped (as the reference)."""
    if image.ndim != 4 or image.shape[0] == 0:
        raise PictureError(f"expected pictures [B, H, W, C], got a tensor of {tuple(image.shape)}")
    rgb = image[..., :3] if image.shape[-1] >= 3 else image[..., :1].expand(*image.shape[:3], 3)
    return rgb.movedim(-1, 1)


def pixels_to_image(pixels: torch.Tensor) -> torch.Tensor:
    """RGB [B, 3, H, W] 0..1 to IMAGE [B, H, W, 3]."""
    return to_wire(pixels.float().movedim(1, -1).contiguous())


class SeedClipVisionOutput(comfy.clip_vision.Output):
    """CLIP_VISION_OUTPUT with nothing but `image_embeds`, and words for who asks for more."""

    def __init__(self, image_embeds: torch.Tensor):
        self.image_embeds = image_embeds

    def __getattr__(self, name: str) -> Any:
        width = self.__dict__["image_embeds"].shape[-1] if "image_embeds" in self.__dict__ else 0
        raise AttributeError(
            f"this CLIP_VISION_OUTPUT, made or blended from SEED codes, is only an image embedding of "
            f"{width} numbers and has no {name}. It fits unCLIPConditioning with an SD 2.1 unCLIP-h "
            "checkpoint (1024 numbers), not style models, Redux or video models."
        )


def embeddings_to_clip_vision(embeddings: torch.Tensor) -> list[SeedClipVisionOutput]:
    """One object an image: the host would add up the rows of a batch."""
    return [SeedClipVisionOutput(to_wire(row[None].float())) for row in embeddings]


def embeddings_to_conditioning(embeddings: torch.Tensor) -> list[list[Any]]:
    """CONDITIONING as a text encoder makes it, of [B, T, D]: row i is for latent i of a batch."""
    return [[to_wire(embeddings), {}]]
