"""A Hugging Face folder of a SEED-LLaMA: its network, vocabulary, template and end tokens.

Knows the folder's layout and the quirks of the published ones; not how a reply is made (see
``llm``).

Source: the files of AILab-CVC/seed-llama-8b-sft and -14b-sft and AILab-CVC/seed-tokenizer-2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..codes.value import CODEBOOK_SIZES
from ..compute import fp8
from ..errors import CheckpointError, OptionError
from ..files import assemble, weights
from ..files.folder import ModelFolder, Weights, folder_around
from ..llm.config import LlamaConfig
from ..llm.layout import names_in_file
from ..llm.llama import Llama
from ..llm.prompt import LLAMA_2, VICUNA, PromptTemplate
from ..llm.vocab import VOCABULARY_FILES, Vocabulary
from . import names
from . import quantization as fp8_files

LLM_LINK = "https://huggingface.co/AILab-CVC/seed-llama-8b-sft"
VOCABULARY_LINK = "https://huggingface.co/AILab-CVC/seed-tokenizer-2"

_LAYERS_14B = 40
"""Depth of SEED-LLaMA-14B, the only published size with the LLaMA-2 template."""

HEAD = "lm_head.weight"
"""What no file has where the table of embeddings is the head too."""

EMBEDDINGS = "model.embed_tokens.weight"

_WEIGHT_STEMS = ("model", "pytorch_model")


@dataclass(frozen=True)
class LlmFolder:
    """What a folder holds.

    Attributes:
        module: the network.
        vocab: the vocabulary.
        template: how a conversation is written.
        family: the family of codes in its vocabulary.
        end_ids: any of these token ids ends a reply.
    """

    module: Llama
    vocab: Vocabulary
    template: PromptTemplate
    family: str
    end_ids: frozenset[int]


def find_llm_folder(path: str | Path) -> ModelFolder:
    """Return the folder of a model.

    Args:
        path: ``"seed-mini"`` for the bundled one; a folder, or a file in one; or a converted model.

    Raises:
        CheckpointError: no such folder, or a converted model of another part.
    """
    place = names.bundled("llm") if path == names.SEED_MINI else Path(path)
    if not place.exists():
        raise CheckpointError(f"there is no folder {place}; get a SEED-LLaMA from {LLM_LINK}")
    folder = folder_around(place) if place.is_file() else ModelFolder(place)
    return folder.require("llm")


def has_fp8_weights(path: str | Path) -> bool:
    """Tell whether a model's weights are stored in fp8, from the headers of its files.

    Raises:
        CheckpointError: no weights there, or damaged ones.
    """
    return fp8_files.has_scales(llm_weights(find_llm_folder(path)).files)


def llm_weights(folder: ModelFolder) -> Weights:
    """Return the tensors of a model's network."""
    return folder.weights(_WEIGHT_STEMS)


def read_llm_folder(
    folder: ModelFolder, device: torch.device, dtype: torch.dtype, operations: Any
) -> LlmFolder:
    """Load every part of a SEED-LLaMA folder.

    Weights stored in fp8 stay so where ``dtype`` is float8_e4m3fn, and become what it is otherwise.

    Raises:
        CheckpointError: a missing, damaged, unsafe or incomplete file, or another model's.
        OptionError: fp8 asked for, and no weights that are.
    """
    config, vocab, fields = read_description(folder)
    weights, source = llm_weights(folder), folder.path
    stored = fp8_files.read_scales(weights.files)
    products = matrix_products(config) if dtype == fp8.FP8 else {}
    scales = _common_scales(products, stored, source)
    if dtype == fp8.FP8 and not scales:
        raise OptionError(
            f"precision fp8 needs weights that were converted to fp8; those of {source} are not. "
            f"Choose another precision, or convert the model, {fp8_files.HOW_TO_CONVERT}"
        )
    kept = {key for name in scales for key in products[name]}
    checked = _with_as_many_rows(weights.tensors(_joined(config)), vocab.size, source)
    tensors = fp8_files.dequantized(checked, stored, source, kept)
    factory = {"device": "meta", "dtype": fp8.computing_dtype(dtype)}
    module = assemble.assemble(
        lambda layers: Llama(config, layers, **factory),
        operations,
        _with_head(tensors) if config.tie_word_embeddings else tensors,
        device,
        source,
        names_in_file,
        scales,
    )
    return LlmFolder(
        module=module,
        vocab=vocab,
        template=template_of(config),
        family=_family(vocab.codebook_size),
        end_ids=read_end_ids(folder, fields, vocab.size) | {vocab.eos},
    )


def template_of(config: LlamaConfig) -> PromptTemplate:
    """Return how a model of these sizes writes conversations."""
    return LLAMA_2 if config.num_hidden_layers == _LAYERS_14B else VICUNA


def read_description(
    folder: ModelFolder, grows: bool = False
) -> tuple[LlamaConfig, Vocabulary, dict[str, Any]]:
    """Return a model's sizes, its vocabulary, and all that its config.json says.

    Args:
        folder: the model's.
        grows: take the vocabulary's size where the weights have less, for they will get the rest.

    Raises:
        CheckpointError: a missing or damaged file, or another model's.
    """
    fields = folder.read_json("config.json")
    config = LlamaConfig.from_dict(fields)
    vocab = _vocabulary(folder)
    if grows and config.vocab_size < vocab.size:
        config = replace(config, vocab_size=vocab.size)
    if vocab.size != config.vocab_size:
        raise CheckpointError(
            f"{folder.path}: the vocabulary files have {vocab.size} token ids, the model's config.json "
            f"{config.vocab_size}. Use tokenizer.model and added_tokens.json of the same model."
        )
    return config, vocab, fields


def matrix_products(config: LlamaConfig) -> dict[str, tuple[str, ...]]:
    """Return the weight of each matrix product: the network's name of it to those in files."""
    layers = Llama(config, device="meta").named_modules()
    weights = [f"{name}.weight" for name, layer in layers if isinstance(layer, nn.Linear)]
    return {name: names_in_file(name) for name in weights}


def _joined(config: LlamaConfig) -> list[tuple[str, ...]]:
    """Return the names in files of tensors that are one in the network."""
    layers = [f"model.layers.{i}" for i in range(config.num_hidden_layers)]
    products = ("self_attn.qkv_proj", "mlp.gate_up_proj")
    return [names_in_file(f"{layer}.{name}.weight") for layer in layers for name in products]


def _common_scales(
    products: dict[str, tuple[str, ...]], stored: dict[str, torch.Tensor], folder: Path
) -> dict[str, torch.Tensor]:
    """Return the scale of each quantised product, by the network's name of its weight.

    Raises:
        CheckpointError: tensors that are one product here, and have more than one scale.
    """
    scales = {}
    for name, keys in products.items():
        found = {float(stored[key]) if key in stored else None for key in keys}
        if len(found) > 1:
            raise CheckpointError(
                f"{folder} was converted to fp8 by another program: {', '.join(keys)} have "
                "different scales, and here they must have one in common. Load it with another "
                f"precision, or convert it again, {fp8_files.HOW_TO_CONVERT}"
            )
        if keys[0] in stored:
            scales[name] = stored[keys[0]]
    return scales


def _family(codebook_size: int) -> str:
    """Return the family a language model speaks, by the number of codes in its vocabulary."""
    for family in ("seed-2", "seed-mini"):
        if CODEBOOK_SIZES[family] == codebook_size:
            return family
    raise CheckpointError(
        f"the vocabulary has {codebook_size} image codes; SEED-2 models have "
        f"{CODEBOOK_SIZES['seed-2']}, seed-mini has {CODEBOOK_SIZES['seed-mini']}"
    )


def _vocabulary(folder: ModelFolder) -> Vocabulary:
    if missing := [name for name in VOCABULARY_FILES if not folder.has(name)]:
        raise CheckpointError(
            f"the folder {folder.path} lacks {' and '.join(missing)}; copy them there from "
            f"{VOCABULARY_LINK}"
        )
    return Vocabulary(folder)


def _with_head(tensors: weights.Tensors) -> weights.Tensors:
    """Yield the table of embeddings as the head too."""
    for key, tensor in tensors:
        yield key, tensor
        if key == EMBEDDINGS:
            yield HEAD, tensor


def check_rows(key: str, shape: Sequence[int], vocab_size: int, source: Path) -> None:
    """Refuse a table of embeddings, or a head, that is not one row a token id.

    Raises:
        CheckpointError: naming both counts.
    """
    if key in (EMBEDDINGS, HEAD) and tuple(shape[:1]) != (vocab_size,):
        raise CheckpointError(
            f"{source}: {key} {list(shape)} should have one row for each of the {vocab_size} token "
            "ids of the vocabulary. The weights are those of a model that knows no pictures, or the "
            f"vocabulary is another model's: use all files of one model, such as {LLM_LINK}"
        )


def _with_as_many_rows(tensors: weights.Tensors, vocab_size: int, source: Path) -> weights.Tensors:
    for key, tensor in tensors:
        check_rows(key, tensor.shape, vocab_size, source)
        yield key, tensor


def read_end_ids(folder: ModelFolder, fields: dict[str, Any], vocab_size: int) -> frozenset[int]:
    """Return the end tokens of both config files; published ones disagree with the vocabulary.

    Raises:
        CheckpointError: a damaged generation_config.json, or ids that are none.
    """
    listed = [fields.get("eos_token_id")]
    if folder.has("generation_config.json"):
        listed.append(folder.read_json("generation_config.json").get("eos_token_id"))
    flat = [i for ids in listed for i in (ids if isinstance(ids, list) else [ids])]
    return frozenset(i for i in flat if type(i) is int and 0 <= i < vocab_size)
