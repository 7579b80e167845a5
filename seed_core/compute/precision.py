"""Number formats that networks are loaded in, by the names that people know."""

from __future__ import annotations

import torch

from . import fp8

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# The language model's weights can be fp8 too; the rest of it computes in bf16 then.
LLM_PRECISIONS = {**PRECISIONS, "fp8": fp8.FP8}
