"""Examples: the tokens and labels that a language model learns from, and batches of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...llm.vocab import Vocabulary

IGNORED = -100
"""Label of a token that does not count, as in torch and transformers."""

_FILLING = 0


@dataclass(frozen=True)
class Example:
    """What a language model learns from.

    Labels are token ids or `IGNORED`, and are not shifted: position i holds what the model should
    say there, after it has read the positions before i.
    """

    token_ids: list[int]  # begin-of-text first
    labels: list[int]  # as many

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def teaches(self) -> bool:
        """Whether any token counts; the first never does, since nothing comes before it."""
        return any(label != IGNORED for label in self.labels[1:])


def cut(example: Example, length: int, vocab: Vocabulary) -> Example:
    """Cut an example to a length, and leave out a picture that the cut goes through.

    The end-of-text goes with the rest, since a text that was cut has not ended there.
    """
    if len(example) <= length:
        return example
    kept = example.token_ids[:length]
    begins = [i for i, token_id in enumerate(kept) if token_id == vocab.begin_image]
    if begins and vocab.end_image not in kept[begins[-1] :]:
        length = begins[-1]
    return Example(kept[:length], example.labels[:length])


def with_wrong_codes(
    example: Example, most: float, vocab: Vocabulary, chance: random.Random
) -> Example:
    """Replace some codes that the model reads of its own answers; the labels stay right.

    So the model learns to go on well after a wrong code, as happens when it draws. The fraction of
    wrong codes is drawn for each example, evenly from 0 to ``most``.
    """
    rate, size = chance.uniform(0, most), vocab.codebook_size
    token_ids = list(example.token_ids)
    for i, label in enumerate(example.labels):
        code = label - vocab.first_code
        if 0 <= code < size and chance.random() < rate:
            token_ids[i] = vocab.first_code + (code + chance.randrange(1, size)) % size
    return Example(token_ids, example.labels)


def collate(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Return a batch: ``input_ids`` and ``labels``, each int64 ``[B, T]``."""
    # Padding comes last, as the unknown token. A causal network never looks at what comes after,
    # and attention is fastest without a mask.
    shape = (len(examples), max(map(len, examples)))
    token_ids, labels = torch.full(shape, _FILLING), torch.full(shape, IGNORED)
    for i, example in enumerate(examples):
        token_ids[i, : len(example)] = torch.tensor(example.token_ids)
        labels[i, : len(example)] = torch.tensor(example.labels)
    return {"input_ids": token_ids, "labels": labels}
