"""The published models: where they are, which of their files are needed, and where those go.

Sizes here are rounded, as the pages show them, for a list without a connection. `plan` asks for the
exact ones.

Source: the pages named here, read on stored copies of 2024 and 2025.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..llm.vocab import VOCABULARY_FILES
from ..models.tokenizer import EVA_VIT_LINK

HUB = "https://huggingface.co"

_LLM_FILES = ("config.json", "generation_config.json", "pytorch_model*.bin*")
_TOKENIZER_REPO = "AILab-CVC/seed-tokenizer-2"
_TOKENIZER_COMMIT = "c6d957a9b280d9ed3879b1eb5d99036cf8390012"


@dataclass(frozen=True)
class HubSource:
    """Files of one repository on Hugging Face."""

    repo: str  # owner/name
    files: tuple[str, ...]  # names or patterns; each must match
    gigabytes: float | None  # of these files together; None where the page does not say
    licence: str  # as the repository states it
    commit: str | None  # whole or its first digits; with None, today's is taken and recorded
    remark: str = ""  # what to know before trusting it
    # SHA-256 of files that somebody else published first.
    known: Mapping[str, str] = field(default_factory=dict)

    @property
    def page(self) -> str:
        """The address that people open."""
        return f"{HUB}/{self.repo}"


@dataclass(frozen=True)
class WebSource:
    """One file at an address of its own, known by its hash."""

    page: str
    files: tuple[str]
    size: int
    sha256: str
    licence: str
    remark: str = ""

    @property
    def gigabytes(self) -> float:
        """The size in the unit of a `HubSource`."""
        return self.size / 1e9


Source = HubSource | WebSource


class Download(NamedTuple):
    """A model, from one source or several into one folder below ComfyUI's models folder."""

    folder: str
    sources: tuple[Source, ...]
    gigabytes: Mapping[str, float]  # of the one file that it becomes in each precision

    @property
    def published_gigabytes(self) -> float | None:
        """Of all files; None where a page does not say."""
        sizes = [source.gigabytes for source in self.sources]
        return None if None in sizes else sum(filter(None, sizes))

    @property
    def kind(self) -> str:
        """What it is: tokenizer, llm or decoder."""
        return self.folder.partition("/")[0].removeprefix("seed_")

    @property
    def shares_folder(self) -> bool:
        """Whether others of its kind lie in the same folder."""
        return "/" not in self.folder


def _llm(
    name: str, gigabytes: float | None, commit: str | None, half: float, fp8: float
) -> Download:
    weights = HubSource(f"AILab-CVC/{name}", _LLM_FILES, gigabytes, "llama2", commit)
    words = HubSource(_TOKENIZER_REPO, VOCABULARY_FILES, 0.0007, "apache-2.0", _TOKENIZER_COMMIT)
    converted = {"bf16": half, "fp16": half, "fp8": fp8}
    return Download(f"seed_llm/{name}", (weights, words), converted)


_8B, _14B = (13.6, 7.1), (26.2, 13.5)


DOWNLOADS = {
    "seed-tokenizer-2": Download(
        "seed_tokenizer",
        (
            HubSource(
                _TOKENIZER_REPO, ("seed_quantizer.pt",), 1.23, "apache-2.0", _TOKENIZER_COMMIT
            ),
            WebSource(
                EVA_VIT_LINK,
                ("eva_vit_g.pth",),
                2_025_249_237,
                "99d2bb36c6b52c94fe6e2e12373afb27de57ae81378c3d8c53bf0e83b0f4275f",
                "none stated for the file; LAVIS, which publishes it, is BSD-3-Clause",
            ),
        ),
        {"bf16": 2.3, "fp16": 2.3},
    ),
    "seed-llama-8b-sft": _llm(
        "seed-llama-8b-sft", 27.2, "2c7d1d3532caa8c6ac7d41b3696dfe9911aaed7a", *_8B
    ),
    "seed-llama-14b-sft": _llm("seed-llama-14b-sft", 26.2, "fb0b23b", *_14B),
    "seed-llama-8b-pretrain": _llm("seed-llama-8b-pretrain", None, "0c47fe7", *_8B),
    "seed-llama-14b-pretrain": _llm(
        "seed-llama-14b-pretrain", 26.2, "e74d458e91c57a82c19da6b78caa7e6ad86838a1", *_14B
    ),
    "stable-diffusion-2-1-unclip": Download(
        "seed_decoder/stable-diffusion-2-1-unclip",
        (
            HubSource(
                "sd2-community/stable-diffusion-2-1-unclip",
                (
                    "model_index.json",
                    "unet/config.json",
                    "unet/diffusion_pytorch_model.safetensors",
                    "vae/config.json",
                    "vae/diffusion_pytorch_model.safetensors",
                    "image_normalizer/config.json",
                    "image_normalizer/diffusion_pytorch_model.safetensors",
                    "image_noising_scheduler/scheduler_config.json",
                    "scheduler/scheduler_config.json",
                    "text_encoder/config.json",
                    "text_encoder/model.safetensors",
                    "tokenizer/*",
                ),
                5.2,
                "openrail++",
                None,
                "an unofficial mirror: Stability AI's own repository is gone",
                # By the page of radames/stable-diffusion-2-1-unclip-img2img, a copy that was made
                # while the first was there.
                {
                    "unet/diffusion_pytorch_model.safetensors": (
                        "902a190c84ff59777cb0ecb7cd0eb86be822e6e2687376aa744ffb2d398b0b86"
                    )
                },
            ),
        ),
        {"bf16": 1.9, "fp16": 1.9},
    ),
}
"""By the name that ``python -m seed_core fetch`` takes."""


def path_of(name: str, folder: Path, precision: str | None = None) -> Path:
    """Return where a model lies, as its loader names it.

    Args:
        name: a key of `DOWNLOADS`.
        folder: for models of its kind, such as ``models/seed_llm``.
        precision: that it was converted to; None as it is published.
    """
    download = DOWNLOADS[name]
    if precision is not None:
        return folder / f"{name}-{precision}.safetensors"
    return folder / (download.sources[0].files[0] if download.shares_folder else name)
