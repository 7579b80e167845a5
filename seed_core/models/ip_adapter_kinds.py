"""What is not an IP-Adapter for one image embedding of CLIP ViT-H, told by names and shapes.

Sources: tencent-ailab/IP-Adapter at 62e4af9 and the files of huggingface.co/h94/IP-Adapter, its
FaceID models, XLabs-AI/flux-ip-adapter and InstantX's IP-Adapters.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..decoder.embeddings import IP_ADAPTER_DIM

_PROJECTION = "image_proj.proj.weight"

# Parts of tensor names to what has them, as the end of a sentence; the first that is found is said.
_KINDS = {
    ".to_k_lora.": "is an IP-Adapter FaceID, which reads a face, not a picture.",
    ".to_q_lora.": "is an IP-Adapter FaceID, which reads a face, not a picture.",
    "image_proj.perceiver_resampler.": "is an IP-Adapter FaceID plus, which reads a face, not a picture.",
    "image_proj.latents": "is an IP-Adapter plus, which reads all that CLIP sees, place by place; "
    "codes become one embedding of the whole picture.",
    "ip_adapter_proj_model.": "is an IP-Adapter for Flux; this node is for SD 1.5 and SDXL.",
    "double_blocks.": "is for Flux, and no IP-Adapter for SD 1.5 or SDXL.",
    "control_model.": "is a ControlNet, not an IP-Adapter.",
    "controlnet_": "is a ControlNet, not an IP-Adapter.",
    "zero_convs.": "is a ControlNet, not an IP-Adapter.",
    "input_hint_block.": "is a ControlNet, not an IP-Adapter.",
    "lora_": "is a LoRA, not an IP-Adapter; Load LoRA applies it.",
    "model.diffusion_model.": "is a checkpoint, not an IP-Adapter; Load Checkpoint loads it.",
    "vision_model.": "is a CLIP vision model, which is not needed here, and not an IP-Adapter.",
    "visual.": "is a CLIP vision model, which is not needed here, and not an IP-Adapter.",
}
_SEVERAL_LAYERS = "image_proj.proj.0.weight"
_OF_PLACES = 1280  # width of what CLIP ViT-H sees at each place

# Widths of image embeddings to what makes them.
_MAKERS = {
    512: "a face recogniser (FaceID)",
    768: "CLIP ViT-L",
    1152: "SigLIP",
    1280: "CLIP ViT-bigG",
}


def why_not(looks: Mapping[str, torch.Tensor]) -> str:
    """Return what a file is instead, as the end of a sentence; nothing of one that may be right.

    Args:
        looks: its tensors, or their stand-ins.
    """
    for part, kind in _KINDS.items():
        if any(part in key for key in looks):
            return kind
    if _SEVERAL_LAYERS in looks:
        return _of_several_layers(looks[_SEVERAL_LAYERS])
    if not all(any(part in key for key in looks) for part in ("image_proj.", ".to_k_ip.")):
        names = ", ".join(f"{key:.80}" for key in list(looks)[:3])
        return f"holds no IP-Adapter; its tensors have names such as {names}."
    if _PROJECTION not in looks or (width := _width(looks[_PROJECTION])) == IP_ADAPTER_DIM:
        return ""
    return _of_others(width)


def _of_several_layers(first: torch.Tensor) -> str:
    width = _width(first)
    if width == _OF_PLACES:
        return (
            "is an IP-Adapter full face, which reads all that CLIP sees, place by place; codes become "
            "one embedding of the whole picture."
        )
    if width == IP_ADAPTER_DIM:
        return "is an IP-Adapter of another form: its projection has several layers, and should have one."
    return _of_others(width)


def _of_others(width: int) -> str:
    maker = _MAKERS.get(width, "another model")
    return (
        f"is an IP-Adapter for embeddings of {width} numbers, which {maker} makes; SEED-2's are CLIP "
        f"ViT-H's, of {IP_ADAPTER_DIM}."
    )


def _width(weight: torch.Tensor) -> int:
    return weight.shape[-1] if weight.dim() else 0
