"""Fetching a published model into ComfyUI's models folder: the only code here that goes online.

A plan is made first, from what the servers say of each file, and shown; then file after file is
fetched into a folder of unfinished ones, checked, and moved to its place. What was interrupted goes
on where it stopped. Files that are there already are never written over.

Runs on huggingface_hub, which also knows about mirrors, proxies and tokens; but not on its
``hf_hub_download``, whose recent versions throw an interrupted file away.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..errors import DownloadError
from ..files.writer import sha256_of
from .downloads import DOWNLOADS, HubPart, Part, WebPart

UNFINISHED = ".unfinished"
"""Folder of what is being fetched, inside the model's own: so that moving a file is instant."""

RECORD = "fetched.json"

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
        """Where it is while it comes into a folder: apart from another version of itself."""
        return folder / UNFINISHED / str(self.sha256 or self.commit) / self.name


@dataclass(frozen=True)
class Plan:
    """What has to be fetched for a model, and into which folder; the largest files come first.

    So the file by which a loader knows a model, a small one, arrives when all the others are there.
    """

    name: str
    folder: Path
    files: tuple[tuple[Part, File], ...]

    @property
    def missing(self) -> list[tuple[Part, File]]:
        """What is not there yet."""
        return [entry for entry in self.files if not (self.folder / entry[1].name).exists()]

    @property
    def needed(self) -> int:
        """Bytes that the disk must still take; an unfinished file has part of its own already."""
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
    files: list[tuple[Part, File]] = []
    for part in download.parts:
        own = revision if part is download.parts[0] else None
        found = [_web_file(part)] if isinstance(part, WebPart) else _hub_files(part, folder, own)
        files += [(part, file) for file in found]
    files.sort(key=lambda entry: -entry[1].size)
    for _, file in files:
        _check_nothing_in_the_way(folder / file.name, file.size)
    return Plan(name, folder, tuple(files))


def check_disk(plan: Plan) -> None:
    """Refuse to begin what cannot end.

    Raises:
        DownloadError: the disk has not enough room.
    """
    if plan.needed > plan.free:
        raise DownloadError(
            f"{plan.name} still needs {show_size(plan.needed)} and the disk of {plan.folder} has "
            f"{show_size(plan.free)} free. Make room, or put the models on another disk with "
            "--models and name that folder in ComfyUI's extra_model_paths.yaml"
        )


def fetch(plan: Plan) -> Iterator[Path]:
    """Fetch what is missing, yielding the path of each file when it is complete.

    Raises:
        DownloadError: a connection, a server, a disk or a file that is not as it should be.
    """
    for part, file in plan.missing:
        arrived, target = file.unfinished(plan.folder), plan.folder / file.name
        with _explained(part, plan.folder):
            _get(part, file, arrived)
            _check_arrived(arrived, file)
            target.parent.mkdir(parents=True, exist_ok=True)
            _check_nothing_in_the_way(target, file.size)
            arrived.replace(target)
            _record(plan, part, file)
        yield target
    shutil.rmtree(plan.folder / UNFINISHED, ignore_errors=True)


def describe(plan: Plan) -> Iterator[str]:
    """Yield lines that say what would be fetched, from where, with which licence, and to where."""
    yield f"{plan.name} into {plan.folder}"
    for part in DOWNLOADS[plan.name].parts:
        files = [file for of, file in plan.files if of is part]
        yield f"  from {part.page}" + (f" ({part.remark})" if part.remark else "")
        if isinstance(part, HubPart):
            commit = files[0].commit
            is_pinned = part.commit is not None and str(commit).startswith(part.commit)
            yield f"  commit {commit}" + ("" if is_pinned else ", which this pack does not pin")
        yield f"  licence: {part.licence}"
        for file in files:
            there = ", is there already" if (plan.folder / file.name).exists() else ""
            yield f"    {file.name}, {show_size(file.size)}{there}"
    yield f"to fetch: {show_size(plan.needed)}; free on that disk: {show_size(plan.free)}"


def describe_all() -> Iterator[str]:
    """Yield lines that name every model there is, from the table alone."""
    for name, download in DOWNLOADS.items():
        sizes = [part.gigabytes for part in download.parts]
        total = "" if None in sizes else f"about {sum(map(float, filter(None, sizes))):.1f} GB "
        yield f"{name}: {total}into models/{download.folder}"
        for part in download.parts:
            remark = f"; {part.remark}" if part.remark else ""
            yield f"    {part.page} (licence: {part.licence}{remark})"


def show_size(size: int) -> str:
    """Return a size in the units that Hugging Face's pages use."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size} bytes"


# --- what the servers say -----------------------------------------------------------------------


def _web_file(part: WebPart) -> File:
    return File(part.files[0], part.size, part.sha256, part.page, None)


def _hub_files(part: HubPart, folder: Path, revision: str | None) -> list[File]:
    from huggingface_hub import HfApi, hf_hub_url

    # The Hub finds a commit by all of its digits only; the first few still tell it from another.
    pinned = part.commit if part.commit and len(part.commit) == _WHOLE_COMMIT else None
    with _explained(part, folder):
        info = HfApi().model_info(
            part.repo, revision=revision or pinned, files_metadata=True, timeout=_TIMEOUT
        )
    commit = info.sha or ""
    if not revision and not commit.startswith(part.commit or ""):
        raise DownloadError(
            f"{part.page} has changed: it is at commit {commit}, and this pack was written for "
            f"{part.commit}. To take it as it is now, add --revision {commit}"
        )
    found = {
        sibling.rfilename: sibling
        for pattern in part.files
        for sibling in info.siblings or []
        if fnmatchcase(sibling.rfilename, pattern)
    }
    for name in found:
        if ".." in name.split("/") or "\\" in name or name.startswith("/"):
            raise DownloadError(
                f"{part.page} names {name!r}, which lies outside its folder; refused"
            )
    for pattern in part.files:
        if not any(fnmatchcase(name, pattern) for name in found):
            raise DownloadError(
                f"{part.page} has no {pattern} at commit {commit}. {_by_hand(part, folder)}"
            )
    return [
        File(
            name,
            each.size or 0,
            each.lfs.sha256 if each.lfs else None,
            hf_hub_url(part.repo, name, revision=commit),
            commit,
        )
        for name, each in found.items()
    ]


# --- one file -----------------------------------------------------------------------------------


def _get(part: Part, file: File, path: Path) -> None:
    """Read a file from where it is, or the rest of it."""
    from huggingface_hub import utils
    from huggingface_hub.file_download import http_get

    hub: Any = utils  # its types leave out what its documentation names
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as stream:
        if stream.tell() > file.size:  # a server that began anew where it was asked to go on
            stream.truncate(0)
        http_get(
            file.url,
            stream,
            resume_size=stream.seek(0, os.SEEK_END),
            headers=hub.build_hf_headers() if isinstance(part, HubPart) else None,
            expected_size=file.size,
            displayed_filename=file.name,
        )


def _check_arrived(path: Path, file: File) -> None:
    """Compare a new file with what was announced; a wrong one is ours to delete."""
    size = path.stat().st_size
    if size == file.size and file.sha256 in (None, sha256_of(path)):
        return
    path.unlink()
    raise DownloadError(
        f"{file.name} arrived damaged: {size} bytes that are not the {file.size} published ones. "
        "It was deleted; run the same command again"
    )


def _check_nothing_in_the_way(path: Path, size: int) -> None:
    if path.exists() and (there := path.stat().st_size) != size:
        raise DownloadError(
            f"{path} has {there} bytes and the published file {size}: it is another file, or an "
            "unfinished download. Move it away or delete it, and run the same command again"
        )


def _record(plan: Plan, part: Part, file: File) -> None:
    """Note beside the files where each is from."""
    path = plan.folder / f"{plan.name}.{RECORD}"
    record = {}
    with suppress(OSError, ValueError):  # none yet, or cut short: it only tells people something
        record = json.loads(path.read_text(encoding="utf-8"))
    record[file.name] = {**asdict(file), "licence": part.licence}
    new = path.with_suffix(".new")
    new.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    new.replace(path)


# --- what can go wrong --------------------------------------------------------------------------


@contextmanager
def _explained(part: Part, folder: Path) -> Iterator[None]:
    """Turn whatever a connection can end with into one message that says what to do."""
    from huggingface_hub import errors

    # The class of a broken connection depends on the HTTP client that the library was built on.
    broken: tuple[type[BaseException], ...] = (OSError, *errors.HfHubHTTPError.__bases__)
    try:
        yield
    except DownloadError:
        raise
    except KeyboardInterrupt as stop:
        raise DownloadError("stopped; the same command goes on where this one ended") from stop
    except errors.HfHubHTTPError as error:
        raise DownloadError(f"{_refusal(part, error)} {_by_hand(part, folder)}") from error
    except broken as error:
        if getattr(error, "filename", None):
            raise  # of the disk; it names its file
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise DownloadError(
                f"the disk of {folder} is full. Make room, then run the same command again: it goes "
                "on where this one ended"
            ) from error
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DownloadError(
            f"no connection to {part.page} ({reason}). Run the same command again when there is "
            f"one: it goes on where this one ended. {_by_hand(part, folder)}"
        ) from error


def _refusal(part: Part, error: Any) -> str:
    from huggingface_hub import errors

    status = error.response.status_code
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{part.page} is given only to those who accept its terms (answer {status}). Sign in "
            "there and accept them, sign in here with `hf auth login`, and run the same command "
            "again."
        )
    if status in (401, 403):
        return f"{part.page} is closed, or no longer there (answer {status})."
    if status == 404:
        return f"{part.page} does not have this, or not at that revision (answer 404)."
    return f"{part.page} does not work at the moment (answer {status}); try again later."


def _by_hand(part: Part, folder: Path) -> str:
    if isinstance(part, WebPart):
        return f"By hand: save {part.page} into {folder}"
    return f"By hand: download {', '.join(part.files)} from {part.page}/tree/main into {folder}"
