"""Which modules an adapter changes, as adapter_config.json says: they are held against the file.

Source: how huggingface/peft chooses modules, 0.13 to 0.21.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache

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
        self._wanted = config.names("target_modules")
        self._excluded = config.names("exclude_modules") or frozenset()
        self._layers = self._numbers(config)
        patterns = config.names("layers_pattern") or "layers"
        self._counts_layers = any(
            _matches(pattern, "model.layers", after_dot=True) is not False
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
        is_excluded, found = _is_chosen(self._excluded, module), self._is_wanted(module)
        if is_excluded:
            return False
        return None if found and is_excluded is None else found

    def _is_wanted(self, module: str) -> bool | None:
        wanted = self._wanted
        if wanted is None:
            return None
        if isinstance(wanted, str):
            if wanted.lower() == "all-linear":
                return None if module == HEAD else module != EMBEDDINGS
            return _matches(wanted, module)
        is_chosen = _is_chosen(wanted, module)
        # Layers do not count for a module that is named as a whole.
        if not is_chosen or self._layers is None or module in wanted:
            return is_chosen
        steps = module.split(".")
        number = steps[2] if steps[:2] == ["model", "layers"] else ""
        return self._counts_layers and number.isdecimal() and int(number) in self._layers


def _is_chosen(choice: frozenset[str] | str, module: str) -> bool | None:
    """Tell whether a module's name ends as one of several, or matches a pattern, as `_matches`."""
    if isinstance(choice, str):
        return _matches(choice, module)
    steps = module.split(".")
    return any(".".join(steps[at:]) in choice for at in range(len(steps)))


def _matches(pattern: str, name: str, after_dot: bool = False) -> bool | None:
    """Tell whether a pattern matches a name; None of a pattern that is not read here."""
    read = _read_pattern(pattern, after_dot)
    return None if read is None else read.matches(name)


@lru_cache(maxsize=8)
def _read_pattern(pattern: str, after_dot: bool) -> NamePattern | None:
    try:
        return NamePattern(pattern, after_dot)
    except PatternError:
        return None


def _is_saved(module: str, names: Collection[str]) -> bool:
    """Tell whether a module or one that it is in ends as peft asks: not only at a dot."""
    while module and names:
        if any(module[at:] in names for at in range(len(module))):
            return True
        module = module.rpartition(".")[0]
    return False
