"""Pictures into shards of codes: JSON lines in the formats of ``documents``.

A shard exists whole or not at all. So a run that was stopped goes on with the missing ones, and
several processes can share the work. Each picture is squashed to a square with the tokenizer's own
filter, as in the reference.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from ...compute.looks import in_one_line
from ...errors import OptionError, PictureError
from ...tokenizer.runtime import SeedTokenizer
from ..claims import claim
from .archives import read_archive
from .json_lines import MANIFEST_FILE
from .passed_over import BLANK_TEXTS, EMPTY_SHARDS, UNREADABLE, WITHOUT_TEXT, PassedOver
from .picture_sources import ARCHIVE_SUFFIXES, PictureFile, find_pictures

# Formats of a picture with a text; one without a text has the format ``picture``.
KINDS = ("caption", "text_to_image")

Warn = Callable[[str], None]

_Read = tuple[str, list[str], torch.Tensor]  # name, texts and pixels of a picture


@dataclass(frozen=True)
class Shard:
    """Pictures whose codes go into one file."""

    name: str  # of the file, without its ending
    contents: str  # changes when the pictures do
    source: Path  # the folder or archive
    pictures: Callable[[PassedOver], Iterable[PictureFile]]


def find_shards(inputs: Sequence[str], size: int, passed: PassedOver) -> list[Shard]:
    """Return the shards that folders and archives make.

    Args:
        inputs: folders, archives, and patterns of both.
        size: pictures of a folder in a shard; an archive is one shard.
        passed: counts what the folders hold beside pictures and their texts.

    Raises:
        OptionError: an input is something else, a pattern matches nothing, or a folder has no
            picture.
    """
    shards: list[Shard] = []
    for path in _expand(inputs):
        if path.is_dir():
            found = find_pictures(path, passed)
            for start in range(0, len(found), size):
                some = found[start : start + size]
                names = "\n".join(picture.name for picture in some)
                shards.append(Shard(_name(shards), names, path, partial(_listed, some)))
        elif path.name.lower().endswith(ARCHIVE_SUFFIXES):
            contents = f"{path.name} {path.stat().st_size}"
            shards.append(Shard(_name(shards), contents, path, partial(read_archive, path)))
        else:
            raise OptionError(
                f"{path} is neither a folder nor an archive ({', '.join(ARCHIVE_SUFFIXES)}); give "
                "a folder with the pictures as files"
            )
    return shards


def _name(before: Sequence[Shard]) -> str:
    return f"{len(before):06d}"


def _listed(pictures: Sequence[PictureFile], passed: PassedOver) -> Iterable[PictureFile]:
    return pictures


def _expand(inputs: Sequence[str]) -> list[Path]:
    paths: list[Path] = []
    for each in inputs:
        found = [each] if os.path.exists(each) else sorted(glob.glob(each, recursive=True))
        if not found:
            raise OptionError(f"{each} is missing; give folders, archives, or patterns of them")
        paths += map(Path, found)
    return paths


def claim_folder(
    folder: Path, shards: Sequence[Shard], tokenizer: str, precision: str, kind: str
) -> None:
    """Write what a new folder of shards is made of; the folder of an earlier run must say the same.

    Raises:
        OptionError: the folder holds codes of other pictures, or of another tokenizer.
    """
    digest = hashlib.sha256(
        "\n\n".join(shard.contents for shard in shards).encode(errors="replace")
    )
    manifest = {
        "shards": len(shards),
        "pictures": digest.hexdigest(),
        "tokenizer": tokenizer,
        "precision": precision,
        "format": kind,
    }
    folder.mkdir(parents=True, exist_ok=True)
    if not claim(folder / MANIFEST_FILE, json.dumps(manifest, indent=1) + "\n"):
        raise OptionError(
            f"{folder} holds the codes of other pictures, or of another tokenizer, precision, "
            f"format or shard size; see its {MANIFEST_FILE}, and choose another folder"
        )


class Encoder:
    """Encodes shard after shard.

    Args:
        tokenizer: makes the codes.
        kind: the format of a picture with a text, one of `KINDS`.
        batch: pictures encoded together.
        workers: threads that read pictures, a batch ahead.
        passed: counts what is left out.
        warn: receives a line about each picture that is left out.
        on_pictures: receives the number of pictures after each batch.
    """

    def __init__(
        self,
        tokenizer: SeedTokenizer,
        kind: str,
        batch: int,
        workers: int,
        passed: PassedOver,
        warn: Warn,
        on_pictures: Callable[[int], object],
    ) -> None:
        self._tokenizer = tokenizer
        self._kind = kind
        self._batch = batch
        self._workers = workers
        self._passed = passed
        self._warn = warn
        self._on_pictures = on_pictures
        self._written = self._made = self._found = self._with_text = 0
        self._without_text = PassedOver()  # of interest only where others have one

    def encode(self, shard: Shard, folder: Path) -> None:
        """Write a shard, unless it exists or none of its pictures can be encoded.

        Raises:
            OSError: a file cannot be read or written; no shard is left then.
        """
        path = folder / f"{shard.name}.jsonl"
        if path.is_file() and path.stat().st_size:  # earlier versions wrote empty ones
            self._found += 1
            return
        unfinished, before = path.with_suffix(".unfinished"), self._written
        # Half characters, in names or in texts of JSON files, become the escapes JSON has for them.
        with unfinished.open(
            "w", encoding="utf-8", errors="backslashreplace", newline="\n"
        ) as file:
            for line in self._lines(shard):
                file.write(f"{line}\n")
                self._written += 1
        if self._written == before:
            unfinished.unlink()
            self._passed.add(EMPTY_SHARDS, f"{shard.name} of {shard.source}")
            return
        unfinished.replace(path)
        self._made += 1

    def summary(self) -> str:
        """Return how much was done."""
        return (
            f"pictures encoded: {self._written}, left out: {self._passed.count(UNREADABLE)}; shards "
            f"written: {self._made}, already there: {self._found}; pictures with a text: "
            f"{self._with_text}, without: {self._written - self._with_text}"
        )

    def passed_over(self) -> list[str]:
        """Return a line about each kind of what was passed over."""
        return [*self._passed.lines(), *(self._without_text.lines() if self._with_text else [])]

    def check_result(self) -> None:
        """Check that the shards that were asked for have something in them.

        Raises:
            OptionError: no picture was encoded.
        """
        if not self._made + self._found and self._passed.count(EMPTY_SHARDS):
            raise OptionError(
                "nothing was encoded: no picture was found that can be read; the warnings above say why"
            )

    def _lines(self, shard: Shard) -> Iterator[str]:
        read = self._read(shard)
        while some := list(islice(read, self._batch)):
            good = [each for each in some if each is not None]
            if good:
                codes = self._tokenizer.encode(torch.cat([pixels for _, _, pixels in good]))
                for (name, texts, _), row in zip(good, codes.tolist(), strict=True):
                    yield json.dumps(self._document(name, texts, row), ensure_ascii=False)
            self._on_pictures(len(some))

    def _document(self, name: str, texts: list[str], codes: list[int]) -> dict[str, object]:
        said: dict[str, object] = {"format": "picture"}
        if texts:
            said = {"format": self._kind, "text": texts[0] if len(texts) == 1 else texts}
        return {**said, "codes": codes, "family": self._tokenizer.family, "picture": name}

    def _read(self, shard: Shard) -> Iterator[_Read | None]:
        """Yield name, texts and pixels of each picture in order; None for one that is left out."""
        waiting: deque[tuple[PictureFile, Future[_Read]]] = deque()
        with ThreadPoolExecutor(self._workers) as pool:
            for picture in shard.pictures(self._passed):
                waiting.append((picture, pool.submit(self._open, picture)))
                if len(waiting) > 2 * self._batch:
                    yield self._result(shard, *waiting.popleft())
            while waiting:
                yield self._result(shard, *waiting.popleft())

    def _open(self, picture: PictureFile) -> _Read:
        try:
            texts, opened = picture.read_texts(), picture.open()
        except PermissionError as error:  # of this file; other errors of a disk end the run
            raise PictureError(f"it cannot be read: {error.strerror}") from error
        return picture.name, texts, self._tokenizer.preprocess([opened])

    def _result(self, shard: Shard, picture: PictureFile, future: Future[_Read]) -> _Read | None:
        name = f"{shard.source}: {picture.name}"
        try:
            result = future.result()
        except PictureError as error:
            self._passed.add(UNREADABLE, name)
            self._warn(in_one_line(f"{name} is left out: {error}"))
            return None
        if result[1]:
            self._with_text += 1
        elif picture.has_text_file:
            self._passed.add(BLANK_TEXTS, name)
        else:
            self._without_text.add(WITHOUT_TEXT, name)
        return result
