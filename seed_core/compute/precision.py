"""Number formats that networks are loaded in, by the names that people know."""

from __future__ import annotations

import torch

from . import fp8

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""The number formats a network can be loaded in, by their usual names."""

LLM_PRECISIONS = {**PRECISIONS, "fp8": fp8.FP8}
"""Those of the language model. fp8 is that of its weights; the rest of it computes in bf16."""
