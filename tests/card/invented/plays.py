"""What is played on cards: named scripts of nodes and what happens between them.

Needs nothing: tests and the processes that play both read it.
"""

from typing import Any

Action = tuple[str, dict[str, Any]]


def do(action: str, **options: Any) -> Action:
    """One action; see `Player` for the names and their options."""
    return action, options


FEW, MORE = 10, 20
"""Tokens of two replies, whose difference is what single steps do."""
FEW_STEPS, MORE_STEPS = 2, 3
"""Steps of two pictures, likewise."""

SCHEDULERS = (
    *("PNDMScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"),
    *("LMSDiscreteScheduler", "HeunDiscreteScheduler", "EulerAncestralDiscreteScheduler"),
    "UniPCMultistepScheduler",
)

BF16 = do("generate", reply="text", tokens=4)
FP8 = do("generate", llm="8b fp8", reply="text", tokens=4)


def _with_adapter(generate: Action, lora: str) -> Action:
    action, options = generate
    return action, {**options, "lora": lora}


def _replies(action: str) -> tuple[Action, ...]:
    """Of each model a reply that loads it, then a shorter and a longer one; none ends by itself."""
    return tuple(
        do(action, llm=f"8b {precision} {layers} layers", tokens=tokens, reply="text")
        for precision in ("bf16", "fp8")
        for layers in (2, 3)
        for tokens in (FEW, FEW, MORE)
    )


PLAYS: dict[str, tuple[Action, ...]] = {
    "every node twice": (
        *(do("encode"), do("encode"), do("embed"), BF16, BF16, do("decode"), do("decode")),
        *(do("unload"), do("forget")),
    ),
    "fp8 twice": (FP8, FP8),
    "SEED-1": (
        *(do("encode", tokenizer="seed-1"), do("encode", tokenizer="seed-1", pictures=64)),
        do("embed", tokenizer="seed-1"),
    ),
    "in turns": (BF16, do("decode"), BF16, do("decode"), BF16),
    "in turns in fp8": (FP8, do("decode"), FP8, do("decode"), FP8),
    "adapters": (
        *(BF16, _with_adapter(BF16, "few"), BF16, _with_adapter(BF16, "few")),
        *(_with_adapter(BF16, "few"), _with_adapter(BF16, "all"), BF16),
    ),
    "adapters in fp8": (
        *(FP8, _with_adapter(FP8, "few"), FP8, _with_adapter(FP8, "few")),
        _with_adapter(FP8, "few"),
    ),
    "a large picture": (do("decode", side=1080),),
    "much at once": (
        *(do("encode"), do("encode", pictures=64)),
        *(do("generate", variations=rows, reply="text", tokens=4) for rows in (1, 4, 8)),
        do("generate", words=900, reply="text", tokens=4),
        do("generate", words=400, variations=8, reply="text", tokens=4),
        *(do("decode"), do("decode", side=1080), do("decode", side=1104)),
    ),
    "much at once in fp8": (FP8, do("generate", llm="8b fp8", words=900, reply="text", tokens=4)),
    "depths": _replies("generate"),
    "depths without the host": _replies("generate_without_host"),
    "schedulers": tuple(
        do("decode", decoder="shallow", scheduler=scheduler, steps=steps)
        for scheduler in SCHEDULERS
        for steps in (FEW_STEPS, MORE_STEPS)
    ),
    "faults": tuple(
        do("fault", name=name)
        for name in (
            *("two_devices", "two_dtypes", "three_looks", "mask", "one_launch", "full", "garbage"),
            *("plain_layers", "host_layers", "look_in_capture"),
        )
    ),
}
