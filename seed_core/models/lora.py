"""LoRA adapters as peft saves them: reading, and merging into the tensors of a model's files.

Sources: arXiv 2106.09685 (LoRA), 2312.03732 (its rank-stabilised scale); files of huggingface/peft.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from ..files import assemble, side_files, weights
from ..llm.config import LlamaConfig
from ..llm.layout import WeightPart, parts_in_file
from ..llm.lora import LoraAdapter, LowRankProduct, Replacement
from . import names

CONFIG_FILE = "adapter_config.json"

# The bundled adapter: it puts what seed-mini draws on black.
SEED_MINI_NIGHT = f"{names.SEED_MINI} night"

_WEIGHT_STEMS = ("adapter_model",)

# What peft writes before the name of every module of the model it wraps.
_PREFIX = "base_model.model."

# peft leaves out the adapter's own name ("default"); scripts that save a state dict keep it.
_PAIR = re.compile(r"(.+)\.lora_(?:([AB])(?:\.\w+)?\.weight|embedding_([AB])(?:\.\w+)?)")
_IN_FULL = re.compile(r"(.+?)(?:\.modules_to_save(?:\.\w+)?|\.base_layer)?\.weight")
_ALPHA = re.compile(r"(.+)\.alpha")
# Names, with the simplest of what peft allows in them: any expression could run without end.
_PATTERN = re.compile(r"\^?(?:[\w-]|\\?\.|\.\*|\\d\+?|\|)+\$?")
_UNUSED = re.compile(r".+\.original_module\.weight")

# Settings under which an adapter is more than products that are added to weights.
_OTHER_METHODS = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
)

# Ways to begin training that change the model too, so that the adapter fits only that.
_CHANGES_THE_MODEL = ("pissa", "olora", "corda", "loftq", "lora_ga")


def read_lora(path: str | Path, config: LlamaConfig) -> LoraAdapter:
    """Read an adapter for a language model of these sizes.

    Args:
        path: ``"seed-mini night"`` for the bundled one; a folder with adapter_config.json and
            adapter_model.safetensors (or .bin), or a weight file with the config beside it.
        config: sizes of the language model.

    Raises:
        CheckpointError: a file is missing or damaged; or the adapter is for another model, or of a
            kind that cannot be added to weights.
    """
    files = lora_files(path)
    file = files[0]
    names = _names(file, [key for each in files for key in weights.read_keys(each)])
    scales = _Scales.beside(file)
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in weights.read_weights(files):
        if key in names:
            assemble.check_finite(key, tensor, file)
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
    """Return the weight files of an adapter; `CheckpointError` if a folder has none."""
    path = names.bundled("lora/night") if path == SEED_MINI_NIGHT else Path(path)
    return weights.weight_files(path, _WEIGHT_STEMS) if path.is_dir() else [path]


# Where an adapter lies, and how strongly it is applied.
Adapter = tuple[str | Path, float]

# What an adapter does to one tensor of a file, and how strongly.
Change = tuple[LowRankProduct | Replacement, float]


def changes_by_key(adapters: Sequence[Adapter], config: LlamaConfig) -> dict[str, list[Change]]:
    """Return what adapters do, by the names of tensors in the model's files."""
    keys = {part: key for key, part in parts_in_file(config).items()}
    changes: dict[str, list[Change]] = {}
    for path, strength in adapters:
        for of_weight in read_lora(path, config).by_weight().values():
            for change in of_weight:
                changes.setdefault(keys[change.part], []).append((change, strength))
    return changes


def merge_into(tensor: torch.Tensor, changes: Sequence[Change], may_grow: bool) -> torch.Tensor:
    """Return a tensor of a file, or its stand-in, with what adapters do to it, in float32."""
    if not changes:
        return tensor
    shape = changes[0][0].part.shape
    is_table = may_grow and tensor.shape[1:] == shape[1:] and len(tensor) < shape[0]
    if tensor.shape != shape and not is_table:
        return tensor  # whose own shape will be refused
    merged = torch.zeros(shape, device=tensor.device)
    if not tensor.is_meta:
        merged[: len(tensor)] = tensor
        for change, strength in changes:
            change.apply_to(merged, strength)
    return merged


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
    """How strongly products are added, as adapter_config.json says."""

    file: Path  # the weights, for messages
    fields: dict[str, Any]  # of the config; empty if it is missing

    @classmethod
    def beside(cls, file: Path) -> _Scales:
        """Read the config beside the weights, if it is there."""
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
        """Return what the product of one module is multiplied by (``alpha``: as the file says)."""
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
