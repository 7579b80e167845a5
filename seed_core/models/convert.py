"""A model in its published form to one safetensors file, in a precision of choice.

The file needs nothing beside it: sizes, vocabulary and origin stand in its header. It is written
tensor by tensor, and a run that was stopped goes on where it ended. In fp8 are the matrix products
of a language model's layers; embeddings, head and norms keep 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..compute import fp8, precision
from ..errors import OptionError
from ..files import assemble, origin, side_files
from ..files.folder import header, read_header
from ..files.weights import Reader, Tensors
from ..files.writer import Entry, StreamedFile, check_output, sha256_of
from ..llm.vocab import VOCABULARY_FILES
from . import quantization, sd21
from .llm import HEAD, matrix_products, open_llm
from .lora import Adapter, lora_files
from .names import CONFIG_FILE
from .opened import Opened
from .tokenizer import open_tokenizer
from .unclip import open_decoder

SUFFIX = ".safetensors"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Conversion:
    """What is to be written."""

    opened: Opened  # with adapters merged
    dtype: torch.dtype  # one of `precision.LLM_PRECISIONS`
    layout: Mapping[str, Entry]
    products: Collection[tuple[str, ...]] = ()  # quantised; what is one product has one scale
    adapters: Sequence[Adapter] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self.layout.values())

    def made_from(self) -> dict[str, Any]:
        """Return what the tensors come from: another model, adapter or precision has another."""
        names = {dtype: name for name, dtype in precision.LLM_PRECISIONS.items()}
        opened = self.opened
        folder = opened.source if opened.source.is_dir() else opened.source.parent
        return {
            "source": opened.source.name,
            "weights": [origin.identity(folder, file) for file in opened.weights],
            "adapters": [
                {
                    "strength": strength,
                    "weights": [origin.identity(file.parent, file) for file in lora_files(path)],
                }
                for path, strength in self.adapters
            ],
            "precision": names[self.dtype],
        }

    def metadata(self) -> dict[str, str]:
        """Return what the header of the file says besides its tensors."""
        opened = self.opened
        quantised = [key for keys in self.products for key in keys]
        return {
            "format": "pt",
            **header(opened.kind, opened.files, self.made_from()),
            **(quantization.header(quantised) if quantised else {}),
        }

    def tensors(
        self,
        on_tensor: Progress | None = None,
        done: Collection[str] = (),
        read: Reader | None = None,
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors of the layout in their form, but for those that are done.

        With a reader of some of the files alone, a product that is not whole in them is left out.
        """
        # Quantised tensors are read twice, and each has one entry more in the layout: its scale.
        count = iter(range(1, len(self.layout) + 1))
        scales = self._scales(count, on_tensor, read)
        quantised = {key for keys in self.products for key in keys}
        for key, tensor in self._wanted(self.layout, count, on_tensor, read):
            if key in scales:
                scale = f"{key}{fp8.SCALE_SUFFIX}"
                if key not in done:
                    yield key, fp8.quantize(tensor, scales[key])
                if scale not in done:
                    yield scale, scales[key]
            elif key not in done and key not in quantised:
                result = tensor.to(self.layout[key].dtype)
                assemble.check_finite(key, result, self.opened.source)
                yield key, result

    def _scales(
        self, count: Iterator[int], on_tensor: Progress | None, read: Reader | None
    ) -> dict[str, torch.Tensor]:
        """Return the scale of every quantised tensor: one for those of a product."""
        wanted = {key for keys in self.products for key in keys}
        largest = {}
        for key, tensor in self._wanted(wanted, count, on_tensor, read) if wanted else ():
            assemble.check_finite(key, tensor, self.opened.source)
            largest[key] = assemble.largest(tensor)
        whole = [keys for keys in self.products if all(key in largest for key in keys)]
        common = {keys: max(largest[key] for key in keys) for keys in whole}
        return {key: fp8.scale_of(common[keys]) for keys in whole for key in keys}

    def _wanted(
        self,
        names: Collection[str],
        count: Iterator[int],
        on_tensor: Progress | None,
        read: Reader | None,
    ) -> Tensors:
        tensors = self.opened.tensors() if read is None else self.opened.stream(read)
        for key, tensor in tensors:
            if key in names:
                yield key, tensor
                if on_tensor is not None:
                    on_tensor(next(count), len(self.layout))


def convert_model(conversion: Conversion, output: Path, on_tensor: Progress | None = None) -> str:
    """Write a model; after an end of any kind the same call goes on where it stopped.

    Args:
        conversion: see `plan_conversion`.
        output: the file to make. It is there when all of it is.
        on_tensor: called after each tensor with the number of tensors done and of all.

    Returns:
        the SHA-256 of the file, as hexadecimal digits.

    Raises:
        CheckpointError: the source is damaged, or has numbers that the precision cannot hold.
        OptionError: the output exists or cannot be written, or its disk has too little room.
    """
    check_output(output, SUFFIX, conversion.nbytes)
    return write_tensors(conversion, output, conversion.metadata(), on_tensor)


def write_tensors(
    conversion: Conversion, output: Path, metadata: Mapping[str, str], on_tensor: Progress | None
) -> str:
    """Write the tensors of a conversion under a header of any kind; see `convert_model`."""
    file = StreamedFile(output, conversion.layout, metadata)
    with file.open():
        for key, tensor in conversion.tensors(on_tensor, file.done):
            file.write(key, tensor)
    return sha256_of(output)


def plan_conversion(
    source: Path,
    dtype: torch.dtype,
    loras: Sequence[Adapter] = (),
    kind: str | None = None,
) -> Conversion:
    """Find out what a conversion would write; of the weights only names and shapes are looked at.

    Args:
        source: a model's file or folder; see `open_tokenizer`, `open_llm` and `open_decoder`.
        dtype: one of `precision.LLM_PRECISIONS`; float8_e4m3fn for language models alone.
        loras: adapters to merge into a language model, each with its strength; see `read_lora`.
        kind: tokenizer, llm or decoder; if not given, the files tell.

    Raises:
        CheckpointError: files are missing, damaged or another model's.
        OptionError: this kind of model cannot have the precision or adapters.
    """
    kind = kind or kind_of(source)
    check_precision(kind, dtype)
    if kind == "llm":
        return _llm(source, dtype, loras)
    if loras:
        raise OptionError(f"LoRA adapters are for language models; {source} is a {kind}")
    opened: Opened = (open_tokenizer if kind == "tokenizer" else open_decoder)(source, dtype)
    return Conversion(opened, dtype, opened.layout())


def check_precision(kind: str, dtype: torch.dtype) -> None:
    """Raise an `OptionError` if a tokenizer or decoder is to be fp8."""
    if dtype == fp8.FP8 and kind != "llm":
        raise OptionError(
            f"fp8 is for language models; a {kind} loses too much by it. Choose fp16 or bf16."
        )


def _llm(source: Path, dtype: torch.dtype, loras: Sequence[Adapter]) -> Conversion:
    opened = open_llm(source, fp8.computing_dtype(dtype), adapters=loras)
    layout = opened.layout()
    joined = matrix_products(opened.config).values() if dtype == fp8.FP8 else ()
    products = [keys for keys in joined if HEAD not in keys]
    for key in (key for keys in products for key in keys):
        layout[key] = Entry(fp8.FP8, layout[key].shape)
        layout[f"{key}{fp8.SCALE_SUFFIX}"] = Entry(torch.float32, ())
    return Conversion(opened, dtype, layout, products, loras)


def kind_of(source: Path) -> str:
    """Return what a model's file or folder holds, by its files: tokenizer, llm or decoder."""
    if source.is_file():
        converted = read_header(source)
        if converted is not None:
            return converted[0]
        return "decoder" if sd21.is_single_file(source) else "tokenizer"
    if (source / "model_index.json").is_file() or (source / "unet").is_dir():
        return "decoder"
    config = source / CONFIG_FILE
    has_words = any((source / name).is_file() for name in VOCABULARY_FILES)
    is_llm = has_words or (config.is_file() and "model_type" in side_files.read_json(config))
    return "llm" if is_llm else "tokenizer"
