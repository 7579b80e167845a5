"""Files that list the pictures of a folder with their texts, in the form of Hugging Face."""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import OptionError, PictureError
from .texts import decoded, fold, texts_of

# Texts of the pictures in its folder and below: file_name and text.
METADATA_FILES = ("metadata.jsonl", "metadata.csv")

_LARGEST = 2**30  # bytes


def read_metadata(folder: Path, file: str, pictures: Sequence[str]) -> dict[str, list[str]]:
    """Return the texts of pictures; a picture may occur several times.

    Args:
        folder: what the names are relative to.
        file: name of one of `METADATA_FILES`, with slashes.
        pictures: names of the pictures in the folder.

    Raises:
        OptionError: the file is damaged, or lists a picture that is missing.
    """
    known = {picture: [picture] for picture in pictures}
    for picture in pictures:
        if (folded := fold(picture)) != picture:
            known.setdefault(folded, []).append(picture)
    texts: dict[str, list[str]] = {}
    for where, record in _records(folder / file):
        name = record.get("file_name")
        if not isinstance(name, str):
            raise OptionError(
                f'{where} must be like {{"file_name": "a.png", "text": "A fox."}}; it has '
                f"{', '.join(map(str, record)) or 'no fields'}"
            )
        picture = _picture(folder, posixpath.dirname(file), name, known)
        if not picture:
            raise OptionError(f"{where}: the picture {name} is missing below {folder / file}")
        try:
            found = texts_of(record, where)
        except PictureError as error:
            raise OptionError(str(error)) from error
        listed = texts.setdefault(picture, [])
        listed += [text for text in found if text not in listed]
    return texts


def _picture(folder: Path, below: str, name: str, known: Mapping[str, list[str]]) -> str:
    for spelled in (name, name.replace("\\", "/")):  # the second was written on Windows
        path = posixpath.normpath(posixpath.join(folder.as_posix(), below, spelled))
        path = path.removeprefix(f"{posixpath.normpath(folder.as_posix())}/")
        found = known.get(path) or known.get(fold(path), [])
        if path in found or len(found) == 1:
            return path if path in found else found[0]
    return ""


def _records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Return each record of a file and where it stands."""
    if (size := path.stat().st_size) > _LARGEST:
        raise OptionError(f"{path} has {size:,} bytes, more than {_LARGEST:,}; split the folder")
    try:
        text = decoded(path.read_bytes(), path.name)
    except PictureError as error:
        raise OptionError(f"{path} cannot be read: {error}") from error
    return (_rows if path.suffix.lower() == ".csv" else _objects)(path, text)


def _rows(path: Path, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            if None in row:
                raise OptionError(
                    f"{where} has more fields than the first line; put a text with commas in quotes"
                )
            yield where, row
    except csv.Error as error:
        raise OptionError(f"{path}, line {rows.line_num} is not CSV: {error}") from error


def _objects(path: Path, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise OptionError(f"{where} is not valid JSON: {error}") from error
        if not isinstance(record, dict):
            raise OptionError(
                f'{where} must be like {{"file_name": "a.png", "text": "A fox."}}; got {line:.60}'
            )
        yield where, record
