"""Codes as text: what people type or paste, and JSON that keeps the family.

Every number is used as it stands, or refused.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import torch

from ..errors import CodesError
from .value import (
    BEGIN_IMAGE,
    CODEBOOK_SIZES,
    END_IMAGE,
    MOST_PICTURES,
    NUM_CODES,
    SeedCodes,
    image_token,
)

_IMAGE_TOKEN = re.compile(r"<img_([0-9]{5})>")  # what `image_token` writes
_PICTURE = re.compile(rf"{BEGIN_IMAGE}((?:\s*<img_[0-9]{{5}}>)*)\s*{END_IMAGE}")
_SEPARATOR = re.compile(r"\s*,\s*|\s+")
_NUMBER = re.compile(r"-?[0-9]{1,18}")  # with a sign, so that -5 is told the range of codes
_TITLE = re.compile(r"#[ \t]*([\w-]+)(?:[ \t]+([0-9]{1,9}))?[ \t\r]*(?:\n|$)")  # "# seed-mini 512"

LONGEST_TEXT = 400 * MOST_PICTURES  # characters; a line of image tokens has 363

_FORMS = (
    f"Codes can be written as {BEGIN_IMAGE}{image_token(12)}...{END_IMAGE} with one line a picture, "
    f"as {NUM_CODES} whole numbers a picture with spaces or commas between them, or as JSON."
)


def codes_to_text_file(codes: SeedCodes) -> str:
    """Return a line with the family and its codebook size, then one line a picture; no distances."""
    return f"# {codes.family} {codes.codebook_size}\n{codes.to_text()}".strip()


def codes_from_text(text: str, family: str | None = None, unnamed: str | None = None) -> SeedCodes:
    """Return the codes written in ``text``.

    Args:
        text: lines as `SeedCodes.to_text` writes them, or whole numbers where each line holds one or
            more whole pictures, both with or without the first line of `codes_to_text_file`; or JSON,
            either what `codes_to_json` writes or plain lists.
        family: whose codes they must be, if it is given.
        unnamed: whose codes they are where the text names nobody; `family` by default.

    Raises:
        CodesError: the text has another form or another family, names none though it has to, is
            longer than `LONGEST_TEXT`, or has codes out of range.
    """
    if len(text) > LONGEST_TEXT:
        raise CodesError(
            f"the text has {len(text)} characters, and {MOST_PICTURES} pictures, which are the "
            f"most, need fewer than {LONGEST_TEXT}. {_FORMS}"
        )
    unnamed = unnamed or family
    text = text.removeprefix("\ufeff").strip()  # the mark that some editors begin files with
    if not text:
        raise CodesError(f"the text is empty. {_FORMS}")
    if text[0] in "[{":
        codes = codes_from_json(text, unnamed)
        _check_family(codes.family, family)
        return codes
    rows, named, size = _read_lines(text, unnamed)
    _check_family(named, family)
    return SeedCodes.from_rows(rows, named, size or CODEBOOK_SIZES.get(named, 0))


def _read_lines(text: str, unnamed: str | None) -> tuple[list[list[int]], str, int | None]:
    """Return the codes, the family, and the codebook size where the first line tells it."""
    size = None
    if title := _TITLE.match(text):
        unnamed = title[1]
        size = int(title[2]) if title[2] else None
        text = text[title.end() :]
    if unnamed is None:
        raise CodesError(
            f"the text does not say which family its codes belong to. Write one of "
            f"{', '.join(f'# {name}' for name in CODEBOOK_SIZES)} above them as the first line"
        )
    rows = _read_pictures(text) if "<" in text else _read_numbers(text, 2 if title else 1)
    return rows, unnamed, size


def _check_family(named: str, family: str | None) -> None:
    if family is not None and family != named:
        raise CodesError(
            f"the text holds {named} codes, but {family} was asked for; choose the family that the "
            "codes were made with"
        )


def _read_pictures(text: str) -> list[list[int]]:
    between = _PICTURE.sub("\n", text).strip()
    if between:
        raise CodesError(f"{between[:40]!r} is not a whole picture. {_FORMS}")
    return [
        [int(code) for code in _IMAGE_TOKEN.findall(picture)] for picture in _PICTURE.findall(text)
    ]


def _read_numbers(text: str, first_line: int) -> list[list[int]]:
    rows = []
    for i, line in enumerate(text.splitlines(), start=first_line):
        words = _SEPARATOR.split(line.strip()) if line.strip() else []
        for word in words:
            if not word:
                raise CodesError(f"line {i}: a number is missing beside a comma. {_FORMS}")
            if not _NUMBER.fullmatch(word):
                raise CodesError(f"line {i}: {word[:40]!r} is not a code. {_FORMS}")
        if len(words) % NUM_CODES:
            raise CodesError(
                f"line {i} has {len(words)} numbers; a line holds whole pictures of {NUM_CODES} "
                "each. Join lines that belong together."
            )
        codes = [int(word) for word in words]
        rows += [codes[j : j + NUM_CODES] for j in range(0, len(codes), NUM_CODES)]
    return rows


def codes_to_json(codes: SeedCodes) -> str:
    """Return the codes with their family as one JSON object, and their distances if any is known."""
    record = {
        "family": codes.family,
        "codebook_size": codes.codebook_size,
        "codes": codes.values.tolist(),
    }
    if codes.has_distances:
        rows = codes.distances.float().cpu().numpy()
        record["distances"] = [[_short(number) for number in row] for row in rows]
    return json.dumps(record)


def _short(distance: np.float32) -> float | None:
    """Return the fewest digits that are this float32 again; JSON has null and not NaN."""
    return None if np.isnan(distance) else float(str(distance))


def codes_from_json(text: str, family: str | None = None) -> SeedCodes:
    """Read what `codes_to_json` wrote.

    Args:
        text: the JSON.
        family: if given, a plain list is read as well, as codes of this family: a list of rows, or
            the row of one picture.

    Raises:
        CodesError: the text is not such JSON, or its codes or distances are out of range.
    """
    # Counted before the library makes an object of each.
    lists = text.count("[") + text.count("{")
    if lists > 2 * MOST_PICTURES + 3:  # codes and distances, the lists of them, the whole
        raise CodesError(f"the JSON has {lists} lists, more than {MOST_PICTURES} pictures need")
    try:
        record = json.loads(text)
        if family is not None and isinstance(record, list):
            codes = record if not record or isinstance(record[0], list) else [record]
            size = CODEBOOK_SIZES.get(family, 0)
            record = {"family": family, "codebook_size": size, "codes": codes}
        rows = [[_integer(code) for code in _list(row)] for row in _list(record["codes"])]
        named, codebook_size = str(record["family"]), _integer(record["codebook_size"])
        distances = _distances(record["distances"]) if "distances" in record else None
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise CodesError(
            'expected JSON like {"family": "seed-mini", "codebook_size": 512, "codes": '
            f"[[...{NUM_CODES} integers...]]}}; could not read it: {error!r:.200}"
        ) from error
    return SeedCodes.from_rows(rows, named, codebook_size, distances)


def _distances(value: object) -> torch.Tensor:
    """Return float32 ``[B, 32]`` from rows of numbers, with null for NaN."""
    rows = [[_number(number) for number in _list(row)] for row in _list(value)]
    if any(len(row) != NUM_CODES for row in rows):
        raise ValueError(f"a picture has exactly {NUM_CODES} distances")
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, NUM_CODES)


def _number(value: object) -> float:
    if value is None:
        return float("nan")
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{value!r:.40} is not a number")
    return float(value)


def _integer(value: object) -> int:
    """Return a number of JSON as it is; ``true`` would otherwise pass for 1."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r:.40} is not a whole number")
    return value


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.40} is not a list")
    return value
