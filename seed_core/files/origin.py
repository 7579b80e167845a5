"""Where a model's files are from: a record that `fetch` keeps beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .writer import replacing

SUFFIX = ".fetched.json"


def note(folder: Path, model: str, origins: Mapping[Path, Mapping[str, Any]]) -> None:
    """Write down where files are from, before they are moved to their places.

    Args:
        folder: the model's own.
        model: what `fetch` calls it, which names the record.
        origins: by where each file lies now: its ``name`` below the folder, its ``size`` and
            ``sha256``, which `identity` reads again, and whatever people may want to know.
    """
    path = folder / f"{model}{SUFFIX}"
    record = _read(path)
    for file, origin in origins.items():
        # A file that is changed later has another time, and the hash here is then not its own.
        record[origin["name"]] = {**origin, "modified": file.stat().st_mtime_ns}
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def identity(folder: Path, file: Path) -> dict[str, str | int]:
    """Return what tells a file from another of its name: its hash if it was fetched, else its time.

    Args:
        folder: the model's own, where a record may lie.
        file: in that folder or below.
    """
    state = file.stat()
    known: dict[str, str | int] = {"name": file.name, "bytes": state.st_size}
    name = file.relative_to(folder).as_posix() if file.is_relative_to(folder) else file.name
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        match _read(path).get(name):
            case {"sha256": str(digest), "size": size, "modified": modified} if (
                size == state.st_size and modified == state.st_mtime_ns
            ):
                return {**known, "sha256": digest}
    return {**known, "modified": state.st_mtime_ns}


def unchanged(folder: Path, model: str) -> set[str]:
    """Return the names of a model's files that are as they were when they were written down."""
    names = set()
    for name, known in _read(folder / f"{model}{SUFFIX}").items():
        with suppress(OSError, KeyError, TypeError):
            state = (folder / name).stat()
            if (state.st_size, state.st_mtime_ns) == (known["size"], known["modified"]):
                names.add(name)
    return names


def _read(path: Path) -> dict[str, Any]:
    """Return a record; an empty one if there is none, or it was cut short: it can be done without."""
    with suppress(OSError, ValueError):
        record = json.loads(path.read_text(encoding="utf-8"))
        return record if isinstance(record, dict) else {}
    return {}
