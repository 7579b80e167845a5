"""What the tensors of an adapter's file are, by their names.

Sources: the files that peft, its users' training scripts and ComfyUI write.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..errors import CheckpointError
from ..files.foreign import WRAPPED_AROUND, WRAPPED_INSIDE

# What a tensor is for its module.
DOWN, UP, ALPHA = "A", "B", "alpha"  # of a product: its matrices and its strength
TABLE_DOWN, TABLE_UP = "embedding_A", "embedding_B"  # of a table, whose rows are what goes in
FULL = "full"  # the module's weight, trained in full
TOKENS = "tokens"  # rows of a table that were trained in full
UNUSED = "unused"

_LONGEST = 500  # of names; those of a language model's have 100 characters at most

# What wraps a module adds to its name, wherever it stands.
_WRAPPERS = frozenset((*WRAPPED_INSIDE, *WRAPPED_AROUND, "pretrained_model"))

# What peft puts before every name; training scripts may wrap twice, or wrap what peft wrapped.
_PREFIXES = (["base_model", "model"], ["model", "base_model", "model"])

_MATRICES = {"lora_A": DOWN, "lora_B": UP, "lora_down": DOWN, "lora_up": UP}
_MATRICES |= {"lora_embedding_A": TABLE_DOWN, "lora_embedding_B": TABLE_UP}

# How modules of a LLaMA begin, with and without the head.
_OF_A_LLAMA = ("model.layers.", "model.embed_tokens", "model.norm", "lm_head")
_WITHOUT_HEAD = ("layers.", "embed_tokens", "norm")

# Copies of what the model has, and what only training needs.
_UNUSED = frozenset(
    ("original_module", "trainable_tokens_original", "lora_velora_embed", "inv_freq")
)

# Parts of names to what holds them; the first that is found is said.
_OTHER_KINDS = {
    "lora_magnitude": "is a DoRA adapter; only plain LoRA can be loaded",
    "lora_B.bias": "has biases (lora_bias), and layers of a LLaMA have none",
    ".lora_a": "is an adapter as mlx saves it: save it as peft does",
    ".absmax": "was quantised by bitsandbytes: save the adapter alone, without the model",
    "lora_E": "is an AdaLoRA adapter; only plain LoRA can be loaded",
    "lora_diag": "is a KaSA adapter; only plain LoRA can be loaded",
    "hada_w": "is a LoHa adapter; only plain LoRA can be loaded",
    "lokr_w": "is a LoKr adapter; only plain LoRA can be loaded",
    "vera_lambda": "is a VeRA adapter; only plain LoRA can be loaded",
    "ia3_l": "is an IA3 adapter; only plain LoRA can be loaded",
    "oft_": "is an OFT adapter; only plain LoRA can be loaded",
    "prompt_embeddings": "is a tuned prompt; only plain LoRA can be loaded",
}

Found = dict[str, dict[str, str]]


def sort_names(file: Path, keys: Iterable[str]) -> Found:
    """Return the names in a file by what they are: of each module, its tensors by their part.

    Raises:
        CheckpointError: the file holds something else, or several adapters.
    """
    found: Found = {}
    unknown = []
    for key in keys:
        name = _role(key)
        if name is None:
            unknown.append(key)
            continue
        module, role = name
        if role == UNUSED:
            continue
        of_module = found.setdefault(module, {})
        if of_module.setdefault(role, key) != key:
            raise CheckpointError(
                f"{file} holds several adapters at once: {key} is there twice. Save one of them."
            )
    kind = _other_kind(unknown)
    if kind is None and not any(roles.keys() - {ALPHA} for roles in found.values()):
        raise CheckpointError(
            f"{file} holds no LoRA adapter of a language model as peft saves it; its tensors have "
            f"names such as {_some(unknown)}. LoRAs of diffusion models have other loaders."
        )
    if unknown:
        raise CheckpointError(
            f"{file} holds {len(unknown)} tensors that a LoRA adapter does not have, such as "
            f"{_some(unknown)}; it {kind or 'is an adapter of another kind'}"
        )
    return found


def _other_kind(unknown: list[str]) -> str | None:
    for part, kind in _OTHER_KINDS.items():
        if any(part in key for key in unknown):
            return kind
    return None


def _some(names: list[str]) -> str:
    return ", ".join(f"{name:.200}" for name in names[:3])


def _role(key: str) -> tuple[str, str] | None:
    """Return the module that a tensor belongs to, and what it is for it."""
    if len(key) > _LONGEST:
        return None
    steps = [step for step in key.split(".") if step not in _WRAPPERS]
    start, is_wrapped = 0, False
    while prefix := next((p for p in _PREFIXES if steps[start : start + len(p)] == p), None):
        start, is_wrapped = start + len(prefix), True
    steps = steps[start:]
    if not _UNUSED.isdisjoint(steps):
        return "", UNUSED
    is_weight = steps[-1:] == ["weight"]
    steps = steps[:-1] if is_weight else steps
    name = _of_adapter(steps) or (_in_full(steps, is_wrapped) if is_weight else None)
    if name is None:
        return None
    module, role = name
    joined = ".".join(module)
    if joined.startswith(_WITHOUT_HEAD):  # of the network that has no head, trained by itself
        joined = f"model.{joined}"
    is_foreign = "lora_A" not in key and "lora_B" not in key and not is_wrapped
    if role in (DOWN, UP, ALPHA) and is_foreign and not joined.startswith(_OF_A_LLAMA):
        return None
    return joined, role


def _of_adapter(steps: list[str]) -> tuple[list[str], str] | None:
    """Tell the tensors that only adapters have; the adapter's own name may stand behind."""
    if steps[-1:] == ["alpha"]:
        return steps[:-1], ALPHA
    for count in (1, 2):
        last = steps[-count] if len(steps) > count else ""
        if last in _MATRICES and steps[-1] != "bias":
            return steps[:-count], _MATRICES[last]
        if last == "trainable_tokens_delta" and steps[-count - 1] == "token_adapter":
            return steps[: -count - 1], TOKENS
        if steps[-count - 1 : len(steps) - count + 1] in (["lora", "down"], ["lora", "up"]):
            return steps[: -count - 1], _MATRICES[f"lora_{last}"]
    return None


def _in_full(steps: list[str], is_wrapped: bool) -> tuple[list[str], str] | None:
    """Tell the weights of a model; without what peft adds they would be all of a model."""
    if any(step.startswith("lora_") for step in steps):
        return None
    if "modules_to_save" in steps:
        place = steps.index("modules_to_save")
        return [*steps[:place], *steps[place + 2 :]], FULL
    if not is_wrapped:
        return None
    for around in (["token_adapter", "base_layer"], ["base_layer"]):
        if steps[-len(around) :] == around:
            return steps[: -len(around)], FULL
    return steps, FULL
