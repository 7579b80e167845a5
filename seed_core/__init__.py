"""SEED and SEED-LLaMA: pictures as 32 codes, a language model that reads and draws them, unCLIP.

Everything here is independent of any host application.
"""

from __future__ import annotations

from .chat import SeedChat, Turn
from .codes import CODEBOOK_SIZES, NUM_CODES, SeedCodes
from .decoder import DecodeOptions, SeedDecoder, load_decoder
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
from .generation import GenerationOptions
from .generators import seeded_generators
from .llm import Reply, SeedLLM, load_llm
from .lora import LoraAdapter, merge_lora, read_lora
from .tokenizer import SeedTokenizer, load_tokenizer
from .tokenizer_network import TokenizerConfig

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
