"""Opening and loading an image tokenizer.

The published ones come in pieces: SEED-2 as ``seed_quantizer.pt``, SEED-1 as
``causal_qformer.pth`` and ``seed_tokenizer.pth``, both with the vision tower apart.

Source: AILab-CVC/SEED at 93b3cf4 (SEED-2) and 9ab18ae (SEED-1).
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import CheckpointError
from ..files import foreign, weights
from ..files.assemble import EmptyNetwork
from ..files.folder import folder_around
from ..tokenizer.config import TOKENIZER_LINK, TokenizerConfig
from ..tokenizer.network import TokenizerModel
from ..tokenizer.runtime import SeedTokenizer
from . import names
from .names import CONFIG_FILE
from .opened import Opened

EVA_VIT_LINK = (
    "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/eva_vit_g.pth"
)
SEED_1_LINK = "https://github.com/AILab-CVC/SEED/tree/v1"

# Names under which the vision tower may lie beside the tokenizer's own file.
VISION_TOWER_FILES = ("eva_vit_g.safetensors", "eva_vit_g.pth", "eva_vit_g.pt")

# Names under which SEED-1's first file may lie beside its second.
QFORMER_FILES = ("causal_qformer.safetensors", "causal_qformer.pth", "causal_qformer.pt")

_TOKENIZER_FILES = (
    "model.safetensors",
    "seed_quantizer.safetensors",
    "seed_quantizer.pt",
    "seed_tokenizer.safetensors",
    "seed_tokenizer.pth",
)


@dataclass(frozen=True, kw_only=True)
class OpenedTokenizer(Opened):
    """An image tokenizer on disk."""

    config: TokenizerConfig


def load_tokenizer(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    operations: Any = nn,
    is_mapped: bool = True,
) -> SeedTokenizer:
    """Load an image tokenizer.

    Args:
        path: see `open_tokenizer`.
        device: where to put the weights.
        dtype: float32, float16 or bfloat16.
        operations: where layers come from, ``torch.nn`` or a host's equivalent.
        is_mapped: whether files may be mapped into memory; see `files.weights.read_tensors`.

    Raises:
        CheckpointError: a file is missing, damaged, unsafe, incomplete or another model's.
    """
    device = torch.device(device)
    opened = open_tokenizer(path, dtype, operations)
    return SeedTokenizer(opened.config, opened.load(device, is_mapped), device, dtype)


def open_tokenizer(
    path: str | Path, dtype: torch.dtype = torch.float32, operations: Any = nn
) -> OpenedTokenizer:
    """Find the files of a tokenizer, tell which one it is, and check that they are all there.

    Args:
        path: ``"seed-mini"`` for the bundled one; a weight file; or a folder that holds one. The
            published ``seed_quantizer.pt`` needs ``eva_vit_g.pth`` beside it, SEED-1's
            ``seed_tokenizer.pth`` also ``causal_qformer.pth``. A ``config.json`` beside the file
            gives its sizes; without one they are the published ones.
        dtype: of the network.
        operations: where its layers come from.

    Raises:
        CheckpointError: a file is missing, damaged, incomplete or another model's.
    """
    source = _own_file(names.place_of(path, "tokenizer"))
    look = weights.looks()
    keys = {key for key, _ in look(source, "")}
    config = _config(source, keys)
    files = {source: ""}  # what the names in each lack at their beginning to be upstream's
    if config.embeds_text and (first := _beside(source, QFORMER_FILES)):
        files[first] = ""
        keys.update(key for key, _ in look(first, ""))
    if "query_tokens" not in keys and config.embeds_text:
        raise CheckpointError(
            f"{source.name} holds no Q-Former, and causal_qformer.pth is not beside it in the folder "
            f"{source.parent}. SEED-1's page links to both: {SEED_1_LINK}"
        )
    if not any(key.startswith("visual_encoder.") for key in keys):
        files[_vision_tower(source)] = "visual_encoder."

    def stream(read: weights.Reader) -> weights.Tensors:
        given: set[str] = set()
        for file, prefix in files.items():
            for key, tensor in read(file, ""):
                if (name := prefix + key) not in given:  # the tokenizer's own file comes first
                    given.add(name)
                    yield name, tensor

    side = "text" if config.embeds_text else "image"
    network = EmptyNetwork(
        lambda layers: TokenizerModel(config, layers, device="meta", dtype=dtype),
        operations,
        source,
        lambda name: names.upstream_tokenizer_names(name, side),
    )
    return OpenedTokenizer(
        kind="tokenizer",
        source=source,
        files={CONFIG_FILE: json.dumps(config.to_dict(), indent=1).encode()},
        weights=tuple(files),
        network=network,
        stream=stream,
        look=look,
        config=config,
    )


def _config(source: Path, keys: Collection[str]) -> TokenizerConfig:
    """Return the sizes of a tokenizer: those of its config.json, or the published ones."""
    folder = folder_around(source).require("tokenizer")
    if folder.has(CONFIG_FILE):
        config = TokenizerConfig.from_dict(folder.read_json(CONFIG_FILE))
    else:
        config = TokenizerConfig.published(keys)
    try:
        return config.with_head_of(keys)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error


def _own_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in _TOKENIZER_FILES:
        if (path / name).is_file():
            return path / name
    raise CheckpointError(
        f"the folder {path} holds no tokenizer: expected model.safetensors; seed_quantizer.pt from "
        f"{TOKENIZER_LINK}; or seed_tokenizer.pth and causal_qformer.pth from {SEED_1_LINK}; the "
        f"published ones with eva_vit_g.pth from {EVA_VIT_LINK}.{foreign.explain_folder(path)}"
    )


def _beside(source: Path, names: tuple[str, ...]) -> Path | None:
    files = (source.with_name(name) for name in names)
    return next((file for file in files if file.is_file()), None)


def _vision_tower(source: Path) -> Path:
    if tower := _beside(source, VISION_TOWER_FILES):
        return tower
    raise CheckpointError(
        f"{source.name} holds no vision tower, and eva_vit_g.pth is not beside it in the "
        f"folder {source.parent}. Download it there: {EVA_VIT_LINK}"
    )
