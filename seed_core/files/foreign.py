"""What lies where a model's files should be: told by first bytes, file names and tensor names."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from ..errors import CheckpointError

Value = TypeVar("Value")

_START = 512  # bytes of a file that are looked at

_DOWNLOAD = "delete it and download the file itself, of the size that its page shows"

# What stands in place of a file: how it begins, in small letters; what it is, and what to do.
_IN_PLACE = (
    (rb"version https://git-lfs", "a Git LFS pointer, not the file that it stands for; run "
     "`git lfs pull` in its folder, or download the file from its page in a browser"),
    (rb"/annex/objects/", "a git-annex pointer, not the file that it stands for; run "
     "`git annex get .` in its folder"),
    (rb"<!doctype html|<html|<head|<body|<\?xml[^>]*>\s*<(!doctype )?html", "a web page that was "
     f"saved in place of the file; {_DOWNLOAD}"),
    (rb"<\?xml[^>]*>\s*<error", "an answer of a server that was saved in place of the file; "
     f"{_DOWNLOAD}"),
)  # fmt: skip
_DEEPSPEED = (
    "is a checkpoint of DeepSpeed in the middle of a training run. Make weights of it with "
    "zero_to_fp32.py, which DeepSpeed puts beside it."
)
_FSDP = (
    "is a checkpoint of FSDP in the middle of a training run. Make weights of it with accelerate "
    "merge-weights."
)
_GGUF = (
    "is in llama.cpp's format GGUF, which this cannot read. Get the same model as safetensors in "
    "16 bits."
)

_TEXT = f"is a text, not weights; {_DOWNLOAD}"

# Names of files that other programs leave, to what they are and what to do.
_FILES = {
    **dict.fromkeys(("*.gguf", "*.ggml"), _GGUF),
    "consolidated*.pth": "is in the layout of LLaMA's first release. Convert the folder with "
    "transformers' convert_llama_weights_to_hf.py.",
    "tf_model*": "is TensorFlow's. Get the same model as safetensors.",
    "flax_model*": "is Flax's. Get the same model as safetensors.",
    "*.onnx": "is in the format ONNX. Get the same model as safetensors.",
    "openvino_model*": "is OpenVINO's. Get the same model as safetensors.",
    **dict.fromkeys(("global_step*", "*zero_pp_rank_*", "mp_rank_*"), _DEEPSPEED),
    **dict.fromkeys(("pytorch_model_fsdp*", "*.distcp"), _FSDP),
    "checkpoint-*": "is a checkpoint of a training run. Choose that folder.",
    "adapter_model*": "is a LoRA adapter, which changes a model but is not one. Load it with Load "
    "SEED LoRA (--lora in a terminal).",
    **dict.fromkeys(
        (
            "*.part",
            "*.incomplete",
            "*.aria2",
            "*.crdownload",
            "*.download",
            "*.unfinished",
            "*.!qB",
        ),
        "is a download that did not finish. Resume it, or delete it and start again.",
    ),
}

# Ends of tensor names, to what wrote them.
_QUANTISED = {
    ".qzeros": "GPTQ or AWQ",
    ".qweight": "GPTQ or AWQ",
    ".g_idx": "GPTQ",
    ".q_weight": "EXL2",
    ".q_scale_max": "EXL2",
    ".trellis": "EXL3",
    ".weight_packed": "compressed-tensors (vLLM)",
    ".absmax": "bitsandbytes",
    ".quant_map": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".weight_scale_inv": "a program with fp8 in blocks",
    ".W_q": "HQQ",
    ".comfy_quant": "ComfyUI, in a form other than fp8 with one scale",
    ".scale_weight": "ComfyUI, in its older form of scaled fp8",
}
FULL_PRECISION = "Use the model in 16 or 32 bits"

WRAPPED_INSIDE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What programs put into names where they wrap a part of a network."""
WRAPPED_AROUND = ("module", "_forward_module")
"""What they put before names when they wrap all of it."""
_DOUBLED = "model."  # around a whole model, whose own names begin so too


def read_start(path: Path) -> bytes:
    """Return the first bytes of a file, enough to tell what it is; `CheckpointError` if it cannot."""
    try:
        with path.open("rb") as file:
            return file.read(_START)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be opened: {error}. Give yourself the right to read it."
        ) from error


def check_content(path: Path, start: bytes, is_text: bool = False) -> None:
    """Refuse a file that is something else than its name says.

    Args:
        path: a file.
        start: see `read_start`.
        is_text: whether a text is expected; else weights are.

    Raises:
        CheckpointError: it is empty, a pointer, a web page or another format.
    """
    if what := _what_it_is(start, is_text):
        raise CheckpointError(f"{path} {what}")


def in_place_of_a_file(start: bytes) -> str:
    """Return what a text is that stands in place of a file, and what to do; nothing of any other.

    Args:
        start: the first bytes.
    """
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((what for begin, what in _IN_PLACE if re.match(begin, text, re.DOTALL)), "")


def _what_it_is(start: bytes, is_text: bool) -> str:
    if not start:
        return f"is empty; {_DOWNLOAD}"
    if start.startswith(b"GGUF"):
        return _GGUF
    if what := in_place_of_a_file(start):
        return f"is {what}"
    is_printable = all(byte >= 32 or byte in b"\t\r\n" for byte in start[:64])
    return _TEXT if is_printable and not is_text and len(start) > 8 else ""


def explain_folder(folder: Path) -> str:
    """Return what lies in a folder in place of weights, with a space before it, or nothing."""
    try:
        entries = sorted(folder.iterdir())
    except OSError:  # there is no such folder
        return ""
    for entry in entries:
        if entry.is_symlink() and not entry.exists():
            return f" {entry.name} is a link to something that is gone: download the model again."
        for pattern, what in _FILES.items():
            if fnmatch.fnmatchcase(entry.name, pattern):
                return f" {entry.name} {what}"
    return ""


def explain_names(unknown: Iterable[str]) -> str | None:
    """Return what holds tensors of such names instead of a model's own, as the end of a sentence."""
    for name in unknown:
        for ending, program in _QUANTISED.items():
            if name.endswith(ending) or f"{ending}." in name:
                return f"was quantised by {program}, which this cannot read. {FULL_PRECISION}."
        if ".lora_" in name or ".base_layer." in name:
            return (
                "holds a LoRA adapter, alone or beside the weights that it changes. Load an adapter "
                "with Load SEED LoRA (--lora in a terminal)."
            )
    return None


def unwrapped(table: Mapping[str, Value]) -> dict[str, Value]:
    """Return a table of tensors without what wrappers of networks put into all of its names."""
    names = {name: name for name in table}
    for inside in WRAPPED_INSIDE:
        names = {name: own.replace(f"{inside}.", "") for name, own in names.items()}
    while around := _wrapper(names.values()):
        names = {name: own.removeprefix(around) for name, own in names.items()}
    if len(set(names.values())) < len(names):  # these are two networks in one file
        return dict(table)
    return {names[name]: value for name, value in table.items()}


def _wrapper(names: Collection[str]) -> str:
    """Return what stands before every name and is not part of it."""
    for around in (f"{wrapper}." for wrapper in WRAPPED_AROUND):
        if names and all(name.startswith(around) for name in names):
            return around
    is_doubled = any(name.startswith(_DOUBLED * 2) for name in names)
    return _DOUBLED if is_doubled and all(name.startswith(_DOUBLED) for name in names) else ""
