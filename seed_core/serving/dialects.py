"""The request for a completion, as each engine wants it.

Every parameter is sent, since engines fill in what is missing from files beside the model.

Source: ``CompletionRequest`` of vLLM 0.32 and SGLang 0.5.23.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import OptionError
from ..llm.sampling import GenerationOptions

# Below it engines take the likeliest token, and only one reply a request.
_GREEDY = 1e-5


@dataclass(frozen=True)
class Dialect:
    """What differs between engines."""

    name: str
    grammar: Callable[[str], dict[str, Any]]  # the field that holds the EBNF
    all_tokens: int  # top_k that keeps every token
    hottest: float | None  # the highest temperature it takes
    counts_seeds: bool  # whether reply i of a request has its seed plus i


_VLLM = Dialect("vllm", lambda ebnf: {"structured_outputs": {"grammar": ebnf}}, 0, 2.0, True)
_SGLANG = Dialect("sglang", lambda ebnf: {"ebnf": ebnf}, -1, None, False)

DIALECTS = {dialect.name: dialect for dialect in (_VLLM, _SGLANG)}


def is_greedy(options: GenerationOptions) -> bool:
    """Tell whether every reply is the same, so that one stands for all."""
    return options.temperature < _GREEDY


def check_options(dialect: Dialect, options: GenerationOptions) -> None:
    """Refuse a temperature that the engine refuses; `OptionError`."""
    if dialect.hottest is not None and options.temperature > dialect.hottest:
        raise OptionError(
            f"temperature must lie in 0..{dialect.hottest:g} on a server with {dialect.name}; got "
            f"{options.temperature}"
        )


def completion(
    dialect: Dialect,
    model: str,
    prompt: Sequence[int],
    options: GenerationOptions,
    grammar: str,
    length: int,  # most tokens of a reply
    seed: int,
    replies: int,
    end_ids: frozenset[int],
) -> dict[str, Any]:
    """Return the body of a request for replies that come token by token."""
    greedy = is_greedy(options)
    return {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": length,
        "min_tokens": 0,
        "n": replies,
        "seed": seed,
        "temperature": 0.0 if greedy else options.temperature,
        "top_p": 1.0 if greedy else options.top_p,
        "top_k": dialect.all_tokens if greedy else options.top_k or dialect.all_tokens,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": sorted(end_ids),
        "ignore_eos": False,
        "stream": True,
        "return_token_ids": True,
        **dialect.grammar(grammar),
    }
