"""What adapter_config.json says of an adapter: every setting is followed, harmless, or refused.

Source: the configuration of LoRA in huggingface/peft, 0.13 to 0.21.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import isfinite, sqrt
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from ..files import side_files
from .name_patterns import PatternError, PatternTable

CONFIG_FILE = "adapter_config.json"

_TOKENS = "trainable_token_indices"  # rows of tables that were trained in full

_FOLLOWED = frozenset(
    (
        *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("modules_to_save", _TOKENS, "init_lora_weights", "ensure_weight_tying"),
    )
)

# What only training reads, what says where the model came from, what other programs add, and what
# has no meaning for a LLaMA: its matrices have no biases to train and are never stored turned.
_HARMLESS = frozenset(
    (
        *("task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode"),
        *("peft_version", "runtime_config", "lora_dropout", "fan_in_fan_out", "bias"),
        *("megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config"),
        *("lora_ga_config", "velora_config", "qalora_group_size", "merge_weights"),
        *("lora_dtype", "lorap_lr_ratio", "lorap_emb_lr", "_from_model_config"),
        "transformers_version",
    )
)

# Settings under which an adapter is more than products that are added to weights.
_OTHER_METHODS = (
    *("use_dora", "use_qalora", "use_bdlora", "lora_bias", "layer_replication", "enable_lora"),
    *("alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config"),
    "target_parameters",
)
_KNOWN = _FOLLOWED | _HARMLESS | {*_OTHER_METHODS}
_OFF_WHEN_EMPTY = ("layer_replication", "target_parameters")

# Ways to begin training that leave the model as it is; others change it too.
_KEEPS_THE_MODEL = ("gaussian", "eva", "orthogonal", "mica", "true", "false")

# No training scales its products by so much.
_LARGEST_SCALE = 1e6

EMBEDDINGS, HEAD = "model.embed_tokens", "lm_head"  # the tables of tokens


@dataclass(frozen=True)
class AdapterConfig:
    """The settings of an adapter."""

    file: Path  # the weights, for messages
    fields: Mapping[str, Any]  # of the config; empty if it is missing

    @classmethod
    def beside(cls, file: Path) -> AdapterConfig:
        """Read the config beside the weights, if it is there.

        Raises:
            CheckpointError: it is damaged, or a setting makes the adapter more than can be loaded.
        """
        place = file.with_name(CONFIG_FILE)
        config = cls(file, side_files.read_json(place) if place.is_file() else {})
        config._check_kind(place)
        config._check_start(place)
        if unknown := sorted(
            name for name, value in config.fields.items() if value and name not in _KNOWN
        ):
            raise CheckpointError(
                f"{place} has settings that are not known here: {', '.join(unknown[:5]):.200}. They may "
                "change what the adapter does. If they do not, take them out of a copy of it."
            )
        return config

    def _check_kind(self, place: Path) -> None:
        kind = self.fields.get("peft_type") or "LORA"
        if str(kind).upper() != "LORA":
            raise CheckpointError(
                f"{place} is of an adapter of the kind {kind!s:.40}; only LoRA can be loaded"
            )
        if others := [name for name in _OTHER_METHODS if self._is_on(name)]:
            raise CheckpointError(
                f"{place} says {', '.join(others)}; only plain LoRA can be loaded"
                + (", no DoRA" if "use_dora" in others else "")
            )

    def _is_on(self, name: str) -> bool:
        value = self.fields.get(name)
        return value not in (None, False, [] if name in _OFF_WHEN_EMPTY else None)

    def _check_start(self, place: Path) -> None:
        start = self.fields.get("init_lora_weights")
        if start is None or str(start).lower() in _KEEPS_THE_MODEL:
            return
        raise CheckpointError(
            f"{place} says init_lora_weights {start!r:.80}: training changed the model too, and "
            "the adapter fits only that one. Save it as a plain LoRA, which peft does where "
            "save_pretrained is given path_initial_model_for_weight_conversion."
        )

    def scale_of(self, module: str, rank: int, alpha: torch.Tensor | None) -> float:
        """Return what the product of one module is multiplied by (``alpha``: as the file says).

        Raises:
            CheckpointError: nothing says it, or the config is of matrices of another rank.
        """
        expected = self._ranks.of(module)
        if expected is not None and expected != rank:
            raise CheckpointError(
                f"{self.file} has matrices of rank {rank} for {module} and {CONFIG_FILE} beside it "
                f"says {expected!r:.80}: the two do not belong together"
            )
        said = self._alphas.of(module)
        strength = _number(said if alpha is None else alpha)
        if strength is None:
            raise CheckpointError(
                f"nothing says how strong {self.file} was trained to be: {CONFIG_FILE} with its "
                "lora_alpha has to lie beside it. Copy it there, or if it is lost write one: "
                '{"lora_alpha": 32} is what SEED-LLaMA was trained with.'
            )
        if said is not None and _number(said) != strength:
            raise CheckpointError(
                f"{self.file} says alpha {strength:g} for {module} and {CONFIG_FILE} beside it "
                f"{said!r:.80}: the two do not belong together"
            )
        scale = strength / (sqrt(rank) if self._flag("use_rslora") else rank)
        if abs(scale) > _LARGEST_SCALE:
            raise CheckpointError(
                f"{self.file} is to be {abs(scale):.3g} times as strong as its numbers, by a "
                f"lora_alpha of {strength:.3g}: no training asks for that, so {CONFIG_FILE} is "
                "damaged. Download it again."
            )
        return scale

    @cached_property
    def _ranks(self) -> _ByModule:
        return _ByModule(self, "rank_pattern", self.fields.get("r"))

    @cached_property
    def _alphas(self) -> _ByModule:
        return _ByModule(self, "alpha_pattern", self.fields.get("lora_alpha"))

    def _flag(self, name: str) -> bool:
        value = self.fields.get(name)
        if value not in (None, True, False):
            raise self.unreadable(name, f"it is {value!r:.80}, neither true nor false")
        return bool(value)

    def unreadable(self, name: str, why: object) -> CheckpointError:
        """Return what to say of a setting of a form that is not read here."""
        return CheckpointError(
            f"{CONFIG_FILE} beside {self.file} has a field {name} that cannot be read: {why}"
        )

    def token_ids(self, module: str, rows: int, vocab_size: int) -> tuple[int, ...]:
        """Return which rows of a table were trained.

        Raises:
            CheckpointError: the config does not say it, or of other rows than the file has.
        """
        said = next(
            (ids for key, ids in self._tokens.items() if key and module.endswith(key)), None
        )
        ids = said if isinstance(said, list) else []
        if any(type(i) is not int or not 0 <= i < vocab_size for i in ids):
            raise self.unreadable(_TOKENS, f"token ids are whole numbers in 0..{vocab_size - 1}")
        if len(ids) != rows or len(set(ids)) != rows:
            raise CheckpointError(
                f"{self.file} has {rows} rows of {module} and {CONFIG_FILE} beside it names "
                f"{len(set(ids))} tokens in {_TOKENS}: it has to name one for each"
            )
        return tuple(ids)

    @cached_property
    def _tokens(self) -> Mapping[str, Any]:
        """Lists of token ids, by the end of the table's name."""
        said = self.fields.get(_TOKENS)
        if said is not None and not isinstance(said, list | dict):
            raise self.unreadable(_TOKENS, "it should be a list of token ids")
        return {EMBEDDINGS: said} if isinstance(said, list) else said or {}

    def check_tokens(self, modules: Collection[str], is_tied: bool) -> None:
        """Hold the tables that the file has rows of against those that the settings name.

        Raises:
            CheckpointError: rows are missing, or would belong to two tables at once.
        """
        names = [name for name, ids in self._tokens.items() if ids]
        if missing := [n for n in names if not any(module.endswith(n) for module in modules)]:
            raise CheckpointError(
                f"{self.file} lacks the rows of {missing[0]!s:.80} that {CONFIG_FILE} beside it "
                f"names in {_TOKENS}: it is incomplete. Save or download it again."
            )
        if is_tied and (modules or self._flag("ensure_weight_tying")):
            raise CheckpointError(
                f"{self.file} changes one table for embeddings and head (ensure_weight_tying or "
                f"{_TOKENS}); only adapters of models with two can be loaded"
            )

    def names(self, field: str) -> frozenset[str] | str | None:
        """Return a list of names as a set, or the pattern that stands in its place.

        Raises:
            CheckpointError: it is something else.
        """
        value = self.fields.get(field)
        if value is None or (isinstance(value, str) and field != "modules_to_save"):
            return value
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            return frozenset(value)
        raise self.unreadable(field, "it should be a list of names")


class _ByModule:
    """A number that patterns may say differently for some modules."""

    def __init__(self, config: AdapterConfig, field: str, usual: Any) -> None:
        self._usual = usual
        patterns = config.fields.get(field) or {}
        if not isinstance(patterns, dict):
            raise config.unreadable(field, "it should map names of modules to numbers")
        self._values = patterns
        try:
            self._table = PatternTable(patterns)
        except PatternError as error:
            raise config.unreadable(
                field, f"{error}. Write out the names of the modules."
            ) from error

    def of(self, module: str) -> Any:
        """Return the number of one module."""
        found = self._table.find(module)
        return self._usual if found is None else self._values[found]


def _number(value: Any) -> float | None:
    """Return a finite number, of whatever form; None of anything else."""
    if isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex():
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if isfinite(value) else None
    except OverflowError:
        return None
