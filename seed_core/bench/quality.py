"""How close a language model in another precision stays to the original.

Both models read the same greedy replies of the original, so that an early difference does not
count for every token after it. Knows nothing of files or precisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from ..llm.cache import KVCache
from ..llm.language import Reply
from ..llm.runtime import SeedLLM
from ..llm.sampling import GenerationOptions


@dataclass(frozen=True, eq=False)
class Question:
    """A prompt, and the codes of its pictures, int64 ``[N, 32]``."""

    prompt: str
    codes: torch.Tensor | None = None


@dataclass(frozen=True)
class Quality:
    """How a model reads the replies of another."""

    perplexity: float  # of the replies, to the model that is measured; at least 1
    reference_perplexity: float  # of the replies, to the model that gave them
    agreement: float  # fraction of the tokens at which both find the same token likeliest, 0..1
    divergence: float  # mean over the tokens of `divergences`, in nats; 0 for equal models
    tokens: int  # in all replies


@torch.inference_mode()
def measure_quality(
    reference: SeedLLM, llm: SeedLLM, questions: Sequence[Question], max_new_tokens: int = 64
) -> Quality:
    """Measure a model beside a more precise one of the same vocabulary.

    Args:
        reference: gives the replies.
        llm: what is measured.
        questions: at least one.
        max_new_tokens: longest reply.

    Raises:
        SeedError: whatever `SeedLLM.generate` raises.
    """
    options = GenerationOptions(temperature=0, max_new_tokens=max_new_tokens)
    losses, same, apart = [], [], []
    for question in questions:
        reply = reference.generate(question.prompt, question.codes, options=options)
        logits = [_reply_logits(model, reply) for model in (reference, llm)]  # each [tokens, V]
        target = torch.tensor(reply.token_ids)
        losses.append(torch.stack([F.cross_entropy(x, target, reduction="none") for x in logits]))
        same.append(logits[0].argmax(-1) == logits[1].argmax(-1))
        apart.append(divergences(*logits))
    of_reference, of_llm = torch.cat(losses, dim=1).mean(1).exp().tolist()
    agreed = torch.cat(same)
    agreement, divergence = float(agreed.float().mean()), float(torch.cat(apart).mean())
    return Quality(of_llm, of_reference, agreement, divergence, len(agreed))


def divergences(reference: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return KL(reference || other) of next-token distributions, in nats, float64 ``[tokens]``.

    Args:
        reference: logits of the original, ``[tokens, V]``.
        logits: logits of the other model at the same tokens, ``[tokens, V]``.
    """
    # In double: those of 16 bits are so small that float32 would round them away.
    expected, found = (x.double().log_softmax(-1) for x in (reference, logits))
    return F.kl_div(found, expected, reduction="none", log_target=True).sum(-1)


def _reply_logits(llm: SeedLLM, reply: Reply) -> torch.Tensor:
    """Return what a model expects at each token of a reply, float32 ``[tokens, V]`` on the CPU."""
    asked = replace(reply.chat, turns=reply.chat.turns[:-1])
    prompt = llm.vocab.encode(llm.template.render(asked))
    token_ids = torch.tensor([[*prompt, *reply.token_ids]], device=llm.device)
    cache = KVCache(llm.config, 1, token_ids.shape[1], llm.device, llm.dtype)
    logits = llm.module.prefill(token_ids, cache, all_positions=True)[0]
    return logits[len(prompt) - 1 : -1].float().cpu()
