"""A SEED-LLaMA's folder written anew: in another number format, with LoRA adapters merged into it.

Reads and writes tensor by tensor under Hugging Face's names, so that no more than one output file
is in memory. To fp8 go the matrix products of the layers; embeddings, head and norms keep 16 bits.
The tensors that the network joins to one product get one scale. Knows files, not how a network
computes.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from . import checkpoints, fp8, fp8_files, llm_folder
from .errors import CheckpointError, OptionError
from .llama import Llama, LlamaConfig, names_in_file, parts_in_file
from .lora import LowRankProduct, Replacement, read_lora

SHARD_BYTES = 2 * 2**30
"""Most bytes of one output file, unless a single tensor has more."""

_COPIED = ("config.json", "generation_config.json", *llm_folder.VOCABULARY_FILES)


def convert_llm(
    source: str | Path,
    output: Path,
    dtype: torch.dtype,
    on_tensor: Callable[[int, int], None] | None = None,
    loras: Sequence[tuple[str | Path, float]] = (),
) -> None:
    """Write a model's folder in another precision; it is there when all of it is, or not at all.

    Args:
        source: ``"seed-mini"``, or a SEED-LLaMA folder in any precision. With an adapter that has
            embeddings and head of its own it may be the model that one was trained from, with fewer
            token ids than the vocabulary beside it.
        output: the folder to make; it may exist if it is empty.
        dtype: one of `checkpoints.LLM_PRECISIONS`.
        on_tensor: called after each tensor with the number of tensors done and of all.
        loras: adapters to merge, each with its strength; see `lora.read_lora`.

    Raises:
        CheckpointError: files of the source that are missing, damaged or another model's, or
            numbers that the precision cannot hold.
        OptionError: an output folder that cannot be written to.
    """
    folder = llm_folder.find_llm_folder(source)
    config, _, fields = llm_folder.read_description(folder, grows=bool(loras))
    output = _check_output(folder.resolve(), output.resolve())
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as temporary:
        unfinished = Path(temporary) / output.name
        unfinished.mkdir()
        changes = _changes(folder, config, loras)
        has_grown = config.vocab_size != int(fields["vocab_size"])
        if has_grown:
            _check_growth(folder, changes)
        _Conversion(folder, config, dtype, on_tensor, changes).write(unfinished)
        for name in _COPIED:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, unfinished / name)
        if has_grown:
            text = json.dumps({**fields, "vocab_size": config.vocab_size}, indent=2)
            (unfinished / "config.json").write_text(text, encoding="utf-8")
        if output.exists():
            output.rmdir()  # Windows renames no folder to one that exists
        unfinished.rename(output)


def _check_output(source: Path, output: Path) -> Path:
    if output == source:
        raise OptionError(f"{output} is the model to convert; give another folder for the result")
    if not output.parent.is_dir():
        raise OptionError(f"there is no folder {output.parent} to make {output.name} in")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OptionError(f"{output} is not empty; give the name of a new folder")
    return output


Changes = dict[str, list[tuple[LowRankProduct | Replacement, float]]]
"""What adapters do to the tensors of a file, by their names there, and how strongly."""


def _changes(
    folder: Path, config: LlamaConfig, loras: Sequence[tuple[str | Path, float]]
) -> Changes:
    if loras and config.tie_word_embeddings:
        raise CheckpointError(
            f"{folder} has one table for embeddings and head, and adapters are merged into models "
            "that have two, as SEED-LLaMA does"
        )
    keys = {part: key for key, part in parts_in_file(config).items()}
    changes: Changes = {}
    for path, strength in loras:
        for of_weight in read_lora(path, config).by_weight().values():
            for change in of_weight:
                changes.setdefault(keys[change.part], []).append((change, strength))
    return changes


def _check_growth(folder: Path, changes: Changes) -> None:
    """Refuse to make up what tokens mean."""
    for key in (llm_folder.EMBEDDINGS, llm_folder.HEAD):
        if not any(isinstance(change, Replacement) for change, _ in changes.get(key, ())):
            raise CheckpointError(
                f"{folder} has fewer token ids than the vocabulary beside it, so it is no "
                f"SEED-LLaMA yet, and no adapter has all of {key} to make it one"
            )


class _Conversion:
    """One model on its way to another precision."""

    def __init__(
        self,
        folder: Path,
        config: LlamaConfig,
        dtype: torch.dtype,
        on_tensor: Callable[[int, int], None] | None,
        changes: Changes,
    ) -> None:
        self._folder = folder
        self._changes = changes
        self._dtype = dtype
        self._on_tensor = on_tensor
        self._done = 0
        self._files = llm_folder.weight_files(folder)
        self._stored = fp8_files.read_scales(self._files)
        names = Llama(config, device="meta").state_dict()
        self._wanted = {key for name in names for key in names_in_file(name)}
        if config.tie_word_embeddings:
            self._wanted.discard(llm_folder.HEAD)
        products = llm_folder.matrix_products(config).values() if dtype == fp8.FP8 else ()
        self._products = [keys for keys in products if llm_folder.HEAD not in keys]
        self._total = len(self._wanted) + sum(len(keys) for keys in self._products)

    def write(self, folder: Path) -> None:
        """Write the weights, and their index if they are several files."""
        given = {key for file in self._files for key in checkpoints.read_keys(file)}
        checkpoints.check_complete(sorted(self._wanted), given, self._folder)
        scales = self._scales() if self._products else {}
        shards = _Shards(folder)
        for key, tensor in self._read(self._wanted):
            if key in scales:
                values = fp8.quantize(tensor, scales[key])
                shards.add({key: values, f"{key}{fp8.SCALE_SUFFIX}": scales[key]})
            else:
                shards.add({key: self._converted(key, tensor)})
        shards.close()

    def _read(self, wanted: set[str]) -> checkpoints.Tensors:
        """Yield the tensors named with adapters merged, those and quantised ones in float32."""
        tensors = checkpoints.read_weights(self._files)
        for key, tensor in fp8_files.dequantized(tensors, self._stored, self._folder):
            if key in wanted:
                yield key, self._merged(key, tensor).contiguous()
                self._done += 1
                if self._on_tensor is not None:
                    self._on_tensor(self._done, self._total)

    def _merged(self, key: str, tensor: torch.Tensor) -> torch.Tensor:
        if key not in self._changes:
            return tensor
        changes = self._changes[key]
        merged = torch.zeros(changes[0][0].part.shape)
        merged[: len(tensor)] = tensor
        for change, strength in changes:
            change.apply_to(merged, strength)
        return merged

    def _scales(self) -> dict[str, torch.Tensor]:
        """Return the scale of every tensor of a product: one for those that are joined."""
        largest = {}
        for key, tensor in self._read({key for keys in self._products for key in keys}):
            largest[key] = float(torch.linalg.vector_norm(tensor, torch.inf))
            self._check(key, largest[key] < torch.inf)
        common = {keys: max(largest[key] for key in keys) for keys in self._products}
        return {key: fp8.scale_of(common[keys]) for keys in self._products for key in keys}

    def _converted(self, key: str, tensor: torch.Tensor) -> torch.Tensor:
        result = tensor.to(fp8.computing_dtype(self._dtype))
        self._check(key, bool(result.isfinite().all()))
        return result

    def _check(self, key: str, is_finite: bool) -> None:
        if not is_finite:
            raise CheckpointError(
                f"{self._folder}: {key} has numbers that "
                f"{str(self._dtype).removeprefix('torch.')} cannot hold. Convert to bf16; if that "
                "fails too, the file is damaged."
            )


class _Shards:
    """Files of about `SHARD_BYTES`, named as Hugging Face names them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pending: dict[str, torch.Tensor] = {}
        self._written: list[tuple[Path, list[str]]] = []
        self._bytes = 0

    def add(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take tensors that belong into one file."""
        pending = sum(tensor.nbytes for tensor in self._pending.values())
        if self._pending and pending + sum(t.nbytes for t in tensors.values()) > SHARD_BYTES:
            self._write()
        self._pending |= tensors

    def _write(self) -> None:
        path = self._folder / f"unfinished-{len(self._written)}.safetensors"
        quantised = [key for key, tensor in self._pending.items() if tensor.dtype == fp8.FP8]
        metadata = {"format": "pt", **(fp8_files.header(quantised) if quantised else {})}
        try:
            save_file(self._pending, path, metadata)
        except SafetensorError as error:
            raise OSError(f"cannot write to {self._folder.parent.parent}: {error}") from error
        self._written.append((path, list(self._pending)))
        self._bytes += sum(tensor.nbytes for tensor in self._pending.values())
        self._pending = {}

    def close(self) -> None:
        """Write what is left, and give the files their names."""
        self._write()
        if len(self._written) == 1:
            self._written[0][0].rename(self._folder / "model.safetensors")
            return
        table: dict[str, str] = {}
        for number, (path, keys) in enumerate(self._written, start=1):
            name = f"model-{number:05d}-of-{len(self._written):05d}.safetensors"
            path.rename(self._folder / name)
            table |= dict.fromkeys(keys, name)
        index = {"metadata": {"total_size": self._bytes}, "weight_map": table}
        text = json.dumps(index, indent=2)
        (self._folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
