"""Checks of settings that stages share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import OptionError


def check_parts(settings: Any, *names: str, group: str = "") -> None:
    """Refuse parts of a whole that lie outside 0..1.

    Args:
        settings: what has them.
        names: of its fields.
        group: what a recipe writes before those names, such as ``world.``.

    Raises:
        OptionError: there is one.
    """
    for name in names:
        if not 0 <= getattr(settings, name) <= 1:
            raise OptionError(f"{group}{name} must lie in 0..1; got {getattr(settings, name)}")


def check_groups(network: str, widths: Sequence[int], groups: int) -> None:
    """Refuse widths that group norms cannot divide.

    Raises:
        OptionError: there is one.
    """
    if odd := [width for width in widths if width % groups]:
        raise OptionError(
            f"every width of the {network} must be a multiple of norm_num_groups {groups}; got "
            f"{odd[0]}"
        )
