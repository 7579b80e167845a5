"""The decode loop: from the token ids of a prompt to those of replies.

Samples with temperature, top-k and top-p in that order, under a grammar that keeps every picture
whole. Knows token ids only; texts and codes never reach it. Random numbers come from CPU generators
alone and are drawn before the loop: row i uses the same ones on every device and in every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from .errors import GenerationError, OptionError
from .graphs import GraphedCalls, can_capture
from .llama import KVCache, Llama, attended_length

REPLIES = ("auto", "text", "image")

STEPS_PER_READ = 8
"""With graphs, steps between two looks at the tokens: a reply may run twice as many too far."""


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
        allow_images: whether a picture may be begun at all.
        device: where logits live.
    """

    _TEXT, _ANY, _CODES, _CLOSE = range(4)

    def __init__(
        self,
        tokens: ImageTokens,
        vocab_size: int,
        rows: int,
        allow_images: bool,
        device: torch.device,
    ) -> None:
        self._tokens = tokens
        self._allow_images = allow_images
        codes = slice(tokens.first_code, tokens.first_code + tokens.codebook_size)
        forbidden = torch.zeros(4, vocab_size, dtype=torch.bool)
        forbidden[[self._TEXT, self._ANY], codes] = True
        forbidden[[self._TEXT, self._ANY], tokens.end] = True
        forbidden[self._TEXT, tokens.begin] = True
        forbidden[[self._CODES, self._CLOSE]] = True
        forbidden[self._CODES, codes] = False
        forbidden[self._CLOSE, tokens.end] = False
        self._forbidden = forbidden.to(device)
        self._remaining = torch.full((rows,), -1, device=device)  # codes to come; -1 outside

    def forbidden(self, tokens_left: torch.Tensor) -> torch.Tensor:
        """Return what may not come next, bool ``[rows, vocab_size]``.

        Args:
            tokens_left: tokens the reply can still hold, the next one included, int64 ``[1]``.
        """
        fits = (tokens_left >= self._tokens.per_image + 2) & self._allow_images
        outside = torch.where(fits, self._ANY, self._TEXT)
        inside = torch.where(self._remaining > 0, self._CODES, self._CLOSE)
        state = torch.where(self._remaining < 0, outside, inside)
        return self._forbidden.index_select(0, state)

    def advance(self, token_ids: torch.Tensor) -> None:
        """Take note of the token ``[rows]`` that each row continues with."""
        self._remaining.sub_(1).clamp_(min=-1)
        self._remaining.masked_fill_(token_ids == self._tokens.begin, self._tokens.per_image)


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
    scores = logits.float() / options.temperature
    kept = options.top_k or scores.shape[-1]
    scores, token_ids = scores.topk(min(kept, scores.shape[-1]), dim=-1)  # likeliest first
    probability = scores.softmax(-1)
    likelier = probability.cumsum(-1) - probability
    probability = probability.masked_fill(likelier >= options.top_p, 0)
    cumulative = probability.cumsum(-1)
    target = uniform[:, None] * cumulative[:, -1:]
    choice = (cumulative <= target).sum(-1, keepdim=True)
    last = (probability > 0).sum(-1, keepdim=True).sub(1).clamp(min=0)
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
        replies: the tokens, int64 ``[rows, steps]``.
        ended: which rows have an end token, bool ``[rows]``.
        is_finite: whether every logit so far was a number, bool ``[]``.
    """

    def __init__(
        self, model: Llama, request: DecodeRequest, device: torch.device, dtype: torch.dtype
    ) -> None:
        options, rows = request.options, len(request.generators)
        self._prompt = len(request.prompt)
        self.steps = reply_length(request, model.config.max_position_embeddings)
        self.done = 0
        self.replies = torch.zeros(rows, self.steps, dtype=torch.int64, device=device)
        self.ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self.is_finite = torch.ones((), dtype=torch.bool, device=device)
        self._model = model
        self._options = options
        self._grammar = PictureGrammar(
            request.tokens, model.config.vocab_size, rows, options.reply != "text", device
        )
        self._uniform = torch.stack(
            [torch.rand(self.steps, generator=g) for g in request.generators]
        ).to(device)
        self._end_ids = torch.tensor(sorted(request.end_ids), device=device)
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
            self._choose(logits.expand(len(self.replies), -1))
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
        forbidden = self._grammar.forbidden(self.steps - self._step)
        uniform = self._uniform.index_select(1, self._step)[:, 0]
        masked = logits.masked_fill(forbidden, -torch.inf)
        self._take(sample(masked, self._options, uniform), logits)

    def _take(self, token_ids: torch.Tensor, logits: torch.Tensor) -> None:
        # One sum is enough: a logit that is not finite makes it so.
        self.is_finite &= logits.sum(dtype=torch.float32).isfinite()
        self._grammar.advance(token_ids)
        self._token_ids.copy_(token_ids)
        self.replies[:, self._step] = token_ids[:, None]
        self.ended |= (token_ids[:, None] == self._end_ids).any(-1)
        self._step += 1


class _Snapshot:
    """The replies at one moment, copied to the CPU; on a CUDA device without waiting for it."""

    def __init__(self, loop: DecodeLoop) -> None:
        device = loop.replies.device
        is_cuda = device.type == "cuda"
        self.replies, self.ended, self._is_finite = (
            tensor.to("cpu", non_blocking=is_cuda, copy=True)
            for tensor in (loop.replies[:, : loop.done], loop.ended, loop.is_finite)
        )
        self._arrived = torch.cuda.Event() if is_cuda else None
        if self._arrived is not None:
            self._arrived.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        """Wait for the copy.

        Raises:
            GenerationError: logits that are no numbers.
        """
        if self._arrived is not None:
            self._arrived.synchronize()
        if not bool(self._is_finite):
            raise GenerationError(
                "the language model computed numbers that are not finite. Try precision bf16 or "
                "fp32; if that does not help, the weight file is damaged."
            )


def _snapshots(loop: DecodeLoop, call: GraphedCalls, steps_per_read: int) -> Iterator[_Snapshot]:
    """Run the loop to its end, looking at it every few steps."""
    loop.begin()
    yield _Snapshot(loop)
    while loop.done < loop.steps:
        for _ in range(min(steps_per_read, loop.steps - loop.done)):
            loop.step(call)
        yield _Snapshot(loop)


def _one_ahead(snapshots: Iterator[_Snapshot]) -> Iterator[_Snapshot]:
    """Yield each snapshot only when the one after it was asked for: the device never waits."""
    previous = next(snapshots)
    for snapshot in snapshots:
        yield previous
        previous = snapshot
    yield previous


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
        on_step: called with the token ids so far, int64 ``[rows, steps]`` on the CPU, and the most
            steps there can be; after every few steps with graphs, after each without. What it
            raises ends the generation.
        use_graphs: whether steps run as CUDA graphs; None is wherever they can.

    Returns:
        The new token ids of each row, its end token included if it came.

    Raises:
        GenerationError: see `reply_length`; or logits that are no numbers.
    """
    loop = DecodeLoop(model, request, device, dtype)
    enabled = can_capture(model, device) if use_graphs is None else use_graphs
    calls = GraphedCalls(device, enabled)
    snapshots = _snapshots(loop, calls, STEPS_PER_READ if enabled else 1)
    try:
        for snapshot in _one_ahead(snapshots) if enabled else snapshots:
            snapshot.wait()
            if on_step is not None:
                on_step(snapshot.replies, loop.steps)
            if bool(snapshot.ended.all()):
                break
    finally:
        calls.close()
    return [until_end(row, request.end_ids) for row in snapshot.replies.tolist()]


def until_end(token_ids: Sequence[int], end_ids: frozenset[int]) -> list[int]:
    """Return the token ids up to and including the first end token."""
    for position, token_id in enumerate(token_ids):
        if token_id in end_ids:
            return list(token_ids[: position + 1])
    return list(token_ids)
