"""What adapter_config.json says of an adapter: every setting is followed, harmless, or refused.

Source: the configuration of LoRA in huggingface/peft, 0.13 to 0.21.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import isfinite, sqrt
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from ..files import side_files
from .name_patterns import NamePattern, PatternError, PatternTable

CONFIG_FILE = "adapter_config.json"

_FOLLOWED = frozenset(
    (
        *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("modules_to_save", "trainable_token_indices", "init_lora_weights"),
        "ensure_weight_tying",
    )
)

# What only training reads, what says where the model came from, and what has no meaning for a
# LLaMA: its matrices have no biases to train and are never stored turned.
_HARMLESS = frozenset(
    (
        *("task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode"),
        *("peft_version", "runtime_config", "lora_dropout", "fan_in_fan_out", "bias"),
        *("megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config"),
        *("lora_ga_config", "velora_config", "qalora_group_size", "merge_weights"),
    )
)

# Settings under which an adapter is more than products that are added to weights.
_OTHER_METHODS = (
    *("use_dora", "use_qalora", "use_bdlora", "lora_bias", "layer_replication", "enable_lora"),
    *("alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config"),
    "target_parameters",
)
_OFF_WHEN_EMPTY = ("layer_replication", "target_parameters")

# Ways to begin training that leave the model as it is; others change it too.
_KEEPS_THE_MODEL = ("gaussian", "eva", "orthogonal", "mica", "true", "false")

# No training scales its products by so much.
_LARGEST_SCALE = 1e6

_TABLES = ("model.embed_tokens", "lm_head")


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
            name
            for name, value in config.fields.items()
            if value and name not in (*_FOLLOWED, *_HARMLESS, *_OTHER_METHODS)
        ):
            raise CheckpointError(
                f"{place} has settings that are not known here: {', '.join(unknown[:5]):.200}. They may "
                "change what the adapter does. If they do not, take them out of a copy of it."
            )
        return config

    def _check_kind(self, place: Path) -> None:
        kind = self.fields.get("peft_type") or "LORA"
        if str(kind).upper() != "LORA":
            raise CheckpointError(f"{place} is of a {kind!s:.40} adapter; only LoRA can be loaded")
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
            f"{CONFIG_FILE} beside {self.file} has a {name} that cannot be read: {why}"
        )

    # --- what has to be in the file ---

    def check_modules(
        self, products: Collection[str], in_full: Collection[str], modules: Mapping[str, bool]
    ) -> None:
        """Hold the modules that the file changes against those that the settings name.

        Args:
            products: modules of which the file has matrices.
            in_full: modules of which it has the weight itself.
            modules: all of the language model's, and whether they may have products.

        Raises:
            CheckpointError: some are missing, so that the file is incomplete, or there are others.
        """
        targets = _Targets(self)
        saved = self._names("modules_to_save") or frozenset()
        for module, is_matrix in modules.items():
            if module not in in_full and _is_saved(module, saved):
                raise CheckpointError(
                    f"{self.file} lacks {module}, which {CONFIG_FILE} beside it names in "
                    "modules_to_save: it is incomplete, or belongs to a smaller model."
                )
            is_target = targets.has(module) if is_matrix else None
            if is_target is False and module in products:
                raise CheckpointError(
                    f"{self.file} changes {module}, which {CONFIG_FILE} beside it leaves out "
                    "(target_modules, exclude_modules, layers_to_transform): the two do not belong "
                    "together"
                )
            if is_target and module not in products and not _is_saved(module, saved):
                raise CheckpointError(
                    f"{self.file} has no matrices for {module}, which {CONFIG_FILE} beside it names "
                    "in target_modules: it is incomplete, or belongs to a smaller model."
                )

    def token_ids(self, module: str, rows: int, vocab_size: int) -> tuple[int, ...]:
        """Return which rows of a table were trained.

        Raises:
            CheckpointError: the config does not say it, or of other rows than the file has.
        """
        name = "trainable_token_indices"
        said = self.fields.get(name)
        if isinstance(said, dict):
            said = next((ids for key, ids in said.items() if key and module.endswith(key)), None)
        elif module != _TABLES[0]:
            said = None
        ids = said if isinstance(said, list) else []
        if any(type(i) is not int or not 0 <= i < vocab_size for i in ids):
            raise self.unreadable(name, f"token ids are whole numbers in 0..{vocab_size - 1}")
        if len(ids) != rows or len(set(ids)) != rows:
            raise CheckpointError(
                f"{self.file} has {rows} rows of {module} and {CONFIG_FILE} beside it names "
                f"{len(set(ids))} tokens in {name}: it has to name one for each"
            )
        return tuple(ids)

    def check_tokens(self, modules: Collection[str], is_tied: bool) -> None:
        """Hold the tables that the file has rows of against those that the settings name.

        Raises:
            CheckpointError: rows are missing, or would belong to two tables at once.
        """
        said = self.fields.get("trainable_token_indices")
        if said is not None and not isinstance(said, list | dict):
            raise self.unreadable("trainable_token_indices", "it should be a list of token ids")
        said = {_TABLES[0]: said} if isinstance(said, list) else said or {}
        names = [name for name, ids in said.items() if ids]
        if missing := [n for n in names if not any(module.endswith(n) for module in modules)]:
            raise CheckpointError(
                f"{self.file} lacks the rows of {missing[0]!s:.80} that {CONFIG_FILE} beside it "
                "names in trainable_token_indices: it is incomplete. Save or download it again."
            )
        if is_tied and (modules or self._flag("ensure_weight_tying")):
            raise CheckpointError(
                f"{self.file} changes one table for embeddings and head (ensure_weight_tying or "
                "trainable_token_indices); only adapters of models with two can be loaded"
            )

    def _names(self, field: str) -> frozenset[str] | str | None:
        """Return a list of names, or the pattern that stands in its place."""
        value = self.fields.get(field)
        if value is None or (isinstance(value, str) and field != "modules_to_save"):
            return value
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            return frozenset(value)
        raise self.unreadable(field, "it should be a list of names")


class _ByModule:
    """A number that patterns may say differently for some modules."""

    def __init__(self, config: AdapterConfig, field: str, usual: Any) -> None:
        self._config, self._field, self._usual = config, field, usual
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
        try:
            found = self._table.find(module)
        except PatternError as error:
            raise self._config.unreadable(self._field, error) from error
        return self._usual if found is None else self._values[found]


class _Targets:
    """The modules that the settings name, as far as they can be told."""

    def __init__(self, config: AdapterConfig) -> None:
        self._wanted = _Chosen.of(config, "target_modules")
        self._excluded = _Chosen.of(config, "exclude_modules")
        self._layers = self._numbers(config)
        patterns = config.fields.get("layers_pattern") or ()
        self._counts_layers = any(
            _matches(pattern, "layers", after_dot=True) is not False
            or _matches(pattern, "model.layers", after_dot=True) is not False
            for pattern in ((patterns,) if isinstance(patterns, str) else patterns or ("layers",))
        )

    @staticmethod
    def _numbers(config: AdapterConfig) -> frozenset[int] | None:
        said = config.fields.get("layers_to_transform")
        numbers = [said] if type(said) is int else [] if said is None else said
        if not isinstance(numbers, list) or any(type(number) is not int for number in numbers):
            raise config.unreadable("layers_to_transform", "it should be a list of whole numbers")
        return frozenset(numbers) if numbers else None

    def has(self, module: str) -> bool | None:
        """Tell whether training put a product on a module; None if that cannot be told."""
        if self._excluded.has(module):
            return False
        found = self._wanted.has(module)
        if not found or self._layers is None or self._wanted.is_pattern:
            return None if found and self._excluded.is_unclear else found
        if self._wanted.has_whole(module):
            return True
        steps = module.split(".")
        number = steps[2] if steps[:2] == ["model", "layers"] else ""
        return self._counts_layers and number.isdecimal() and int(number) in self._layers


@dataclass(frozen=True)
class _Chosen:
    """A choice of modules: by names, which their ends have to be, or by one pattern."""

    names: frozenset[str]
    text: str | None
    is_given: bool

    @classmethod
    def of(cls, config: AdapterConfig, field: str) -> _Chosen:
        said = config._names(field)
        if isinstance(said, str):
            return cls(frozenset(), said, True)
        return cls(said or frozenset(), None, said is not None)

    @property
    def is_pattern(self) -> bool:
        return self.text is not None

    @cached_property
    def _pattern(self) -> NamePattern | None:
        try:
            return NamePattern(self.text or "")
        except PatternError:
            return None

    @property
    def is_unclear(self) -> bool:
        return self.is_pattern and self._pattern is None

    def has(self, module: str) -> bool | None:
        """Tell whether a module is chosen; None if that cannot be told."""
        if self.text is not None:
            return self._has_by_pattern(module, self.text)
        if not self.is_given:
            return None
        return any(end in self.names for end in _ends(module))

    def _has_by_pattern(self, module: str, text: str) -> bool | None:
        if text.lower() == "all-linear":
            return None if module == _TABLES[1] else module != _TABLES[0]
        try:
            return self._pattern.matches(module) if self._pattern else None
        except PatternError:
            return None

    def has_whole(self, module: str) -> bool:
        """Tell whether a module's whole name is among the names."""
        return module in self.names


def _matches(pattern: Any, name: str, after_dot: bool = False) -> bool | None:
    try:
        return NamePattern(pattern, after_dot).matches(name) if isinstance(pattern, str) else None
    except PatternError:
        return None


def _ends(module: str) -> Iterator[str]:
    """Yield a name, and it without the first, the first two and so on of its steps."""
    while True:
        yield module
        _, dot, module = module.partition(".")
        if not dot:
            return


def _is_saved(module: str, names: Collection[str]) -> bool:
    """Tell whether a module or one that it is in ends as peft asks: not only at a dot."""
    while module and names:
        if any(module[at:] in names for at in range(len(module))):
            return True
        module = module.rpartition(".")[0]
    return False


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
