"""Sources of documents, numbered and mixed: files of JSON lines, or anything else with numbers."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from tqdm import tqdm

from ...errors import OptionError, SeedError
from ..loop import Samples
from ..processes import share
from ..settings import check_fractions
from ..streams import Streams
from .documents import DocumentWriter
from .examples import Example, cut, with_wrong_codes
from .fields import Document, DocumentError
from .json_lines import JsonLines
from .mixture import Mixture
from .passed_over import PassedOver

log = logging.getLogger(__name__)

# Documents to draw until one teaches something, and the fraction of them that may teach nothing: so
# all of these tries fail in one of 40,000 samples at most.
_TRIES = 100
_MOST_IN_VAIN = 0.9

_NAMED = 3  # lines that cannot be learned from


class DocumentSource(Protocol):
    """Documents by number from 0 on."""

    def document(self, number: int, streams: Streams) -> Document:
        """Return one document, which depends on its number and on the streams alone."""


@dataclass(frozen=True)
class SourceFiles:
    """Files of documents and how they are mixed in."""

    files: str  # a file of JSON lines, or a pattern such as codes/*.jsonl
    weight: float = 1.0  # how often a document comes from here, relative to the other sources
    max_length: int = 1024  # tokens that a document is cut to
    most_pictures: int | None = None  # of an interleaved document
    swapped: float = 0.0  # probability that its pictures go after their text

    def __post_init__(self) -> None:
        check_fractions(self, "swapped", group="data.files: ")
        _check(self.weight, self.max_length, self.most_pictures)

    def open(self) -> Source:
        """Return the source.

        Raises:
            OptionError: the files are missing or empty.
        """
        documents = JsonLines(self.files)
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
    if (
        not 0 < weight < math.inf
        or max_length < 2
        or (most_pictures is not None and most_pictures < 1)
    ):
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
        wrong_codes: see `examples.with_wrong_codes`.

    Raises:
        OptionError: no source is given.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        writer: DocumentWriter,
        wrong_codes: float = 0.0,
    ) -> None:
        if not sources:
            raise OptionError(
                "the recipe needs documents to learn from: set data.files, data.world or both"
            )
        self._sources = sources
        self._writer = writer
        self._mixture = Mixture([source.weight for source in sources])
        self._wrong_codes = wrong_codes
        self._reported: set[int] = set()

    def check(self, streams: Streams) -> None:
        """Read every document of the files once, so that a run does not end at one of them.

        Raises:
            DocumentError: documents do not fit their formats.
            OptionError: hardly any document has something left to learn once it is cut.
        """
        in_vain, wrong, passed = 0.0, list[str](), PassedOver()
        for index, source in enumerate(self._sources):
            if isinstance(source.documents, JsonLines):
                own_streams = streams.within("source", index)
                in_vain += source.weight * self._check_lines(
                    source, source.documents, own_streams, wrong, passed
                )
        if wrong:
            raise DocumentError("; ".join(wrong))
        for line in passed.lines():
            log.warning("passed over: %s", line)
        if in_vain > _MOST_IN_VAIN * sum(source.weight for source in self._sources):
            raise OptionError(
                f"most documents have nothing left to learn once they are cut, {passed.lines()[0]}; "
                "set a larger max_length"
            )

    def _check_lines(
        self,
        source: Source,
        lines: JsonLines,
        streams: Streams,
        wrong: list[str],
        passed: PassedOver,
    ) -> float:
        """Return the fraction of lines that teach nothing; add those that do not fit to ``wrong``.

        Each process reads its share. An error in one ends them all.
        """
        kind = f"documents with nothing to learn in {source.max_length} tokens"
        before = passed.count(kind)
        first, step = share()
        rows = range(first, len(lines), step)
        for row in tqdm(rows, unit=" documents", leave=False, disable=None):
            if len(wrong) == _NAMED:
                break
            try:
                document = lines.line(row)
            except DocumentError as error:
                wrong.append(str(error))
                continue
            try:
                example = self._example(source, document, streams.of("check", row))
            except SeedError as error:
                wrong.append(f"{lines.place(row)}: {error}")
                continue
            if not example.teaches:
                passed.add(kind, partial(lines.place, row))
        return (passed.count(kind) - before) / max(len(rows), 1)

    def sample(self, number: int, streams: Streams) -> Example:
        """Return one example.

        Raises:
            DocumentError: a document does not fit its format, or too many in a row teach nothing.
        """
        index, own_number = self._mixture.at(number, streams)
        instead = streams.of("instead", number)
        for _ in range(_TRIES):
            own_streams = streams.within("source", index)
            example = self._write(self._sources[index], own_number, own_streams)
            if example.teaches:
                return self._with_wrong_codes(example, streams.of("wrong codes", number))
            self._report(index, own_number, own_streams)
            weights = [source.weight for source in self._sources]
            (index,) = instead.choices(range(len(weights)), weights)
            own_number = instead.randrange(2**32)
        raise DocumentError(
            f"{_TRIES} documents in a row had nothing left to learn once they were cut; set a larger "
            "max_length"
        )

    def _with_wrong_codes(self, example: Example, chance: random.Random) -> Example:
        if not self._wrong_codes:
            return example
        return with_wrong_codes(example, self._wrong_codes, self._writer.vocab, chance)

    def _write(self, source: Source, number: int, streams: Streams) -> Example:
        document = source.documents.document(number, streams)
        try:
            return self._example(source, document, streams.of("example", number))
        except SeedError as error:
            raise DocumentError(f"{_where(source, number, streams)}: {error}") from error

    def _example(self, source: Source, document: Document, chance: random.Random) -> Example:
        example = self._writer.write(document, chance, source.most_pictures, source.swapped)
        return cut(example, source.max_length, self._writer.vocab)

    def _report(self, index: int, number: int, streams: Streams) -> None:
        if index not in self._reported:
            self._reported.add(index)
            source = self._sources[index]
            log.warning(
                "%s has nothing left to learn within a max_length of %d; documents like this are "
                "skipped",
                *(_where(source, number, streams), source.max_length),
            )


def _where(source: Source, number: int, streams: Streams) -> str:
    place: Any = getattr(source.documents, "where", None)
    return str(place(number, streams)) if place else f"document {number}"
