"""Texts of pictures: how they are stored, and which picture they belong to.

A text has the name of its picture with another ending, ``fox.txt``, or with one more,
``fox.jpg.txt``.
"""

from __future__ import annotations

import codecs
import json
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from ...errors import PictureError

TEXT_SUFFIXES = (".txt", ".caption", ".json")

LARGEST_TEXT = 2**20  # bytes

_FIELDS = ("text", "texts", "caption", "captions")

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def decoded(content: bytes, name: str) -> str:
    """Return text that is stored in UTF-8, or in UTF-16 with a byte-order mark.

    Raises:
        PictureError: the text is stored in another encoding.
    """
    encoding = "utf-16" if content.startswith(_UTF_16) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise PictureError(f"its text {name} is not in UTF-8; save it as UTF-8: {error}") from error
    if "\0" in text:  # UTF-16 without a mark reads as UTF-8 with zeros between the letters
        raise PictureError(f"its text {name} holds zero bytes; save it as UTF-8")
    return text


def texts_in(content: bytes, name: str) -> list[str]:
    """Return the texts in a file beside a picture; the ending of its name says how they are kept.

    Raises:
        PictureError: the file is too large or damaged, or its caption is not text.
    """
    if len(content) > LARGEST_TEXT:
        raise PictureError(f"its text {name} has more than {LARGEST_TEXT:,} bytes")
    text = decoded(content, name)
    if not name.lower().endswith(".json"):
        return _filled([text])
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PictureError(f"its text {name} is not valid JSON: {error}") from error
    return texts_of(record, name) if isinstance(record, dict) else []


def texts_of(record: Mapping[str, Any], where: str) -> list[str]:
    """Return the texts in a JSON object; the first of its known fields that is set counts.

    Raises:
        PictureError: the field is neither text nor a list of texts, or not whole.
    """
    for field in _FIELDS:
        if (value := record.get(field)) is None:
            continue
        texts = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in texts):
            raise PictureError(
                f"{field} in {where} must be text or a list of texts; got {value!r:.60}"
            )
        try:
            "".join(texts).encode()
        except UnicodeEncodeError as error:
            raise PictureError(f"{field} in {where} holds half a character: {error}") from error
        return _filled(texts)
    return []


def _filled(texts: Sequence[str]) -> list[str]:
    """Return texts without blank ones, each once."""
    return list(dict.fromkeys(stripped for text in texts if (stripped := text.strip())))


def agreed(found: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the texts of a picture that one file or several hold.

    Args:
        found: the texts by the name of their file.

    Raises:
        PictureError: the files differ.
    """
    # Downloaders write a .json about each picture, beside the text that counts.
    filled = {name: list(texts) for name, texts in found.items() if texts}
    own = {name: texts for name, texts in filled.items() if not name.lower().endswith(".json")}
    kept = list((own or filled).items())
    for name, texts in kept[1:]:
        if texts != kept[0][1]:
            raise PictureError(f"its texts in {kept[0][0]} and {name} differ; keep one of them")
    return kept[0][1] if kept else []


def pair(pictures: Sequence[str], texts: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Find the texts of pictures by their names, which are paths with slashes.

    Names that differ in upper and lower case or in how accents are stored match if nothing matches
    better.

    Returns:
        The names of the texts of each picture that has one, and the texts that belong to none.
    """
    exact, folded = _Names(pictures, str), _Names(pictures, fold)
    found: dict[str, list[str]] = defaultdict(list)
    later: list[str] = []
    for text in texts:
        belongs = exact.of(text)
        for picture in belongs:
            found[picture].append(text)
        if not belongs:
            later.append(text)
    unmatched: list[str] = []
    taken = set(found)
    for text in later:
        free = [picture for picture in folded.of(text) if picture not in taken]
        if len(free) == 1:
            found[free[0]].append(text)
        else:
            unmatched.append(text)
    return dict(found), unmatched


class _Names:
    """Pictures by their whole name and by their name without its ending."""

    def __init__(self, pictures: Sequence[str], spelled: Callable[[str], str]) -> None:
        self._spelled = spelled
        self._whole: dict[str, list[str]] = defaultdict(list)
        self._short: dict[str, list[str]] = defaultdict(list)
        for picture in pictures:
            self._whole[spelled(picture)].append(picture)
            self._short[spelled(_without_ending(picture))].append(picture)

    def of(self, text: str) -> list[str]:
        """Return the pictures that a text belongs to."""
        name = self._spelled(_without_ending(text))
        return self._whole.get(name) or self._short.get(name, [])


def _without_ending(name: str) -> str:
    return name.removesuffix(PurePosixPath(name).suffix)


def fold(name: str) -> str:
    """Return a name without what disks of other systems tell apart: case, and kinds of accents."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
