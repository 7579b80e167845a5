"""A prompt with pictures to token ids, and token ids to a reply with pictures. Pictures are codes.

Owns vocabulary and template. Does not know what computes token ids: a network here, or a server.

Source: arXiv 2310.01218 (SEED-LLaMA).
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..codes.value import NUM_CODES, SeedCodes, codes_values, language_family
from ..errors import CodesError, PromptError
from .chat import Part, SeedChat
from .prompt import PromptTemplate, join_parts, split_marks
from .request import DecodeRequest, reply_length, until_end
from .sampling import GenerationOptions, ImageTokens
from .vocab import Vocabulary

log = logging.getLogger(__name__)

# Characters, far more than any model has tokens for; they are cut into tokens in a second.
_LONGEST_PROMPT = 1_000_000


@dataclass(frozen=True, eq=False)
class Reply:
    """What the model answered."""

    text: str  # the words, with an ``<image>`` mark where each picture stands
    codes: torch.Tensor  # of the pictures in order, int64 [N, 32]; N may be 0
    chat: SeedChat  # the conversation with the prompt and this reply appended
    token_ids: tuple[int, ...]  # the new ones, as they came
    is_complete: bool  # whether the model ended the reply, rather than running out of tokens


@dataclass(frozen=True, eq=False)
class GenerationPlan:
    """A generation that may begin: whatever its prompt could be refused for has been checked."""

    asked: SeedChat  # the conversation with the prompt appended
    request: DecodeRequest
    tokens: int  # the most it will hold at once, prompt and reply
    memory_required: int  # bytes of working memory besides the weights


@dataclass(frozen=True, eq=False)
class GenerationProgress:
    """Where a generation stands."""

    done: int  # tokens made so far
    total: int  # the most there can be; most replies end earlier
    _first: Callable[[], Sequence[int]]  # gives the token ids of the first reply
    _llm: LanguageModel

    def text(self) -> str:
        """Return the first reply so far, with a mark for each finished picture."""
        token_ids = until_end(self._first(), self._llm.end_ids)
        return join_parts(self._llm.vocab.decode(token_ids))[0]


OnStep = Callable[[int, int, Callable[[], Sequence[int]]], None]
"""Called with the tokens made so far, the most there can be, and what gives the first reply's."""


class LanguageModel(ABC):
    """A SEED-LLaMA, wherever it computes; `generate` is `plan` and `answer` in one."""

    def __init__(
        self, vocab: Vocabulary, template: PromptTemplate, end_ids: frozenset[int]
    ) -> None:
        self.vocab = vocab
        self.template = template
        self.end_ids = end_ids
        self.family = language_family(vocab.codebook_size)
        self.codebook_size = vocab.codebook_size

    @property
    @abstractmethod
    def context(self) -> int:
        """The most tokens of prompt and reply together."""

    @property
    @abstractmethod
    def place(self) -> str:
        """Where and how it computes, for the log."""

    @abstractmethod
    def memory_required(self, tokens: int, variations: int = 1) -> int:
        """Return the bytes a generation of so many tokens needs at once besides the weights."""

    @abstractmethod
    def _continue(self, request: DecodeRequest, on_step: OnStep | None) -> list[list[int]]:
        """Return new token ids for each generator, an end token included if it came."""

    def generate(
        self,
        prompt: str,
        codes: torch.Tensor | SeedCodes | None = None,
        chat: SeedChat | None = None,
        options: GenerationOptions | None = None,
        generator: torch.Generator | None = None,
        on_token: Callable[[GenerationProgress], None] | None = None,
    ) -> Reply:
        """Answer a prompt once; see `generate_batch`."""
        generators = [] if generator is None else [generator]
        return self.generate_batch(prompt, codes, chat, options, generators, on_token)[0]

    def generate_batch(
        self,
        prompt: str,
        codes: torch.Tensor | SeedCodes | None = None,
        chat: SeedChat | None = None,
        options: GenerationOptions | None = None,
        generators: Sequence[torch.Generator] = (),
        on_token: Callable[[GenerationProgress], None] | None = None,
    ) -> list[Reply]:
        """Answer a prompt once for each generator; see `plan` and `answer`."""
        return self.answer(self.plan(prompt, codes, chat, options, generators), on_token)

    def plan(
        self,
        prompt: str,
        codes: torch.Tensor | SeedCodes | None = None,
        chat: SeedChat | None = None,
        options: GenerationOptions | None = None,
        generators: Sequence[torch.Generator] = (),
    ) -> GenerationPlan:
        """Prepare a generation, without computing anything on the device.

        Args:
            prompt: what the user says; ``<image>`` marks where each picture goes, others go first.
            codes: the pictures, int64 ``[N, 32]``.
            chat: the conversation so far.
            options: how tokens are chosen.
            generators: CPU generators, one a variation; without any, one seeded with 0.

        Raises:
            PromptError: the prompt is empty or endless, or has marks without pictures.
            CodesError: the codes are out of range or of another family.
            GenerationError: the prompt leaves too little room for the reply.
        """
        asked = self._ask(prompt, codes, chat)
        request = self._request(asked, options or GenerationOptions(), generators)
        tokens = len(request.prompt) + reply_length(request, self.context)
        memory = self.memory_required(tokens, len(request.generators))
        return GenerationPlan(asked, request, tokens, memory)

    @torch.inference_mode()
    def answer(
        self, plan: GenerationPlan, on_token: Callable[[GenerationProgress], None] | None = None
    ) -> list[Reply]:
        """Return one reply for each generator of a plan, which is used up by it.

        ``on_token`` is called as tokens come, in order, when what computes them may be some further
        already; what it raises ends the generation.

        Raises:
            GenerationError: the generation cannot go on, such as for numbers that are not finite,
                or because a server ends it.
        """

        def on_step(done: int, total: int, first: Callable[[], Sequence[int]]) -> None:
            if on_token is not None:
                on_token(GenerationProgress(done, total, first, self))

        start = time.perf_counter()
        rows = self._continue(plan.request, on_step)
        seconds = time.perf_counter() - start
        replies = [self._reply(plan.asked, row) for row in rows]
        self._log(replies, seconds)
        return replies

    def count_tokens(
        self,
        prompt: str,
        codes: torch.Tensor | SeedCodes | None = None,
        chat: SeedChat | None = None,
        options: GenerationOptions | None = None,
    ) -> int:
        """Return the most tokens a generation will hold at once; raises what `plan` raises."""
        return self.plan(prompt, codes, chat, options).tokens

    def _ask(
        self, prompt: str, codes: torch.Tensor | SeedCodes | None, chat: SeedChat | None
    ) -> SeedChat:
        """Return the conversation with the prompt appended."""
        if len(prompt) > _LONGEST_PROMPT:
            raise PromptError(
                f"the prompt has {len(prompt)} characters, and {_LONGEST_PROMPT} are the most; this "
                f"model reads {self.context} tokens"
            )
        values = torch.empty(0, NUM_CODES, dtype=torch.int64)
        if codes is not None:
            who = "This language model"
            values = codes_values(codes, self.family, self.codebook_size, who)
        chat = chat or SeedChat(self.family, self.codebook_size)
        if (chat.family, chat.codebook_size) != (self.family, self.codebook_size):
            raise CodesError(
                f"this conversation holds {chat.family} codes, the language model reads "
                f"{self.family} codes; go on with the model it was begun with"
            )
        if chat.turns and chat.turns[-1].role == "user":
            raise PromptError("the conversation ends with a question that has no answer yet")
        return chat.ask(split_marks(prompt, values))

    def _request(
        self, asked: SeedChat, options: GenerationOptions, generators: Sequence[torch.Generator]
    ) -> DecodeRequest:
        vocab = self.vocab
        images = ImageTokens(
            vocab.begin_image, vocab.end_image, vocab.first_code, vocab.codebook_size, NUM_CODES
        )
        pieces = self.template.render(asked)
        return DecodeRequest(
            prompt=vocab.encode(pieces, before_image=options.reply == "image"),
            tokens=images,
            end_ids=self.end_ids,
            options=options,
            generators=generators or [torch.Generator().manual_seed(0)],
        )

    def _log(self, replies: Sequence[Reply], seconds: float) -> None:
        """Write the line a user looks for when it was slow, or ran somewhere else than hoped."""
        tokens = sum(len(reply.token_ids) for reply in replies)
        pictures = sum(len(reply.codes) for reply in replies)
        log.info(
            "SEED-LLaMA: %d tokens in %.2f s (%.1f tokens/s), pictures: %d, %s",
            *(tokens, seconds, tokens / seconds, pictures, self.place),
        )

    def _reply(self, asked: SeedChat, token_ids: Sequence[int]) -> Reply:
        parts: tuple[Part, ...] = self.vocab.decode(token_ids)
        text, codes = join_parts(parts)
        return Reply(
            text=text,
            codes=codes,
            chat=asked.answer(parts),
            token_ids=tuple(token_ids),
            is_complete=token_ids[-1] in self.end_ids,
        )
