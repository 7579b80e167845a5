"""The files of an image tokenizer: which of them belong together, and what stands in them.

The published tokenizers come in pieces: SEED-2 as ``seed_quantizer.pt``, SEED-1 as
``causal_qformer.pth`` and ``seed_tokenizer.pth``, both with the vision tower apart. Knows names of
files and tensors, not what the networks compute.

Source: AILab-CVC/SEED at 93b3cf4 (SEED-2) and 9ab18ae (SEED-1).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ..errors import CheckpointError
from ..files import weights
from ..files.folder import folder_around
from ..tokenizer.config import TOKENIZER_LINK, TokenizerConfig
from . import names

EVA_VIT_LINK = (
    "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/eva_vit_g.pth"
)
SEED_1_LINK = "https://github.com/AILab-CVC/SEED/tree/v1"

VISION_TOWER_FILES = ("eva_vit_g.safetensors", "eva_vit_g.pth", "eva_vit_g.pt")
"""Names under which the vision tower may lie beside the tokenizer's own file."""

QFORMER_FILES = ("causal_qformer.safetensors", "causal_qformer.pth", "causal_qformer.pt")
"""Names under which SEED-1's first file may lie beside its second."""

_TOKENIZER_FILES = (
    "model.safetensors",
    "seed_quantizer.safetensors",
    "seed_quantizer.pt",
    "seed_tokenizer.safetensors",
    "seed_tokenizer.pth",
)


CONFIG_FILE = "config.json"


class TokenizerFiles(NamedTuple):
    """What a tokenizer is built from.

    Attributes:
        source: the tokenizer's own file.
        parts: all files, and what the names in each lack at their beginning to be upstream's. Of
            equal names the first counts.
    """

    source: Path
    config: TokenizerConfig
    parts: dict[Path, str]

    def tensors(self) -> weights.Tensors:
        """Yield all tensors by upstream's names, each once."""
        given: set[str] = set()
        for file, prefix in self.parts.items():
            for key, tensor in weights.read_tensors(file):
                if (name := prefix + key) not in given:
                    given.add(name)
                    yield name, tensor

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all tensors by upstream's names."""
        shapes: dict[str, tuple[int, ...]] = {}
        for file, prefix in reversed(self.parts.items()):
            shapes |= {prefix + k: shape for k, shape in weights.read_shapes(file).items()}
        return shapes

    def names(self, name: str) -> tuple[str | None, ...]:
        """Return upstream's names of one of our network's tensors."""
        side = "text" if self.config.embeds_text else "image"
        return names.upstream_tokenizer_names(name, side)


def open_tokenizer(path: Path) -> TokenizerFiles:
    """Find the files of a tokenizer and tell which one it is; tensors are read when asked for.

    Args:
        path: the tokenizer's own file, or the folder it lies in.

    Raises:
        CheckpointError: a missing or damaged file, or another model's.
    """
    source = _own_file(path)
    keys = set(weights.read_keys(source))
    folder = folder_around(source).require("tokenizer")
    if folder.has(CONFIG_FILE):
        config = TokenizerConfig.from_dict(folder.read_json(CONFIG_FILE))
    else:
        config = TokenizerConfig.published(keys)
    try:
        config = config.with_head_of(keys)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    parts = {source: ""}
    if config.embeds_text and (first := _beside(source, QFORMER_FILES)):
        parts[first] = ""
        keys.update(weights.read_keys(first))
    if "query_tokens" not in keys and config.embeds_text:
        raise CheckpointError(
            f"{source.name} holds no Q-Former, and causal_qformer.pth is not beside it in the folder "
            f"{source.parent}. SEED-1's page links to both: {SEED_1_LINK}"
        )
    if not any(key.startswith("visual_encoder.") for key in keys):
        parts[_vision_tower(source)] = "visual_encoder."
    return TokenizerFiles(source, config, parts)


def _own_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in _TOKENIZER_FILES:
        if (path / name).is_file():
            return path / name
    raise CheckpointError(
        f"the folder {path} holds no tokenizer: expected model.safetensors; seed_quantizer.pt from "
        f"{TOKENIZER_LINK}; or seed_tokenizer.pth and causal_qformer.pth from {SEED_1_LINK}; the "
        f"published ones with eva_vit_g.pth from {EVA_VIT_LINK}"
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
