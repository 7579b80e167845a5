"""LoRA adapters as peft saves them: reading, and merging into the tensors of a model's files.

Sources: arXiv 2106.09685 (LoRA), 2312.03732 (its rank-stabilised scale); files of huggingface/peft.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from ..errors import CheckpointError
from ..files import assemble, weights
from ..llm.config import LlamaConfig
from ..llm.layout import WeightPart, parts_in_file
from ..llm.lora import LoraAdapter, LowRankProduct, Replacement
from ..llm.vocab import is_padded
from . import lora_names, names
from .lora_config import CONFIG_FILE, EMBEDDINGS, HEAD, AdapterConfig
from .lora_names import ALPHA, DOWN, FULL, TABLE_DOWN, TABLE_UP, TOKENS, UP
from .lora_targets import check_modules

# The bundled adapter: it puts what seed-mini draws on black.
SEED_MINI_NIGHT = f"{names.SEED_MINI} night"

_WEIGHT_STEMS = ("adapter_model",)

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_SMALL_FLOATS = (torch.float8_e4m3fn, torch.float8_e5m2)

_TABLES = (EMBEDDINGS, HEAD)

# Bytes of files that are read for a number of the model: none is larger in float64, and a file of
# a whole network under training has each twice.
_BYTES_PER_WEIGHT = 16
_SMALL_FILE = 64 * 2**20

_Tensors = Mapping[str, Mapping[str, torch.Tensor]]  # by module and role


def read_lora(path: str | Path, config: LlamaConfig) -> LoraAdapter:
    """Read an adapter for a language model of these sizes, into memory of its own.

    Args:
        path: ``"seed-mini night"`` for the bundled one; a folder with adapter_config.json and
            adapter_model.safetensors (or .bin), or a weight file with the config beside it.
        config: sizes of the language model.

    Raises:
        CheckpointError: a file is missing or damaged; or the adapter is for another model, or of a
            kind that cannot be added to weights.
    """
    files = lora_files(path)
    parts = {key.removesuffix(".weight"): part for key, part in parts_in_file(config).items()}
    _check_size(files, parts)
    looks = dict(weights.read_weights(files, read=lambda file, _: weights.copied_stand_ins(file)))
    found = lora_names.sort_names(files[0], looks)
    places = {key: (module, role) for module, of in found.items() for role, key in of.items()}
    reader = _Reader(files[0], config, parts, AdapterConfig.beside(files[0]))
    reader.adapter(_by_module(places, looks))  # refuses what does not fit before it is in memory
    reader.check_modules(found)
    read = {
        key: reader.checked(key, tensor)
        for file in files
        for key, tensor in weights.read_copied(file, places.keys())
    }
    return reader.adapter(_by_module(places, read))


def lora_files(path: str | Path) -> list[Path]:
    """Return the weight files of an adapter; `CheckpointError` if a folder has none."""
    path = names.bundled("lora/night") if path == SEED_MINI_NIGHT else Path(path)
    if not path.is_dir():
        return [path]
    try:
        return weights.weight_files(path, _WEIGHT_STEMS)
    except CheckpointError as error:
        if inside := sorted(each.parent.name for each in path.glob(f"*/{CONFIG_FILE}")):
            why = f"There are adapters in its folders {', '.join(inside[:10])}: choose one."
        elif others := sorted(each.name for each in path.glob("*") if _may_be_weights(each)):
            why = (
                f"It has {', '.join(others[:10])}: one that peft saved has to be called "
                "adapter_model.safetensors (or .bin), as it was."
            )
        else:
            raise
        raise CheckpointError(f"{str(error).rstrip('.')}. {why}") from error


def _may_be_weights(file: Path) -> bool:
    return file.suffix.lower() in (*weights.WEIGHT_SUFFIXES, ".gguf", ".npz")


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


def _check_size(files: Sequence[Path], parts: Mapping[str, WeightPart]) -> None:
    """Refuse what is far larger than an adapter can be, before anything of it is read."""
    size = sum(file.stat().st_size for file in files if file.is_file())
    weights_of_model = sum(prod(part.shape) for part in parts.values())
    if size > _SMALL_FILE + _BYTES_PER_WEIGHT * weights_of_model:
        raise CheckpointError(
            f"{files[0]} has {size:,} bytes, far too many for an adapter of a language model with "
            f"{weights_of_model:,} weights. Use it with the model it was trained on."
        )


def _by_module(
    places: Mapping[str, tuple[str, str]], tensors: Mapping[str, torch.Tensor]
) -> dict[str, dict[str, torch.Tensor]]:
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if key in places:
            module, role = places[key]
            found.setdefault(module, {})[role] = tensor
    return found


@dataclass(frozen=True)
class _Reader:
    """Makes an adapter of tensors, or of their stand-ins, which shows what does not fit."""

    file: Path  # for messages
    model: LlamaConfig
    parts: Mapping[str, WeightPart]  # by module
    config: AdapterConfig

    def check_modules(self, found: lora_names.Found) -> None:
        """Hold the file against the config beside it."""
        in_full = {module for module, roles in found.items() if FULL in roles}
        products = {module for module, roles in found.items() if roles.keys() & {DOWN, TABLE_DOWN}}
        modules = {module: len(part.shape) == 2 for module, part in self.parts.items()}
        check_modules(self.config, products, in_full, modules)
        tables = {module for module, roles in found.items() if TOKENS in roles}
        self.config.check_tokens(tables, self.model.tie_word_embeddings)

    def adapter(self, tensors: _Tensors) -> LoraAdapter:
        """Return what the tensors do; of tables the whole comes before single rows."""
        in_full = [
            self._replacement(module, found[FULL])
            for module, found in tensors.items()
            if FULL in found
        ]
        rows = [
            self._rows(module, found[TOKENS])
            for module, found in tensors.items()
            if TOKENS in found
        ]
        products = [
            self._product(module, found)
            for module, found in tensors.items()
            if found.keys() - {FULL, TOKENS}
        ]
        return LoraAdapter(replacements=(*in_full, *rows), products=tuple(products))

    def checked(self, key: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor in a format that is computed with, without NaN and infinity."""
        if tensor.dtype not in (*_FLOATS, *_SMALL_FLOATS):
            if key.endswith(f".{ALPHA}"):
                return tensor
            raise CheckpointError(
                f"{self.file} holds {key} as {str(tensor.dtype).removeprefix('torch.')}: another "
                "program quantised it. Use the adapter in 16 or 32 bits."
            )
        # Others are exact in float32, or have more digits than anything here computes with.
        is_usual = tensor.dtype in _FLOATS[1:]
        usual = tensor if is_usual else tensor.to(torch.float32)
        assemble.check_finite(key, usual, self.file)
        return usual

    def _replacement(self, module: str, tensor: torch.Tensor) -> Replacement:
        tensor = self._without_padding(module, tensor)
        return Replacement(self._part(module, tensor.shape), tensor)

    def _rows(self, module: str, tensor: torch.Tensor) -> Replacement:
        part = self.parts.get(module)
        if module not in _TABLES or part is None or tensor.shape[1:] != part.shape[1:]:
            raise self._of_another_model(module, tensor.shape)
        ids = self.config.token_ids(module, len(tensor), part.shape[0])
        return Replacement(part, tensor, ids)

    def _product(self, module: str, found: Mapping[str, torch.Tensor]) -> LowRankProduct:
        down, up = self._matrices(module, found)
        part = self._part(module, torch.Size((len(up), down.shape[1])))
        rank, alpha = len(down), found.get(ALPHA)
        if rank > sum(part.shape):
            raise CheckpointError(
                f"{self.file} has matrices of rank {rank:,} for {module} of shape "
                f"{list(part.shape)}, more than it takes to change all of it. It is damaged."
            )
        if alpha is not None and alpha.is_meta:  # a look, which does not tell the number
            return LowRankProduct(part, down, up, 0.0)
        scale = self.config.scale_of(module, rank, alpha)
        if not down.is_meta:
            self._check_range(module, down, up, scale)
        return LowRankProduct(part, down, up, scale)

    def _matrices(
        self, module: str, found: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the matrices of a product: [rank, in_features] and [out_features, rank]."""
        is_table = module == EMBEDDINGS and TABLE_DOWN in found
        roles = (TABLE_DOWN, TABLE_UP) if is_table else (DOWN, UP)
        if not set(roles) <= found.keys() <= {*roles, ALPHA, FULL}:
            raise CheckpointError(
                f"{self.file} holds only half of what changes {module}; it is incomplete"
            )
        down, up = (found[role] for role in roles)
        shapes = f"{self.file}: the matrices for {module} have shapes "
        shapes += f"{list(down.shape)} and {list(up.shape)}, which "
        if self._are_turned(module, down, up):
            raise CheckpointError(
                f"{shapes}is the other way round from what peft saves. Save the adapter with peft, "
                "or convert it to its form."
            )
        if down.dim() != 2 or up.dim() != 2 or len(down) != up.shape[1] or not len(down):
            raise CheckpointError(
                f"{shapes}do not fit each other. It is damaged, or was saved before a training on "
                "several cards had gathered its parts."
            )
        if is_table:  # whose rows are what goes in
            down, up = up.T.contiguous(), down.T.contiguous()
        return down, self._without_padding(module, up)

    def _are_turned(self, module: str, down: torch.Tensor, up: torch.Tensor) -> bool:
        """Tell matrices that would fit the weight if each were turned, and do not as they are."""
        part = self.parts.get(module)
        if part is None or down.dim() != 2 or up.dim() != 2 or down.shape[1] != len(up):
            return False
        return part.shape == (up.shape[1], len(down)) != (len(up), down.shape[1])

    def _check_range(self, module: str, down: torch.Tensor, up: torch.Tensor, scale: float) -> None:
        """Refuse a product whose sums may be infinite."""
        largest = assemble.largest(down) * assemble.largest(up) * abs(scale) * len(down)
        if largest > torch.finfo(torch.float32).max:
            raise CheckpointError(
                f"{self.file}: the matrices for {module} hold numbers whose product is too large "
                "for any weight. The file is damaged: save or download it again."
            )

    def _without_padding(self, module: str, rows: torch.Tensor) -> torch.Tensor:
        """Leave out the rows at the end of a table that belong to no token."""
        part = self.parts.get(module)
        if module not in _TABLES or part is None or rows.dim() != 2:
            return rows
        count = part.shape[0]
        return rows[:count] if is_padded(len(rows), count) else rows

    def _part(self, module: str, shape: torch.Size) -> WeightPart:
        part = self.parts.get(module)
        if part is None or part.shape != tuple(shape):
            raise self._of_another_model(module, shape)
        return part

    def _of_another_model(self, module: str, shape: torch.Size) -> CheckpointError:
        part = self.parts.get(module)
        has = f"is {list(part.shape)} here" if part else "this language model does not have"
        return CheckpointError(
            f"{self.file} belongs to another language model: it changes {module:.200} of shape "
            f"{list(shape)}, which {has}. Use it with the model it was trained on."
        )
