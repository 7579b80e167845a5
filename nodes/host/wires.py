"""Layouts of what travels on wires: IMAGE, CLIP_VISION_OUTPUT, CONDITIONING and codes."""

from typing import Any, Protocol

import comfy.clip_vision
import comfy.model_management
import torch
from comfy_execution.graph_utils import ExecutionBlocker

from ...seed_core import SeedCodes
from ...seed_core.errors import PictureError


class MakesCodes(Protocol):
    """Whatever knows the family of its codes: a tokenizer, a language model, a chat, codes."""

    @property
    def family(self) -> str: ...

    @property
    def codebook_size(self) -> int: ...


def to_wire(tensor: torch.Tensor) -> torch.Tensor:
    """Move a result to where the host keeps what travels between nodes."""
    return tensor.to(comfy.model_management.intermediate_device())


def nothing() -> Any:
    """Return what keeps the nodes behind a wire from running, without an error."""
    return ExecutionBlocker(None)


def codes_to_wire(
    values: torch.Tensor, source: MakesCodes, distances: torch.Tensor | None = None
) -> SeedCodes:
    """Codes of the family that `source` makes."""
    distances = None if distances is None else to_wire(distances)
    return SeedCodes(to_wire(values), source.family, source.codebook_size, distances)


def image_to_pixels(image: torch.Tensor) -> torch.Tensor:
    """View IMAGE [B, H, W, C] as RGB [B, 3, H, W]; grey is repeated, alpha is dropped."""
    if image.ndim != 4 or image.shape[0] == 0:
        raise PictureError(f"expected pictures [B, H, W, C], got a tensor of {tuple(image.shape)}")
    rgb = image[..., :3] if image.shape[-1] >= 3 else image[..., :1].expand(*image.shape[:3], 3)
    return rgb.movedim(-1, 1)


def pixels_to_image(pixels: torch.Tensor) -> torch.Tensor:
    """RGB [B, 3, H, W] 0..1 to IMAGE [B, H, W, 3]."""
    return to_wire(pixels.float().movedim(1, -1).contiguous())


class SeedClipVisionOutput(comfy.clip_vision.Output):
    """CLIP_VISION_OUTPUT with nothing but `image_embeds`; asked for more, it says what it is."""

    def __init__(self, image_embeds: torch.Tensor):
        self.image_embeds = image_embeds

    def __getattr__(self, name: str) -> Any:
        width = self.__dict__["image_embeds"].shape[-1] if "image_embeds" in self.__dict__ else 0
        raise AttributeError(
            f"this CLIP_VISION_OUTPUT, made or blended from SEED codes, is only an image embedding of "
            f"{width} numbers and has no {name}. It fits unCLIPConditioning with an SD 2.1 unCLIP-h "
            "checkpoint (1024 numbers), not style models, Redux or video models."
        )


def embeddings_to_clip_vision(embeddings: torch.Tensor) -> list[SeedClipVisionOutput]:
    """One object an image: the host would add up the rows of a batch."""
    return [SeedClipVisionOutput(to_wire(row[None].float())) for row in embeddings]


def embeddings_to_conditioning(embeddings: torch.Tensor) -> list[list[Any]]:
    """CONDITIONING as a text encoder makes it, of [B, T, D]: row i is for latent i of a batch."""
    return [[to_wire(embeddings), {}]]
