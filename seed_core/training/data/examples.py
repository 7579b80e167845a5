"""Examples: the tokens and labels that a language model learns from, and batches of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...llm.vocab import Vocabulary

IGNORED = -100
"""The label of a token that does not count, as torch and transformers know it."""

_FILLING = 0


@dataclass(frozen=True)
class Example:
    """What a language model learns from.

    Attributes:
        token_ids: of the whole, begin-of-text first.
        labels: as many; the same token ids, or `IGNORED`. They are not shifted: position i holds
            what the model should say there, after it has read the positions before i.
    """

    token_ids: list[int]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def teaches(self) -> bool:
        """Whether any token counts; the first never does, since nothing goes before it."""
        return any(label != IGNORED for label in self.labels[1:])


def cut(example: Example, length: int, vocab: Vocabulary) -> Example:
    """Return an example without what is beyond a length, and without the picture across its end.

    The end goes too, end-of-text included: what was cut has not ended there.

    Args:
        example: of any length.
        length: most tokens.
        vocab: what its token ids mean.
    """
    if len(example) <= length:
        return example
    kept = example.token_ids[:length]
    begins = [i for i, token_id in enumerate(kept) if token_id == vocab.begin_image]
    if begins and vocab.end_image not in kept[begins[-1] :]:
        length = begins[-1]
    return Example(kept[:length], example.labels[:length])


def with_wrong_codes(
    example: Example, part: float, vocab: Vocabulary, chance: random.Random
) -> Example:
    """Return an example with wrong codes among those the model reads of its own answers.

    The labels stay right. So the model learns to go on well after a code that it got wrong, as
    happens when it draws; without that it only ever reads pictures without a mistake. How much is
    wrong is drawn for each example, evenly from nothing to ``part``; a wrong code is any other.

    Args:
        example: any.
        part: most of the codes that are wrong, 0 to 1.
        vocab: what its token ids mean.
        chance: decides which.
    """
    rate, size = chance.uniform(0, part), vocab.codebook_size
    token_ids = list(example.token_ids)
    for i, label in enumerate(example.labels):
        code = label - vocab.first_code
        if 0 <= code < size and chance.random() < rate:
            token_ids[i] = vocab.first_code + (code + chance.randrange(1, size)) % size
    return Example(token_ids, example.labels)


def collate(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Return a batch: ``input_ids`` and ``labels``, each int64 ``[B, T]``.

    Examples begin together; shorter ones are filled up at their end, with the unknown token as in the
    reference and with `IGNORED`. No mask: a causal network never looks at what comes after, and
    without one attention has its fastest form.
    """
    shape = (len(examples), max(map(len, examples)))
    token_ids, labels = torch.full(shape, _FILLING), torch.full(shape, IGNORED)
    for i, example in enumerate(examples):
        token_ids[i, : len(example)] = torch.tensor(example.token_ids)
        labels[i, : len(example)] = torch.tensor(example.labels)
    return {"input_ids": token_ids, "labels": labels}
