"""Codes into the embedding they stand for: for our decoder, unCLIP, IPAdapter, SD 1.x; blending."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from comfy_api.latest import io

from ..seed_core import SeedCodes, SeedTokenizer
from ..seed_core.codes.value import MOST_AT_ONCE, check_count
from ..seed_core.decoder.embeddings import (
    BLEND_MODES,
    blend_embeddings,
    require_image_embedding,
    require_ip_adapter,
    require_text_condition,
)
from ..seed_core.errors import CodesError
from . import host
from .io_types import (
    CATEGORY,
    NO_PICTURE,
    IpAdapterEmbeds,
    SeedCodesWire,
    SeedTokenizerWire,
    no_picture,
    without_words,
)


def embed(
    tokenizer: host.LoadedModel[SeedTokenizer],
    codes: SeedCodes,
    check: Callable[[tuple[int, ...], str], None] = require_image_embedding,
) -> torch.Tensor:
    """Embeddings [B, ...] of codes; `check` refuses a tokenizer whose embeddings have no use here."""
    if len(codes) == 0:
        raise CodesError(NO_PICTURE)
    check_count(len(codes), MOST_AT_ONCE, "these are")
    codes.require(tokenizer.core.family, tokenizer.core.codebook_size, "This tokenizer")
    check(tokenizer.core.embedding_shape, tokenizer.core.family)
    core = tokenizer.ready(tokenizer.core.memory_required(1), tokenizer.core.module.embedder)
    embedding: torch.Tensor = core.embed(codes)
    return embedding


def _embedding_inputs(tokenizer: str = "The tokenizer the codes belong to") -> list[Any]:
    return [
        SeedTokenizerWire.Input("tokenizer", tooltip=f"{tokenizer}, from Load SEED Tokenizer."),
        SeedCodesWire.Input("codes", tooltip="One embedding is made for each picture."),
    ]


class SeedCodesToEmbedding(io.ComfyNode):
    """SEED_CODES -> a list of CLIP_VISION_OUTPUT."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SEEDCodesToEmbedding",
            display_name="SEED Codes to Embedding",
            category=CATEGORY,
            description="Turns codes into CLIP vision embeddings for unCLIPConditioning, to paint "
            "with an SD 2.1 unCLIP-h checkpoint in your own sampling graph.",
            search_aliases=["unCLIP", "image codes", "CLIP vision", "image embedding"],
            inputs=_embedding_inputs(),
            outputs=[
                io.ClipVisionOutput.Output(
                    "clip_vision_output",
                    tooltip="A list with one embedding per picture (1024 numbers with SEED-2), for "
                    "unCLIPConditioning.",
                    is_output_list=True,
                )
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, tokenizer: host.LoadedModel[SeedTokenizer], codes: SeedCodes) -> io.NodeOutput:
        if not len(codes):
            return no_picture()
        return without_words(host.embeddings_to_clip_vision(embed(tokenizer, codes)))


class SeedCodesToIpAdapter(io.ComfyNode):
    """SEED_CODES -> EMBEDS for IPAdapter, and zeros for its negative."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SEEDCodesToIPAdapter",
            display_name="SEED Codes to IPAdapter",
            category=CATEGORY,
            description="Turns codes into embeddings for the node IPAdapter Embeds, to guide any "
            "SD 1.5 or SDXL model by a picture or by what SEED-LLaMA drew.",
            search_aliases=["IPAdapter", "IP-Adapter", "image codes", "image embedding"],
            inputs=_embedding_inputs(),
            outputs=[
                IpAdapterEmbeds.Output(
                    "pos_embed",
                    tooltip="One embedding of 1024 numbers per picture, for pos_embed of IPAdapter "
                    "Embeds.",
                ),
                IpAdapterEmbeds.Output(
                    "neg_embed",
                    tooltip="As many zeros, for neg_embed of the same node. Connect it as well.",
                ),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, tokenizer: host.LoadedModel[SeedTokenizer], codes: SeedCodes) -> io.NodeOutput:
        if not len(codes):
            return no_picture(outputs=2)
        embedding = host.to_wire(embed(tokenizer, codes, require_ip_adapter))
        return without_words(embedding, torch.zeros_like(embedding))


class SeedCodesToConditioning(io.ComfyNode):
    """SEED_CODES of SEED-1 -> CONDITIONING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SEEDCodesToConditioning",
            display_name="SEED Codes to Conditioning",
            category=CATEGORY,
            description="Turns SEED-1 codes into conditioning that takes the place of a prompt, for "
            "KSampler with any SD 1.x model.",
            search_aliases=["SEED-1", "image prompt", "image codes", "codes to prompt"],
            inputs=_embedding_inputs("A SEED-1 tokenizer"),
            outputs=[
                io.Conditioning.Output(
                    "conditioning",
                    tooltip="For positive of KSampler; for negative, use CLIP Text Encode with an "
                    "empty text. With several pictures, picture i guides latent i: give Empty "
                    "Latent Image the same batch_size.",
                )
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, tokenizer: host.LoadedModel[SeedTokenizer], codes: SeedCodes) -> io.NodeOutput:
        if not len(codes):
            return no_picture()
        condition = embed(tokenizer, codes, require_text_condition)
        return without_words(host.embeddings_to_conditioning(condition))


class SeedBlendEmbeddings(io.ComfyNode):
    """Two CLIP_VISION_OUTPUT -> one between them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        end = "from SEED Codes to Embedding or CLIP Vision Encode."
        return io.Schema(
            node_id="SEEDBlendEmbeddings",
            display_name="SEED Blend Embeddings",
            category=CATEGORY,
            description="Makes an embedding between those of two pictures, such as a fox on its way "
            "to an owl, to paint with unCLIPConditioning.",
            search_aliases=["interpolate", "slerp", "mix pictures", "unCLIP", "morph"],
            inputs=[
                io.ClipVisionOutput.Input("a", tooltip=f"Where the blend begins, {end}"),
                io.ClipVisionOutput.Input("b", tooltip=f"Where the blend ends, {end}"),
                io.Float.Input(
                    "factor",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="0 is a, 1 is b, 0.5 is halfway.",
                ),
                io.Combo.Input(
                    "mode",
                    options=list(BLEND_MODES),
                    default="linear",
                    tooltip="linear: the average, which is weaker halfway between unlike pictures. "
                    "spherical: turns from one to the other and keeps the strength.",
                ),
            ],
            outputs=[
                io.ClipVisionOutput.Output(
                    "clip_vision_output", tooltip="The embedding between, for unCLIPConditioning."
                )
            ],
        )

    @classmethod
    def execute(
        cls, a: Any, b: Any, factor: float, mode: Literal["linear", "spherical"]
    ) -> io.NodeOutput:
        blended = blend_embeddings(a.image_embeds, b.image_embeds, factor, mode)
        return io.NodeOutput(host.SeedClipVisionOutput(host.to_wire(blended)))
