"""What a generation starts from, in token ids, and how long its replies can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..errors import GenerationError
from .sampling import GenerationOptions, ImageTokens


@dataclass(frozen=True)
class DecodeRequest:
    """What the loop starts from."""

    prompt: Sequence[int]  # token ids
    tokens: ImageTokens
    end_ids: frozenset[int]  # any of these ends a reply
    options: GenerationOptions
    generators: Sequence[torch.Generator]  # one CPU generator a reply


def reply_length(request: DecodeRequest, context: int) -> int:
    """Return the most tokens a reply can have: those asked for, or those the context has left.

    Raises:
        GenerationError: the prompt leaves too little for a reply, or for the picture asked for.
    """
    prompt, options = len(request.prompt), request.options
    if prompt >= context:
        raise GenerationError(
            f"the prompt with its pictures is {prompt} tokens long; this model reads {context} and "
            "needs some of them for the reply. Shorten the prompt, or start a new conversation."
        )
    length = min(options.max_new_tokens, context - prompt)
    needed = request.tokens.per_image + 2
    if options.reply == "image" and length < needed:
        raise GenerationError(
            f"a picture takes {needed} tokens, but the reply can have {length} (max_new_tokens is "
            f"{options.max_new_tokens}; the prompt takes {prompt} of the model's {context})"
        )
    return length


def until_end(token_ids: Sequence[int], end_ids: frozenset[int]) -> list[int]:
    """Return the token ids up to and including the first end token."""
    for position, token_id in enumerate(token_ids):
        if token_id in end_ids:
            return list(token_ids[: position + 1])
    return list(token_ids)
