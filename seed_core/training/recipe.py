"""Recipes: YAML files that fill small frozen dataclasses, strictly."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ..errors import OptionError
from .settings import from_fields

Recipe = TypeVar("Recipe")

RECIPES = Path(__file__).parent / "recipes"
"""The recipes that come with the pack."""


def find_recipe(name: str) -> Path:
    """Return the file of a recipe: a path, or the name of a bundled one.

    Raises:
        OptionError: the file is missing.
    """
    bundled = RECIPES / f"{name}.yaml"
    for path in (Path(name), bundled):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
    raise OptionError(f"the recipe {name} is missing; give a YAML file, or one of {known}")


def read_recipe(kind: type[Recipe], path: Path, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        kind: the dataclass that it fills.
        path: a YAML file.
        changes: values such as ``schedule.steps=100``, in YAML, that replace those of the file.

    Raises:
        OptionError: the file is not YAML, or its fields do not fit the dataclass.
    """
    try:
        fields = yaml.safe_load(path.read_text("utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise OptionError(f"{path} must be a YAML file: {error}") from error
    if not isinstance(fields, dict):
        raise OptionError(f"{path} must hold names and values; it holds {fields!r}")
    for change in changes:
        _change(fields, change)
    return from_fields(kind, fields, str(path))


def _change(fields: dict[str, Any], change: str) -> None:
    name, equals, text = change.partition("=")
    if not equals:
        raise OptionError(f"--set takes NAME=VALUE, such as schedule.steps=100; got {change!r}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise OptionError(f"--set {change}: {text!r} must be a value in YAML") from error
    *groups, last = name.split(".")
    for group in groups:
        fields = fields.setdefault(group, {})
        if not isinstance(fields, dict):
            raise OptionError(f"--set {change}: {group} is one value and has no fields")
    fields[last] = value


def to_yaml(recipe: Any) -> str:
    """Return what `read_recipe` reads into the same recipe."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return value.as_posix() if isinstance(value, Path) else value

    text: str = yaml.safe_dump(plain(dataclasses.asdict(recipe)), sort_keys=False)
    return text
