"""SEED and SEED-LLaMA: pictures as 32 codes, a language model that reads and draws them, unCLIP.

Everything here is independent of any host application.
"""

from __future__ import annotations

from .codes.value import CODEBOOK_SIZES, NUM_CODES, SeedCodes
from .compute.generators import seeded_generators
from .decoder.runtime import DecodeOptions, SeedDecoder, load_decoder
from .errors import (
    CheckpointError,
    CodesError,
    EmbeddingError,
    GenerationError,
    OptionError,
    PictureError,
    PromptError,
    SeedError,
)
from .llm.chat import SeedChat, Turn
from .llm.generation import GenerationOptions
from .llm.lora import LoraAdapter, merge_lora, read_lora
from .llm.runtime import Reply, SeedLLM, load_llm
from .tokenizer.config import TokenizerConfig
from .tokenizer.runtime import SeedTokenizer, load_tokenizer

__all__ = [
    "CODEBOOK_SIZES",
    "NUM_CODES",
    "CheckpointError",
    "CodesError",
    "DecodeOptions",
    "EmbeddingError",
    "GenerationError",
    "GenerationOptions",
    "LoraAdapter",
    "OptionError",
    "PictureError",
    "PromptError",
    "Reply",
    "SeedChat",
    "SeedCodes",
    "SeedDecoder",
    "SeedError",
    "SeedLLM",
    "SeedTokenizer",
    "TokenizerConfig",
    "Turn",
    "load_decoder",
    "load_llm",
    "load_tokenizer",
    "merge_lora",
    "read_lora",
    "seeded_generators",
]
