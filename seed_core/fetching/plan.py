"""The plan of a download: which files, how large, from where and to where, as the servers say."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from hashlib import sha1, sha256
from pathlib import Path
from typing import Any

from ..errors import DownloadError
from ..files.writer import sha256_of
from ..waiting import attended
from .connection import persist
from .downloads import DOWNLOADS, HubSource, Source, WebSource
from .failures import Listener, OnBytes, by_hand, check_online, explained, something_else

UNFINISHED = ".unfinished"
"""Folder of unfinished files, inside the model's own, so that moving one takes no time."""

_DIGITS = 8  # of the names of unfinished files
_WHOLE_COMMIT = re.compile("[0-9a-f]{40}")
_KNOWN_BY = ("config.json", "model_index.json")  # of folders; a single file is known by itself
_TIMEOUT = 30.0  # seconds, for the list of a repository's files


def short_name(text: str) -> str:
    """Return a name for what is unfinished, which another text does not have."""
    return sha256(text.encode()).hexdigest()[:_DIGITS]


@dataclass(frozen=True)
class File:
    """One file of a plan."""

    name: str  # in its repository, and below the model's folder
    size: int  # bytes
    sha256: str | None  # None for small files, which the Hub keeps in git
    url: str
    commit: str | None  # of its repository; None for a file at an address of its own
    blob: str | None = None  # what git calls a small file, which is a hash

    def unfinished(self, folder: Path) -> Path:
        """Return where it lies until it is complete."""
        # Another version of the file has another name, and is never continued by mistake. It is
        # short, because a path of Windows has 259 characters.
        return folder / UNFINISHED / short_name(self.version)

    @property
    def version(self) -> str:
        """What no other version of the file has."""
        return f"{self.sha256 or self.commit} {self.name}"

    def is_at(self, path: Path, on_chunk: Callable[[], None]) -> bool:
        """Tell whether a file is this one; what ``on_chunk`` raises ends it."""
        if path.stat().st_size != self.size:
            return False
        if self.sha256 is not None:
            return sha256_of(path, on_chunk) == self.sha256
        content = b"blob %d\0%b" % (self.size, path.read_bytes()) if self.blob else b""
        return self.blob in (None, sha1(content, usedforsecurity=False).hexdigest())

    def origin(self, source: Source) -> dict[str, Any]:
        """Return what is written down of it."""
        return {**asdict(self), "licence": source.licence}


@dataclass(frozen=True)
class Plan:
    """What has to be fetched for a model, and into which folder."""

    name: str
    folder: Path
    # The largest first, and last the one that a loader knows the model by.
    files: tuple[tuple[Source, File], ...]

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for _, file in self.files)

    @property
    def missing(self) -> list[tuple[Source, File]]:
        """The files that are not there yet."""
        return [entry for entry in self.files if not (self.folder / entry[1].name).exists()]

    @property
    def needed(self) -> int:
        """Bytes still to be written; an unfinished file has some of its own already."""
        begun = [file.unfinished(self.folder) for _, file in self.missing]
        there = sum(path.stat().st_size for path in begun if path.exists())
        return max(0, sum(file.size for _, file in self.missing) - there)

    @property
    def free(self) -> int:
        """Bytes free on the disk of the folder."""
        there = next(p for p in (self.folder, *self.folder.parents) if p.exists())
        return shutil.disk_usage(there).free


def make_plan(
    name: str,
    folder: Path,
    revision: str | None = None,
    on_bytes: OnBytes = lambda here, fetched: None,
) -> Plan:
    """Ask the servers for the files of a model, and look which of them are there.

    Args:
        name: a key of ``DOWNLOADS``.
        folder: the model's own.
        revision: a commit, branch or tag of the model's own repository, in place of the pinned one.
        on_bytes: told of no bytes a few times a second; what it raises ends the asking.

    Raises:
        DownloadError: a server cannot be reached or refuses, another file is in the way, or the
            system has no room for the longest path.
    """
    check_online()
    listener = Listener(on_bytes)
    download = DOWNLOADS[name]
    files: list[tuple[Source, File]] = []
    for source in download.sources:
        own = revision if source is download.sources[0] else None
        found = (
            [_web_file(source)]
            if isinstance(source, WebSource)
            else _hub_files(source, folder, own, listener)
        )
        files += [(source, file) for file in found]
    files.sort(key=lambda entry: (entry[1].name in _KNOWN_BY, -entry[1].size))
    check_lengths(folder, [file for _, file in files])
    for _, file in files:
        check_nothing_in_the_way(folder / file.name, file.size)
    return Plan(name, folder, tuple(files))


def check_lengths(folder: Path, files: Sequence[File], most: int | None = None) -> None:
    """Check that the system has paths as long as those of a model's files.

    Raises:
        DownloadError: a path is too long for Windows.
    """
    most = most or longest_path()
    paths = [str(folder.absolute() / file.name) for file in files]
    path = max([*paths, *(str(file.unfinished(folder.absolute())) for file in files)], key=len)
    if len(path) > most:
        raise DownloadError(
            f"{path} has {len(path)} characters, and this Windows allows {most}. Name a folder with "
            "a shorter path in ComfyUI's extra_model_paths.yaml, or switch long paths on: "
            "https://learn.microsoft.com/windows/win32/fileio/maximum-file-path-limitation"
        )


def longest_path() -> int:
    """Return the most characters of a path on this Windows; elsewhere, no limit that matters."""
    if sys.platform != "win32":
        return sys.maxsize
    import winreg

    with contextlib.suppress(OSError):
        where = r"SYSTEM\CurrentControlSet\Control\FileSystem"
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, where) as key:
            if winreg.QueryValueEx(key, "LongPathsEnabled")[0]:
                return 32_767
    return 259


def check_nothing_in_the_way(path: Path, size: int) -> None:
    """Check that the place of a file is free, or holds a file of its size.

    Raises:
        DownloadError: another file is there.
    """
    if path.exists() and (there := path.stat().st_size) != size:
        raise DownloadError(
            f"{path} has {there} bytes and the published file {size}: it is another file, or an "
            "unfinished download. Move it away or delete it, and run it again"
        )


def _web_file(source: WebSource) -> File:
    return File(source.files[0], source.size, source.sha256, source.page, None)


def _hub_files(
    source: HubSource, folder: Path, revision: str | None, listener: Listener
) -> list[File]:
    from huggingface_hub import hf_hub_url

    # The Hub finds a commit by all of its digits only; the first few still tell it from another.
    pinned = source.commit if _WHOLE_COMMIT.fullmatch(source.commit or "") else None
    with explained(source, folder, listener):
        commit, listed = _ask_for_list(source, revision or pinned, listener)
    if not revision and not commit.startswith(source.commit or ""):
        raise DownloadError(
            f"{source.page} has changed: it is at commit {commit}, and this pack was written for "
            f"{source.commit}. To take it as it is now, run fetch with --revision {commit}"
        )
    found = {
        name: file
        for pattern in source.files
        for name, file in listed.items()
        if fnmatchcase(name, pattern)
    }
    for name in found:
        if ".." in name.split("/") or "\\" in name or name.startswith("/"):
            raise DownloadError(
                f"{source.page} names {name!r}, which lies outside its folder; refused"
            )
    for pattern in source.files:
        if not any(fnmatchcase(name, pattern) for name in found):
            raise DownloadError(
                f"{source.page} has no {pattern} at commit {commit}. {by_hand(source, folder)}"
            )
    files = [
        File(
            name,
            each.size,
            each.lfs.sha256 if each.lfs else None,
            hf_hub_url(source.repo, name, revision=commit),
            commit,
            None if each.lfs else each.blob_id,
        )
        for name, each in found.items()
    ]
    for file in files:
        if file.sha256 != source.known.get(file.name, file.sha256):
            raise DownloadError(
                f"{source.page} has another {file.name} than the one that was published first, so it "
                "is not fetched: it may be anything. Please tell us of it"
            )
    return files


def _ask_for_list(
    source: HubSource, revision: str | None, listener: Listener
) -> tuple[str, dict[str, Any]]:
    """Return the commit of a repository, and what the Hub knows of each file by its name."""
    from huggingface_hub import HfApi

    def ask() -> Any:
        return HfApi().model_info(
            source.repo, revision=revision, files_metadata=True, timeout=_TIMEOUT
        )

    try:
        info = attended(lambda stopped: persist(ask, stopped), listener)
        listed = {each.rfilename: each for each in info.siblings}
        if not _WHOLE_COMMIT.fullmatch(info.sha) or not all(
            isinstance(each.size, int) for each in info.siblings
        ):
            raise TypeError("a commit or a size is missing")
    # What the library raises of an answer that is no list: it is written for the Hub's alone.
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        message = something_else(source, "the list of files", "something that is no such list")
        raise DownloadError(message) from error
    return info.sha, listed
