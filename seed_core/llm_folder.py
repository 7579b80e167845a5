"""A Hugging Face folder of a SEED-LLaMA: its network, vocabulary, template and end tokens.

Knows the folder's layout and the quirks of the published ones; not how a reply is made (see
``llm``).

Source: the files of AILab-CVC/seed-llama-8b-sft and -14b-sft and AILab-CVC/seed-tokenizer-2.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import checkpoints
from .codes import CODEBOOK_SIZES
from .errors import CheckpointError
from .llama import Llama, LlamaConfig, names_in_file
from .prompt import LLAMA_2, VICUNA, PromptTemplate
from .vocab import Vocabulary

LLM_LINK = "https://huggingface.co/AILab-CVC/seed-llama-8b-sft"
VOCABULARY_LINK = "https://huggingface.co/AILab-CVC/seed-tokenizer-2"

_LAYERS_14B = 40
"""Depth of SEED-LLaMA-14B, the only published size with the LLaMA-2 template."""


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


def read_llm_folder(
    folder: Path, device: torch.device, dtype: torch.dtype, operations: Any
) -> LlmFolder:
    """Load every part of a SEED-LLaMA folder.

    Raises:
        CheckpointError: a missing, damaged, unsafe or incomplete file, or another model's.
    """
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}; get a SEED-LLaMA from {LLM_LINK}")
    fields = checkpoints.read_json(folder / "config.json")
    config = LlamaConfig.from_dict(fields)
    vocab = _vocabulary(folder)
    if vocab.size != config.vocab_size:
        raise CheckpointError(
            f"{folder}: the vocabulary files have {vocab.size} token ids, the weights "
            f"{config.vocab_size}. Use tokenizer.model and added_tokens.json of the same model."
        )
    module = checkpoints.assemble(
        lambda layers: Llama(config, layers, device="meta", dtype=dtype),
        operations,
        _weights(checkpoints.weight_files(folder, ("model", "pytorch_model")), config),
        device,
        folder,
        names_in_file,
    )
    return LlmFolder(
        module=module,
        vocab=vocab,
        template=LLAMA_2 if config.num_hidden_layers == _LAYERS_14B else VICUNA,
        family=_family(vocab.codebook_size),
        end_ids=_end_ids(folder, fields) | {vocab.eos},
    )


def _family(codebook_size: int) -> str:
    """Return the family a language model speaks, by the number of codes in its vocabulary."""
    for family in ("seed-2", "seed-mini"):
        if CODEBOOK_SIZES[family] == codebook_size:
            return family
    raise CheckpointError(
        f"the vocabulary has {codebook_size} image codes; SEED-2 models have "
        f"{CODEBOOK_SIZES['seed-2']}, seed-mini has {CODEBOOK_SIZES['seed-mini']}"
    )


def _vocabulary(folder: Path) -> Vocabulary:
    files = folder / "tokenizer.model", folder / "added_tokens.json"
    if missing := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(
            f"the folder {folder} lacks {' and '.join(missing)}; copy them there from "
            f"{VOCABULARY_LINK}"
        )
    return Vocabulary(*files)


def _weights(files: list[Path], config: LlamaConfig) -> checkpoints.Tensors:
    for file in files:
        for key, tensor in checkpoints.read_tensors(file):
            yield key, tensor
            if config.tie_word_embeddings and key == "model.embed_tokens.weight":
                yield "lm_head.weight", tensor


def _end_ids(folder: Path, fields: dict[str, Any]) -> frozenset[int]:
    """Return the end tokens of both config files; published ones disagree with the vocabulary."""
    listed = [fields.get("eos_token_id")]
    if (file := folder / "generation_config.json").is_file():
        listed.append(checkpoints.read_json(file).get("eos_token_id"))
    flat = [i for ids in listed for i in (ids if isinstance(ids, list) else [ids])]
    return frozenset(i for i in flat if isinstance(i, int) and i >= 0)
