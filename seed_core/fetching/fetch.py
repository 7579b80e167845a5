"""Fetching what a plan names. With `plan`, this is the only code here that goes online.

Each file is fetched into a folder of unfinished files, checked, and moved to its place. An interrupted
one goes on where it stopped. Files that are there already are never written over.

huggingface_hub does it, because it knows about mirrors, proxies and tokens; but not with its
``hf_hub_download``, whose recent versions throw an interrupted file away.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import DownloadError
from ..files.writer import sha256_of
from .describe import show_size
from .downloads import HubSource, Source
from .failures import explained
from .plan import UNFINISHED, File, Plan, check_nothing_in_the_way

RECORD = "fetched.json"


def check_disk(plan: Plan) -> None:
    """Check that the disk has room for what is still to be fetched.

    Raises:
        DownloadError: it has less.
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
        DownloadError: the connection breaks, the server refuses, the disk is full, or a file
            arrives damaged.
    """
    for source, file in plan.missing:
        arrived, target = file.unfinished(plan.folder), plan.folder / file.name
        with explained(source, plan.folder):
            _get(source, file, arrived)
            _check_arrived(arrived, file)
            target.parent.mkdir(parents=True, exist_ok=True)
            check_nothing_in_the_way(target, file.size)
            arrived.replace(target)
            _record(plan, source, file)
        yield target
    shutil.rmtree(plan.folder / UNFINISHED, ignore_errors=True)


def _get(source: Source, file: File, path: Path) -> None:
    """Append to an unfinished file what it still lacks."""
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
            headers=hub.build_hf_headers() if isinstance(source, HubSource) else None,
            expected_size=file.size,
            displayed_filename=file.name,
        )


def _check_arrived(path: Path, file: File) -> None:
    """Check a new file against what was announced, and delete a wrong one."""
    size = path.stat().st_size
    if size == file.size and file.sha256 in (None, sha256_of(path)):
        return
    path.unlink()
    raise DownloadError(
        f"{file.name} arrived damaged: {size} bytes that are not the {file.size} published ones. "
        "It was deleted; run the same command again"
    )


def _record(plan: Plan, source: Source, file: File) -> None:
    """Write beside the files where each is from."""
    path = plan.folder / f"{plan.name}.{RECORD}"
    record = {}
    with suppress(OSError, ValueError):  # none yet, or cut short: it only tells people something
        record = json.loads(path.read_text(encoding="utf-8"))
    record[file.name] = {**asdict(file), "licence": source.licence}
    new = path.with_suffix(".new")
    new.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    new.replace(path)
