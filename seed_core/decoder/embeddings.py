"""Embeddings after they were made: blending two of them, and which models can take them."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from ..errors import EmbeddingError, OptionError

BLEND_MODES = ("linear", "spherical")

IP_ADAPTER_DIM = 1024  # width of CLIP ViT-H's image embedding, which IPAdapter's plain models read
IP_ADAPTERS = {
    "SD 1.5": "ip-adapter_sd15 or ip-adapter_sd15_light_v11",
    "SDXL": "ip-adapter_sdxl_vit-h",
}
"""The published files that read it, by the models they are for."""

_STRAIGHT = 1e-6  # sine of an angle that float32 cannot tell from 0 or 180 degrees


def blend_embeddings(
    a: torch.Tensor, b: torch.Tensor, factor: float, mode: str = "linear"
) -> torch.Tensor:
    """Return what lies between two embeddings ``[..., D]``, float32 on the device of ``a``.

    Linear walks the straight line, on which vectors are shorter than at its ends. Spherical turns
    from one direction to the other at constant speed while the length goes linearly from one to the
    other. Factor 0 is exactly ``a``, 1 exactly ``b``.

    Raises:
        EmbeddingError: the shapes differ, or spherical is to turn between opposite directions.
        OptionError: the factor lies outside 0..1, or `BLEND_MODES` lacks the mode.
    """
    if a.shape != b.shape:
        raise EmbeddingError(
            f"a is {list(a.shape)} and b is {list(b.shape)}: blend embeddings of as many pictures, "
            "made for the same decoder or by the same CLIP vision model"
        )
    if not 0 <= factor <= 1:
        raise OptionError(f"factor must lie in 0..1; got {factor}")
    if mode not in BLEND_MODES:
        raise OptionError(f"mode must be one of {', '.join(BLEND_MODES)}; got {mode!r}")
    a, b = a.float(), b.to(a.device).float()
    line = torch.lerp(a, b, factor)
    if mode == "linear" or factor in (0, 1):
        return line
    return _arc(a, b, factor, line)


def _arc(a: torch.Tensor, b: torch.Tensor, factor: float, line: torch.Tensor) -> torch.Tensor:
    """Turn from a to b; rows that need no turning are those of the line."""
    # Those point the same way, or one of them is zero and has no direction.
    norm_a, norm_b = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)  # [..., 1]
    toward_a, toward_b = normalize(a, dim=-1), normalize(b, dim=-1)
    cosine = (toward_a * toward_b).sum(-1, keepdim=True)
    aside = toward_b - cosine * toward_a  # b's direction without its share of a's
    sine = aside.norm(dim=-1, keepdim=True)
    is_straight = (sine < _STRAIGHT) | (norm_a == 0)
    if (is_straight & (cosine < 0)).any():
        raise EmbeddingError(
            "a and b point in opposite directions, and no way around is shorter than another: "
            "choose linear"
        )
    # Unlike the textbook's sin(t angle) / sin(angle), this loses nothing near 0 and 180 degrees.
    angle = factor * torch.atan2(sine, cosine)
    direction = angle.cos() * toward_a + angle.sin() * normalize(aside, dim=-1)
    return torch.where(is_straight, line, torch.lerp(norm_a, norm_b, factor) * direction)


def require_image_embedding(shape: tuple[int, ...], family: str) -> None:
    """Check that a family's codes become one image embedding, by the shape of one picture's.

    Raises:
        EmbeddingError: they become a text condition.
    """
    if len(shape) != 1:
        raise EmbeddingError(
            f"the {family} tokenizer makes no image embedding but a text condition of "
            f"{shape[0]} x {shape[1]} numbers: use SEED Codes to Conditioning and an SD 1.x model, "
            "or load the SEED-2 tokenizer and encode the pictures with it"
        )


def require_text_condition(shape: tuple[int, ...], family: str) -> None:
    """Check that a family's codes become a condition for SD 1.x, as its text encoder makes them.

    Raises:
        EmbeddingError: they become an image embedding.
    """
    if len(shape) != 2:
        raise EmbeddingError(
            f"only the SEED-1 tokenizer makes conditioning for SD 1.x models; the {family} one "
            f"makes an image embedding of {shape[0]} numbers. Use SEED Codes to Embedding with "
            "unCLIPConditioning, or SEED Decode"
        )


def fitting_ip_adapters() -> str:
    """Return which published files read SEED-2's embeddings, as a part of a sentence."""
    return " and ".join(f"{files} for {base}" for base, files in IP_ADAPTERS.items())


def require_ip_adapter(shape: tuple[int, ...], family: str) -> None:
    """Check that IPAdapter can read a family's image embeddings.

    Raises:
        EmbeddingError: they are text conditions, or of another width.
    """
    require_image_embedding(shape, family)
    if shape[0] != IP_ADAPTER_DIM:
        raise EmbeddingError(
            f"IPAdapter reads image embeddings of {IP_ADAPTER_DIM} numbers, and those of the "
            f"{family} tokenizer have {shape[0]}: load the SEED-2 tokenizer. Its embeddings fit "
            f"{fitting_ip_adapters()}, not the plus versions."
        )
