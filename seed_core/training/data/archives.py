"""Pictures with their texts from webdataset archives: tar files, compressed or not.

A text belongs to the picture of its name, wherever both lie in the archive.
"""

from __future__ import annotations

import errno
import importlib
import io
import posixpath
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from ...errors import PictureError
from ...files.foreign import in_place_of_a_file
from ...files.pictures import picture_suffixes
from .passed_over import HIDDEN, OTHER_FILES, PassedOver
from .picture_sources import (
    LARGEST_PICTURE,
    PictureFile,
    check_size,
    is_hidden,
    kind_of_unmatched,
    suffix_of,
)
from .texts import LARGEST_TEXT, TEXT_SUFFIXES, agreed, pair, texts_in

_DAMAGED = "archives of which a part is lost"
_TWICE = "pictures whose name occurs twice in an archive"

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\0": "lzma"}  # by their first bytes

_LARGEST_HEADER = 2**20  # bytes of a long name or of the extra fields of a member
_LARGEST_KEPT = 2**23  # bytes of a picture that waits in memory; some hundred do at a time
_BLOCK = 512
_MOST_LINKS = 40  # one after the other, as in Linux


@dataclass(frozen=True)
class _Member:
    """A file in an archive."""

    name: str
    start: int
    size: int

    def read(self, stream: BinaryIO) -> bytes:
        """Return its content."""
        stream.seek(self.start)
        return stream.read(self.size)


def read_archive(archive: Path, passed: PassedOver) -> Iterator[PictureFile]:
    """Yield the pictures of an archive in order.

    Args:
        archive: a tar file.
        passed: counts what is neither a picture nor the text of one, pictures that occur twice, and
            the archive if a part of it is lost.

    Raises:
        OSError: the file cannot be read.
    """
    with _open(archive) as stream:
        members = _index(archive, stream, passed)
        texts = [each for each in members if suffix_of(each.name) in TEXT_SUFFIXES]
        pictures = _pictures(archive, members, passed)
        paired, unmatched = pair([each.name for each in pictures], [each.name for each in texts])
        for name in unmatched:
            passed.add(kind_of_unmatched(name), f"{archive}: {name}")
        contents: dict[str, list[bytes]] = defaultdict(list)
        with _noticing_damage(archive, passed):
            for text in texts:
                some = _Member(text.name, text.start, min(text.size, LARGEST_TEXT + 1))
                contents[text.name].append(some.read(stream))
            for each in _once(archive, pictures, passed):
                own = {name: contents[name] for name in paired.get(each.name, [])}
                read_texts = partial(_texts, own)
                yield PictureFile(
                    _sample(each.name), _reader(archive, each, stream), read_texts, bool(own)
                )


def _open(archive: Path) -> Any:
    with archive.open("rb") as file:
        first = file.read(8)
    for begin, module in _COMPRESSED.items():
        if first.startswith(begin):
            return importlib.import_module(module).open(archive)
    return archive.open("rb")


@contextmanager
def _noticing_damage(archive: Path, passed: PassedOver) -> Iterator[None]:
    """Count an archive that cannot be read any further."""
    try:
        yield
    except Exception as error:
        if _is_of_the_system(error):
            raise
        why = _in_its_place(archive) or error
        passed.add(_DAMAGED, f"{archive} is damaged, and the rest of it is lost: {why}")


def _in_its_place(archive: Path) -> str:
    """Return what was saved under the name of an archive, or nothing if that cannot be told."""
    with archive.open("rb") as file:
        what = in_place_of_a_file(file.read(_BLOCK))
    return f"it is {what}" if what else ""


def _is_of_the_system(error: Exception) -> bool:
    """Return whether an error came from a disk, and not from what an archive holds."""
    # Damaged archives make their readers raise almost anything, but an error with a number only
    # by seeking a place that no file has.
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)


def _is_plain(stream: BinaryIO) -> bool:
    return isinstance(stream, io.BufferedReader)


class _Headers:
    """A stream for `tarfile`, which reads as many bytes for a header as a file says it has."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._stream.read(size)


def _index(archive: Path, stream: BinaryIO, passed: PassedOver) -> list[_Member]:
    """Return the files of an archive by their place; links to them count as files."""
    files: dict[str, list[_Member]] = defaultdict(list)
    links: list[tuple[str, str]] = []
    with _noticing_damage(archive, passed):
        for info in _infos(stream):
            if is_hidden(info.name):
                passed.add(HIDDEN, f"{archive}: {info.name}")
            elif info.islnk():
                links.append((info.name, info.linkname))
            elif info.issym():
                target = posixpath.join(posixpath.dirname(info.name), info.linkname)
                links.append((info.name, target))
            elif info.isreg() and not info.issparse():
                member = _Member(info.name, info.offset_data, info.size)
                files[posixpath.normpath(info.name)].append(member)
            elif not info.isdir():
                passed.add("devices and files with holes", f"{archive}: {info.name}")
    found = [member for same in files.values() for member in same]
    found += _linked(archive, files, links, passed)
    return sorted(found, key=lambda member: (member.start, member.name))


def _infos(stream: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yield the headers of an archive.

    Raises:
        tarfile.TarError: the archive is damaged, or ends early.
    """
    tar = tarfile.TarFile(fileobj=_Headers(stream))  # type: ignore[arg-type]  # as much as it uses
    last = -1
    while (info := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # there may be millions
        if info.size < 0 or info.offset <= last:
            raise tarfile.ReadError(f"{info.name} has a size of {info.size}")
        # What is compressed has to be unpacked to go on behind it.
        if info.size > LARGEST_PICTURE and not _is_plain(stream):
            raise tarfile.ReadError(f"{info.name} has {info.size:,} bytes")
        last = info.offset
        yield info
    _check_end(stream, tar.offset)


def _check_end(stream: BinaryIO, end: int) -> None:
    stream.seek(end)
    block = stream.read(_BLOCK)
    if len(block) < _BLOCK:
        raise tarfile.ReadError("it has no end mark; its writing or download did not finish")
    if any(block):
        raise tarfile.ReadError(f"what follows byte {end:,} cannot be read")
    if stream.read(_LARGEST_HEADER).strip(b"\0"):
        raise tarfile.ReadError(
            "more follows its end mark, as when archives are joined into one file; give each by itself"
        )


def _linked(
    archive: Path,
    files: dict[str, list[_Member]],
    links: Sequence[tuple[str, str]],
    passed: PassedOver,
) -> list[_Member]:
    """Return links as files with the content of those they lead to."""
    found = []
    targets = {posixpath.normpath(name): posixpath.normpath(to) for name, to in links}
    for name, to in links:
        end = posixpath.normpath(to)
        for _ in range(_MOST_LINKS):
            if end in files or end not in targets:
                break
            end = targets[end]
        if end in files:
            last = files[end][-1]
            found.append(_Member(name, last.start, last.size))
        else:
            passed.add("links to what the archive does not hold", f"{archive}: {name}")
    return found


def _pictures(archive: Path, members: Sequence[_Member], passed: PassedOver) -> list[_Member]:
    """Return the members that are pictures; a mask beside a picture belongs to it."""
    pictures = [each for each in members if suffix_of(each.name) in picture_suffixes()]
    whole = {_key(each.name) for each in pictures if _is_short(each.name)}
    kept = []
    for each in pictures:
        if _is_short(each.name) or _key(each.name) not in whole:
            kept.append(each)
        else:
            passed.add("further pictures of a sample", f"{archive}: {each.name}")
    for each in members:
        if suffix_of(each.name) not in (*picture_suffixes(), *TEXT_SUFFIXES):
            passed.add(OTHER_FILES, f"{archive}: {each.name}")
    return kept


def _key(name: str) -> str:
    """Return what webdataset calls a sample by: the name as far as the first dot."""
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file.partition('.')[0]}"


def _is_short(name: str) -> bool:
    return name.rpartition("/")[2].count(".") == 1


def _sample(name: str) -> str:
    """Return a name with its ending in lower case, in which webdataset compares it."""
    suffix = suffix_of(name)
    return name[: len(name) - len(suffix)] + suffix


def _once(archive: Path, pictures: Sequence[_Member], passed: PassedOver) -> Iterator[_Member]:
    """Yield the pictures whose name occurs once; which of several is meant, nobody can tell."""
    counts = Counter(_sample(each.name) for each in pictures)
    for each in pictures:
        if counts[_sample(each.name)] == 1:
            yield each
        else:
            passed.add(_TWICE, f"{archive}: {each.name}")


def _reader(archive: Path, member: _Member, stream: BinaryIO) -> Callable[[], bytes]:
    """Return what reads a picture, in any thread and when the stream is closed."""
    if _is_plain(stream) or member.size > _LARGEST_KEPT:
        return partial(_read_again, archive, member)
    content = member.read(stream)  # otherwise all before it would be unpacked again
    return partial(_whole, content, member)


def _read_again(archive: Path, member: _Member) -> bytes:
    check_size(member.size)
    with _open(archive) as stream:
        try:
            return _whole(member.read(stream), member)
        except Exception as error:
            if _is_of_the_system(error):
                raise
            raise PictureError(f"its archive is damaged: {error}") from error


def _whole(content: bytes, member: _Member) -> bytes:
    if len(content) < member.size:
        raise PictureError("the archive ends within it")
    return content


def _texts(own: dict[str, list[bytes]]) -> list[str]:
    found = {}
    for name, contents in own.items():
        for i, content in enumerate(contents):
            found[f"copy {i + 1} of {name}" if i else name] = texts_in(content, name)
    return agreed(found)
