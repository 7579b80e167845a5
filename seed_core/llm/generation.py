"""The decode loop: from the token ids of a prompt to those of replies.

Random numbers come from CPU generators alone and are drawn before the loop: row i uses the same
ones on every device and in every batch.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..compute.graphs import GraphedCalls, can_capture
from ..compute.threads import threads_for
from ..errors import GenerationError
from .cache import KVCache, attended_length
from .llama import Llama
from .request import DecodeRequest, reply_length, until_end
from .sampling import PictureGrammar, sample

# Steps that a card is given beyond the newest token that was looked at: enough to keep it busy
# while the CPU looks. A reply runs so many steps past its end.
QUEUED_STEPS = 2

_NOT_FINITE = -1  # in the place of a token id whose logits were not all finite

_PLANLESS_ATTENTION = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


class DecodeLoop:
    """Replies that grow together, all of their state on the device and changed in place."""

    # A step neither asks the device for a value nor makes a tensor that outlives it, so steps can be
    # queued ahead of the device, and captured in a graph.

    def __init__(
        self, model: Llama, request: DecodeRequest, device: torch.device, dtype: torch.dtype
    ) -> None:
        options, rows = request.options, len(request.generators)
        self._prompt = len(request.prompt)
        self.steps = reply_length(request, model.config.max_position_embeddings)
        self.done = 0  # tokens every reply has, some of them perhaps still to be computed
        # The latest token of each reply; _NOT_FINITE where its logits were not all finite.
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
        ).to(device)  # [rows, steps]
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
        # One sum tells: a logit that is not finite makes the sum so, and 0 times that is NaN.
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
        """Return the tokens, int64 ``[rows]``, unless some of the logits were not finite."""
        if self._event is not None:
            self._event.synchronize()
        if bool((self._token_ids == _NOT_FINITE).any()):
            raise GenerationError(
                "the language model computed numbers that are not finite. Try precision bf16 or "
                "fp32; if that does not help, the weight file is damaged."
            )
        return self._token_ids


def _arrivals(loop: DecodeLoop, call: GraphedCalls, queued: int) -> Iterator[_Arrival]:
    """Run a loop that has begun; yield each token once ``queued`` later ones are under way."""
    pending: deque[_Arrival] = deque()
    for step in range(loop.steps):
        if step:
            loop.step(call)
        pending.append(_Arrival(loop))
        if len(pending) > queued:
            yield pending.popleft()
    yield from pending


def _attention(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Keep a card from planning attention anew for each length of a prompt, as cuDNN does."""
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
    use_graphs: bool | None = None,  # None means wherever steps can run as CUDA graphs
) -> list[list[int]]:
    """Continue a prompt, once for each generator, as one batch that shares the prompt's pass.

    ``on_step`` is called with each token, in order: the token ids so far, int64 ``[rows, steps]``
    on the CPU, and the most steps there can be. A card may be `QUEUED_STEPS` further by then. What
    it raises ends the generation.

    Returns:
        The new token ids of each row, its end token included if it came.

    Raises:
        GenerationError: see `reply_length`; or some of the logits are not finite.
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
