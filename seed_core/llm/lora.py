"""LoRA adapters as peft saves them: what they do to which weights of a language model.

An adapter holds pairs of narrow matrices, whose products are added to weights, and tensors that were
trained in full and take the place of the model's. Both are described here by the network's own
names. A host may put them on its weights for the time it computes; `merge_lora` changes a network
for good. Knows nothing of what the network computes.

Sources: arXiv 2106.09685 (LoRA), 2312.03732 (its rank-stabilised scale); files of huggingface/peft.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, sqrt
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..compute import fp8
from ..errors import CheckpointError
from ..files import side_files, weights
from ..models import names
from .config import LlamaConfig
from .layout import WeightPart, parts_in_file

CONFIG_FILE = "adapter_config.json"

SEED_MINI_NIGHT = f"{names.SEED_MINI} night"
"""The bundled adapter: it puts what seed-mini draws on black."""

_WEIGHT_STEMS = ("adapter_model",)

_PREFIX = "base_model.model."
"""What peft writes before the name of every module of the model it wraps."""

# peft leaves out the adapter's own name ("default"); scripts that save a state dict keep it.
_PAIR = re.compile(r"(.+)\.lora_(?:([AB])(?:\.\w+)?\.weight|embedding_([AB])(?:\.\w+)?)")
_IN_FULL = re.compile(r"(.+?)(?:\.modules_to_save(?:\.\w+)?|\.base_layer)?\.weight")
_ALPHA = re.compile(r"(.+)\.alpha")
# Names, with the simplest of what peft allows in them: any expression could run without end.
_PATTERN = re.compile(r"\^?(?:[\w-]|\\?\.|\.\*|\\d\+?|\|)+\$?")
_UNUSED = re.compile(r".+\.original_module\.weight")

_OTHER_METHODS = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
)
"""Settings under which an adapter is more than products that are added to weights."""

_CHANGES_THE_MODEL = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin training that change the model too, so that the adapter fits only that."""


@dataclass(frozen=True, eq=False)
class LowRankProduct:
    """A product of two narrow matrices, to be added to rows of a weight."""

    part: WeightPart  # the rows
    down: torch.Tensor  # [rank, in_features]
    up: torch.Tensor  # [out_features, rank]
    scale: float  # what the product is multiplied by

    def apply_to(self, rows: torch.Tensor, strength: float) -> None:
        """Change float32 rows in place."""
        down, up = (x.to(rows.device, torch.float32) for x in (self.down, self.up))
        rows.addmm_(up, down, alpha=strength * self.scale)


@dataclass(frozen=True, eq=False)
class Replacement:
    """A tensor that was trained in full; at other strengths than 1 it is mixed with the model's."""

    part: WeightPart  # the rows it takes the place of
    tensor: torch.Tensor  # of their shape

    def apply_to(self, rows: torch.Tensor, strength: float) -> None:
        """Change float32 rows in place."""
        rows.lerp_(self.tensor.to(rows.device, torch.float32), strength)


@dataclass(frozen=True, eq=False)
class LoraAdapter:
    """What an adapter does to a language model; replacements come first."""

    replacements: tuple[Replacement, ...]
    products: tuple[LowRankProduct, ...]

    def by_weight(self) -> dict[str, list[Replacement | LowRankProduct]]:
        """Return the changes of each weight, in their order."""
        in_order: tuple[Replacement | LowRankProduct, ...] = (*self.replacements, *self.products)
        changes: dict[str, list[Replacement | LowRankProduct]] = {}
        for change in in_order:
            changes.setdefault(change.part.weight, []).append(change)
        return changes


def read_lora(path: str | Path, config: LlamaConfig) -> LoraAdapter:
    """Read an adapter for a language model of these sizes.

    Args:
        path: ``"seed-mini night"`` for the bundled one; a folder with adapter_config.json and
            adapter_model.safetensors (or .bin), or a weight file, with its adapter_config.json
            beside it.
        config: sizes of the language model.

    Raises:
        CheckpointError: a missing or damaged file, no adapter of a language model, another model's,
            or one of a kind that cannot be added to weights.
    """
    files = lora_files(path)
    file = files[0]
    names = _names(file, [key for each in files for key in weights.read_keys(each)])
    scales = _Scales.beside(file)
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in weights.read_weights(files):
        if key in names:
            if not bool(tensor.isfinite().all()):
                raise CheckpointError(
                    f"{file}: {key} holds numbers that are infinite or none; the adapter is "
                    "damaged, or its training failed"
                )
            module, role = names[key]
            tensors.setdefault(module, {})[role] = tensor
    parts = parts_in_file(config)
    return LoraAdapter(
        replacements=tuple(
            Replacement(_part(file, parts, module, found["full"].shape), found["full"])
            for module, found in tensors.items()
            if "full" in found
        ),
        products=tuple(
            _product(file, parts, module, found, scales)
            for module, found in tensors.items()
            if found.keys() - {"full"}
        ),
    )


def lora_files(path: str | Path) -> list[Path]:
    """Return the weight files of an adapter.

    Raises:
        CheckpointError: a folder without any.
    """
    path = names.bundled("lora/night") if path == SEED_MINI_NIGHT else Path(path)
    return weights.weight_files(path, _WEIGHT_STEMS) if path.is_dir() else [path]


def merge_lora(module: nn.Module, adapter: LoraAdapter, strength: float = 1.0) -> None:
    """Change a network's weights for good; to undo it, load the network again.

    Each weight is computed in float32 and rounded once. One in fp8 gets a new scale.

    Args:
        module: a `Llama` of the sizes that the adapter was read for, with layers of this library.
        adapter: see `read_lora`.
        strength: 1 is as trained, 0 changes nothing.
    """
    for name, changes in adapter.by_weight().items():
        layer: Any = module.get_submodule(name.removesuffix(".weight"))
        old, scale = layer.weight, getattr(layer, "weight_scale", None)
        if scale is None:
            weight = old.detach().to(torch.float32, copy=True)
        else:
            weight = fp8.dequantize(old, scale, torch.float32)
        for change in changes:
            rows = change.part.rows
            change.apply_to(weight if rows is None else weight.narrow(0, *rows), strength)
        if scale is not None:
            layer.weight_scale = fp8.scale_of(float(weight.abs().max())).to(old.device)
            weight = fp8.quantize(weight, layer.weight_scale)
        # Not in place: the old one may be shared with another layer, or be the file itself.
        layer.weight = nn.Parameter(weight.to(old.dtype), requires_grad=False)


def _names(file: Path, keys: list[str]) -> dict[str, tuple[str, str]]:
    """Return what each tensor of a file is: its module, and A, B, alpha or full."""
    names: dict[str, tuple[str, str]] = {}
    unknown = []
    for key in keys:
        if _UNUSED.fullmatch(key):
            continue
        name = _name(key)
        if name is None:
            unknown.append(key)
        elif name in names.values():
            raise CheckpointError(
                f"{file} holds several adapters at once: {key} is there twice. Save one of them."
            )
        else:
            names[key] = name
    if not names or all(role == "alpha" for _, role in names.values()):
        raise CheckpointError(
            f"{file} holds no LoRA adapter of a language model as peft saves it; its tensors have "
            f"names such as {', '.join(unknown[:3])}. LoRAs of diffusion models have other loaders."
        )
    if any("lora_magnitude" in key for key in unknown):
        raise CheckpointError(f"{file} is a DoRA adapter; only plain LoRA can be loaded")
    if unknown:
        raise CheckpointError(
            f"{file} holds {len(unknown)} tensors that a LoRA adapter does not have, such as "
            f"{', '.join(unknown[:3])}; it is an adapter of another kind"
        )
    return names


def _name(key: str) -> tuple[str, str] | None:
    name = key.removeprefix(_PREFIX)
    if found := _PAIR.fullmatch(name):
        module, matrix, of_embedding = found.groups()
        return module, matrix or of_embedding
    if found := _ALPHA.fullmatch(name):
        return found[1], "alpha"
    # Without what peft adds to names it would be a whole model rather than an adapter.
    if (found := _IN_FULL.fullmatch(name)) and (name != key or ".modules_to_save" in name):
        return found[1], "full"
    return None


@dataclass(frozen=True)
class _Scales:
    """How strongly products are added, as adapter_config.json says.

    Attributes:
        file: the weights, for messages.
        fields: what the config says; empty where there is none.
    """

    file: Path
    fields: dict[str, Any]

    @classmethod
    def beside(cls, file: Path) -> _Scales:
        """Read the config beside the weights.

        Raises:
            CheckpointError: a damaged one, or of an adapter that is more than plain LoRA.
        """
        config = file.with_name(CONFIG_FILE)
        fields = side_files.read_json(config) if config.is_file() else {}
        if (kind := fields.get("peft_type", "LORA")) != "LORA":
            raise CheckpointError(f"{config} is of a {kind} adapter; only LoRA can be loaded")
        if others := [name for name in _OTHER_METHODS if fields.get(name)]:
            raise CheckpointError(
                f"{config} says {', '.join(others)}; only plain LoRA can be loaded"
                + (", no DoRA" if "use_dora" in others else "")
            )
        start = str(fields.get("init_lora_weights")).lower()
        if start.startswith(_CHANGES_THE_MODEL):
            raise CheckpointError(
                f"{config} says init_lora_weights {start!r}: training changed the model too, and "
                "the adapter fits only that one. Save it as a plain LoRA, which peft does where "
                "save_pretrained is given path_initial_model_for_weight_conversion."
            )
        return cls(file, fields)

    def of(self, module: str, rank: int, alpha: torch.Tensor | None) -> float:
        """Return what the product of one module is multiplied by.

        Args:
            module: its name in the model.
            rank: of its matrices.
            alpha: the tensor that some files hold in place of a config.

        Raises:
            CheckpointError: a scale that nothing tells, or a rank that is not the config's.
        """
        expected = self._setting("rank_pattern", "r", module)
        if expected not in (None, rank):
            raise CheckpointError(
                f"{self.file} has matrices of rank {rank} for {module} and {CONFIG_FILE} beside it "
                f"says {expected}: the two do not belong together"
            )
        value = self._setting("alpha_pattern", "lora_alpha", module) if alpha is None else alpha
        try:
            strength = float(value)
            if not isfinite(strength):
                raise ValueError(value)
            return strength / (sqrt(rank) if self.fields.get("use_rslora") else rank)
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise CheckpointError(
                f"nothing says how strong {self.file} was trained to be: {CONFIG_FILE} with its "
                "lora_alpha has to lie beside it. Copy it there, or if it is lost write one: "
                '{"lora_alpha": 32} is what SEED-LLaMA was trained with.'
            ) from error

    def _setting(self, pattern: str, usual: str, module: str) -> Any:
        """Return the value of the first pattern that the end of a module's name matches."""
        patterns = self.fields.get(pattern) or {}
        if not isinstance(patterns, dict) or not all(map(_PATTERN.fullmatch, patterns)):
            raise CheckpointError(
                f"{CONFIG_FILE} beside {self.file} has a {pattern} that cannot be read; it should "
                "map names of modules to numbers"
            )
        for key, value in patterns.items():
            if re.match(rf"(.*\.)?({key})$", module):
                return value
        return self.fields.get(usual)


def _product(
    file: Path,
    parts: Mapping[str, WeightPart],
    module: str,
    found: Mapping[str, torch.Tensor],
    scales: _Scales,
) -> LowRankProduct:
    if not {"A", "B"} <= found.keys():
        raise CheckpointError(f"{file} holds only half of what changes {module}; it is incomplete")
    down, up = found["A"], found["B"]
    if down.dim() != 2 or up.dim() != 2 or len(down) != up.shape[1] or not len(down):
        raise CheckpointError(
            f"{file}: the matrices for {module} have shapes {list(down.shape)} and "
            f"{list(up.shape)}, which do not fit each other. It is damaged, or was saved before a "
            "training on several cards had gathered its parts."
        )
    if module.endswith("embed_tokens"):  # a table's rows are what goes in
        down, up = up.T.contiguous(), down.T.contiguous()
    part = _part(file, parts, module, torch.Size((len(up), down.shape[1])))
    return LowRankProduct(part, down, up, scales.of(module, len(down), found.get("alpha")))


def _part(
    file: Path, parts: Mapping[str, WeightPart], module: str, shape: torch.Size
) -> WeightPart:
    part = parts.get(f"{module}.weight")
    if part is None or part.shape != tuple(shape):
        has = f"is {list(part.shape)} here" if part else "this language model does not have"
        raise CheckpointError(
            f"{file} belongs to another language model: it changes {module} of shape "
            f"{list(shape)}, which {has}. Use it with the model it was trained on."
        )
    return part
