"""Opening and loading a SEED-LLaMA: a Hugging Face folder, or a converted model.

Source: the files of AILab-CVC/seed-llama-8b-sft and -14b-sft and AILab-CVC/seed-tokenizer-2.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..codes.value import language_family
from ..compute import fp8, layers
from ..errors import CheckpointError, OptionError
from ..files import assemble, foreign
from ..files.assemble import EmptyNetwork
from ..files.folder import ModelFolder, TensorFiles, folder_around
from ..files.weights import WEIGHT_SUFFIXES, Reader, Tensors, looks
from ..llm.config import LlamaConfig
from ..llm.layout import names_in_file
from ..llm.llama import Llama
from ..llm.lora import Replacement
from ..llm.prompt import LLAMA_2, VICUNA, PromptTemplate
from ..llm.runtime import SeedLLM
from ..llm.vocab import VOCABULARY_FILES, Vocabulary, is_padded
from . import names, quantization
from .lora import Adapter, Change, changes_by_key, merge_into
from .names import CONFIG_FILE
from .opened import Opened

LLM_LINK = "https://huggingface.co/AILab-CVC/seed-llama-8b-sft"
VOCABULARY_LINK = "https://huggingface.co/AILab-CVC/seed-tokenizer-2"

# Depth of SEED-LLaMA-14B, the only published size with the LLaMA-2 template.
_LAYERS_14B = 40

# What no file has where the table of embeddings is the head too.
HEAD = "lm_head.weight"

EMBEDDINGS = "model.embed_tokens.weight"

GENERATION_FILE = "generation_config.json"
_WEIGHT_STEMS = ("model", "pytorch_model")

# What a layer computes with; buffers of old releases and scales of caches are called otherwise.
_OF_A_LAYER = re.compile(r"model\.layers\..*\.(weight|bias)")


@dataclass(frozen=True, kw_only=True)
class OpenedLlm(Opened):
    """A SEED-LLaMA on disk."""

    config: LlamaConfig
    vocab: Vocabulary
    end_ids: frozenset[int]  # any of these token ids ends a reply
    is_quantised: bool  # weights are stored in fp8


def load_llm(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    operations: Any = layers,
    is_mapped: bool = True,
) -> SeedLLM:
    """Load a SEED-LLaMA.

    Args:
        path: see `open_llm`.
        device: where to put the weights.
        dtype: float32, float16 or bfloat16; or float8_e4m3fn for a model that was converted to
            fp8, whose weights then stay so and everything else is bfloat16.
        operations: where layers come from, our own `layers` or a host's equivalent.
        is_mapped: whether files may be mapped into memory; see `files.weights.read_tensors`.

    Raises:
        CheckpointError: a file is missing, damaged, unsafe, incomplete or another model's.
        OptionError: ``dtype`` is float8_e4m3fn, and the weights are not.
    """
    device = torch.device(device)
    opened = open_llm(path, dtype, operations)
    template = template_of(opened.config)
    module = opened.load(device, is_mapped)
    return SeedLLM(module, opened.vocab, template, opened.end_ids, device, dtype)


def open_llm(
    path: str | Path,
    dtype: torch.dtype = torch.float32,
    operations: Any = layers,
    adapters: Sequence[Adapter] = (),
) -> OpenedLlm:
    """Read what describes a SEED-LLaMA, and check that its weights are all there and fit.

    Args:
        path: ``"seed-mini"`` for the bundled one; a Hugging Face folder with config.json, one or
            many weight files, ``tokenizer.model`` and ``added_tokens.json``, or a file in one; or a
            converted model. With an adapter that holds embeddings and head in full it may be the
            model that the adapter was trained from, with fewer token ids than the vocabulary.
            Rows that pad embeddings and head to a round number are left out, and a head that is
            stored counts, even where config.json says that the embeddings are the head.
        dtype: of the network. With float8_e4m3fn weights stored in fp8 stay so; in any other they
            are dequantised.
        operations: where its layers come from.
        adapters: LoRA adapters to merge into the weights.

    Raises:
        CheckpointError: a file is missing, damaged, incomplete or another model's.
        OptionError: ``dtype`` is float8_e4m3fn, and the weights are not.
    """
    folder = find_llm_folder(path)
    source = folder.path
    config, vocab, fields = read_description(folder, grows=bool(adapters))
    language_family(vocab.codebook_size)  # refuses what belongs to no family
    weights, look = folder.weights(_WEIGHT_STEMS), looks()
    _check_named(Path(path), weights)
    stored = quantization.read_scales(weights, look)
    products = matrix_products(config) if dtype == fp8.FP8 else {}
    scales = _common_scales(products, stored, source)
    keys = {key for key, _ in weights.tensors(look)}
    copies = _copies(config, keys)
    changes = _changes(adapters, config, bool(copies), source)
    rows = fields["vocab_size"]
    if rows < config.vocab_size:
        _check_new_rows(changes, source)
    kept = {key for name in scales for key in products[name]}
    factory = {"device": "meta", "dtype": fp8.computing_dtype(dtype)}
    network = EmptyNetwork(
        lambda layers: Llama(config, layers, **factory), operations, source, names_in_file, scales
    )
    _check_all_used(keys - network.dtypes.keys(), source)
    return OpenedLlm(
        kind="llm",
        source=source,
        files=_side_files(folder, fields, config.vocab_size),
        weights=weights.files,
        network=network,
        stream=_Stream(weights, source, rows, config.vocab_size, stored, kept, changes, copies),
        look=look,
        copies=tuple(copies.values()),
        config=config,
        vocab=vocab,
        end_ids=read_end_ids(folder, fields, vocab.size) | {vocab.eos},
        is_quantised=bool(stored),
    )


@dataclass(frozen=True)
class _Stream:
    """The tensors of a SEED-LLaMA, with whatever has to be done to them; see `Opened.stream`."""

    weights: TensorFiles
    source: Path
    stored_rows: int  # of embeddings and head in the file
    rows: int  # of them in the network
    scales: Mapping[str, torch.Tensor]
    kept: Collection[str]  # names of quantised tensors that stay so
    changes: Mapping[str, Sequence[Change]]  # of adapters
    copies: Mapping[str, str]  # which tensor is also which other

    def __call__(self, read: Reader) -> Tensors:
        stored = self.weights.tensors(read)
        for key, tensor in quantization.dequantized(stored, self.scales, self.source, self.kept):
            is_table = key in (EMBEDDINGS, HEAD)
            if is_table:
                _check_rows(key, tensor, self.stored_rows, self.source)
                tensor = tensor[: self.rows]
            may_grow = is_table and self.stored_rows < self.rows
            merged = merge_into(tensor, self.changes.get(key, ()), may_grow)
            yield key, merged
            if key in self.copies:
                yield self.copies[key], merged


def _side_files(folder: ModelFolder, fields: dict[str, Any], tokens: int) -> dict[str, bytes]:
    """Return the small files of a model whose embeddings and head have a row for each token."""
    files = folder.read_files((CONFIG_FILE, GENERATION_FILE, *VOCABULARY_FILES))
    if fields["vocab_size"] != tokens:
        files[CONFIG_FILE] = json.dumps({**fields, "vocab_size": tokens}, indent=2).encode()
    return files


def _copies(config: LlamaConfig, stored: Collection[str]) -> dict[str, str]:
    """Return which tensor stands for which other that is not stored, where the two may be one."""
    if not config.tie_word_embeddings or {EMBEDDINGS, HEAD} <= set(stored):
        return {}  # transformers 5 too lets two that are stored be two
    return {HEAD: EMBEDDINGS} if HEAD in stored else {EMBEDDINGS: HEAD}


def find_llm_folder(path: str | Path) -> ModelFolder:
    """Return the folder of a model, given as `open_llm` takes it; its files are not looked at."""
    place = names.place_of(path, "llm")
    if not place.exists():
        raise CheckpointError(f"{place} does not exist; get a SEED-LLaMA from {LLM_LINK}")
    folder = folder_around(place) if place.is_file() else ModelFolder(place)
    return folder.require("llm")


def _check_named(path: Path, weights: TensorFiles) -> None:
    """Refuse a weight file that is given by name, but is not what its folder is read from."""
    is_other = path.is_file() and all(not path.samefile(file) for file in weights.files)
    if is_other and path.suffix.lower() in WEIGHT_SUFFIXES:
        raise CheckpointError(
            f"{path} is not what the model in {path.parent} is read from: that is "
            f"{weights.files[0].name}. Move it to a folder of its own, with the model's small files."
        )


def template_of(config: LlamaConfig) -> PromptTemplate:
    """Return how a model of these sizes writes conversations."""
    return LLAMA_2 if config.num_hidden_layers == _LAYERS_14B else VICUNA


def read_description(
    folder: ModelFolder, grows: bool = False
) -> tuple[LlamaConfig, Vocabulary, dict[str, Any]]:
    """Return a model's sizes, its vocabulary, and all that its config.json says.

    The sizes have a row for each token id, however many rows the weights have.

    Args:
        folder: the model's.
        grows: whether weights with fewer token ids than the vocabulary will get the rest.

    Raises:
        CheckpointError: a file is missing, damaged or another model's.
    """
    fields = folder.read_json(CONFIG_FILE)
    try:
        config = LlamaConfig.from_dict(fields)
    except CheckpointError as error:
        raise CheckpointError(f"{CONFIG_FILE} of {folder.path}: {error}") from error
    vocab = read_vocabulary(folder)
    rows = config.vocab_size
    if not (is_padded(rows, vocab.size) or (grows and rows < vocab.size)):
        raise CheckpointError(
            f"{folder.path}: the vocabulary files have {vocab.size} token ids, the model's config.json "
            f"{rows}. Use tokenizer.model and added_tokens.json of the same model."
        )
    return replace(config, vocab_size=vocab.size), vocab, fields


def matrix_products(config: LlamaConfig) -> dict[str, tuple[str, ...]]:
    """Return the weight of each matrix product: the network's name of it to those in files."""
    modules = Llama(config, device="meta").named_modules()
    weights = [f"{name}.weight" for name, layer in modules if isinstance(layer, nn.Linear)]
    return {name: names_in_file(name) for name in weights}


def _common_scales(
    products: Mapping[str, tuple[str, ...]], stored: Mapping[str, torch.Tensor], source: Path
) -> dict[str, torch.Tensor]:
    """Return the scale of each quantised product, by the network's name of its weight."""
    scales = {}
    for name, keys in products.items():
        found = {float(stored[key]) if key in stored else None for key in keys}
        if len(found) > 1:
            raise CheckpointError(
                f"{source} was converted to fp8 by another program: {', '.join(keys)} have "
                "different scales, and here they must have one in common. Load it with another "
                f"precision, or convert it again, {quantization.HOW_TO_CONVERT}"
            )
        if keys[0] in stored:
            scales[name] = stored[keys[0]]
    if products and not scales:
        raise OptionError(
            f"precision fp8 needs weights that were converted to fp8; those of {source} are not. "
            f"Choose another precision, or convert the model, {quantization.HOW_TO_CONVERT}"
        )
    return scales


def _changes(
    adapters: Sequence[Adapter], config: LlamaConfig, has_one_table: bool, source: Path
) -> dict[str, list[Change]]:
    if adapters and has_one_table:
        raise CheckpointError(
            f"{source} has one table for embeddings and head, and adapters are merged into models "
            "that have two, as SEED-LLaMA does"
        )
    return changes_by_key(adapters, config) if adapters else {}


def _check_new_rows(changes: Mapping[str, Sequence[Change]], source: Path) -> None:
    """Refuse to give tables rows for new tokens when no adapter says what the tokens mean."""
    for key in (EMBEDDINGS, HEAD):
        of_table = (change for change, _ in changes.get(key, ()))
        if not any(isinstance(each, Replacement) and each.tokens is None for each in of_table):
            raise CheckpointError(
                f"{source} has fewer token ids than the vocabulary beside it: it is not a "
                f"SEED-LLaMA yet, and no adapter has all of {key} to make it one"
            )


def _check_all_used(unused: Collection[str], source: Path) -> None:
    """Refuse weights of layers that the network lacks: without them it is another model."""
    if of_layers := sorted(key for key in unused if _OF_A_LAYER.fullmatch(key)):
        what = foreign.explain_names(of_layers) or (
            f"holds {of_layers[0]:.200}, which a model as its {CONFIG_FILE} describes it does not "
            "have. The two belong to different models: use all files of one model."
        )
        raise CheckpointError(f"{source} {what}")


def read_vocabulary(folder: ModelFolder) -> Vocabulary:
    """Return the vocabulary of a model; `CheckpointError` if a file is missing or damaged."""
    if missing := [name for name in VOCABULARY_FILES if not folder.has(name)]:
        raise CheckpointError(
            f"the folder {folder.path} lacks {' and '.join(missing)}; copy them there from "
            f"{VOCABULARY_LINK}"
        )
    pieces, added = VOCABULARY_FILES
    return Vocabulary(folder.read_bytes(pieces), folder.read_json(added), folder.path)


def _check_rows(key: str, table: torch.Tensor, rows: int, source: Path) -> None:
    """Refuse embeddings, or a head, that do not have as many rows as config.json says."""
    assemble.check_stored(key, table, source)
    if table.shape[:1] != (rows,):
        raise CheckpointError(
            f"{source}: {key} {list(table.shape)} should have one row for each of the {rows} token "
            "ids of config.json. The weights are those of a model that knows no pictures, or the "
            f"config is another model's: use all files of one model, such as {LLM_LINK}"
        )


def read_end_ids(folder: ModelFolder, fields: dict[str, Any], vocab_size: int) -> frozenset[int]:
    """Return the end tokens of both config files; published ones disagree with the vocabulary."""
    listed = [fields.get("eos_token_id")]
    if folder.has(GENERATION_FILE):
        listed.append(folder.read_json(GENERATION_FILE).get("eos_token_id"))
    flat = [i for ids in listed for i in (ids if isinstance(ids, list) else [ids])]
    return frozenset(i for i in flat if type(i) is int and 0 <= i < vocab_size)
