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
FEW_STEPS, MORE_STEPS = 2, 4
"""Steps of two pictures, likewise."""

SCHEDULERS = (
    *("PNDMScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"),
    *("LMSDiscreteScheduler", "HeunDiscreteScheduler", "EulerAncestralDiscreteScheduler"),
    "UniPCMultistepScheduler",
)


def _replies(action: str, *llms: str) -> tuple[Action, ...]:
    """Of each model one reply that loads it, then a shorter and a longer one; none ends by itself."""
    return tuple(
        do(action, llm=llm, tokens=tokens, reply="text")
        for llm in llms
        for tokens in (FEW, FEW, MORE)
    )


PLAYS: dict[str, tuple[Action, ...]] = {
    "every node twice": (
        *(do("encode"), do("encode"), do("embed")),
        *(do("generate"), do("generate"), do("decode"), do("decode"), do("unload"), do("forget")),
    ),
    "every node in fp8": (do("generate", llm="8b fp8"), do("generate", llm="8b fp8")),
    "SEED-1": (do("encode", tokenizer="seed-1"), do("embed", tokenizer="seed-1")),
    "in turns": (do("generate"), do("decode"), do("generate"), do("decode"), do("generate")),
    "in turns in fp8": (
        *(do("generate", llm="8b fp8"), do("decode")),
        *(do("generate", llm="8b fp8"), do("decode"), do("generate", llm="8b fp8")),
    ),
    "adapters": (
        *(do("generate"), do("generate", lora="few"), do("generate"), do("generate", lora="few")),
        *(do("generate", lora="few"), do("generate", lora="all"), do("generate")),
    ),
    "adapters in fp8": (
        *(do("generate", llm="8b fp8"), do("generate", llm="8b fp8", lora="few")),
        *(do("generate", llm="8b fp8"), do("generate", llm="8b fp8", lora="few")),
        do("generate", llm="8b fp8", lora="few"),
    ),
    "pictures": (do("decode"), do("decode", side=1080), do("decode", side=1536)),
    "much at once": (
        *(do("encode", pictures=1), do("encode", pictures=64)),
        do("encode", tokenizer="seed-1", pictures=64),
        *(do("generate", variations=rows, reply="text", tokens=FEW) for rows in (1, 4, 8)),
        do("generate", words=900, reply="text", tokens=FEW),
        do("generate", words=400, variations=8, reply="text", tokens=FEW),
        *(do("decode"), do("decode", side=1080), do("decode", side=1536)),
    ),
    "much at once in fp8": (
        do("generate", llm="8b fp8", reply="text", tokens=FEW),
        do("generate", llm="8b fp8", words=900, reply="text", tokens=FEW),
    ),
    "replies": _replies("generate", "8b bf16", "8b fp8"),
    "depths": _replies(
        "generate", *(f"8b {p} {n} layers" for p in ("bf16", "fp8") for n in (2, 3))
    ),
    "depths without the host": _replies(
        "generate_without_host", *(f"8b {p} {n} layers" for p in ("bf16", "fp8") for n in (2, 3))
    ),
    "schedulers": tuple(
        do("decode", scheduler=scheduler, steps=steps)
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
