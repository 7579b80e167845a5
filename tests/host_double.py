"""The smallest stand-in for ComfyUI: what nodes/ imports and calls, and nothing else.

For machines without a checkout. `install()` puts the modules into sys.modules; the same tests run
on the real host too, which keeps this file honest.
"""

import copy
import sys
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

CPU = torch.device("cpu")


class Input:
    """One input of a schema; keeps what it was given under the host's names."""

    def __init__(self, io_type: str, id: str, **given: Any):
        known = dict.fromkeys(("tooltip", "default", "min", "max", "step", "advanced", "options"))
        self.__dict__.update(known | {"optional": False, "control_after_generate": None} | given)
        self.id = id
        self.io_type = io_type

    def get_io_type(self) -> str:
        return self.io_type


class Output(Input):
    def __init__(self, io_type: str, id: str, **given: Any):
        super().__init__(io_type, id, **{"is_output_list": False, **given})


class Schema(SimpleNamespace):
    """Holds a node's description; `validate` checks what the host checks."""

    def __init__(self, **given: Any):
        super().__init__(**{"is_output_node": False, "is_input_list": False, **given})

    def validate(self) -> None:
        for ids in ([i.id for i in self.inputs], [o.id for o in self.outputs]):
            if len(ids) != len(set(ids)):
                raise ValueError(f"ids must be unique: {ids}")


class ComfyNode:
    """Base of nodes."""

    @classmethod
    def GET_SCHEMA(cls) -> Schema:  # noqa: N802 - the host's name
        schema = cls.define_schema()
        schema.validate()
        return schema


class ComfyExtension:
    async def on_load(self) -> None: ...


class NodeOutput(SimpleNamespace):
    def __init__(self, *args: Any, ui: Any = None):
        super().__init__(args=args, result=args, ui=ui)


class ExecutionBlocker:
    def __init__(self, message: str | None):
        self.message = message


class PreviewImage:
    """Keeps the pictures instead of saving them."""

    def __init__(self, image: torch.Tensor, cls: Any = None):
        self.values = list(image)

    def as_dict(self) -> dict[str, Any]:
        return {"images": self.values}


class PreviewText:
    def __init__(self, value: str):
        self.value = value

    def as_dict(self) -> dict[str, Any]:
        return {"text": (self.value,)}


class LoRAAdapter:
    """Two narrow matrices and alpha; the rest of the host's tuple stands for other kinds."""

    def __init__(self, loaded_keys: set[str], weights: tuple[Any, ...]):
        self.weights = weights


class ModelPatcher:
    """Holds a model and where it belongs; clones share its weights and what they were."""

    def __init__(self, model: Any, load_device: torch.device, offload_device: torch.device):
        self.model, self.load_device, self.offload_device = model, load_device, offload_device
        self.cached_patcher_init: Any = None
        self.patches: dict[str, list[tuple[Any, ...]]] = {}
        self.backup: dict[str, torch.Tensor] = {}

    def is_dynamic(self) -> bool:
        return False

    def clone(self) -> "ModelPatcher":
        copied = copy.copy(self)
        copied.patches = {key: patches[:] for key, patches in self.patches.items()}
        return copied

    def add_patches(
        self, patches: dict[Any, Any], strength_patch: float = 1.0, strength_model: float = 1.0
    ) -> None:
        for key, value in patches.items():
            name, rows = (key, None) if isinstance(key, str) else key
            patch = (strength_patch, value, strength_model, rows)
            self.patches.setdefault(name, []).append(patch)

    def load(self) -> None:
        """Give the model its own weights back, then those of this patcher."""
        self.unpatch_model()
        for name, patches in self.patches.items():
            owner = self.model.get_submodule(name.rpartition(".")[0])
            self.backup[name] = owner.weight
            weight = owner.weight.clone()
            for patch in patches:
                _apply(weight, *patch)
            owner.weight = torch.nn.Parameter(weight, requires_grad=False)

    def unpatch_model(self) -> None:
        for name, weight in self.backup.items():
            self.model.get_submodule(name.rpartition(".")[0]).weight = weight
        self.backup.clear()


def _apply(weight: torch.Tensor, strength: float, value: Any, of_model: float, rows: Any) -> None:
    view = weight if rows is None else weight.narrow(*rows)
    view *= of_model
    if isinstance(value, LoRAAdapter):
        up, down, alpha = value.weights[:3]
        view += strength * alpha / len(down) * (up @ down)
    else:
        kind, (tensor,) = value
        assert kind == "diff"
        view += strength * tensor


def _casting(kind: Any) -> Any:
    """One of torch's layers that has its weights brought to its input for the time of a call."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        home, dtype = self._parameters, x.dtype if x.is_floating_point() else None
        self._parameters = {
            name: None if own is None else own.to(x.device, dtype) for name, own in home.items()
        }
        try:
            return kind.forward(self, x)
        finally:
            self._parameters = home

    changes = {"weight_function": [], "bias_function": []}  # what would change its weights
    return type(kind.__name__, (kind,), {"forward": forward, **changes})


class manual_cast:  # noqa: N801 - the host's name
    """Layers whose weights may lie elsewhere than what they compute on."""

    Linear = _casting(torch.nn.Linear)
    Conv2d = _casting(torch.nn.Conv2d)
    GroupNorm = _casting(torch.nn.GroupNorm)
    LayerNorm = _casting(torch.nn.LayerNorm)
    RMSNorm = _casting(torch.nn.RMSNorm)
    Embedding = _casting(torch.nn.Embedding)


class PreviewMethod(Enum):
    NoPreviews = "none"
    Auto = "auto"


class StableDiffusionLatents:
    scale_factor = 0.18215
    latent_rgb_factors = [[0.3, 0.2, 0.3], [0.3, 0.5, 0.2], [-0.3, 0.2, 0.3], [-0.2, -0.3, -0.7]]


class ProgressBar:
    """Remembers its values in `shown` and its previews in `previews`, for all bars."""

    shown: list[tuple[int, int]] = []
    previews: list[Any] = []

    def __init__(self, total: int):
        self.total = total

    def update_absolute(self, value: int, total: int, preview: Any = None) -> None:
        ProgressBar.shown.append((value, total))
        ProgressBar.previews.append(preview)


class VisionOutput:
    def __getitem__(self, key: str) -> Any:
        return getattr(self, key)


def _custom(io_type: str) -> type:
    return type(
        io_type,
        (),
        {
            "Input": type("Input", (), {"__new__": lambda cls, id, **k: Input(io_type, id, **k)}),
            "Output": type(
                "Output", (), {"__new__": lambda cls, id, **k: Output(io_type, id, **k)}
            ),
        },
    )


def install(models_dir: Path) -> list[str]:
    """Make the host's modules importable; returns their names."""
    kinds = {"Combo": "COMBO", "Int": "INT", "Float": "FLOAT", "String": "STRING", "Image": "IMAGE"}
    kinds |= {"ClipVisionOutput": "CLIP_VISION_OUTPUT", "Conditioning": "CONDITIONING"}
    kinds |= {"Model": "MODEL"}
    io = {name: _custom(io_type) for name, io_type in kinds.items()}
    io |= {"Custom": _custom, "Schema": Schema, "ComfyNode": ComfyNode, "NodeOutput": NodeOutput}
    modules: dict[str, dict[str, Any]] = {
        "comfy": {},
        "comfy.clip_vision": {"Output": VisionOutput},
        "comfy.cli_args": {
            "args": SimpleNamespace(preview_method=PreviewMethod.NoPreviews, preview_size=512),
            "LatentPreviewMethod": PreviewMethod,
        },
        "comfy.ldm": {},
        "comfy.ldm.modules": {},
        "comfy.ldm.modules.attention": {},
        "comfy.latent_formats": {"SD15": StableDiffusionLatents},
        "comfy.model_management": _management(),
        "comfy.model_patcher": {"ModelPatcher": ModelPatcher, "CoreModelPatcher": ModelPatcher},
        "comfy.ops": {"manual_cast": manual_cast},
        "comfy.utils": {"DISABLE_MMAP": False, "ProgressBar": ProgressBar},
        "comfy.weight_adapter": {"LoRAAdapter": LoRAAdapter},
        "comfy_api": {},
        "comfy_api.latest": {
            "ComfyExtension": ComfyExtension,
            "io": SimpleNamespace(**io),
            "ui": SimpleNamespace(PreviewImage=PreviewImage, PreviewText=PreviewText),
        },
        "comfy_execution": {},
        "comfy_execution.graph_utils": {"ExecutionBlocker": ExecutionBlocker},
        "comfy_execution.utils": {"get_executing_context": lambda: None},
        "folder_paths": _folders(models_dir),
        "server": {"PromptServer": SimpleNamespace(instance=None)},
    }
    for name, contents in modules.items():
        sys.modules[name] = module = ModuleType(name)
        module.__dict__.update(contents)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    return list(modules)


def _management() -> dict[str, Any]:
    """A machine without a graphics card. `loads` records what was asked for."""
    loads: list[tuple[list[Any], int]] = []
    devices = ("get_torch_device", "unet_offload_device", "intermediate_device")

    def load_models_gpu(models: list[Any], memory_required: int = 0) -> None:
        loads.append((models, memory_required))
        for patcher in models:
            patcher.load()

    return {
        **{name: lambda: CPU for name in devices},
        "should_use_fp16": lambda device: False,
        "should_use_bf16": lambda device: False,
        "get_total_memory": lambda device: 8 * 2**30,
        "minimum_inference_memory": lambda: 2**30,
        "module_size": lambda module: sum(x.nbytes for x in module.state_dict().values()),
        "loads": loads,
        "load_models_gpu": load_models_gpu,
        "throw_exception_if_processing_interrupted": lambda: None,
    }


def _folders(models_dir: Path) -> dict[str, Any]:
    table: dict[str, tuple[list[str], set[str]]] = {
        "diffusers": ([str(models_dir / "diffusers")], set())
    }
    inputs, outputs = models_dir.parent / "input", models_dir.parent / "output"

    def save_path(prefix: str, folder: str) -> tuple[str, str, int, str, str]:
        path = Path(folder, prefix)
        path.parent.mkdir(parents=True, exist_ok=True)
        counter = 1 + len(list(path.parent.glob(f"{path.name}_*")))
        return str(path.parent), path.name, counter, str(Path(prefix).parent), prefix

    def find(name: str) -> str:
        file, is_output = name.removesuffix(" [output]"), name.endswith(" [output]")
        root = outputs if is_output else inputs
        if not (root / file).resolve().is_relative_to(root.resolve()):
            raise ValueError(name)
        return str(root / file)

    return {
        "get_input_directory": lambda: str(inputs),
        "get_output_directory": lambda: str(outputs),
        "get_temp_directory": lambda: str(models_dir.parent / "temp"),
        "get_save_image_path": save_path,
        "get_annotated_filepath": find,
        "models_dir": str(models_dir),
        "folder_names_and_paths": table,
        "add_model_folder_path": lambda name, path: table.setdefault(name, ([], set()))[0].append(
            path
        ),
        "get_folder_paths": lambda name: table[name][0][:],
    }
