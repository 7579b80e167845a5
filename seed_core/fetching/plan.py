"""The plan of a download: which files, of which sizes, from where and to where.

Made from what the servers say of each file, before anything is fetched.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from ..errors import DownloadError
from .downloads import DOWNLOADS, HubSource, Source, WebSource
from .failures import by_hand, explained

UNFINISHED = ".unfinished"
"""Folder of what is being fetched, inside the model's own: so that moving a file is instant."""

_WHOLE_COMMIT = 40  # digits
_TIMEOUT = 30.0  # seconds, for the list of a repository's files


@dataclass(frozen=True)
class File:
    """One file of a plan.

    Attributes:
        name: in its repository, and below the model's folder.
        size: in bytes.
        sha256: None for the small files, whose hash is not published.
        url: where it is read from.
        commit: of its repository; None for a file that is not in one.
    """

    name: str
    size: int
    sha256: str | None
    url: str
    commit: str | None

    def unfinished(self, folder: Path) -> Path:
        """Where it is while it comes into a folder; another version of it has another place."""
        return folder / UNFINISHED / str(self.sha256 or self.commit) / self.name


@dataclass(frozen=True)
class Plan:
    """What has to be fetched for a model, and into which folder; the largest files come first.

    So the file by which a loader knows a model, a small one, arrives when all the others are there.
    """

    name: str
    folder: Path
    files: tuple[tuple[Source, File], ...]

    @property
    def missing(self) -> list[tuple[Source, File]]:
        """What is not there yet."""
        return [entry for entry in self.files if not (self.folder / entry[1].name).exists()]

    @property
    def needed(self) -> int:
        """Bytes that the disk must still take; an unfinished file has source of its own already."""
        begun = [file.unfinished(self.folder) for _, file in self.missing]
        there = sum(path.stat().st_size for path in begun if path.exists())
        return max(0, sum(file.size for _, file in self.missing) - there)

    @property
    def free(self) -> int:
        """Bytes free on the disk of the folder."""
        there = next(p for p in (self.folder, *self.folder.parents) if p.exists())
        return shutil.disk_usage(there).free


def find_models_folder(given: Path | None, pack: Path | None = None) -> Path:
    """Return ComfyUI's models folder: the given one, or that of the ComfyUI this pack lies in.

    Raises:
        DownloadError: there is no such folder, or none to be found.
    """
    if given is not None:
        if given.is_dir():
            return given.resolve()
        raise DownloadError(f"--models: there is no folder {given}")
    pack = pack or Path(__file__).resolve().parents[2]
    comfyui = pack.parent.parent  # over custom_nodes
    if (comfyui / "main.py").is_file() and (comfyui / "models").is_dir():
        return comfyui / "models"
    raise DownloadError(
        f"{pack} is not in the custom_nodes of a ComfyUI; say where its models are with "
        "--models /path/to/ComfyUI/models"
    )


def make_plan(name: str, models: Path, revision: str | None = None) -> Plan:
    """Ask the servers for the files of a model, and look which of them are there.

    Args:
        name: a key of ``DOWNLOADS``.
        models: ComfyUI's models folder.
        revision: a commit, branch or tag of the model's own repository, in place of the pinned one.

    Raises:
        DownloadError: a server that cannot be reached or refuses; a file in the way.
    """
    download = DOWNLOADS[name]
    folder = models / download.folder
    files: list[tuple[Source, File]] = []
    for source in download.sources:
        own = revision if source is download.sources[0] else None
        found = (
            [_web_file(source)]
            if isinstance(source, WebSource)
            else _hub_files(source, folder, own)
        )
        files += [(source, file) for file in found]
    files.sort(key=lambda entry: -entry[1].size)
    for _, file in files:
        check_nothing_in_the_way(folder / file.name, file.size)
    return Plan(name, folder, tuple(files))


def check_nothing_in_the_way(path: Path, size: int) -> None:
    """Check that the place of a file is free, or holds a file of its size.

    Raises:
        DownloadError: another file is there.
    """
    if path.exists() and (there := path.stat().st_size) != size:
        raise DownloadError(
            f"{path} has {there} bytes and the published file {size}: it is another file, or an "
            "unfinished download. Move it away or delete it, and run the same command again"
        )


def _web_file(source: WebSource) -> File:
    return File(source.files[0], source.size, source.sha256, source.page, None)


def _hub_files(source: HubSource, folder: Path, revision: str | None) -> list[File]:
    from huggingface_hub import HfApi, hf_hub_url

    # The Hub finds a commit by all of its digits only; the first few still tell it from another.
    pinned = source.commit if source.commit and len(source.commit) == _WHOLE_COMMIT else None
    with explained(source, folder):
        info = HfApi().model_info(
            source.repo, revision=revision or pinned, files_metadata=True, timeout=_TIMEOUT
        )
    commit = info.sha or ""
    if not revision and not commit.startswith(source.commit or ""):
        raise DownloadError(
            f"{source.page} has changed: it is at commit {commit}, and this pack was written for "
            f"{source.commit}. To take it as it is now, add --revision {commit}"
        )
    found = {
        sibling.rfilename: sibling
        for pattern in source.files
        for sibling in info.siblings or []
        if fnmatchcase(sibling.rfilename, pattern)
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
    return [
        File(
            name,
            each.size or 0,
            each.lfs.sha256 if each.lfs else None,
            hf_hub_url(source.repo, name, revision=commit),
            commit,
        )
        for name, each in found.items()
    ]
