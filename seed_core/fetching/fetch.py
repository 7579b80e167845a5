"""Fetching what a plan names.

Each file is fetched into a folder of unfinished files, checked, and moved to its place. An interrupted
one goes on where it stopped. Files that are there already are never written over.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ..errors import DownloadError
from ..files import origin
from .describe import show_size
from .downloads import Source
from .failures import Listener, OnBytes, explained, unusable
from .plan import UNFINISHED, File, Plan, check_nothing_in_the_way
from .transfer import get_file

MAKE_ROOM = "Make room, or name a folder on another disk in ComfyUI's extra_model_paths.yaml"


def check_disk(plan: Plan) -> None:
    """Check that the disk has room for what is still to be fetched.

    Raises:
        DownloadError: it has less.
    """
    if plan.needed > plan.free:
        raise DownloadError(
            f"{plan.name} still needs {show_size(plan.needed)} and the disk of {plan.folder} has "
            f"{show_size(plan.free)} free. {MAKE_ROOM}"
        )


@contextlib.contextmanager
def alone(name: str, folder: Path) -> Iterator[Path]:
    """Keep two runs that fetch a model apart, and give the folder of unfinished files.

    The folder goes when nothing is left in it.

    Raises:
        DownloadError: another run is fetching the model, or the folder cannot be written to.
    """
    from filelock import FileLock, Timeout

    unfinished = folder / UNFINISHED
    lock = FileLock(unfinished / f"{name}.lock")
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise DownloadError(
            f"another run is fetching {name} into {folder}; wait for its end"
        ) from error
    except OSError as error:
        raise DownloadError(unusable(error, folder)) from error
    try:
        yield unfinished
    finally:
        lock.release()
        with contextlib.suppress(OSError):  # others lie there
            Path(lock.lock_file).unlink(missing_ok=True)
            unfinished.rmdir()


def fetch(plan: Plan, on_bytes: OnBytes = lambda here, fetched: None) -> Iterator[Path]:
    """Fetch what is missing, yielding the path of each file when it is complete.

    Args:
        plan: see `make_plan`.
        on_bytes: told a few times a second. What it raises ends the fetching, which the next call
            goes on with.

    Raises:
        DownloadError: the connection breaks, the server refuses, the disk is full, a file arrives
            damaged, or one that is there already is another.
    """
    listener = Listener(on_bytes)
    with alone(plan.name, plan.folder):
        check_there(plan, listener)
        for source, file in plan.missing:
            with explained(source, plan.folder, listener):
                yield _fetch_file(plan, source, file, listener)


def check_there(plan: Plan, listener: Listener) -> None:
    """Check the files that are there already by their hashes, each once.

    Raises:
        DownloadError: one is another file of the same size, or cannot be read.
    """
    checked = {}
    for source, file in plan.files:
        path = plan.folder / file.name
        if not path.exists():
            continue
        with explained(source, plan.folder, listener):
            known = origin.identity(plan.folder, path).get("sha256")
            listener.found(file.size)
            if file.sha256 is not None and known == file.sha256:
                continue
            if not file.is_at(path, listener):
                raise DownloadError(
                    f"{path} is another file than {source.page} publishes, though as long. Move it "
                    "away or delete it, and run it again"
                )
        checked[path] = file.origin(source)
    if checked:
        origin.note(plan.folder, plan.name, checked)


def _fetch_file(plan: Plan, source: Source, file: File, listener: Listener) -> Path:
    arrived, target = file.unfinished(plan.folder), plan.folder / file.name
    get_file(source, file, arrived, listener)
    target.parent.mkdir(parents=True, exist_ok=True)
    check_nothing_in_the_way(target, file.size)
    origin.note(plan.folder, plan.name, {arrived: file.origin(source)})
    arrived.replace(target)
    return target
