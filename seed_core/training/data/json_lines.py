"""Files of JSON lines, a document on each, which may be larger than the memory."""

from __future__ import annotations

import glob
import json
import logging
import os
from array import array
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

from ...errors import CheckpointError, OptionError
from ...files.side_files import parse_json
from ..streams import Streams
from .fields import Document, DocumentError

log = logging.getLogger(__name__)

# Says what the shards of a folder are made of.
MANIFEST_FILE = "encoding.json"

_LARGEST_LINE = 2**26  # bytes

_MARK = b"\xef\xbb\xbf"  # of UTF-8

# What else has come under such a name, by the first bytes.
_OTHERS = {
    b"\xff\xfe": "text in UTF-16; save it as UTF-8",
    b"\xfe\xff": "text in UTF-16; save it as UTF-8",
    b"\x1f\x8b": "compressed; unpack it with gzip",
    b"\x28\xb5\x2f\xfd": "compressed; unpack it with zstd",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"[\n": "one JSON list",
    b"[\r": "one JSON list",
    b"[{": "one JSON list",
    b"<": "a web page",
}


class JsonLines:
    """Files with a document on each line, in a new order for each round through all of them.

    Blank lines do not count. A line is read from its file when it is needed.

    Args:
        files: a file, or a pattern such as ``codes/*.jsonl``.

    Raises:
        OptionError: the files are missing or empty, or hold something else than lines.
    """

    def __init__(self, files: str | Path) -> None:
        self._paths, self._starts = [], []
        for path in _expand(str(files)):
            if starts := _line_starts(path):
                self._paths.append(path)
                self._starts.append(starts)
            else:
                log.warning("passed over: %s, which is empty", path)
        if not self._paths:
            raise OptionError(
                f"{files} is missing or empty; give a file of JSON lines, or a pattern of such files"
            )
        for folder in sorted({path.parent for path in self._paths}):
            _notice_unfinished(folder)
        self._ends = list(accumulate(map(len, self._starts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def document(self, number: int, streams: Streams) -> Document:
        """Return one document.

        Raises:
            DocumentError: the line holds no JSON object.
        """
        return self.line(self._row(number, streams))

    def where(self, number: int, streams: Streams) -> str:
        """Return the file and line of a document, for messages."""
        return self.place(self._row(number, streams))

    def line(self, row: int) -> Document:
        """Return the document on a line, in the order of the files.

        Raises:
            DocumentError: the line holds no JSON object.
        """
        path, start = self._find(row)
        with path.open("rb") as file:
            file.seek(start)
            content = file.readline(_LARGEST_LINE)
        try:
            return parse_json(content.rstrip(), "this line")
        except CheckpointError as error:
            raise DocumentError(f"{self.place(row)}: {error}") from error

    def place(self, row: int) -> str:
        """Return the file and number of a line, for messages."""
        path, start = self._find(row)
        number = 1
        with path.open("rb") as file:
            while (left := start - file.tell()) > 0 and (chunk := file.read(min(left, 2**20))):
                number += chunk.count(b"\n")
        return f"{path}, line {number}"

    def _row(self, number: int, streams: Streams) -> int:
        return streams.in_rounds("line", number, len(self))

    def _find(self, row: int) -> tuple[Path, int]:
        """Return the file of a line and the byte that it begins with."""
        file = bisect_right(self._ends, row)
        start = self._starts[file][row - (self._ends[file - 1] if file else 0)]
        return self._paths[file], start


def _expand(files: str) -> list[Path]:
    """Return the files that a name or a pattern stands for."""
    if os.path.isdir(files):
        raise OptionError(f"{files} is a folder; give its files, such as {Path(files) / '*.jsonl'}")
    found = matching(files)
    for each in found:
        if not os.path.isfile(each):
            log.warning("passed over: %s, which is not a file", each)
    return [each for each in found if os.path.isfile(each)]


def matching(name: str) -> list[Path]:
    """Return what has a name, or else all that it stands for as a pattern, in order."""
    found = [name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True))
    return [Path(each) for each in found]


def _line_starts(path: Path) -> array[int]:
    """Return the byte at which each line that is not blank begins."""
    starts = array("q")
    with path.open("rb") as file:
        first = file.read(8)
        for begin, what in _OTHERS.items():
            if first.startswith(begin):
                raise OptionError(f"{path} is {what}; JSON lines, one document on each, are needed")
        place = file.seek(len(_MARK) if first.startswith(_MARK) else 0)
        while line := file.readline(_LARGEST_LINE + 1):
            if len(line) > _LARGEST_LINE:
                raise OptionError(
                    f"{path} has a line of more than {_LARGEST_LINE:,} bytes, after {len(starts)} "
                    "shorter ones; JSON lines, one document on each, are needed"
                )
            if not line.isspace():
                starts.append(place)
            place += len(line)
    return starts


def _notice_unfinished(folder: Path) -> None:
    """Warn of a folder that "data encode" has not finished."""
    try:
        wanted = json.loads((folder / MANIFEST_FILE).read_bytes())["shards"]
        there = sum(path.stem.isdecimal() for path in folder.glob("*.jsonl"))
        if there < wanted:
            log.warning(
                "%s has %d of the %d shards that its %s names; the command that makes them goes on "
                "where it stopped",
                *(folder, there, wanted, MANIFEST_FILE),
            )
    except (OSError, ValueError, TypeError, KeyError):
        return  # made by something else
