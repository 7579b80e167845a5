"""What a command passes over: counted by kind, and the first of each kind named."""

from __future__ import annotations

from collections.abc import Callable

from ...compute.looks import in_one_line

# Kinds that several readers share.
EMPTY_SHARDS = "shards without a picture that can be read"
HIDDEN = "hidden files and files of the system"
OTHER_FILES = "files that are neither pictures nor texts of them"
UNMATCHED_TEXTS = "texts that belong to no picture"
UNREADABLE = "pictures that cannot be read"
BLANK_TEXTS = "pictures whose file of texts holds none, in JSON and CSV under text or caption"
WITHOUT_TEXT = "pictures without a text among others that have one"

_NAMED = 3


class PassedOver:
    """Counts files by the reason for which they are passed over."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._names: dict[str, list[str]] = {}

    def add(self, kind: str, name: str | Callable[[], str]) -> None:
        """Count one file; a name that takes long to make is only made where it is shown."""
        self._counts[kind] = self._counts.get(kind, 0) + 1
        if len(names := self._names.setdefault(kind, [])) < _NAMED:
            names.append(in_one_line(name if isinstance(name, str) else name()))

    def count(self, kind: str) -> int:
        """Return how many files of one kind there were."""
        return self._counts.get(kind, 0)

    def lines(self) -> list[str]:
        """Return a line about each kind, with its first names."""
        lines = []
        for kind, count in self._counts.items():
            more = ", ..." if count > _NAMED else ""
            lines.append(f"{kind}: {count} ({', '.join(self._names[kind])}{more})")
        return lines
