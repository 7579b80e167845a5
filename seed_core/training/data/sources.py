"""Sources of documents, numbered and mixed: files of JSON lines, or anything else with numbers."""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from ...errors import OptionError, SeedError
from ..loop import Samples
from .documents import DocumentWriter
from .examples import Example, cut, with_wrong_codes
from .fields import Document, DocumentError

log = logging.getLogger(__name__)

_TRIES = 100
"""Documents to draw until one teaches something."""


class DocumentSource(Protocol):
    """Documents by number from 0 on; a number has the same document in every run."""

    def document(self, number: int) -> Document:
        """Return one document."""


class JsonLines:
    """Files with a document on each line, in a new order for each round through all of them.

    `datasets` keeps the lines in a cache file and reads them as they are needed, so they may be
    larger than the memory.

    Args:
        files: a file, or a pattern such as ``codes/*.jsonl``.
        seed: of the order.
        cache: folder of the cache; by default the one that `datasets` uses.

    Raises:
        OptionError: the files are missing or empty.
    """

    def __init__(self, files: str | Path, seed: int = 0, cache: Path | None = None) -> None:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError

        paths = sorted(glob.glob(str(files), recursive=True))
        self._paths = [path for path in paths if Path(path).is_file() and Path(path).stat().st_size]
        if not self._paths:
            raise OptionError(
                f"{files} is missing or empty; give a file of JSON lines, or a pattern of such files"
            )
        self._seed = seed
        splits = {f"file{i}": [path] for i, path in enumerate(self._paths)}
        # As text, not as JSON: a list of strings and codes has no single type, which Arrow needs.
        try:
            lines = load_dataset("text", data_files=splits, cache_dir=str(cache) if cache else None)
        except (DatasetsError, ValueError, OSError) as error:
            raise OptionError(
                f"{files} cannot be read as lines of text: {_cause(error)}"
            ) from error
        self._lines = [lines[name] for name in splits]
        self._ends = list(accumulate(map(len, self._lines)))

    def __len__(self) -> int:
        return self._ends[-1]

    def document(self, number: int) -> Document:
        """Return one document.

        Raises:
            DocumentError: the line holds no JSON object.
        """
        file, line = self._place(number)
        text = self._lines[file][line]["text"]
        try:
            document = json.loads(text)
        except ValueError as error:
            raise DocumentError(f"{self.where(number)}: this line is not JSON: {error}") from error
        if not isinstance(document, dict):
            raise DocumentError(f"{self.where(number)}: a JSON object is needed; got {text:.60}")
        return document

    def where(self, number: int) -> str:
        """Return the file and line of a document, for messages."""
        file, line = self._place(number)
        return f"{self._paths[file]}, line {line + 1}"

    def _place(self, number: int) -> tuple[int, int]:
        turn, position = divmod(number, len(self))
        row = shuffled(position, len(self), f"{self._seed} {turn}")
        file = bisect_right(self._ends, row)
        return file, row - (self._ends[file - 1] if file else 0)


def _cause(error: BaseException) -> BaseException:
    """Return what went wrong first; `datasets` wraps it in a vaguer error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def shuffled(position: int, count: int, key: str) -> int:
    """Return the number at a position of a random order of ``count`` numbers, without a table.

    Args:
        position: 0 to ``count - 1``.
        count: how many numbers there are.
        key: names the order.
    """
    # A Feistel network permutes the numbers of an even count of bits, and permutes a number that is
    # out of range again until it is in range.
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = position >> half, position & mask
        for turn in range(4):
            digest = hashlib.blake2b(f"{key} {turn} {right}".encode(), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest, "big") & mask)
        position = left << half | right
        if position < count:
            return position


@dataclass(frozen=True)
class SourceFiles:
    """Files of documents and how they are mixed in."""

    files: str  # a file of JSON lines, or a pattern such as codes/*.jsonl
    weight: float = 1.0  # how often a document comes from here, relative to the other sources
    max_length: int = 1024  # tokens that a document is cut to
    most_pictures: int | None = None  # of an interleaved document
    swapped: float = 0.0  # probability that its pictures go after their text

    def __post_init__(self) -> None:
        _check(self.weight, self.max_length, self.most_pictures)

    def open(self, seed: int = 0, cache: Path | None = None) -> Source:
        """Return the source.

        Raises:
            OptionError: the files are missing or empty.
        """
        documents = JsonLines(self.files, seed, cache)
        return Source(documents, self.weight, self.max_length, self.most_pictures, self.swapped)


@dataclass(frozen=True)
class Source:
    """Documents and how they are mixed in; see `SourceFiles`."""

    documents: DocumentSource
    weight: float = 1.0
    max_length: int = 1024
    most_pictures: int | None = None
    swapped: float = 0.0

    def __post_init__(self) -> None:
        _check(self.weight, self.max_length, self.most_pictures)


def _check(weight: float, max_length: int, most_pictures: int | None) -> None:
    if not weight > 0 or max_length < 2 or (most_pictures is not None and most_pictures < 1):
        raise OptionError(
            "a source of documents needs a weight over 0, a max_length of at least 2 and "
            f"most_pictures of at least 1; got {weight}, {max_length} and {most_pictures}"
        )


class Documents(Samples):
    """Examples from several sources, as often as their weights say.

    A document that teaches nothing after it is cut is skipped, and the first such document of each
    source is reported as a warning.

    Args:
        sources: at least one.
        writer: makes examples of documents.
        seed: of everything random.
        wrong_codes: see `examples.with_wrong_codes`.

    Raises:
        OptionError: no source is given.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        writer: DocumentWriter,
        seed: int = 0,
        wrong_codes: float = 0.0,
    ) -> None:
        if not sources:
            raise OptionError(
                "the recipe needs documents to learn from: set data.files, data.world or both"
            )
        self._sources = sources
        self._writer = writer
        self._seed = seed
        self._wrong_codes = wrong_codes
        self._reported: set[int] = set()

    def sample(self, number: int) -> Example:
        """Return one example.

        Raises:
            DocumentError: a document does not fit its format, or too many in a row teach nothing.
        """
        chance = random.Random(f"{self._seed} {number}")
        weights = [source.weight for source in self._sources]
        wanted = number
        for _ in range(_TRIES):
            (index,) = chance.choices(range(len(weights)), weights)
            example = self._write(self._sources[index], wanted, chance)
            if example.teaches:
                if self._wrong_codes:
                    return with_wrong_codes(example, self._wrong_codes, self._writer.vocab, chance)
                return example
            self._report(index, wanted)
            wanted = chance.randrange(2**32)
        raise DocumentError(
            f"{_TRIES} documents in a row had nothing left to learn once they were cut; set a larger "
            "max_length"
        )

    def _write(self, source: Source, number: int, chance: random.Random) -> Example:
        document = source.documents.document(number)
        try:
            example = self._writer.write(document, chance, source.most_pictures, source.swapped)
        except SeedError as error:
            raise DocumentError(f"{_where(source, number)}: {error}") from error
        return cut(example, source.max_length, self._writer.vocab)

    def _report(self, index: int, number: int) -> None:
        if index not in self._reported:
            self._reported.add(index)
            source = self._sources[index]
            log.warning(
                "%s has nothing left to learn within a max_length of %d; documents like this are "
                "skipped",
                *(_where(source, number), source.max_length),
            )


def _where(source: Source, number: int) -> str:
    place: Any = getattr(source.documents, "where", None)
    return str(place(number)) if place else f"document {number}"
