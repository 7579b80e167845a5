"""Generated weights of the SEED goldens: a tensor is a function of its key and shape alone.

sha256(salt + key) seeds a PCG64; its raw 64-bit words, cut into 16-bit lanes from the low end, are
numbers uniform in (-1, 1) on a grid. Every step is exact integer work and one float32 product, so the
tensors are the same bits on every machine (numpy guarantees the raw words, not its distributions).
Knows nothing of torch or of our networks.
"""

import hashlib
import math
import re
from typing import NamedTuple

import numpy as np

SALT = "seed-parity-1|"
HALF_RANGE = 32768.0
CHUNK = 1 << 18  # lanes converted at once: 1.5 MB of reading and writing stays in a core's cache


class Rule(NamedTuple):
    """How the uniform numbers u of the keys that match become weights.

    centred: amount * u; around_one: 1 + amount * u; spread: standard deviation = amount;
    gain: standard deviation = amount / sqrt(inputs of the layer).
    """

    keys: str
    law: str
    amount: float


# The first rule that matches counts.
RULES = [
    Rule(r"(^|\.)(norm\d?|fc_norm|LayerNorm|ln_vision)\.weight$", "around_one", 0.25),
    Rule(r"bias$", "centred", 0.10),
    Rule(r"visual_encoder\.cls_token$", "spread", 0.5),
    Rule(r"visual_encoder\.pos_embed$", "spread", 1.0),
    Rule(r"patch_embed\.proj\.weight$", "gain", 2.0),
    Rule(r"visual_encoder\.blocks\.\d+\.attn\.qkv\.weight$", "gain", 1.3),
    Rule(r"visual_encoder\.blocks\.\d+\.attn\.proj\.weight$", "gain", 0.2),
    Rule(r"visual_encoder\.blocks\.\d+\.mlp\.fc1\.weight$", "gain", 1.0),
    Rule(r"visual_encoder\.blocks\.\d+\.mlp\.fc2\.weight$", "gain", 0.5),
    Rule(r"(query|reverse)_tokens$", "spread", 1.0),
    Rule(r"crossattention\.self\.(query|key)\.weight$", "gain", 2.0),
    Rule(r"crossattention\.self\.value\.weight$", "gain", 1.5),
    Rule(r"crossattention\.output\.dense\.weight$", "gain", 0.5),
    Rule(r"attention\.self\.(query|key)\.weight$", "gain", 1.3),
    Rule(r"attention\.self\.value\.weight$", "gain", 1.0),
    Rule(r"attention\.output\.dense\.weight$", "gain", 0.3),
    Rule(r"encode_task_layer\.[02]\.weight$", "gain", 3.0),
    Rule(r"quantize\.embedding\.weight$", "spread", 2.0),
    Rule(r"(^|\.)pos_embed(_image|_text)?$", "spread", 0.5),
    Rule(r"\.weight$", "gain", 1.0),
]


def rule_of(key: str) -> Rule:
    """The rule for one state dict key."""
    for rule in RULES:
        if re.search(rule.keys, key):
            return rule
    raise KeyError(f"no weight rule covers {key!r}")


def factor_of(rule: Rule, shape: tuple[int, ...]) -> float:
    """What the uniform numbers are multiplied by; a uniform number's deviation is 1 / sqrt(3)."""
    if rule.law in ("centred", "around_one"):
        return rule.amount
    factor = rule.amount * math.sqrt(3.0)
    if rule.law == "spread":
        return factor
    inputs = math.prod(shape[1:]) if len(shape) > 1 else shape[0]
    return factor / math.sqrt(inputs)


def lanes_of(key: str, count: int) -> np.ndarray:
    """The first count 16-bit lanes of the key's random stream, uint16 [count]."""
    digest = hashlib.sha256((SALT + key).encode("utf-8")).digest()
    words = np.random.PCG64(int.from_bytes(digest[:16], "little")).random_raw(-(-count // 4))
    return words.astype("<u8", copy=False).view("<u2")[:count]


def weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor of a key: float32, or int64 for the unused position_ids."""
    if key.endswith("position_ids"):
        return np.broadcast_to(np.arange(shape[-1], dtype=np.int64), shape).copy()
    rule = rule_of(key)
    lanes = lanes_of(key, math.prod(shape))
    # The factor is rounded to float32 first; dividing by a power of two then changes no bit.
    factor = np.float32(factor_of(rule, shape)) / np.float32(HALF_RANGE)
    values = np.empty(lanes.size, dtype=np.float32)
    for start in range(0, lanes.size, CHUNK):
        part = values[start : start + CHUNK]
        np.subtract(lanes[start : start + CHUNK], np.float32(HALF_RANGE - 0.5), out=part)
        part *= factor
    if rule.law == "around_one":
        values += np.float32(1.0)
    return values.reshape(shape)
