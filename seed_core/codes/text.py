"""Codes as text: what people type or paste, read strictly, and JSON that keeps the family.

Every number is used as it stands, or refused. Knows nothing of files (see ``codes_files``).
"""

from __future__ import annotations

import json
import re
from typing import Any

from ..errors import CodesError
from .value import BEGIN_IMAGE, CODEBOOK_SIZES, END_IMAGE, NUM_CODES, SeedCodes, image_token

_IMAGE_TOKEN = re.compile(r"<img_([0-9]{5})>")  # what `image_token` writes
_PICTURE = re.compile(rf"{BEGIN_IMAGE}((?:\s*<img_[0-9]{{5}}>)*)\s*{END_IMAGE}")
_SEPARATOR = re.compile(r"\s*,\s*|\s+")
_NUMBER = re.compile(r"-?[0-9]{1,18}")  # a negative one is told its range; longer ones are no codes

_FORMS = (
    f"Codes can be written as {BEGIN_IMAGE}{image_token(12)}...{END_IMAGE} with one line a picture, "
    f"as {NUM_CODES} whole numbers a picture with spaces or commas between them, or as JSON."
)


def codes_from_text(text: str, family: str) -> SeedCodes:
    """Return the codes written in ``text``.

    Args:
        text: lines as `SeedCodes.to_text` writes them; whole numbers, each line one or more whole
            pictures; or JSON, either what `codes_to_json` writes or plain lists.
        family: whose codes they are.

    Raises:
        CodesError: anything else, another family in the JSON, or values that are no codes.
    """
    text = text.removeprefix("\ufeff").strip()  # the mark that some editors begin files with
    if not text:
        raise CodesError(f"the text is empty. {_FORMS}")
    if text[0] in "[{":
        codes = codes_from_json(text, family)
        if codes.family != family:
            raise CodesError(
                f"the text holds {codes.family} codes, but {family} was asked for; choose the "
                "family that the codes were made with"
            )
        return codes
    rows = _read_pictures(text) if "<" in text else _read_numbers(text)
    return SeedCodes.from_rows(rows, family, CODEBOOK_SIZES.get(family, 0))


def _read_pictures(text: str) -> list[list[int]]:
    between = _PICTURE.sub("\n", text).strip()
    if between:
        raise CodesError(f"{between[:40]!r} is no whole picture. {_FORMS}")
    return [
        [int(code) for code in _IMAGE_TOKEN.findall(picture)] for picture in _PICTURE.findall(text)
    ]


def _read_numbers(text: str) -> list[list[int]]:
    rows = []
    for i, line in enumerate(text.splitlines(), start=1):
        words = _SEPARATOR.split(line.strip()) if line.strip() else []
        for word in words:
            if not word:
                raise CodesError(f"line {i}: there is no number beside one of the commas. {_FORMS}")
            if not _NUMBER.fullmatch(word):
                raise CodesError(f"line {i}: {word[:40]!r} is no code. {_FORMS}")
        if len(words) % NUM_CODES:
            raise CodesError(
                f"line {i} has {len(words)} numbers; a line holds whole pictures of {NUM_CODES} "
                "each. Join lines that belong together."
            )
        codes = [int(word) for word in words]
        rows += [codes[j : j + NUM_CODES] for j in range(0, len(codes), NUM_CODES)]
    return rows


def codes_to_json(codes: SeedCodes) -> str:
    """Return the codes and their family as one JSON object."""
    record = {
        "family": codes.family,
        "codebook_size": codes.codebook_size,
        "codes": codes.values.tolist(),
    }
    return json.dumps(record)


def codes_from_json(text: str, family: str | None = None) -> SeedCodes:
    """Read what `codes_to_json` wrote.

    Args:
        text: the JSON.
        family: if given, a plain list is read as well, as codes of this family: a list of rows, or
            the row of one picture.

    Raises:
        CodesError: not JSON, a missing field, or values that are no codes.
    """
    try:
        record = json.loads(text)
        if family is not None and isinstance(record, list):
            codes = record if not record or isinstance(record[0], list) else [record]
            size = CODEBOOK_SIZES.get(family, 0)
            record = {"family": family, "codebook_size": size, "codes": codes}
        rows = [[_integer(code) for code in _list(row)] for row in _list(record["codes"])]
        named, codebook_size = str(record["family"]), _integer(record["codebook_size"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CodesError(
            'expected JSON like {"family": "seed-mini", "codebook_size": 512, "codes": '
            f"[[...{NUM_CODES} integers...]]}}; could not read it: {error!r:.200}"
        ) from error
    return SeedCodes.from_rows(rows, named, codebook_size)


def _integer(value: object) -> int:
    """Return a number of JSON as it is; ``true`` would otherwise pass for 1."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r:.40} is no whole number")
    return value


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.40} is no list")
    return value
