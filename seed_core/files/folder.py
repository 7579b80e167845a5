"""A model's small files and tensors, wherever they lie: in a folder, or all of them in one file.

A converted model is one safetensors file whose header holds the small files too, so that nothing
can be lost beside it. Both are read by the names that files have in a folder.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from . import safetensors, side_files
from .weights import Reader, Tensors, read_copied, read_tensors, read_weights, weight_files

# The entry of a safetensors header that makes a file a converted model.
_HEADER = "seed_llama"


@dataclass(frozen=True)
class TensorFiles:
    """The files that hold the tensors of one network."""

    files: tuple[Path, ...]
    prefix: str = ""  # of its tensors' names there: a model in one file has several networks

    def tensors(self, read: Reader = read_tensors) -> Tensors:
        """Yield all tensors without the prefix, one at a time; see `read_weights`."""
        for key, tensor in read_weights(self.files, self.prefix, read):
            yield key.removeprefix(self.prefix), tensor

    def copied(self, *names: str) -> dict[str, torch.Tensor]:
        """Return those of these small tensors that are there, in memory of their own."""
        wanted = [self.prefix + name for name in names]
        found = itertools.chain.from_iterable(read_copied(file, wanted) for file in self.files)
        return {key.removeprefix(self.prefix): tensor for key, tensor in found}


class ModelFolder:
    """A folder of a model, or a converted model; `CheckpointError` for any other file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kind: str | None = None  # tokenizer, llm or decoder; None for a folder
        self._files: Mapping[str, bytes] | None = None
        if path.is_file():
            header = read_header(path)
            if header is None:
                raise CheckpointError(f"{path} is not a model that was converted to one file")
            self.kind, self._files = header

    def require(self, kind: str) -> ModelFolder:
        """Return this folder, or raise a `CheckpointError` if it is a model of another kind."""
        if self.kind not in (None, kind):
            raise CheckpointError(f"{self.path} holds a SEED {self.kind}; a SEED {kind} is needed")
        return self

    def has(self, name: str) -> bool:
        """Tell whether there is a file of this name, with ``/`` between folders."""
        return (self.path / name).is_file() if self._files is None else name in self._files

    def read_bytes(self, name: str) -> bytes:
        """Return the content of a small file; `CheckpointError` if it is missing."""
        if not self.has(name):
            raise CheckpointError(f"{self.path} lacks {name}")
        if self._files is None:
            return side_files.read_side_file(self.path / name)
        return self._files[name]

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the object in a JSON file; `CheckpointError` if it is missing or damaged."""
        return side_files.parse_json(self.read_bytes(name), f"{name} of {self.path}")

    def read_files(self, names: Iterable[str]) -> dict[str, bytes]:
        """Return the content of those small files that are there, by their names."""
        return {name: self.read_bytes(name) for name in names if self.has(name)}

    def weights(self, stems: tuple[str, ...], folder: str = "") -> TensorFiles:
        """Return the files of one network.

        Args:
            stems: see `weight_files`; of no use in a converted model.
            folder: the folder inside that belongs to the network, if it has one.
        """
        if self._files is None:
            return TensorFiles(tuple(weight_files(self.path / folder, stems)))
        return TensorFiles((self.path,), f"{folder}." if folder else "")


def folder_around(file: Path) -> ModelFolder:
    """Return a converted model as a folder; for any other file the folder it lies in."""
    return ModelFolder(file if read_header(file) is not None else file.parent)


def read_header(path: Path) -> tuple[str, dict[str, bytes]] | None:
    """Return kind and small files of a converted model, or None for any other file."""
    if path.suffix.lower() not in safetensors.SAFETENSORS_SUFFIXES:
        return None
    text = safetensors.read_metadata(path).get(_HEADER)
    if text is None:
        return None
    record = side_files.parse_json(text.encode(), f"the header of {path}")
    try:
        files = {str(name): _bytes(content) for name, content in record["files"].items()}
        return str(record["part"]), files
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"the header of {path} is damaged: {error!r:.200}") from error


def header(kind: str, files: Mapping[str, bytes], origin: Mapping[str, Any]) -> dict[str, str]:
    """Return what the header of a converted model says; ``origin`` is read by people alone."""
    record = {
        "part": kind,  # as saved files have it
        "origin": dict(origin),
        "files": {name: _text(content) for name, content in files.items()},
    }
    return {_HEADER: json.dumps(record)}


def _text(content: bytes) -> str | dict[str, str]:
    """Return text as it is, that people may read it, and anything else in base 64."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(content).decode("ascii")}


def _bytes(content: Any) -> bytes:
    if isinstance(content, str):
        return content.encode("utf-8")
    return base64.b64decode(content["base64"], validate=True)
