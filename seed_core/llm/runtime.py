"""SEED-LLaMA on this machine: a language model whose token ids a loaded network computes."""

from __future__ import annotations

import torch

from ..compute import fp8
from ..compute.precision import LLM_PRECISIONS
from ..core import CodesCore
from .cache import KVCache
from .config import LlamaConfig
from .generation import generate_tokens
from .language import LanguageModel, OnStep
from .llama import Llama
from .prompt import PromptTemplate
from .request import DecodeRequest
from .vocab import Vocabulary


class SeedLLM(LanguageModel, CodesCore):
    """A loaded SEED-LLaMA; `generate` and `generate_batch` are `plan` and `answer` in one."""

    module: Llama
    uses_graphs = True

    def __init__(
        self,
        module: Llama,
        vocab: Vocabulary,
        template: PromptTemplate,
        end_ids: frozenset[int],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(vocab, template, end_ids)
        self.module = module
        self.device = device
        self.dtype = fp8.computing_dtype(dtype)
        # What people call the precision of the weights: fp32, fp16, bf16 or fp8.
        names = (name for name, known in LLM_PRECISIONS.items() if known == dtype)
        self.precision = next(names, str(dtype))

    @property
    def config(self) -> LlamaConfig:
        """The network's sizes."""
        return self.module.config

    @property
    def context(self) -> int:
        """The most tokens of prompt and reply together."""
        return self.config.max_position_embeddings

    @property
    def place(self) -> str:
        """Where and how it computes, for the log."""
        return f"device: {self.device}, precision: {self.precision}"

    def memory_required(self, tokens: int, variations: int = 1) -> int:
        """Return the bytes a generation of so many tokens needs at once besides the weights."""
        config, size = self.config, self.dtype.itemsize
        cache = KVCache.bytes_needed(config, variations, tokens, self.dtype)
        # Beside the residual and its norm: q, k, v and the rotated ones, or gate, up and products.
        widest = max(9 * config.hidden_size, 4 * config.intermediate_size)
        prefill = tokens * (2 * config.hidden_size + widest) * size
        logits = variations * config.vocab_size * (size + 4 * 4)
        return cache + prefill + logits + fp8.scratch_bytes(self.module, self.device)

    def _continue(self, request: DecodeRequest, on_step: OnStep | None) -> list[list[int]]:
        # In float32 a reply is the one that its generator gives alone, up to rounding. In 16 bits it
        # may well be another: rounding depends on how many replies are made together.
        def tell(token_ids: torch.Tensor, total: int) -> None:
            if on_step is not None:
                on_step(token_ids.shape[1], total, token_ids[0].tolist)

        return generate_tokens(self.module, request, self.device, self.dtype, tell)
