"""Codes into the image embedding they stand for, for our decoder and for the host's unCLIP nodes."""

import torch
from comfy_api.latest import io

from ..seed_core import SeedCodes
from ..seed_core.errors import CodesError
from . import host
from .io_types import CATEGORY, SeedCodesWire, SeedTokenizerWire

NO_PICTURES = (
    "there is no picture in these codes, so there is nothing to paint. If they come from SEED "
    "Generate, the reply was only text: set its reply to image."
)


def embed(tokenizer: host.LoadedModel, codes: SeedCodes) -> torch.Tensor:
    """Image embeddings [B, D] of codes."""
    if len(codes) == 0:
        raise CodesError(NO_PICTURES)
    codes.require(tokenizer.core.family, tokenizer.core.codebook_size, "This tokenizer")
    core = tokenizer.ready(tokenizer.core.memory_required(1))
    embedding: torch.Tensor = core.embed(codes)
    return embedding


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
            inputs=[
                SeedTokenizerWire.Input(
                    "tokenizer",
                    tooltip="The tokenizer the codes belong to, from Load SEED Tokenizer.",
                ),
                SeedCodesWire.Input("codes", tooltip="One embedding is made for each picture."),
            ],
            outputs=[
                io.ClipVisionOutput.Output(
                    "clip_vision_output",
                    tooltip="A list with one embedding a picture (1024 numbers with SEED-2), for "
                    "unCLIPConditioning.",
                    is_output_list=True,
                )
            ],
        )

    @classmethod
    def execute(cls, tokenizer: host.LoadedModel, codes: SeedCodes) -> io.NodeOutput:
        return io.NodeOutput(host.embeddings_to_clip_vision(embed(tokenizer, codes)))
