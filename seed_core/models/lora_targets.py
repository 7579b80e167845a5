"""Which modules an adapter changes, as adapter_config.json says: they are held against the file.

Source: how huggingface/peft chooses modules, 0.13 to 0.21.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from ..errors import CheckpointError
from .lora_config import CONFIG_FILE, EMBEDDINGS, HEAD, AdapterConfig
from .name_patterns import NamePattern, PatternError


def check_modules(
    config: AdapterConfig,
    products: Collection[str],
    in_full: Collection[str],
    modules: Mapping[str, bool],
) -> None:
    """Hold the modules that a file changes against those that its settings name.

    Args:
        config: the settings.
        products: modules of which the file has matrices.
        in_full: modules of which it has the weight itself.
        modules: all of the language model's, and whether they may have products.

    Raises:
        CheckpointError: some are missing, so that the file is incomplete, or there are others.
    """
    targets = _Targets(config)
    saved = config.names("modules_to_save") or frozenset()
    for module, is_matrix in modules.items():
        is_saved = _is_saved(module, saved)
        if is_saved and module not in in_full:
            raise CheckpointError(
                f"{config.file} lacks {module}, which {CONFIG_FILE} beside it names in "
                "modules_to_save: it is incomplete, or belongs to a smaller model."
            )
        is_target = targets.has(module) if is_matrix else None
        if is_target is False and module in products:
            raise CheckpointError(
                f"{config.file} changes {module}, which {CONFIG_FILE} beside it leaves out "
                "(target_modules, exclude_modules, layers_to_transform): the two do not belong "
                "together"
            )
        if is_target and module not in products and not is_saved:
            raise CheckpointError(
                f"{config.file} has no matrices for {module}, which {CONFIG_FILE} beside it names "
                "in target_modules: it is incomplete, or belongs to a smaller model."
            )


class _Targets:
    """The modules that the settings name, as far as they can be told."""

    def __init__(self, config: AdapterConfig) -> None:
        self._wanted = _Chosen.of(config, "target_modules")
        self._excluded = _Chosen.of(config, "exclude_modules")
        self._layers = self._numbers(config)
        patterns = config.names("layers_pattern") or "layers"
        self._counts_layers = any(
            _matches(pattern, "model.layers") is not False
            for pattern in ((patterns,) if isinstance(patterns, str) else patterns)
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
        found = self._is_wanted(module)
        return None if found and self._excluded.is_unclear else found

    def _is_wanted(self, module: str) -> bool | None:
        if (self._wanted.text or "").lower() == "all-linear":
            return None if module == HEAD else module != EMBEDDINGS
        found = self._wanted.has(module)
        if not found or self._layers is None or self._wanted.is_pattern:
            return found
        if module in self._wanted.names:  # by its whole name
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
        said = config.names(field)
        if isinstance(said, str):
            return cls(frozenset(), said, True)
        return cls(said or frozenset(), None, said is not None)

    @property
    def is_pattern(self) -> bool:
        return self.text is not None

    @cached_property
    def _pattern(self) -> NamePattern | None:
        try:
            return None if self.text is None else NamePattern(self.text)
        except PatternError:
            return None

    @property
    def is_unclear(self) -> bool:
        return self.is_pattern and self._pattern is None

    def has(self, module: str) -> bool | None:
        """Tell whether a module is chosen; None if that cannot be told."""
        if not self.is_given or self.is_unclear:
            return None
        if self._pattern is None:
            return any(end in self.names for end in _ends(module))
        return self._pattern.matches(module)


def _matches(pattern: str, name: str) -> bool | None:
    try:
        return NamePattern(pattern, after_dot=True).matches(name)
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
