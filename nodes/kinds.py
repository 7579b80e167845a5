"""What an artist may choose in a loader: what comes with the pack and the models found on disk.

Listing runs whenever the host describes its nodes, so it is cheap and never raises. Knows the
shape of a model on disk, not what is inside it.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ..seed_core.errors import CheckpointError
from ..seed_core.files.folder import ModelFolder
from ..seed_core.files.safetensors import SAFETENSORS_SUFFIXES
from ..seed_core.files.weights import WEIGHT_SUFFIXES
from ..seed_core.llm.lora import CONFIG_FILE as ADAPTER_CONFIG
from ..seed_core.llm.lora import SEED_MINI_NIGHT
from ..seed_core.models.convert import plan_conversion
from ..seed_core.models.llm import LLM_LINK, VOCABULARY_LINK, has_fp8_weights
from ..seed_core.models.names import SEED_MINI
from ..seed_core.models.tokenizer import (
    EVA_VIT_LINK,
    QFORMER_FILES,
    SEED_1_LINK,
    VISION_TOWER_FILES,
)
from ..seed_core.models.unclip import DECODER_LINK
from ..seed_core.tokenizer.network import TOKENIZER_LINK
from . import host

FOLDER_DEPTH = 4  # a Hugging Face cache keeps a model three folders down
TOKENIZER_SUFFIXES = set(WEIGHT_SUFFIXES)
LORA_SUFFIXES = {".safetensors"}
PARTS_OF_A_TOKENIZER = (*VISION_TOWER_FILES, *QFORMER_FILES)  # lie beside its own file
FILES_BESIDE = (*PARTS_OF_A_TOKENIZER, "config.json", ADAPTER_CONFIG)


@dataclass(frozen=True)
class ModelKind:
    """One loader's models: `what` they are, and as `advice` what to download and from where.

    `download` is what the command line's fetch calls the usual one, `bundled` what core calls the one
    that comes with the pack.
    """

    part: str
    what: str
    download: str
    folders: tuple[str, ...]
    advice: str
    bundled: str = SEED_MINI

    @property
    def folder(self) -> str:
        """The model folder that is ours, below ComfyUI's models folder."""
        return self.folders[0]

    @property
    def bundled_choice(self) -> str:
        """What a loader's combo calls the bundled one."""
        return f"{self.bundled} (bundled)"


TOKENIZER = ModelKind(
    "tokenizer",
    "SEED tokenizer, which is a .safetensors, .pt or .pth file",
    "seed-tokenizer-2",
    ("seed_tokenizer",),
    f"seed_quantizer.pt from {TOKENIZER_LINK} (SEED-2), or seed_tokenizer.pth and "
    f"causal_qformer.pth from {SEED_1_LINK} (SEED-1), with eva_vit_g.pth from {EVA_VIT_LINK} "
    "beside it",
)
LLM = ModelKind(
    "llm",
    "SEED-LLaMA, which is a folder with config.json or a converted .safetensors file",
    "seed-llama-8b-sft",
    ("seed_llm",),
    f"the whole folder of {LLM_LINK} (or seed-llama-14b-sft), with tokenizer.model and "
    f"added_tokens.json of {VOCABULARY_LINK} beside the weights",
)
DECODER = ModelKind(
    "decoder",
    "unCLIP decoder, which is a diffusers folder or a converted .safetensors file",
    "stable-diffusion-2-1-unclip",
    ("seed_decoder", "diffusers"),
    f"the whole folder of {DECODER_LINK}",
)
LORA = ModelKind(
    "lora",
    "LoRA adapter, which is a folder as peft saves it or a .safetensors file",
    "",
    ("seed_lora",),
    f"the folder of a LoRA adapter as peft saves it, with {ADAPTER_CONFIG}",
    SEED_MINI_NIGHT,
)
# The host shows only files with these endings in its own lists; "folder" is its word for folders.
SUFFIXES = {
    "seed_tokenizer": TOKENIZER_SUFFIXES,
    "seed_llm": {"folder", *SAFETENSORS_SUFFIXES},
    "seed_decoder": {"folder", *SAFETENSORS_SUFFIXES},
    "seed_lora": {"folder", *LORA_SUFFIXES},
}


def choices(kind: ModelKind) -> list[str]:
    """The options of a loader's combo; the bundled model comes first."""
    return [kind.bundled_choice, *sorted(_found(kind))]


def find(kind: ModelKind, choice: str) -> str | Path:
    """What core loads for a choice: the name of the bundled model, or a path."""
    if choice == kind.bundled_choice:
        return kind.bundled
    found = _found(kind)
    if choice not in found:
        choice = choice.replace("\\", "/")  # from a list made on Windows; ours have "/" everywhere
    if choice not in found:
        raise CheckpointError(
            f"'{choice}' {_why_not(kind, choice)}. {how_to_get(kind)} Then press R to refresh the "
            f"list, or choose '{kind.bundled_choice}' to go on without a download."
        )
    return found[choice]


def _why_not(kind: ModelKind, choice: str) -> str:
    roots = [Path(root) for folder in kind.folders for root in host.model_folders(folder)]
    if not any((root / choice).exists() for root in roots if ".." not in Path(choice).parts):
        return f"is not in models/{kind.folder}"
    return f"is no {kind.what}"


def check(kind: ModelKind, choice: str) -> bool | str:
    """Say early what is missing; a choice that arrives by wire is checked when it is loaded."""
    try:
        source = find(kind, choice) if choice else kind.bundled
        if isinstance(source, Path) and kind is not LORA:
            _check_files(kind, source, fingerprint(source))
    except CheckpointError as error:
        return str(error)
    return True


@lru_cache(maxsize=100)
def _check_files(kind: ModelKind, source: Path, state: tuple[Any, ...]) -> None:
    """Look at names and shapes of all tensors, and at every small file; `state` tells changes."""
    try:
        plan_conversion(source, torch.float32, part=kind.part)
    except CheckpointError as error:
        raise with_advice(error, kind) from error


def with_advice(error: CheckpointError, kind: ModelKind) -> CheckpointError:
    """The error with a sentence on where a whole model comes from."""
    return CheckpointError(f"{error}\n{how_to_get(kind)}")


def is_fp8(choice: str) -> bool:
    """Whether a language model is stored in fp8; what is wrong with its files is for the loader."""
    try:
        return has_fp8_weights(find(LLM, choice))
    except CheckpointError:
        return False


def fingerprint_choice(kind: ModelKind, choice: str) -> str:
    """A text that changes when the chosen model's files do, so that it is loaded again."""
    try:
        return str(fingerprint(find(kind, choice)))
    except (CheckpointError, OSError):
        return "missing"


def how_to_get(kind: ModelKind) -> str:
    """What to type, or what to put where by hand."""
    by_hand = f"Put {kind.advice}, into {host.model_folders(kind.folder)[0]}."
    if not kind.download:
        return by_hand
    command = f"python -m seed_core fetch {kind.download}"
    return f"In a terminal in this pack's folder, run {command}. Or by hand: {by_hand}"


def fingerprint(source: str | Path) -> tuple[Any, ...]:
    """Names, sizes and times of a model's files: changes when the model does."""
    if isinstance(source, str):
        return (source,)
    if source.is_dir():
        files = sorted(p for p in source.rglob("*") if p.is_file())
    else:
        beside = [source.with_name(name) for name in FILES_BESIDE]
        files = [source, *(p for p in beside if p.is_file())]
    return tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files)


def _found(kind: ModelKind) -> dict[str, Path]:
    """Name and path of every model of a kind; the first folder of the host's list wins."""
    found: dict[str, Path] = {}
    for folder in kind.folders:
        for root in host.model_folders(folder):
            for path in _models_below(kind, Path(root)):
                found.setdefault(path.relative_to(root).as_posix(), path)
    return found


def _models_below(kind: ModelKind, root: Path) -> Iterator[Path]:
    # os.walk skips what it may not read; the depth ends loops of links.
    for name, subfolders, files in os.walk(root, followlinks=True):
        folder = Path(name)
        depth = len(folder.relative_to(root).parts)
        names = sorted(n for n in subfolders if not n.startswith("."))  # .unfinished, .cache
        subfolders[:] = names if depth < FOLDER_DEPTH else []
        if depth and _is_model_folder(kind, folder, files):
            subfolders.clear()  # a model's own parts are no models
            yield folder
        else:
            yield from (folder / f for f in sorted(files) if _is_model_file(kind, folder / f))


def _is_model_folder(kind: ModelKind, folder: Path, files: list[str]) -> bool:
    if kind is DECODER:
        return _is_unclip(folder)
    return {LLM: "config.json", LORA: ADAPTER_CONFIG}.get(kind) in files


def _is_model_file(kind: ModelKind, file: Path) -> bool:
    """Tell a converted model by its header; adapters and tokenizers may be any weight file."""
    suffix = file.suffix.lower()
    if not file.is_file():  # a link to what is gone
        return False
    if suffix in SAFETENSORS_SUFFIXES:
        stat = file.stat()
        part = _converted_part(file, stat.st_size, stat.st_mtime_ns)
        if part is not None:
            return part == kind.part
    if kind is TOKENIZER:
        return suffix in TOKENIZER_SUFFIXES and file.name not in PARTS_OF_A_TOKENIZER
    return kind is LORA and suffix in LORA_SUFFIXES


@lru_cache(maxsize=1000)
def _converted_part(file: Path, size: int, mtime: int) -> str | None:
    """Which part a converted model is; size and time make the answer new when the file is."""
    try:
        return ModelFolder(file).part
    except CheckpointError:
        return None


def _is_unclip(folder: Path) -> bool:
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        return "UnCLIP" in index["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
