"""Settings: dataclasses that are filled strictly from names and values, and shared checks."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..errors import OptionError

Settings = TypeVar("Settings")

_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def from_fields(kind: type[Settings], fields: Mapping[str, Any], where: str) -> Settings:
    """Fill a dataclass and the dataclasses in it.

    Args:
        kind: the dataclass.
        fields: its values by name.
        where: what they come from, for messages.

    Raises:
        OptionError: a field is unknown, missing or of another type.
    """
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    if unknown := [str(name) for name in fields if name not in names]:
        raise OptionError(f"{where} has no field {', '.join(unknown)}; known: {', '.join(names)}")
    values = {name: _read(hints[name], fields[name], f"{where}: {name}") for name in fields}
    try:
        return kind(**values)
    except TypeError as error:
        raise OptionError(f"{where} is incomplete: {error}") from error


def _read(hint: Any, value: Any, where: str) -> Any:
    """Return a value in the type of its field."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        (hint,) = (argument for argument in arguments if argument is not type(None))
        return _read(hint, value, where)
    if origin is typing.Literal:
        return _checked(
            value, value in arguments, where, f"one of {', '.join(map(str, arguments))}"
        )
    if origin is tuple:
        _checked(value, isinstance(value, list), where, "a list")
        return tuple(_read(arguments[0], item, where) for item in value)
    if dataclasses.is_dataclass(hint):
        _checked(value, isinstance(value, dict), where, "names and values")
        return from_fields(typing.cast("type[Any]", hint), value, where)
    if hint is Path:
        return Path(_checked(value, isinstance(value, str), where, "a path"))
    if hint is float:
        if isinstance(value, str) and _EXPONENT.fullmatch(value):
            return float(value)  # 5e-4, which YAML 1.1 reads as text for want of a point
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return float(_checked(value, is_number, where, "a number"))
    is_one = isinstance(value, hint) and not (hint is int and isinstance(value, bool))
    return _checked(value, is_one, where, f"of type {hint.__name__}")


def _checked(value: Any, is_right: bool, where: str, what: str) -> Any:
    if not is_right:
        raise OptionError(f"{where} must be {what}; got {value!r}")
    return value


def check_fractions(settings: Any, *names: str, group: str = "") -> None:
    """Refuse attributes outside 0..1; ``group`` is what a recipe writes before their names.

    Raises:
        OptionError: an attribute lies outside.
    """
    for name in names:
        if not 0 <= getattr(settings, name) <= 1:
            raise OptionError(f"{group}{name} must lie in 0..1; got {getattr(settings, name)}")


def check_at_least(least: float, settings: Any, *names: str, group: str = "") -> None:
    """Refuse attributes that are less, or not finite; of a list, each item counts.

    Raises:
        OptionError: an attribute is less, or a list is empty.
    """
    for name in names:
        value = getattr(settings, name)
        values = value if isinstance(value, tuple) else (value,)
        if not values or not all(least <= each < math.inf for each in values):
            shown = list(values) if isinstance(value, tuple) else value
            raise OptionError(f"{group}{name} must be at least {least}; got {shown}")


def at_least_1(text: str) -> int:
    """Read a number of a command line, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1; got {text!r}")
    return int(text)


def check_groups(network: str, widths: Sequence[int], groups: int) -> None:
    """Refuse widths that group norms cannot divide.

    Raises:
        OptionError: a width is not a multiple of the groups.
    """
    if odd := [width for width in widths if width % groups]:
        raise OptionError(
            f"every width of the {network} must be a multiple of norm_num_groups {groups}; got "
            f"{odd[0]}"
        )
