"""Pictures into codes, and the sample pictures that come with the pack."""

from pathlib import Path

import numpy
import torch
from comfy_api.latest import io
from PIL import Image

from ..seed_core import SeedTokenizer
from ..seed_core.codes.familiarity import summarize_distances, unfamiliar_rows
from ..seed_core.models.names import sample_pictures
from ..seed_core.tokenizer.preprocess import FITS
from . import host
from .io_types import CATEGORY, SeedCodesWire, SeedTokenizerWire
from .kinds import TOKENIZER

ALL_OF_THEM = "all of them"
FOR_PHOTOGRAPHS = (
    "For photographs and any other picture choose the SEED-2 models in all loaders: the tokenizer, "
    "SEED-LLaMA and the decoder."
)


class SeedSamplePicture(io.ComfyNode):
    """Combo of the bundled pictures -> IMAGE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SEEDSamplePicture",
            display_name="SEED Sample Picture",
            category=CATEGORY,
            description="One of the pictures that come with the pack, or all of them, so that every "
            "template runs right away. Replace it with Load Image to use your own.",
            search_aliases=["sample image", "example picture", "test image", "emoji"],
            inputs=[
                io.Combo.Input(
                    "picture",
                    options=[*sorted(sample_pictures()), ALL_OF_THEM],
                    tooltip="Which picture. Each shows something that seed-mini knows. "
                    f"{ALL_OF_THEM}: one batch, in the order of this list.",
                )
            ],
            outputs=[io.Image.Output("image", tooltip="128 x 128 pixels, one picture or a batch.")],
        )

    @classmethod
    def execute(cls, picture: str) -> io.NodeOutput:
        files = sample_pictures()
        chosen = sorted(files) if picture == ALL_OF_THEM else [picture]
        return io.NodeOutput(host.to_wire(torch.stack([_pixels(files[name]) for name in chosen])))


def _pixels(path: Path) -> torch.Tensor:
    """Read a bundled picture as float [H, W, 3] in 0..1."""
    with Image.open(path) as file:
        return torch.from_numpy(numpy.asarray(file.convert("RGB"), dtype=numpy.float32) / 255.0)


class SeedEncode(io.ComfyNode):
    """IMAGE -> SEED_CODES."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SEEDEncode",
            display_name="SEED Encode",
            category=CATEGORY,
            description="Turns each picture into 32 codes: whole numbers that say what the picture "
            "shows, not where every pixel is.",
            search_aliases=[
                *("SEED tokenizer", "image tokens", "image codes", "image to codes"),
                *("photo to codes", "describe", "tokenize image", "image variation"),
            ],
            inputs=[
                SeedTokenizerWire.Input("tokenizer", tooltip="From Load SEED Tokenizer."),
                io.Image.Input(
                    "image",
                    tooltip="One picture or a batch, of any size. Transparency is ignored.",
                ),
                io.Combo.Input(
                    "fit",
                    options=list(FITS),
                    default="stretch",
                    tooltip="How a picture is made square. stretch: squeezed, as in training. crop: "
                    "only the middle is kept. pad: bars are added.",
                ),
            ],
            outputs=[
                SeedCodesWire.Output(
                    "codes", tooltip="32 codes for each picture, in the order of the batch."
                )
            ],
            has_intermediate_output=True,  # its words come again with a run from the host's cache
        )

    @classmethod
    def execute(
        cls, tokenizer: host.LoadedModel[SeedTokenizer], image: torch.Tensor, fit: str
    ) -> io.NodeOutput:
        pixels = host.image_to_pixels(image)
        core = tokenizer.ready(tokenizer.core.memory_required(len(pixels)))
        progress = host.Progress(len(pixels))
        values, distances = core.encode_pictures(pixels, fit, on_step=progress.step)
        codes = host.codes_to_wire(values, core, distances)
        said = summarize_distances(codes)
        if unfamiliar_rows(codes):
            said = f"{said}\n\n{FOR_PHOTOGRAPHS} {TOKENIZER.how_to_get()}"
        return io.NodeOutput(codes, ui=host.say(said))
