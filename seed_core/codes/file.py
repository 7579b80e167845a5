"""Files of codes: safetensors, JSON and text, all read by everything here that reads codes.

The usual form is safetensors: codes, distances if any is known, and the family in the header. JSON
holds the same. Text lacks distances. A file is known by its content: earlier versions gave JSON any
ending. Nothing in such a file can run.
"""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import CodesError
from ..files.writer import replacing
from .text import LONGEST_TEXT, codes_from_text, codes_to_json, codes_to_text_file
from .value import MOST_PICTURES, NUM_CODES, SeedCodes, check_count

CODES_SUFFIX = ".safetensors"
TEXT_SUFFIX = ".txt"
CODES_SUFFIXES = (CODES_SUFFIX, ".json", TEXT_SUFFIX)

_LONGEST_HEADER = 1024  # bytes; what `_save` writes has 200

_CODES, _DISTANCES, _FAMILY, _SIZE = "codes", "distances", "family", "codebook_size"


def save_codes_file(codes: SeedCodes, path: Path) -> None:
    """Write codes in the form of the file's ending; a file in the way is replaced.

    Args:
        codes: what to write.
        path: ends in ``.safetensors`` or ``.txt``; with any other ending the file is JSON.

    Raises:
        CodesError: the file cannot be written.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == CODES_SUFFIX:
            _save(codes, path)
        else:
            text = codes_to_text_file(codes) if suffix == TEXT_SUFFIX else codes_to_json(codes)
            path.write_text(text + "\n", encoding="utf-8")
    except (SafetensorError, OSError) as error:
        raise CodesError(f"the codes could not be written to {path}: {error}") from error


def _save(codes: SeedCodes, path: Path) -> None:
    tensors = {_CODES: codes.values.cpu().contiguous()}  # int64 [B, 32]
    if codes.has_distances:  # earlier versions read only files without them
        tensors[_DISTANCES] = codes.distances.float().cpu().contiguous()  # float32 [B, 32]
    with replacing(path) as unfinished:
        save_file(tensors, unfinished, {_FAMILY: codes.family, _SIZE: str(codes.codebook_size)})


def read_codes_file(path: Path, unnamed: str | None = None) -> SeedCodes:
    """Read a file of codes, on the CPU.

    Args:
        path: a file in any of the three forms.
        unnamed: whose codes they are where a text names no family.

    Raises:
        CodesError: the file is missing, damaged or of another kind, or its codes are out of range.
    """
    try:
        encoding = _encoding(path)
        if encoding is None:
            return _read(path)
        # One byte more is enough for a text that is too long to be noticed as such.
        with path.open(encoding=encoding) as file:
            return codes_from_text(file.read(LONGEST_TEXT + 1), unnamed=unnamed)
    except CodesError as error:
        raise CodesError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise CodesError(f"the file of codes {path} does not exist") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise CodesError(f"{path} cannot be read as a file of codes: {error}") from error


def looks_like_codes(path: Path) -> bool:
    """Tell by its header whether a safetensors file may hold codes; reads a kilobyte at most."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= _LONGEST_HEADER else None
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(header, dict) and {_CODES, "__metadata__"} <= header.keys()


def _encoding(path: Path) -> str | None:
    """Return how a text is encoded, which PowerShell's ``>`` may have written; None of no text."""
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    # In safetensors the length of the header stands there; other text has no zeros.
    return None if b"\0" in start else "utf-8"


def _read(path: Path) -> SeedCodes:
    with safe_open(path, framework="pt", device="cpu") as file:
        header, names = file.metadata() or {}, set(file.keys())
        # Looked at before any tensor is read: weights have the same ending, and may be huge.
        if not {_CODES} <= names <= {_CODES, _DISTANCES} or not {_FAMILY, _SIZE} <= set(header):
            raise CodesError("this is a safetensors file of something else, not of codes")
        for name in names:
            if len(shape := file.get_slice(name).get_shape()) != 2:
                raise CodesError(f"{name} are stored as [pictures, {NUM_CODES}]; these are {shape}")
            check_count(shape[0], MOST_PICTURES, "the file holds")
        if not re.fullmatch("[0-9]{1,9}", header[_SIZE]):
            raise CodesError(f"{header[_SIZE]!r:.40} is not a codebook size")
        # Copies: what is read may be a view of the file, which can change under it.
        values, *distances = (
            file.get_tensor(name).clone() for name in (_CODES, _DISTANCES) if name in names
        )
        return SeedCodes(values, header[_FAMILY], int(header[_SIZE]), *distances)
