"""Codes that guide the artist's own SD 1.5 or SDXL model, through an IP-Adapter."""

from typing import Any

import torch
from comfy_api.latest import io

from ..seed_core import SeedCodes, SeedTokenizer, open_ip_adapter
from ..seed_core.codes.value import check_negative
from ..seed_core.decoder.embeddings import IP_ADAPTERS, require_ip_adapter
from ..seed_core.errors import CheckpointError
from . import host
from .embed import embed
from .io_types import (
    CATEGORY,
    SeedCodesWire,
    SeedTokenizerWire,
    lack_a_picture,
    no_picture,
    without_words,
)
from .kinds import IP_ADAPTER

MOST = 10.0  # of the weight, either way


class SeedIpAdapter(io.ComfyNode):
    """MODEL, combo of `models/ipadapter`, SEED_TOKENIZER, SEED_CODES -> MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SEEDIPAdapter",
            display_name="SEED IP-Adapter",
            category=CATEGORY,
            description="Guides any SD 1.5 or SDXL model by codes: by a picture, or by what SEED-LLaMA "
            "drew. Needs an IP-Adapter file and no other pack.",
            search_aliases=[
                *("IPAdapter", "IP-Adapter", "image prompt", "image codes", "style reference"),
                *("SDXL", "SD 1.5"),
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="An SD 1.5 or SDXL model, from Load Checkpoint or from another SEED "
                    "IP-Adapter: several add up.",
                ),
                io.Combo.Input(
                    "ipadapter",
                    options=IP_ADAPTER.choices(),
                    tooltip="A file in models/ipadapter. "
                    + "".join(f"For {base}: {files}. " for base, files in IP_ADAPTERS.items())
                    + "Not the plus and FaceID ones.",
                ),
                SeedTokenizerWire.Input(
                    "tokenizer",
                    tooltip="SEED-2, which the codes belong to, from Load SEED Tokenizer.",
                ),
                SeedCodesWire.Input(
                    "codes",
                    tooltip="Picture i guides latent i; of fewer pictures than latents, the first comes "
                    "again after the last.",
                ),
                SeedCodesWire.Input(
                    "negative_codes",
                    optional=True,
                    tooltip="Pictures to steer away from: one for all, or one for each picture.",
                ),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=-MOST,
                    max=MOST,
                    step=0.05,
                    tooltip="How strongly the codes guide. 0.5 leaves more to the prompt, 0 is off.",
                ),
                _share("start_at", 0.0, "begin to guide. Above 0 the prompt arranges the picture."),
                _share("end_at", 1.0, "end to guide. Below 1 the prompt paints the details."),
            ],
            outputs=[io.Model.Output("model", tooltip="The guided model, for KSampler.")],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, ipadapter: str = "") -> bool | str:
        return IP_ADAPTER.check(ipadapter)

    @classmethod
    def fingerprint_inputs(cls, ipadapter: str, **others: Any) -> str:
        return IP_ADAPTER.fingerprint(ipadapter)

    @classmethod
    def execute(
        cls,
        model: Any,
        ipadapter: str,
        tokenizer: host.LoadedModel[SeedTokenizer],
        codes: SeedCodes,
        weight: float,
        start_at: float,
        end_at: float,
        negative_codes: SeedCodes | None = None,
    ) -> io.NodeOutput:
        if lack_a_picture(codes, negative_codes):
            return no_picture()
        if weight == 0:
            return without_words(model)
        positive, negative = _embeddings(tokenizer, codes, negative_codes)
        layers = host.cross_attentions(model)
        try:
            adapter = open_ip_adapter(IP_ADAPTER.find(ipadapter))
            adapter.check_fits(layers[0].context, [layer.width for layer in layers])
            both = torch.cat((positive, negative))
            read = adapter.keys_and_values(both, host.may_map_files())
        except CheckpointError as error:
            raise IP_ADAPTER.with_advice(error) from error
        sides = [each.split(len(positive), len(negative)) for each in read]
        guided = host.add_pictures(
            model, layers, *zip(*sides, strict=True), weight, start_at, end_at
        )
        return without_words(guided)


def _share(name: str, default: float, effect: str) -> io.Float.Input:
    return io.Float.Input(
        name,
        default=default,
        min=0.0,
        max=1.0,
        step=0.01,
        tooltip=f"Share of the way from noise to a picture after which the codes {effect}",
    )


def _embeddings(
    tokenizer: host.LoadedModel[SeedTokenizer], codes: SeedCodes, negative: SeedCodes | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of both sides; without negative codes that of no picture, zeros."""
    positive = embed(tokenizer, codes, require_ip_adapter)
    if negative is None:
        return positive, torch.zeros_like(positive[:1])
    check_negative(len(codes), len(negative))
    return positive, embed(tokenizer, negative, require_ip_adapter)
