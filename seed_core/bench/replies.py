"""Our side of a timed reply: the prompts, a prompt that is read, greedy tokens that are written."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..codes.value import NUM_CODES
from ..compute.threads import threads_for
from ..llm.cache import KVCache
from ..llm.generation import generate_tokens
from ..llm.llama import Llama
from ..llm.request import DecodeRequest
from ..llm.sampling import GenerationOptions, ImageTokens
from .subject import Subject
from .work import PROMPT_TOKENS

END = 2  # ends replies; nobody may choose it here, so that all replies are equally long


def our_tokens(
    subject: Subject,
    model: Llama,
    prompt: Sequence[int],
    rows: int,
    new_tokens: int,
    images: ImageTokens | None = None,
    use_graphs: bool = False,
) -> list[int]:
    """Return the greedy tokens of the first of several equal rows, as generation.py makes them.

    Args:
        subject: the size.
        model: our language model.
        prompt: token ids.
        rows: how many are made together.
        new_tokens: how many follow the prompt.
        images: which ids are pictures, to have one; None for a reply in which every id but `END`
            may come, for the peer has no picture grammar.
        use_graphs: whether steps are CUDA graphs.
    """
    request = DecodeRequest(
        prompt=prompt,
        tokens=images or ImageTokens(END, END, 0, 0, NUM_CODES),
        end_ids=frozenset({-1}),
        options=GenerationOptions("image" if images else "auto", new_tokens, temperature=0),
        generators=[torch.Generator() for _ in range(rows)],
    )
    with torch.inference_mode():
        return generate_tokens(
            model, request, subject.device, subject.dtype, use_graphs=use_graphs
        )[0]


def read(
    subject: Subject, model: Llama, prompt: Sequence[int], all_positions: bool = False
) -> torch.Tensor:
    """Return the logits after a prompt, ``[1, V]``, or after each of its tokens, ``[1, T, V]``."""
    with torch.inference_mode(), threads_for(subject.device, model, len(prompt)):
        cache = KVCache(subject.config, 1, len(prompt), subject.device, subject.dtype)
        token_ids = torch.tensor([prompt], device=subject.device)
        return model.prefill(token_ids, cache, all_positions)


def short_prompt(subject: Subject) -> list[int]:
    """Return the prompt that timed replies begin with."""
    return _prompt(subject, PROMPT_TOKENS)


def long_prompt(subject: Subject) -> list[int]:
    """Return a prompt of a quarter of the context."""
    return _prompt(subject, subject.config.max_position_embeddings // 4)


def _prompt(subject: Subject, length: int) -> list[int]:
    """Return random text tokens other than `END`."""
    generator = torch.Generator().manual_seed(0)
    high = subject.images.first_code
    return torch.randint(END + 1, high, (length,), generator=generator).tolist()
