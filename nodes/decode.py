"""Codes back into pictures, painted by an unCLIP decoder."""

from functools import partial
from typing import Any

import torch
from comfy_api.latest import io

from ..seed_core import (
    DecodeOptions,
    SeedCodes,
    SeedDecoder,
    SeedTokenizer,
    seeded_generators,
)
from ..seed_core.codes.value import check_negative
from ..seed_core.decoder.embeddings import require_image_embedding
from ..seed_core.errors import CodesError
from . import host
from .embed import embed
from .io_types import (
    CATEGORY,
    SeedCodesWire,
    SeedDecoderWire,
    SeedTokenizerWire,
    lack_a_picture,
    no_picture,
    random_seed_input,
    without_words,
)

LONGEST_SIDE = 2048  # pixels


def _source_inputs() -> list[Any]:
    return [
        SeedTokenizerWire.Input(
            "tokenizer", tooltip="The tokenizer the codes belong to, from Load SEED Tokenizer."
        ),
        SeedDecoderWire.Input("decoder", tooltip="From Load SEED Decoder."),
        SeedCodesWire.Input(
            "codes", tooltip="One picture is painted for each row of 32 codes, in order."
        ),
        SeedCodesWire.Input(
            "negative_codes",
            optional=True,
            tooltip="A picture to steer away from: one for all, or one for each picture.",
        ),
    ]


def _painting_inputs() -> list[Any]:
    return [
        random_seed_input("paints the same picture. Picture i uses seed + i."),
        io.Int.Input(
            "steps",
            default=20,
            min=1,
            max=1000,
            tooltip="Diffusion steps. The reference uses 20; more steps are slower and finer.",
        ),
        io.Float.Input(
            "guidance_scale",
            default=-1.0,
            min=-1.0,
            max=50.0,
            step=0.1,
            tooltip="How closely the picture follows the codes. -1 is the decoder's own: 10 for SD "
            "2.1 unCLIP, 2 for seed-mini. 0 to 1 switches guidance off.",
        ),
    ]


def _rare_inputs() -> list[Any]:
    size = "of the picture in pixels, a multiple of 8 (of 32 with seed-mini). 0 is the decoder's "
    size += "own size: 768 for SD 2.1 unCLIP, 128 for seed-mini."
    return [
        io.Int.Input(
            "noise_level",
            default=0,
            min=0,
            max=999,
            tooltip="Noise added to the embedding, 0 to 999. More noise gives looser variations "
            "of the same picture.",
            advanced=True,
        ),
        *(
            io.Int.Input(
                side,
                default=0,
                min=0,
                max=LONGEST_SIDE,
                step=8,
                tooltip=f"{side.capitalize()} {size}",
                advanced=True,
            )
            for side in ("width", "height")
        ),
    ]


class SeedDecode(io.ComfyNode):
    """SEED_CODES -> IMAGE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SEEDDecode",
            display_name="SEED Decode",
            category=CATEGORY,
            description="Paints a picture from codes. It shows the same things as the original, "
            "but never the same pixels.",
            search_aliases=[
                *("SEED decoder", "unCLIP", "image codes", "codes to image", "paint", "draw"),
                *("text to image", "image variation"),
            ],
            inputs=[*_source_inputs(), *_painting_inputs(), *_rare_inputs()],
            outputs=[io.Image.Output("image", tooltip="One picture for each row of codes.")],
            has_intermediate_output=True,  # its words come again with a run from the host's cache
        )

    @classmethod
    def validate_inputs(cls, width: int | None = None, height: int | None = None) -> bool | str:
        """A side that arrives by wire is None here. The host leaves the check of both to this."""
        for name, side in (("width", width), ("height", height)):
            if side is not None and side > LONGEST_SIDE:
                return f"{name} must be {LONGEST_SIDE} pixels at most; got {side}"
        return host.message_of(lambda: DecodeOptions(width=width or 0, height=height or 0))

    @classmethod
    def execute(
        cls,
        tokenizer: host.LoadedModel[SeedTokenizer],
        decoder: host.LoadedModel[SeedDecoder],
        codes: SeedCodes,
        seed: int,
        steps: int,
        guidance_scale: float,
        noise_level: int,
        width: int,
        height: int,
        negative_codes: SeedCodes | None = None,
    ) -> io.NodeOutput:
        if lack_a_picture(codes, negative_codes):
            return no_picture()
        options = DecodeOptions(
            num_inference_steps=steps,
            guidance_scale=None if guidance_scale < 0 else guidance_scale,
            noise_level=noise_level,
            width=width,
            height=height,
        )
        return without_words(paint(tokenizer, decoder, codes, options, seed, negative_codes))


def paint(
    tokenizer: host.LoadedModel[SeedTokenizer],
    decoder: host.LoadedModel[SeedDecoder],
    codes: SeedCodes,
    options: DecodeOptions,
    seed: int = 0,
    negative_codes: SeedCodes | None = None,
    has_preview: bool = True,
) -> torch.Tensor:
    """IMAGE [B, H, W, 3] of codes."""
    require_match(tokenizer, decoder, codes, negative_codes)
    decoder.core.check_work(len(codes), options)
    embedding = embed(tokenizer, codes)
    negative = None if negative_codes is None else embed(tokenizer, negative_codes)
    core = decoder.ready(decoder.core.memory_required(options.width, options.height))
    progress = host.Progress(len(codes) * options.num_inference_steps)
    colours = host.latent_colours(core) if has_preview else None
    pixels: torch.Tensor = core.decode(
        embedding,
        negative=negative,
        options=options,
        generator=seeded_generators(seed, len(codes)),
        on_step=progress.step,
        make_room=decoder.ready,
        on_look=None if colours is None else partial(progress.picture, colours=colours),
    )
    return host.pixels_to_image(pixels)


def require_match(
    tokenizer: host.LoadedModel[SeedTokenizer],
    decoder: host.LoadedModel[SeedDecoder],
    codes: SeedCodes,
    negative_codes: SeedCodes | None,
) -> None:
    """Say what does not fit together before anything is computed."""
    core = tokenizer.core
    require_image_embedding(core.embedding_shape, core.family)
    (made,), wanted = core.embedding_shape, decoder.core.embedding_dim
    if made != wanted:
        raise CodesError(
            f"this decoder paints from embeddings of {wanted} numbers, but the "
            f"{core.family} tokenizer makes {made}: load the decoder that belongs to it."
        )
    if negative_codes is not None:
        check_negative(len(codes), len(negative_codes))
