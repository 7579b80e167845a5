"""A model in its published form to one safetensors file, in the number format one wants.

The file needs nothing beside it: sizes, vocabulary and where it comes from stand in its header. It is
written tensor by tensor, so that no more than one is in memory, and a run that was stopped goes on
where it ended. To fp8 go the matrix products of a language model's layers; embeddings, head and
norms keep 16 bits, and tensors that the network joins to one product get one scale. LoRA adapters can
be merged on the way. Knows how models are stored, not how a network computes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..compute import fp8, precision
from ..errors import CheckpointError, OptionError
from ..files import assemble, side_files
from ..files import folder as model_folder
from ..files.folder import ModelFolder
from ..files.weights import Tensors
from ..files.writer import Entry, StreamedFile, check_target, sha256_of
from ..llm.config import LlamaConfig
from ..llm.layout import names_in_file, parts_in_file
from ..llm.llama import Llama
from ..llm.lora import LowRankProduct, Replacement, lora_files, read_lora
from ..llm.vocab import VOCABULARY_FILES
from ..tokenizer.network import TokenizerModel
from . import llm as llm_folder
from . import quantization as fp8_files
from . import sd21 as unclip_single_file
from . import unclip as unclip_folder
from .tokenizer import CONFIG_FILE, open_tokenizer

SUFFIX = ".safetensors"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Conversion:
    """What is to be written.

    Attributes:
        part: tokenizer, llm or decoder.
        source: the model's file or folder.
        dtype: one of `precision.LLM_PRECISIONS`.
        files: the small files that go into the header.
        layout: form of every tensor in the file.
        read: yields the source's tensors, those of the layout among them.
        weights: the files they are in.
        products: names of tensors that are quantised, together where they have one scale.
        adapters: what is merged, with its strength.
    """

    part: str
    source: Path
    dtype: torch.dtype
    files: Mapping[str, bytes]
    layout: Mapping[str, Entry]
    read: Callable[[], Tensors]
    weights: Sequence[Path]
    products: Collection[tuple[str, ...]] = ()
    adapters: Sequence[tuple[str | Path, float]] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self.layout.values())

    def metadata(self) -> dict[str, str]:
        """Return what the header of the file says besides its tensors."""
        names = {dtype: name for name, dtype in precision.LLM_PRECISIONS.items()}
        origin = {
            "source": self.source.name,
            "weights": [_identity(file) for file in self.weights],
            "adapters": [
                {"strength": strength, "weights": [_identity(file) for file in lora_files(path)]}
                for path, strength in self.adapters
            ],
            "precision": names[self.dtype],
        }
        quantised = [key for keys in self.products for key in keys]
        return {
            "format": "pt",
            **model_folder.header(self.part, self.files, origin),
            **(fp8_files.header(quantised) if quantised else {}),
        }

    def tensors(
        self, on_tensor: Progress | None, done: Collection[str] = ()
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors of the layout in their form, but for those that are done.

        Raises:
            CheckpointError: numbers that the precision cannot hold.
        """
        # Quantised tensors are read twice, and each has one entry more in the layout: its scale.
        count = iter(range(1, len(self.layout) + 1))
        scales = self._scales(count, on_tensor)
        for key, tensor in self._wanted(self.layout, count, on_tensor):
            if key in scales:
                scale = f"{key}{fp8.SCALE_SUFFIX}"
                if key not in done:
                    yield key, fp8.quantize(tensor, scales[key])
                if scale not in done:
                    yield scale, scales[key]
            elif key not in done:
                result = tensor.to(self.layout[key].dtype)
                self._check(key, assemble.largest(result))
                yield key, result

    def _scales(self, count: Iterator[int], on_tensor: Progress | None) -> dict[str, torch.Tensor]:
        """Return the scale of every quantised tensor: one for those of a product."""
        wanted = {key for keys in self.products for key in keys}
        largest = {}
        for key, tensor in self._wanted(wanted, count, on_tensor) if wanted else ():
            largest[key] = assemble.largest(tensor)
            self._check(key, largest[key])
        common = {keys: max(largest[key] for key in keys) for keys in self.products}
        return {key: fp8.scale_of(common[keys]) for keys in self.products for key in keys}

    def _wanted(
        self, names: Collection[str], count: Iterator[int], on_tensor: Progress | None
    ) -> Tensors:
        for key, tensor in self.read():
            if key in names:
                assemble.check_kind(key, tensor, self.source)
                yield key, tensor
                if on_tensor is not None:
                    on_tensor(next(count), len(self.layout))

    def _check(self, key: str, largest: float) -> None:
        if not math.isfinite(largest):
            raise CheckpointError(
                f"{self.source}: {key} has numbers that "
                f"{str(self.dtype).removeprefix('torch.')} cannot hold. Convert to bf16; if that "
                "fails too, the file is damaged."
            )


def convert_model(conversion: Conversion, output: Path, on_tensor: Progress | None = None) -> str:
    """Write a model; after an end of any kind the same call goes on where it stopped.

    Args:
        conversion: see `plan_conversion`.
        output: the file to make. It is there when all of it is.
        on_tensor: called after each tensor with the number of tensors done and of all.

    Returns:
        the SHA-256 of the file, as hexadecimal digits.

    Raises:
        CheckpointError: a damaged source, or numbers that the precision cannot hold.
        OptionError: an output that exists or cannot be written, or too little room on its disk.
    """
    check_output(output, conversion.nbytes)
    file = StreamedFile(output, conversion.layout, conversion.metadata())
    with file.open():
        for key, tensor in conversion.tensors(on_tensor, file.done):
            file.write(key, tensor)
    return sha256_of(output)


def check_output(output: Path, nbytes: int) -> None:
    """Refuse what cannot be written before anything is read.

    Args:
        output: the file to make.
        nbytes: that it will take.

    Raises:
        OptionError: no safetensors file, one that exists, no folder for it, or a full disk.
    """
    if output.suffix != SUFFIX:
        raise OptionError(f"the output must end in {SUFFIX}; got {output.name}")
    if not output.parent.is_dir():
        raise OptionError(f"there is no folder {output.parent} to make {output.name} in")
    check_target(output, nbytes)


def _identity(file: Path) -> dict[str, str | int]:
    """Return what tells a file from another of its name, for people and to go on with a stopped run."""
    state = file.stat()
    return {"name": file.name, "bytes": state.st_size, "modified": state.st_mtime_ns}


def plan_conversion(
    source: Path,
    dtype: torch.dtype,
    loras: Sequence[tuple[str | Path, float]] = (),
    part: str | None = None,
) -> Conversion:
    """Find out what a conversion would write; of the weights only names and shapes are looked at.

    Args:
        source: a tokenizer's file or folder, a SEED-LLaMA folder, a diffusers unCLIP folder or SD 2.1
            unCLIP-h as one file, or a converted model. With an adapter that has embeddings and head of its own it may be the
            model that one was trained from, with fewer token ids than the vocabulary beside it.
        dtype: one of `precision.LLM_PRECISIONS`; float8_e4m3fn for language models alone.
        loras: adapters to merge into a language model, each with its strength; see `read_lora`.
        part: tokenizer, llm or decoder; if not given, the files tell.

    Raises:
        CheckpointError: files that are missing, damaged or another model's.
        OptionError: a precision or adapters that the part cannot have.
    """
    part = part or _part_of(source)
    if dtype == fp8.FP8 and part != "llm":
        raise OptionError(
            f"fp8 is for language models; a {part} loses too much by it. Choose fp16 or bf16."
        )
    if part == "llm":
        return _llm(source, dtype, loras)
    if loras:
        raise OptionError(f"LoRA adapters are for language models; {source} is a {part}")
    return (_tokenizer if part == "tokenizer" else _decoder)(source, dtype)


def _part_of(source: Path) -> str:
    if source.is_file():
        header = model_folder.read_header(source)
        if header:
            return header[0]
        return "decoder" if unclip_single_file.is_single_file(source) else "tokenizer"
    if (source / "model_index.json").is_file():
        return "decoder"
    config = source / CONFIG_FILE
    has_words = any((source / name).is_file() for name in VOCABULARY_FILES)
    is_llm = has_words or (config.is_file() and "model_type" in side_files.read_json(config))
    return "llm" if is_llm else "tokenizer"


def _tokenizer(source: Path, dtype: torch.dtype) -> Conversion:
    files = open_tokenizer(source)
    config = json.dumps(files.config.to_dict(), indent=1).encode()
    network = TokenizerModel(files.config, device="meta", dtype=dtype)
    layout = _layout(network, files.shapes(), files.source, files.names)
    return Conversion(
        "tokenizer",
        files.source,
        dtype,
        {CONFIG_FILE: config},
        layout,
        files.tensors,
        tuple(files.parts),
    )


def _llm(source: Path, dtype: torch.dtype, loras: Sequence[tuple[str | Path, float]]) -> Conversion:
    folder = llm_folder.find_llm_folder(source)
    config, vocab, fields = llm_folder.read_description(folder, grows=bool(loras))
    llm_folder.read_end_ids(folder, fields, vocab.size)
    changes = _changes(folder.path, config, loras)
    files = _small_files(folder, (CONFIG_FILE, "generation_config.json", *VOCABULARY_FILES))
    weights = llm_folder.llm_weights(folder)
    shapes = weights.shapes()
    if config.vocab_size != int(fields["vocab_size"]):
        shapes |= _grown_shapes(folder.path, changes)
        grown = {**fields, "vocab_size": config.vocab_size}
        files[CONFIG_FILE] = json.dumps(grown, indent=2).encode()
    stored = fp8_files.read_scales(weights.files)
    network = Llama(config, device="meta", dtype=fp8.computing_dtype(dtype))
    for key, shape in shapes.items():
        llm_folder.check_rows(key, shape, vocab.size, folder.path)
    if config.tie_word_embeddings:
        shapes[llm_folder.HEAD] = shapes.get(llm_folder.EMBEDDINGS, ())
    layout = _layout(network, shapes, folder.path, names_in_file)
    if config.tie_word_embeddings:
        del layout[llm_folder.HEAD]
    joined = llm_folder.matrix_products(config).values() if dtype == fp8.FP8 else ()
    products = [keys for keys in joined if llm_folder.HEAD not in keys]
    for key in (key for keys in products for key in keys):
        layout[key] = Entry(fp8.FP8, layout[key].shape)
        layout[f"{key}{fp8.SCALE_SUFFIX}"] = Entry(torch.float32, ())

    def read() -> Tensors:
        for key, tensor in fp8_files.dequantized(weights.tensors(), stored, folder.path):
            yield key, _merged(tensor, changes.get(key, ()))

    return Conversion(
        "llm", folder.path, dtype, files, layout, read, weights.files, products, loras
    )


Change = tuple[LowRankProduct | Replacement, float]
"""What an adapter does to one tensor of a file, and how strongly."""


def _changes(
    source: Path, config: LlamaConfig, loras: Sequence[tuple[str | Path, float]]
) -> dict[str, list[Change]]:
    """Return what adapters do, by the names of tensors in the model's files."""
    if loras and config.tie_word_embeddings:
        raise CheckpointError(
            f"{source} has one table for embeddings and head, and adapters are merged into models "
            "that have two, as SEED-LLaMA does"
        )
    keys = {part: key for key, part in parts_in_file(config).items()}
    changes: dict[str, list[Change]] = {}
    for path, strength in loras:
        for of_weight in read_lora(path, config).by_weight().values():
            for change in of_weight:
                changes.setdefault(keys[change.part], []).append((change, strength))
    return changes


def _grown_shapes(
    source: Path, changes: Mapping[str, Sequence[Change]]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tables that get a row for each new token.

    Raises:
        CheckpointError: no adapter tells what the new tokens mean.
    """
    shapes = {}
    for key in (llm_folder.EMBEDDINGS, llm_folder.HEAD):
        parts = [c.part for c, _ in changes.get(key, ()) if isinstance(c, Replacement)]
        if not parts:
            raise CheckpointError(
                f"{source} has fewer token ids than the vocabulary beside it, so it is no "
                f"SEED-LLaMA yet, and no adapter has all of {key} to make it one"
            )
        shapes[key] = parts[0].shape
    return shapes


def _merged(tensor: torch.Tensor, changes: Sequence[Change]) -> torch.Tensor:
    if not changes:
        return tensor
    merged = torch.zeros(changes[0][0].part.shape)
    merged[: len(tensor)] = tensor
    for change, strength in changes:
        change.apply_to(merged, strength)
    return merged


def _decoder(source: Path, dtype: torch.dtype) -> Conversion:
    if source.is_file() and model_folder.read_header(source) is None:
        return _single_file(source, dtype)
    folder = unclip_folder.find_unclip_folder(source)
    unclip_folder.check_pipeline(folder)
    configs = {part: unclip_folder.network_config(folder, part) for part in ("unet", "vae")}
    networks = _decoder_networks(configs, dtype)
    unclip_folder.check_fit(folder, **networks)
    shapes = {part: unclip_folder.network_shapes(folder, part) for part in networks}
    small = unclip_folder.small_shapes(folder, configs["unet"])

    def read() -> Tensors:
        for part in networks:
            for name, tensor in unclip_folder.network_tensors(folder, part):
                yield f"{part}.{name}", tensor
        yield from unclip_folder.small_tensors(folder, configs["unet"])

    names = ["model_index.json", *(f"{part}/{CONFIG_FILE}" for part in networks)]
    names += [f"{part}/scheduler_config.json" for part in unclip_folder.SCHEDULERS]
    files = _small_files(folder, names)
    layout = _decoder_layout(networks, shapes, small, folder.path)
    weights = unclip_folder.weight_files(folder)
    return Conversion("decoder", folder.path, dtype, files, layout, read, weights)


def _single_file(source: Path, dtype: torch.dtype) -> Conversion:
    whole = unclip_single_file.SingleFile(source)
    networks = _decoder_networks(
        {"unet": unclip_single_file.UNET, "vae": unclip_single_file.VAE}, dtype
    )
    shapes = {
        part: {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        for part, tensors in whole.networks.items()
    }
    small = whole.small_tensors()

    def read() -> Tensors:
        for part, tensors in whole.networks.items():
            for name, tensor in tensors.items():
                yield f"{part}.{name}", tensor
        yield from small.items()

    small_shapes = {name: tuple(tensor.shape) for name, tensor in small.items()}
    layout = _decoder_layout(networks, shapes, small_shapes, source)
    files = unclip_single_file.side_files()
    return Conversion("decoder", source, dtype, files, layout, read, (source,))


def _decoder_networks(
    configs: Mapping[str, Mapping[str, Any]], dtype: torch.dtype
) -> dict[str, nn.Module]:
    import diffusers

    kinds = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}
    return {
        part: unclip_folder.build_network(kinds[part], dict(config), dtype)
        for part, config in configs.items()
    }


def _decoder_layout(
    networks: Mapping[str, nn.Module],
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]],
    small: Mapping[str, tuple[int, ...]],
    source: Path,
) -> dict[str, Entry]:
    layout = {name: Entry(torch.float32, shape) for name, shape in small.items()}
    for part, network in networks.items():
        entries = _layout(network, shapes[part], source, lambda name: (name,))
        layout |= {f"{part}.{name}": entry for name, entry in entries.items()}
    return layout


def _layout(
    network: nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
    source: Path,
    names: Callable[[str], tuple[str | None, ...]],
) -> dict[str, Entry]:
    """Return the form of the tensors a network needs, under their names in files.

    Raises:
        CheckpointError: missing tensors, or one of another shape.
    """
    meta = torch.device("meta")
    stand_ins = ((key, torch.empty(shape, device=meta)) for key, shape in shapes.items())
    assemble.assemble(lambda _: network, nn, stand_ins, meta, source, names)
    return {
        key: Entry(tensor.dtype, shapes[key])
        for name, tensor in network.state_dict().items()
        for key in names(name)
        if key is not None
    }


def _small_files(folder: ModelFolder, names: Collection[str]) -> dict[str, bytes]:
    return {name: folder.read_bytes(name) for name in names if folder.has(name)}
