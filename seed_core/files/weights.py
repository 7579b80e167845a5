"""Weight files of any kind: which there are of a network, and the tensors in them, one at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import torch

from ..errors import CheckpointError
from .pickled import PICKLED_SUFFIXES, _pickled_tensors, _read_pickled
from .safetensors import SAFETENSORS_SUFFIXES, _mapped_tensors, _read_header
from .side_files import read_json

Tensors = Iterable[tuple[str, torch.Tensor]]

WEIGHT_SUFFIXES = (*SAFETENSORS_SUFFIXES, *PICKLED_SUFFIXES)


def read_tensors(
    path: Path, prefix: str = "", joined: Iterable[tuple[str, ...]] = ()
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of one safetensors or pickled file, one at a time, on the CPU.

    Args:
        path: the file.
        prefix: only those whose names begin with it.
        joined: names of tensors that `assemble` will join. Where they lie behind one another in a
            safetensors file they do so in memory, and are joined without a copy.

    Raises:
        CheckpointError: no such file, an unknown kind, a damaged one, or a pickle with code in it.
    """
    if _is_pickled(path):
        yield from _pickled_tensors(path, prefix)
        return
    yield from _mapped_tensors(path, lambda key: key.startswith(prefix), joined)


def read_weights(
    files: Iterable[Path], prefix: str = "", joined: Collection[tuple[str, ...]] = ()
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of several files, as `read_tensors` does.

    Raises:
        CheckpointError: also for a tensor that two of the files hold.
    """
    given: set[str] = set()
    for file in files:
        for key, tensor in read_tensors(file, prefix, joined):
            if key in given:
                raise CheckpointError(
                    f"{file} holds {key}, and so does another file of the model in {file.parent}. "
                    "Files of two downloads are mixed there: download the model into an empty folder."
                )
            given.add(key)
            yield key, tensor


def read_keys(path: Path) -> list[str]:
    """Return the names of the tensors of a weight file; of a safetensors file only by its header."""
    return list(read_shapes(path))


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the tensors of a weight file, of a safetensors file by its header.

    Raises:
        CheckpointError: a damaged file.
    """
    if _is_pickled(path):
        return {key: tuple(tensor.shape) for key, tensor in _read_pickled(path).items()}
    return {key: tuple(field["shape"]) for key, field in _read_header(path)[1].items()}


def _is_pickled(path: Path) -> bool:
    """Tell the kind of a weight file, or say why it is none."""
    if not path.is_file():
        raise CheckpointError(f"there is no file {path.name} in the folder {path.parent}")
    suffix = path.suffix.lower()
    if suffix not in WEIGHT_SUFFIXES:
        raise CheckpointError(
            f"{path} is no weight file this can read; known endings: {', '.join(WEIGHT_SUFFIXES)}"
        )
    return suffix in PICKLED_SUFFIXES


def weight_files(folder: Path, stems: tuple[str, ...]) -> list[Path]:
    """Return the weight files of a Hugging Face style folder: shards by their index, or one file.

    Args:
        folder: where to look.
        stems: file names without suffix, best first, such as ``("model", "pytorch_model")``.

    Raises:
        CheckpointError: none found, or an index that names a file outside the folder.
    """
    for stem in stems:
        for suffix in (".safetensors", ".bin"):
            if (index := folder / f"{stem}{suffix}.index.json").is_file():
                return _shards(index)
            if (single := folder / f"{stem}{suffix}").is_file():
                return [single]
    wanted = ", ".join(f"{stem}.safetensors" for stem in stems)
    raise CheckpointError(f"the folder {folder} has no weights; looked for {wanted} and shards")


def _shards(index: Path) -> list[Path]:
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise CheckpointError(f"{index} lists no weight files")
    names = sorted({str(name) for name in table.values()})
    for name in names:
        if Path(name).name != name or "\\" in name:
            raise CheckpointError(f"{index} names {name!r}, which lies outside its folder; refused")
        if not _is_file(index.parent / name):
            raise CheckpointError(f"{index.parent} lacks {name}, which {index.name} names")
    return [index.parent / name for name in names]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False
