"""Fetching a model and converting it while it comes.

Of what is published no more than one weight file lies on the disk at a time. The published files are
opened by their outlines, so everything is checked and laid out before the first of them arrives. Each
is then fetched, written into the new file in the precision of choice, and deleted. Whatever ends a
run, the next one goes on where it ended.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ..compute import fp8
from ..errors import DownloadError
from ..files import origin
from ..files.weights import WEIGHT_SUFFIXES, Tensors, read_stand_ins, read_tensors
from ..files.writer import StreamedFile, check_output, sha256_of
from ..models.convert import SUFFIX, Conversion, plan_conversion
from ..waiting import each_attended
from . import outline
from .describe import show_size
from .downloads import DOWNLOADS, Source, path_of
from .failures import Listener, OnBytes, explained
from .fetch import MAKE_ROOM, alone, check_there
from .plan import UNFINISHED, File, Plan, check_lengths, short_name
from .transfer import get_file, get_part

# Smaller files are fetched as they are, before anything else.
_SMALL = 32 * 2**20

_CARRIED = "carried.safetensors"


def fetch_converted(
    plan: Plan,
    dtype: torch.dtype,
    output: Path,
    on_bytes: OnBytes = lambda here, fetched: None,
) -> str:
    """Fetch a model into one file of a precision.

    Args:
        plan: see `make_plan`. Where its files are all there already, they are converted and kept.
        dtype: see `plan_conversion`.
        output: the file to make. It is there when all of it is.
        on_bytes: told a few times a second. What it raises ends the run, which the next call goes
            on with.

    Returns:
        the SHA-256 of the file, as hexadecimal digits.

    Raises:
        CheckpointError: a file is another than this pack expects, or has numbers that the precision
            cannot hold.
        DownloadError: see `fetch`; or a file that arrived is not the one whose outline was sent.
        OptionError: the output exists or cannot be written, or another run is writing it.
    """
    listener = Listener(on_bytes)
    with alone(output.name, output.parent) as unfinished:
        work = replace(plan, folder=unfinished / _version(plan, output) / plan.name)
        is_finished = output.exists() and work.folder.exists()  # but its hash was not told yet
        if is_finished:
            listener.found(plan.size)
        else:
            check_output(output, SUFFIX, nbytes=0)
            if not plan.missing:
                check_there(plan, listener)
                work.folder.mkdir(parents=True, exist_ok=True)
                conversion = _plan_conversion(plan, dtype)
                new = StreamedFile(output, conversion.layout, conversion.metadata())
                with new.open():
                    _write(conversion.tensors(done=new.done), new, listener)
            else:
                check_lengths(work.folder, [file for _, file in work.files])
                work.folder.mkdir(parents=True, exist_ok=True)
                _fetch(work, dtype, output, listener)
        digest = sha256_of(output, listener)
        shutil.rmtree(work.folder.parent, ignore_errors=True)
    return digest


def output_of(plan: Plan, precision: str) -> Path:
    """Return where the file goes: beside other models of its kind, for a loader to list."""
    folder = plan.folder if DOWNLOADS[plan.name].shares_folder else plan.folder.parent
    return path_of(plan.name, folder, precision)


def _version(plan: Plan, output: Path) -> str:
    """Return the name of a folder for the files until they are converted."""
    # Other versions and precisions have others, so that nothing is ever continued by mistake.
    return short_name("\n".join([output.name, *(file.version for _, file in plan.files)]))


def _plan_conversion(plan: Plan, dtype: torch.dtype) -> Conversion:
    download = DOWNLOADS[plan.name]
    own = download.sources[0].files[0] if download.shares_folder else ""
    return plan_conversion(plan.folder / own, dtype, kind=download.kind)


def _fetch(plan: Plan, dtype: torch.dtype, output: Path, listener: Listener) -> None:
    entries = {plan.folder / file.name: (source, file) for source, file in plan.files}
    for path, (source, file) in entries.items():
        if not path.exists():
            with explained(source, output.parent, listener):
                _prepare(plan, source, file, listener)
        elif not _mark(plan.folder, file).exists():
            listener.found(file.size)
    # Each time anew: a run may have ended between a file and its record.
    origins = {path: file.origin(source) for path, (source, file) in entries.items()}
    origin.note(plan.folder, plan.name, origins)
    conversion = _plan_conversion(plan, dtype)
    _check_room(plan, conversion, output)
    run = _Run(plan, conversion, listener)
    new = StreamedFile(output, conversion.layout, conversion.metadata())
    with new.open():
        for path in conversion.opened.weights:
            source, file = entries[path]
            if run.needs(path, new.done):
                with explained(source, output.parent, listener):
                    arrived = run.get(source, file)
                run.convert(path, arrived, new)
            elif _mark(plan.folder, file).exists():
                listener.found(file.size)
            _arrived(plan.folder, file).unlink(missing_ok=True)


def _write(tensors: Tensors, new: StreamedFile, listener: Listener) -> None:
    # Large ones take longer to read than anybody waits who wants to stop.
    for key, tensor in each_attended(tensors, listener):
        new.write(key, tensor, listener)


def _check_room(plan: Plan, conversion: Conversion, output: Path) -> None:
    """Refuse to begin on a disk with too little room for the new file and one that arrives."""
    coming = [file.size for _, file in plan.files if _mark(plan.folder, file).exists()]
    whole = conversion.nbytes + max(coming, default=0)
    begun = [output.with_name(f"{output.name}.unfinished"), *plan.folder.rglob("*")]
    there = sum(outline.room_on_disk(path) for path in begun if path.is_file())
    if whole > plan.free + there:
        raise DownloadError(
            f"{plan.name} takes {show_size(whole)} while it is converted, and "
            f"{show_size(conversion.nbytes)} in the end; the disk of {output.parent} has "
            f"{show_size(plan.free)} free. {MAKE_ROOM}"
        )


def _prepare(plan: Plan, source: Source, file: File, listener: Listener) -> None:
    """Put a small file in its place, and of a large one the outline where it can be had."""
    path, mark = plan.folder / file.name, _mark(plan.folder, file)
    path.parent.mkdir(parents=True, exist_ok=True)
    mark.parent.mkdir(parents=True, exist_ok=True)
    if file.size > _SMALL and path.suffix.lower() in WEIGHT_SUFFIXES:
        mark.touch()
        try:
            outline.draw(path, file.size, lambda at, n: get_part(source, file, at, n, listener))
        except outline.NoOutlineError:
            mark.unlink()
    if not path.exists():
        arrived = _arrived(plan.folder, file)
        get_file(source, file, arrived, listener)
        arrived.replace(path)


def _mark(folder: Path, file: File) -> Path:
    """Return what is there if the file of that name is an outline."""
    return file.unfinished(folder).with_suffix(".outline")


def _arrived(folder: Path, file: File) -> Path:
    """Return where a whole file lies until it is converted."""
    return file.unfinished(folder).with_suffix(Path(file.name).suffix)


@dataclass
class _Run:
    """The conversion of one file after the other."""

    plan: Plan
    conversion: Conversion
    listener: Listener

    def __post_init__(self) -> None:
        self._carried_file = self.plan.folder / UNFINISHED / _CARRIED
        # What belongs to a product whose other parts are in a file that is still to come.
        self._carried = load_file(self._carried_file) if self._carried_file.exists() else {}

    def needs(self, path: Path, done: Collection[str]) -> bool:
        """Tell whether the new file still lacks anything that this published one completes."""
        have, waiting = self._have(path)
        return any(
            key not in done
            for name in have - (waiting & self._carried.keys())
            for key in (name, f"{name}{fp8.SCALE_SUFFIX}")
            if key in self.conversion.layout
        )

    def _have(self, path: Path) -> tuple[set[str], set[str]]:
        """Return what there is with a published file, and what of it waits for the next one."""
        have = self._names(path) | self._carried.keys()
        parts = [product for product in self.conversion.products if not have.issuperset(product)]
        return have, {key for product in parts for key in have.intersection(product)}

    def get(self, source: Source, file: File) -> Path:
        """Return a file as it is published, whole."""
        path = self.plan.folder / file.name
        if not _mark(self.plan.folder, file).exists():
            return path
        arrived = _arrived(self.plan.folder, file)
        get_file(source, file, arrived, self.listener)
        if _forms(read_stand_ins(arrived)) != _forms(self.conversion.opened.look(path, "")):
            arrived.unlink()
            raise DownloadError(
                f"{file.name} does not hold the tensors that its first bytes told of. It was "
                "deleted; run it again"
            )
        return arrived

    def convert(self, path: Path, arrived: Path, new: StreamedFile) -> None:
        """Write what a published file holds, and keep aside what has to wait for the next one."""
        _, waiting = self._have(path)
        kept: dict[str, torch.Tensor] = {}

        def read(asked: Path, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
            if asked != path:
                return
            own = set()
            for key, tensor in read_tensors(arrived, prefix):
                own.add(key)
                if key in waiting:
                    kept[key] = tensor.contiguous()
                yield key, tensor
            yield from ((key, each) for key, each in self._carried.items() if key not in own)

        _write(self.conversion.tensors(done=new.done, read=read), new, self.listener)
        self._carry({key: self._carried[key] for key in waiting & self._carried.keys()} | kept)

    def _names(self, path: Path) -> set[str]:
        """Return the names in the new file of what a published one holds."""
        look = self.conversion.opened.look
        only = _only(path, look)
        return {
            key for key, _ in self.conversion.opened.stream(only)
        } & self.conversion.layout.keys()

    def _carry(self, tensors: dict[str, torch.Tensor]) -> None:
        if tensors.keys() != self._carried.keys():
            new = self._carried_file.with_suffix(".new")
            save_file(tensors, new)
            new.replace(self._carried_file)
            self._carried = tensors


def _only(path: Path, look: Callable[[Path, str], Tensors]) -> Callable[[Path, str], Tensors]:
    return lambda asked, prefix: look(asked, prefix) if asked == path else ()


def _forms(stand_ins: Tensors) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    return [(key, tensor.dtype, tuple(tensor.shape)) for key, tensor in stand_ins]
