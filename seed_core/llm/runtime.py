"""SEED-LLaMA: a prompt with pictures in, a reply with pictures out.

Ties vocabulary, template, network and decode loop together. Pictures are codes here; how they come
from pixels and go back is not known (see ``tokenizer`` and ``decoder``).

Source: arXiv 2310.01218 (SEED-LLaMA).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..codes.value import NUM_CODES, SeedCodes, codes_values, language_family
from ..compute import fp8
from ..compute.precision import LLM_PRECISIONS
from ..errors import CodesError, PromptError
from .chat import Part, SeedChat
from .generation import (
    DecodeRequest,
    GenerationOptions,
    ImageTokens,
    generate_tokens,
    reply_length,
    until_end,
)
from .llama import Llama, LlamaConfig
from .prompt import PromptTemplate, join_parts, split_marks
from .vocab import Vocabulary

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Reply:
    """What the model answered.

    Attributes:
        text: the words, with a ``<image>`` mark where each picture stands.
        codes: the pictures' codes in order, int64 ``[N, 32]``; N may be 0.
        chat: the conversation with the prompt and this reply appended.
        token_ids: the new token ids as they came.
        is_complete: whether the model ended the reply itself, rather than running out of tokens.
    """

    text: str
    codes: torch.Tensor
    chat: SeedChat
    token_ids: tuple[int, ...]
    is_complete: bool


@dataclass(frozen=True, eq=False)
class GenerationProgress:
    """Where a generation stands.

    Attributes:
        done: tokens made so far.
        total: the most there can be; most replies end earlier.
    """

    done: int
    total: int
    _first: torch.Tensor
    _llm: SeedLLM

    def text(self) -> str:
        """Return the first reply so far, with a mark for each finished picture."""
        token_ids = until_end(self._first.tolist(), self._llm.end_ids)
        return join_parts(self._llm.vocab.decode(token_ids))[0]


class SeedLLM:
    """A loaded SEED-LLaMA.

    Attributes:
        module: the network; a host may move it.
        device: where generation computes.
        dtype: precision of activations, and of weights unless those are in fp8.
        precision: what people call that of the weights: fp32, fp16, bf16 or fp8.
        vocab: its vocabulary.
        template: how it wants a conversation written.
        family: the family of codes it reads and writes.
        codebook_size: number of different codes.
        end_ids: any of these token ids ends a reply.
    """

    uses_graphs = True
    """Whether calls may run as CUDA graphs, for which a host should leave some memory."""

    def __init__(
        self,
        module: Llama,
        vocab: Vocabulary,
        template: PromptTemplate,
        end_ids: frozenset[int],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.module = module
        self.vocab = vocab
        self.template = template
        self.family = language_family(vocab.codebook_size)
        self.codebook_size = vocab.codebook_size
        self.end_ids = end_ids
        self.device = device
        self.dtype = fp8.computing_dtype(dtype)
        names = (name for name, known in LLM_PRECISIONS.items() if known == dtype)
        self.precision = next(names, str(dtype))

    @property
    def networks(self) -> tuple[Llama, ...]:
        """What a host may move."""
        return (self.module,)

    @property
    def config(self) -> LlamaConfig:
        """The network's sizes."""
        return self.module.config

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
        generator = generator or torch.Generator().manual_seed(0)
        return self.generate_batch(prompt, codes, chat, options, [generator], on_token)[0]

    @torch.inference_mode()
    def generate_batch(
        self,
        prompt: str,
        codes: torch.Tensor | SeedCodes | None = None,
        chat: SeedChat | None = None,
        options: GenerationOptions | None = None,
        generators: Sequence[torch.Generator] = (),
        on_token: Callable[[GenerationProgress], None] | None = None,
    ) -> list[Reply]:
        """Answer a prompt once for each generator.

        In float32 a reply is the one that its generator gives alone, up to rounding. In 16 bits that
        depends much more on how many are made together, so there it may well be another.

        Args:
            prompt: what the user says; ``<image>`` marks where each picture goes, pictures without
                a mark go first.
            codes: the pictures, int64 ``[N, 32]``.
            chat: the conversation so far.
            options: how tokens are chosen.
            generators: CPU generators, one a variation; none is the same as one seeded with 0.
            on_token: called after each token; what it raises ends the generation.

        Returns:
            One reply a generator, in order.

        Raises:
            PromptError: an empty prompt, or marks without pictures.
            CodesError: codes out of range or of another family.
            GenerationError: a prompt that leaves no room for the reply.
        """
        asked = self._ask(prompt, codes, chat)
        request = self._request(asked, options, generators)

        def on_step(token_ids: torch.Tensor, total: int) -> None:
            if on_token is not None:
                on_token(GenerationProgress(token_ids.shape[1], total, token_ids[0], self))

        start = time.perf_counter()
        rows = generate_tokens(self.module, request, self.device, self.dtype, on_step)
        seconds = time.perf_counter() - start
        replies = [self._reply(asked, row) for row in rows]
        self._log(replies, seconds)
        return replies

    def count_tokens(
        self,
        prompt: str,
        codes: torch.Tensor | SeedCodes | None = None,
        chat: SeedChat | None = None,
        options: GenerationOptions | None = None,
    ) -> int:
        """Return the most tokens a generation will hold at once, prompt and reply.

        Raises:
            SeedError: whatever `generate` would raise before its first token.
        """
        request = self._request(self._ask(prompt, codes, chat), options, ())
        return len(request.prompt) + reply_length(request, self.config.max_position_embeddings)

    def memory_required(self, tokens: int, variations: int = 1) -> int:
        """Return the bytes of working memory a generation needs besides the weights.

        Args:
            tokens: prompt and reply together, see `count_tokens`.
            variations: replies made at once.
        """
        config, size = self.config, self.dtype.itemsize
        cache = config.cache_bytes(variations, tokens, self.dtype)
        # Beside the residual and its norm: q, k, v and the rotated ones, or gate, up and products.
        widest = max(9 * config.hidden_size, 4 * config.intermediate_size)
        prefill = tokens * (2 * config.hidden_size + widest) * size
        logits = variations * config.vocab_size * (size + 4 * 4)
        return cache + prefill + logits + fp8.scratch_bytes(self.module, self.device)

    def _ask(
        self, prompt: str, codes: torch.Tensor | SeedCodes | None, chat: SeedChat | None
    ) -> SeedChat:
        """Return the conversation with the prompt appended."""
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
        self,
        asked: SeedChat,
        options: GenerationOptions | None,
        generators: Sequence[torch.Generator],
    ) -> DecodeRequest:
        vocab = self.vocab
        images = ImageTokens(
            vocab.begin_image, vocab.end_image, vocab.first_code, vocab.codebook_size, NUM_CODES
        )
        options = options or GenerationOptions()
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
            "SEED-LLaMA: %d tokens in %.2f s (%.1f tokens/s), pictures: %d, device: %s, precision: %s",
            *(tokens, seconds, tokens / seconds, pictures, self.device, self.precision),
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
