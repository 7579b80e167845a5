"""The decode loop: from the token ids of a prompt to those of replies.

Samples with temperature, top-k and top-p in that order, under a grammar that keeps every picture
whole. Knows token ids only; texts and codes never reach it. Random numbers come from CPU generators
alone and are drawn before the loop: row i uses the same ones on every device and in every batch.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..compute.graphs import GraphedCalls, can_capture
from ..compute.threads import threads_for
from ..errors import GenerationError, OptionError
from .llama import KVCache, Llama, attended_length

REPLIES = ("auto", "text", "image")

QUEUED_STEPS = 2
"""Steps that a card may have been given beyond the newest token that was looked at.

Enough to keep it busy while the CPU looks; a reply runs so many steps past its end.
"""

_NOT_FINITE = -1
"""In the place of a token id: the logits it came from were not all finite."""

_PLANLESS_ATTENTION = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""What computes attention on a card: all but cuDNN, which plans anew for each length of a prompt."""


@dataclass(frozen=True)
class GenerationOptions:
    """How a reply is made; the defaults are those of the reference's scripts.

    Attributes:
        reply: ``image`` begins with a picture, ``text`` has none, ``auto`` leaves it to the model.
        max_new_tokens: most tokens of a reply, a picture being 34.
        temperature: 0 always takes the likeliest token; above 1 flattens.
        top_p: keep the likeliest tokens that together have this probability, above 0 up to 1.
        top_k: keep this many of the likeliest tokens; 0 keeps all.

    Raises:
        OptionError: a value outside its range.
    """

    reply: Literal["auto", "text", "image"] = "auto"
    max_new_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 0.5
    top_k: int = 50

    def __post_init__(self) -> None:
        if self.reply not in REPLIES:
            raise OptionError(f"reply must be one of {', '.join(REPLIES)}; got {self.reply!r}")
        if self.max_new_tokens < 1:
            raise OptionError(f"max_new_tokens must be at least 1; got {self.max_new_tokens}")
        if not 0 <= self.temperature <= 100:
            raise OptionError(f"temperature must lie in 0..100; got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise OptionError(f"top_p must be above 0 and at most 1; got {self.top_p}")
        if self.top_k < 0:
            raise OptionError(f"top_k must be 0 (off) or more; got {self.top_k}")


@dataclass(frozen=True)
class ImageTokens:
    """Which token ids are pictures.

    Attributes:
        begin: id of the marker that opens a picture.
        end: id of the marker that closes it.
        first_code: id of code 0; the others follow.
        codebook_size: number of codes.
        per_image: codes between the markers.
    """

    begin: int
    end: int
    first_code: int
    codebook_size: int
    per_image: int


class PictureGrammar:
    """Which tokens may come next in each row: text, or exactly one whole picture.

    A picture is begun only where it still fits; inside it only codes may follow, after the last one
    only the closing marker.

    Args:
        tokens: which ids are pictures.
        vocab_size: width of the logits.
        rows: replies made together.
        steps: most tokens of a reply.
        allow_images: whether a picture may be begun at all.
        device: where logits live.
    """

    _TEXT, _ANY, _CODES, _CLOSE = range(4)

    def __init__(
        self,
        tokens: ImageTokens,
        vocab_size: int,
        rows: int,
        steps: int,
        allow_images: bool,
        device: torch.device,
    ) -> None:
        self._tokens = tokens
        codes = slice(tokens.first_code, tokens.first_code + tokens.codebook_size)
        forbidden = torch.zeros(4, vocab_size, dtype=torch.bool)
        forbidden[[self._TEXT, self._ANY], codes] = True
        forbidden[[self._TEXT, self._ANY], tokens.end] = True
        forbidden[self._TEXT, tokens.begin] = True
        forbidden[[self._CODES, self._CLOSE]] = True
        forbidden[self._CODES, codes] = False
        forbidden[self._CLOSE, tokens.end] = False
        self._forbidden = forbidden.to(device)
        # Tokens to come in the picture that a row is in, its closing marker included; 0 outside.
        self._remaining = torch.zeros(rows, dtype=torch.int64, device=device)
        # What may come at each step, by the tokens to come.
        self._kinds = torch.full((steps, tokens.per_image + 2), self._CODES, device=device)
        self._kinds[:, 1] = self._CLOSE
        last = steps - tokens.per_image - 2  # step at which a picture still fits
        self._kinds[:, 0] = self._TEXT
        if allow_images:
            self._kinds[: max(last + 1, 0), 0] = self._ANY

    def forbidden(self, step: torch.Tensor) -> torch.Tensor:
        """Return what may not come next, bool ``[rows, vocab_size]``.

        Args:
            step: tokens that every reply has so far, int64 ``[1]``.
        """
        kinds = self._kinds.index_select(0, step)[0].index_select(0, self._remaining)
        return self._forbidden.index_select(0, kinds)

    def advance(self, token_ids: torch.Tensor) -> None:
        """Take note of the token ``[rows]`` that each row continues with."""
        self._remaining.sub_(1).clamp_(min=0)
        self._remaining.masked_fill_(token_ids == self._tokens.begin, self._tokens.per_image + 1)


def sample(logits: torch.Tensor, options: GenerationOptions, uniform: torch.Tensor) -> torch.Tensor:
    """Choose one token a row.

    Args:
        logits: ``[rows, vocab_size]``, minus infinity where a token may not come.
        options: temperature, top-k and top-p, applied in that order.
        uniform: one number in 0..1 a row, ``[rows]``; the same number gives the same token.

    Returns:
        int64 ``[rows]``.
    """
    if options.temperature == 0:
        return logits.argmax(-1)
    kept = min(options.top_k or logits.shape[-1], logits.shape[-1])
    scores, token_ids = logits.topk(kept, dim=-1)  # likeliest first
    probability = (scores.float() / options.temperature).softmax(-1)
    reached = probability.cumsum(-1)
    is_kept = (reached - probability < options.top_p) & (probability > 0)
    last = is_kept.sum(-1, keepdim=True).clamp(min=1) - 1  # the first of NaNs
    target = uniform[:, None] * reached.gather(-1, last)
    choice = (reached <= target).sum(-1, keepdim=True)
    return token_ids.gather(-1, torch.minimum(choice, last))[:, 0]


@dataclass(frozen=True)
class DecodeRequest:
    """What the loop starts from.

    Attributes:
        prompt: token ids of the prompt.
        tokens: which ids are pictures.
        end_ids: any of these ends a reply.
        options: how tokens are chosen.
        generators: one CPU generator a reply.
    """

    prompt: Sequence[int]
    tokens: ImageTokens
    end_ids: frozenset[int]
    options: GenerationOptions
    generators: Sequence[torch.Generator]


def reply_length(request: DecodeRequest, context: int) -> int:
    """Return the most tokens a reply can have: as many as asked for, as the context has left.

    Raises:
        GenerationError: no room for a reply, or for the picture that was asked for.
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


class DecodeLoop:
    """Replies that grow together, all of their state on the device and changed in place.

    A step neither asks the device for a value nor makes a tensor that outlives it, so steps can be
    queued ahead of the device, and captured in a graph.

    Args:
        model: the network.
        request: prompt, grammar, options and generators.
        device: where to compute.
        dtype: the network's precision.

    Attributes:
        steps: most tokens of a reply.
        done: tokens every reply has, some of them perhaps still to be computed.
        newest: the latest token of each reply, int64 ``[rows]``; -1 where its logits were not all
            finite.
    """

    def __init__(
        self, model: Llama, request: DecodeRequest, device: torch.device, dtype: torch.dtype
    ) -> None:
        options, rows = request.options, len(request.generators)
        self._prompt = len(request.prompt)
        self.steps = reply_length(request, model.config.max_position_embeddings)
        self.done = 0
        self.newest = torch.zeros(rows, dtype=torch.int64, device=device)
        self._model = model
        self._options = options
        self._grammar = PictureGrammar(
            request.tokens,
            model.config.vocab_size,
            rows,
            self.steps,
            options.reply != "text",
            device,
        )
        self._uniform = torch.stack(
            [torch.rand(self.steps, generator=g) for g in request.generators]
        ).to(device)
        self._token_ids = torch.zeros(rows, dtype=torch.int64, device=device)
        self._step = torch.zeros(1, dtype=torch.int64, device=device)
        self._cache = KVCache(model.config, rows, self._prompt + self.steps, device, dtype)
        self._first = torch.tensor([request.prompt], device=device)
        self._begin = request.tokens.begin

    def begin(self) -> None:
        """Read the prompt and give every row its first token."""
        logits = self._model.prefill(self._first, self._cache)
        if self._options.reply == "image":
            self._take(torch.full_like(self._token_ids, self._begin), logits)
        else:
            self._choose(logits.expand(len(self.newest), -1))
        self.done = 1

    def step(self, call: GraphedCalls) -> None:
        """Give every row one more token."""
        length = attended_length(self._prompt + self.done)
        call(length, partial(self._decode, length))
        self.done += 1

    def _decode(self, length: int) -> None:
        position = self._step + (self._prompt - 1)  # of the newest token
        self._choose(self._model.decode(self._token_ids, self._cache, position, length))

    def _choose(self, logits: torch.Tensor) -> None:
        uniform = self._uniform.index_select(1, self._step)[:, 0]
        masked = logits.masked_fill(self._grammar.forbidden(self._step), -torch.inf)
        self._take(sample(masked, self._options, uniform), logits)

    def _take(self, token_ids: torch.Tensor, logits: torch.Tensor) -> None:
        self._grammar.advance(token_ids)
        self._token_ids.copy_(token_ids)
        # One sum is enough: a logit that is not finite makes it so, and 0 times that is NaN.
        is_broken = logits.sum(-1, dtype=torch.float32).mul_(0) != 0
        self.newest.copy_(token_ids.masked_fill(is_broken, _NOT_FINITE))
        self._step += 1


class _Arrival:
    """The newest token of each reply on its way to the CPU; a CUDA device is not waited for."""

    def __init__(self, loop: DecodeLoop) -> None:
        device = loop.newest.device
        is_cuda = device.type == "cuda"
        self._token_ids = loop.newest.to("cpu", non_blocking=is_cuda, copy=True)
        self._event = torch.cuda.current_stream(device).record_event() if is_cuda else None

    def wait(self) -> torch.Tensor:
        """Return the tokens, int64 ``[rows]``.

        Raises:
            GenerationError: logits that were not all finite.
        """
        if self._event is not None:
            self._event.synchronize()
        if bool((self._token_ids == _NOT_FINITE).any()):
            raise GenerationError(
                "the language model computed numbers that are not finite. Try precision bf16 or "
                "fp32; if that does not help, the weight file is damaged."
            )
        return self._token_ids


def _arrivals(loop: DecodeLoop, call: GraphedCalls, queued: int) -> Iterator[_Arrival]:
    """Run a loop that has begun, and yield each token when ``queued`` later ones were asked for."""
    pending: deque[_Arrival] = deque()
    for step in range(loop.steps):
        if step:
            loop.step(call)
        pending.append(_Arrival(loop))
        if len(pending) > queued:
            yield pending.popleft()
    yield from pending


def _attention(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Have attention computed on a card without a plan for each length."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[None] = sdpa_kernel(_PLANLESS_ATTENTION)
    return context


def generate_tokens(
    model: Llama,
    request: DecodeRequest,
    device: torch.device,
    dtype: torch.dtype,
    on_step: Callable[[torch.Tensor, int], None] | None = None,
    use_graphs: bool | None = None,
) -> list[list[int]]:
    """Continue a prompt, once for each generator, as one batch that shares the prompt's pass.

    Args:
        model: the network.
        request: prompt, grammar, options and generators.
        device: where to compute.
        dtype: the network's precision.
        on_step: called after each token with the token ids so far, int64 ``[rows, steps]`` on the
            CPU, and the most steps there can be. What it raises ends the generation.
        use_graphs: whether steps run as CUDA graphs; None is wherever they can.

    Returns:
        The new token ids of each row, its end token included if it came.

    Raises:
        GenerationError: see `reply_length`; or logits that are not all finite.
    """
    with _attention(device), threads_for(device, model, len(request.prompt)):
        loop = DecodeLoop(model, request, device, dtype)
        loop.begin()
    calls = GraphedCalls(device, can_capture(model, device) if use_graphs is None else use_graphs)
    replies = torch.empty(len(request.generators), loop.steps, dtype=torch.int64)
    end_ids = torch.tensor(sorted(request.end_ids))
    ended = torch.zeros(len(replies), dtype=torch.bool)
    arrivals = _arrivals(loop, calls, QUEUED_STEPS if device.type == "cuda" else 0)
    with _attention(device), threads_for(device, model, len(replies)):
        try:
            for done, arrival in enumerate(arrivals, start=1):
                newest = arrival.wait()
                replies[:, done - 1] = newest
                ended |= torch.isin(newest, end_ids)
                if on_step is not None:
                    on_step(replies[:, :done], loop.steps)
                if bool(ended.all()):
                    break
        finally:
            calls.close()
    return [until_end(row, request.end_ids) for row in replies[:, :done].tolist()]


def until_end(token_ids: Sequence[int], end_ids: frozenset[int]) -> list[int]:
    """Return the token ids up to and including the first end token."""
    for position, token_id in enumerate(token_ids):
        if token_id in end_ids:
            return list(token_ids[: position + 1])
    return list(token_ids)
