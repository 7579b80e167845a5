"""Weight files of any format: which ones a network has, and their tensors one at a time.

A new format of weights is a line in `FORMATS`.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from ..errors import CheckpointError
from . import foreign, pickled, safetensors
from .side_files import read_json

Tensors = Iterable[tuple[str, torch.Tensor]]
Joined = Iterable[tuple[str, ...]]
IsWanted = Callable[[str], bool]


class Format(NamedTuple):
    """How one kind of weight file is recognised and read."""

    suffixes: tuple[str, ...]  # in lower case
    begins: bytes  # pattern of its first bytes
    in_folders: str  # the suffix that Hugging Face gives it
    stand_ins: Callable[[Path], Tensors]  # on the meta device
    tensors: Callable[[Path, IsWanted, Joined], Tensors]  # one at a time, on the CPU
    # The same without a map, for files that may change while they are in use.
    copied_stand_ins: Callable[[Path], Tensors]
    copied_tensors: Callable[[Path, IsWanted], Tensors]


# The best to have first: a folder may hold the same weights in several formats.
FORMATS = (
    Format(
        safetensors.SAFETENSORS_SUFFIXES,
        rb".{5}\0\0\0\{",  # the length of the header, then the header
        ".safetensors",
        safetensors.read_stand_ins,
        safetensors.mapped_tensors,
        safetensors.read_stand_ins,
        safetensors.copied_tensors,
    ),
    Format(
        pickled.PICKLED_SUFFIXES,
        rb"PK\x03\x04|\x80\x02",
        ".bin",
        pickled.read_stand_ins,
        pickled.copied_tensors,
        partial(pickled.read_stand_ins, is_mapped=False),
        pickled.whole_tensors,
    ),
)

WEIGHT_SUFFIXES = tuple(suffix for each in FORMATS for suffix in each.suffixes)

# What Hugging Face puts into the names of files by their precision, the best first.
_VARIANTS = ("", ".fp32", ".fp16", ".bf16")

_SHARD = re.compile(r"-\d+-of-(\d+)$")
_MOST_SHARDS = 1000

# Reads those tensors of a file whose names begin with a prefix: `read_tensors` or `read_stand_ins`.
Reader = Callable[[Path, str], Tensors]


def read_tensors(
    path: Path, prefix: str = "", joined: Joined = (), is_mapped: bool = True
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of one weight file, one at a time, on the CPU.

    Args:
        path: the file.
        prefix: only tensors whose names begin with it are read.
        joined: names of tensors that a network joins to one. Where they are neighbours in a
            safetensors file, they become neighbours in memory and are joined without a copy.
        is_mapped: whether a file may be mapped into memory. A mapped file that is cut short while
            the tensors are in use ends the process, as does a network drive that is lost. Without a
            map, tensors are in memory of their own, and a pickled file is read as a whole.

    Raises:
        CheckpointError: the file is missing, damaged, of an unknown format or holds program code.
    """
    of_format = _format(path)
    if is_mapped:
        yield from of_format.tensors(path, lambda key: key.startswith(prefix), joined)
    else:
        yield from of_format.copied_tensors(path, lambda key: key.startswith(prefix))


def read_copied(path: Path, names: Collection[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of these names in memory of their own; errors are those of `read_tensors`.

    For small files: one that is cut short while it is mapped ends the process.
    """
    wanted = frozenset(names)
    if wanted:
        yield from _format(path).copied_tensors(path, wanted.__contains__)


def copied_stand_ins(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what `read_stand_ins` does, without mapping the file."""
    yield from _format(path).copied_stand_ins(path)


def read_stand_ins(path: Path, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what `read_tensors` would, on the meta device: names, number formats and shapes."""
    for key, tensor in _format(path).stand_ins(path):
        if key.startswith(prefix):
            yield key, tensor


def looks() -> Reader:
    """Return a `read_stand_ins` that remembers: it opens each file once."""
    seen: dict[Path, list[tuple[str, torch.Tensor]]] = {}

    def look(path: Path, prefix: str) -> Tensors:
        if path not in seen:
            seen[path] = list(read_stand_ins(path))
        return ((key, tensor) for key, tensor in seen[path] if key.startswith(prefix))

    return look


def read_weights(
    files: Iterable[Path], prefix: str = "", read: Reader = read_tensors
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of several files.

    Raises:
        CheckpointError: see `read_tensors`; or two of the files hold the same tensor.
    """
    given: set[str] = set()
    for file in files:
        for key, tensor in read(file, prefix):
            if key in given:
                raise CheckpointError(
                    f"{file} holds {key}, and so does another file of the model in {file.parent}. "
                    "Files of two downloads are mixed there: download the model into an empty folder."
                )
            given.add(key)
            yield key, tensor


def read_keys(path: Path) -> list[str]:
    """Return the names of the tensors in a weight file."""
    return [key for key, _ in read_stand_ins(path)]


def _format(path: Path) -> Format:
    if not path.is_file():
        raise CheckpointError(f"the folder {path.parent} lacks {path.name}")
    suffix = path.suffix.lower()
    for each in FORMATS:
        if suffix in each.suffixes:
            start = foreign.read_start(path)
            foreign.check_content(path, start)
            _check_ending(path, start, each)
            return each
    raise CheckpointError(
        f"{path} is not a weight file that this can read; known endings: "
        f"{', '.join(WEIGHT_SUFFIXES)}"
    )


def _check_ending(path: Path, start: bytes, named: Format) -> None:
    """Refuse a file that is of another format than its name says."""
    if re.match(named.begins, start, re.DOTALL):
        return  # a length of a safetensors header may begin as a pickle does
    for each in FORMATS:
        if re.match(each.begins, start, re.DOTALL):
            raise CheckpointError(
                f"{path} ends in {path.suffix}, but its content is that of a {each.in_folders} file. "
                f"Give it the ending that it was published with, such as {each.in_folders}."
            )


def weight_files(folder: Path, stems: tuple[str, ...]) -> list[Path]:
    """Return the weight files of a Hugging Face style folder: one file, or shards.

    One file comes before shards, as in transformers: an index may be left from an earlier download.

    Args:
        folder: where to look.
        stems: file names without suffix, best first, such as ``("model", "pytorch_model")``.

    Raises:
        CheckpointError: it has none, or not all; or an index names a file outside the folder.
    """
    for variant in _VARIANTS:
        for stem in stems:
            for suffix in (each.in_folders for each in FORMATS):
                if (single := folder / f"{stem}{variant}{suffix}").is_file():
                    return [single]
                indices = (
                    f"{stem}{suffix}.index{variant}.json",
                    f"{stem}{variant}{suffix}.index.json",  # as older releases named it
                )
                for index in indices:
                    if (folder / index).is_file():
                        return _listed_shards(folder / index)
                if shards := _numbered_shards(folder, f"{stem}{variant}", suffix):
                    return shards
    wanted = ", ".join(f"{stem}.safetensors" for stem in stems)
    raise CheckpointError(
        f"the folder {folder} has no weights; looked for {wanted} and shards."
        f"{foreign.explain_folder(folder)}"
    )


def _listed_shards(index: Path) -> list[Path]:
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise CheckpointError(f"{index} lists no weight files")
    names = sorted({str(name) for name in table.values()})
    for name in names:
        if Path(name).name != name or "\\" in name:
            raise CheckpointError(f"{index} names {name!r}, which lies outside its folder; refused")
    return _shards(index.parent, names, index.name)


def _numbered_shards(folder: Path, stem: str, suffix: str) -> list[Path]:
    """Return shards whose names say how many there are; none if there is not even one."""
    found = sorted(folder.glob(f"{glob.escape(stem)}-*-of-*{suffix}"))
    counts = {match[1] for file in found if (match := _SHARD.search(file.stem))}
    if not counts:
        return []
    if len(counts) > 1:
        raise CheckpointError(
            f"{folder} holds shards of two downloads ({found[0].name}, {found[-1].name}): download "
            "the model into an empty folder"
        )
    (count,) = counts
    numbers = range(1, min(int(count), _MOST_SHARDS) + 1)
    names = [f"{stem}-{number:0{len(count)}d}-of-{count}{suffix}" for number in numbers]
    return _shards(folder, names, "the number in the others' names")


def _shards(folder: Path, names: list[str], by: str) -> list[Path]:
    """Return the files of these names; `CheckpointError` if some are missing."""
    if missing := [name for name in names if not _is_file(folder / name)]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(
            f"{folder} lacks {missing[0]}{more}, of {len(names)} weight files by {by}. Download what "
            f"is missing.{foreign.explain_folder(folder)}"
        )
    return [folder / name for name in names]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False
