"""Small files beside the weights, read whole: configs, vocabularies, lists of shards."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from . import foreign

# Bytes of a config or a vocabulary that are read; published ones have half a million.
_LARGEST_SIDE_FILE = 64 * 2**20


def unreadable(path: Path, error: Exception) -> CheckpointError:
    """Return what to do about a file: a healthy one is not to be downloaded again."""
    what = f"{path} ({path.stat().st_size:,} bytes) cannot be read: {error}."
    if isinstance(error, PermissionError):
        return CheckpointError(f"{what} Give yourself the right to read it.")
    # Libraries hand on the system's refusal as an error of their own.
    if isinstance(error, MemoryError) or "memory" in str(error).lower():
        return CheckpointError(
            f"{what} There is too little memory for it at the moment: close other programs, or on "
            "Windows enlarge the page file."
        )
    return CheckpointError(
        f"{what} It is damaged or its download did not finish: delete it and download it again."
    )


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; `CheckpointError` if it is missing or damaged."""
    if not path.is_file():
        raise CheckpointError(f"the folder {path.parent} lacks {path.name}")
    return parse_json(read_side_file(path), str(path))


def read_side_file(path: Path) -> bytes:
    """Return the content of a small file; `CheckpointError` if it is large or not readable."""
    foreign.check_content(path, foreign.read_start(path), is_text=True)
    try:
        if (size := path.stat().st_size) <= _LARGEST_SIDE_FILE:
            return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    raise CheckpointError(f"{path} has {size:,} bytes, far too many for a {path.name}")


def decoded(text: bytes) -> str:
    """Return a text, also one that Windows wrote: with a mark before it, or two bytes a character.

    Raises:
        ValueError: it is not text.
    """
    return text.decode(json.detect_encoding(text))


def parse_json(text: bytes, where: str) -> dict[str, Any]:
    """Return the object written in JSON; ``where`` is what the text is, for messages.

    Raises:
        CheckpointError: it is not JSON, not an object, or has a name twice in one object.
    """
    try:
        content = json.loads(decoded(text), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{where} must hold a JSON object; got a {type(content).__name__}")
    return content


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        twice = next(name for name, count in Counter(n for n, _ in pairs).items() if count > 1)
        raise ValueError(f"{twice!r:.80} occurs twice")
    return table
