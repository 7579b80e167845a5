"""SEED and SEED-LLaMA: pictures as 32 codes, a language model that reads and draws them, unCLIP.

Everything here is independent of any host application.
"""

from __future__ import annotations

from .codes.value import CODEBOOK_SIZES, NUM_CODES, SeedCodes
from .compute.generators import seeded_generators
from .core import CodesCore, LoadedCore
from .decoder.options import DecodeOptions
from .decoder.runtime import SeedDecoder
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
from .llm.language import LanguageModel, Reply
from .llm.lora import LoraAdapter, merge_lora
from .llm.runtime import SeedLLM
from .llm.sampling import GenerationOptions
from .models.ip_adapter import IpAdapter, open_ip_adapter
from .models.llm import load_llm
from .models.lora import read_lora
from .models.tokenizer import load_tokenizer
from .models.unclip import load_decoder
from .serving.runtime import ServedLLM, load_served_llm
from .tokenizer.config import TokenizerConfig
from .tokenizer.runtime import SeedTokenizer

__all__ = [
    "CODEBOOK_SIZES",
    "NUM_CODES",
    "CheckpointError",
    "CodesCore",
    "CodesError",
    "DecodeOptions",
    "EmbeddingError",
    "GenerationError",
    "GenerationOptions",
    "IpAdapter",
    "LanguageModel",
    "LoadedCore",
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
    "ServedLLM",
    "TokenizerConfig",
    "Turn",
    "load_decoder",
    "load_llm",
    "load_served_llm",
    "load_tokenizer",
    "merge_lora",
    "open_ip_adapter",
    "read_lora",
    "seeded_generators",
]
