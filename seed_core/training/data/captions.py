"""Captions as tokens, with the tokenizer of a BERT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from ...errors import CheckpointError, OptionError

MAX_CAPTION_TOKENS = 32

_FILES = ("vocab.txt", "tokenizer.json")

_BEGIN = "[DEC]"
"""The reference's vocabulary has it; captions are compared by [CLS]."""


def read_vocabulary(folder: Path) -> Any:
    """Load BERT's tokenizer from a folder.

    Raises:
        OptionError: the folder is missing.
        CheckpointError: the folder holds no tokenizer, or another model's.
    """
    if not folder.is_dir():
        raise OptionError(
            f"the folder {folder} with BERT's tokenizer, such as bert-base-uncased, is missing"
        )
    # Without either, transformers makes a vocabulary of five words, to which every word is unknown.
    if not any((folder / name).is_file() for name in _FILES):
        raise CheckpointError(
            f"{folder} holds no tokenizer of BERT: it lacks {' and '.join(_FILES)}"
        )
    try:
        vocabulary = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        vocabulary(["a word"])  # what is unknown is noticed in use
        marks = [vocabulary.cls_token_id, vocabulary.sep_token_id, vocabulary.pad_token_id]
    except Exception as error:  # tokenizers raises nothing else, and transformers almost anything
        why = str(error).partition("\n")[0]
        raise CheckpointError(f"{folder} holds no tokenizer of BERT: {why}") from error
    if None in marks:
        raise CheckpointError(
            f"{folder} holds the tokenizer of another model: it lacks [CLS], [SEP] or [PAD]"
        )
    vocabulary.add_special_tokens({"bos_token": _BEGIN})
    return vocabulary


def collate_captioned(
    vocabulary: Any, samples: Sequence[tuple[torch.Tensor, str]]
) -> dict[str, torch.Tensor]:
    """Return a batch of pictures with captions, as `ContrastiveLearner` takes it."""
    pixels, captions = zip(*samples, strict=True)
    words = vocabulary(
        list(captions),
        padding="max_length",
        truncation=True,
        max_length=MAX_CAPTION_TOKENS,
        return_tensors="pt",
    )
    ids, mask = words["input_ids"], words["attention_mask"]
    return {"pixels": torch.stack(pixels), "token_ids": ids, "mask": mask}
