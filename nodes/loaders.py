"""The three loaders: a choice on disk becomes a model on a wire.

Weights go to the host's offload device here; a node that computes asks the host for room and has
them brought to the device then.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io

from ..seed_core import SeedLLM, load_decoder, load_llm, load_tokenizer
from ..seed_core.compute import precision
from ..seed_core.errors import CheckpointError
from . import host
from .io_types import CATEGORY, SeedDecoderWire, SeedLlmWire, SeedTokenizerWire
from .kinds import DECODER, LLM, TOKENIZER, ModelKind, is_fp8, state_of

PRECISIONS = ["auto", *precision.PRECISIONS]
LLM_PRECISIONS = ["auto", "bf16", "fp16", "fp32", "fp8"]
# Layers that the host can keep in main memory and stream to the card.
CASTING = {"operations": host.cast_operations()}


def _load(
    core_loader: Callable[..., host.Core],
    kind: ModelKind,
    source: str | Path,
    dtype: torch.dtype,
    options: dict[str, Any],
    longest_work: Callable[[host.Core], int] | None = None,
) -> io.NodeOutput:
    load = partial(core_loader, source, dtype=dtype, is_mapped=host.may_map_files(), **options)
    key = (kind.folder, dtype, state_of(source))
    try:
        return io.NodeOutput(host.load_model(load, key, longest_work))
    except CheckpointError as error:
        raise kind.with_advice(error) from error


def _longest_reply(llm: SeedLLM) -> int:
    return llm.memory_required(llm.config.max_position_embeddings)


def _precision(options: list[str], usual: str, more: str = "") -> io.Combo.Input:
    return io.Combo.Input(
        "precision",
        options=options,
        default="auto",
        tooltip=f"Number format of the computation. auto: fp32 on a CPU, {usual} on a graphics "
        f"card that is fast at it. {more}Change it only to save memory or to compare.",
        advanced=True,
    )


class SeedTokenizerLoader(io.ComfyNode):
    """Combo of `models/seed_tokenizer` -> SEED_TOKENIZER."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SEEDTokenizerLoader",
            display_name="Load SEED Tokenizer",
            category=CATEGORY,
            description="Loads the model that turns a picture into 32 codes, and codes into the "
            "embedding that a decoder paints from.",
            search_aliases=["SEED tokenizer", "image tokens", "image codes", "image encoder"],
            inputs=[
                io.Combo.Input(
                    "tokenizer",
                    options=TOKENIZER.choices(),
                    default=TOKENIZER.bundled_choice,
                    tooltip="A SEED-2 or SEED-1 file in models/seed_tokenizer. seed-mini comes with "
                    "the pack: a miniature that knows 192 emoji-like things, enough to try every "
                    "workflow.",
                ),
                _precision(PRECISIONS, "fp16"),
            ],
            outputs=[
                SeedTokenizerWire.Output(
                    "tokenizer",
                    tooltip="The loaded tokenizer. Tokenizer, language model and decoder must "
                    "belong to one family (seed-mini with seed-mini, SEED-2 with SEED-LLaMA).",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, tokenizer: str = "") -> bool | str:
        return TOKENIZER.check(tokenizer)

    @classmethod
    def fingerprint_inputs(cls, tokenizer: str, precision: str) -> str:
        return TOKENIZER.fingerprint(tokenizer)

    @classmethod
    def execute(cls, tokenizer: str, precision: str) -> io.NodeOutput:
        # The reference runs SEED-2's tokenizer and decoder in fp16.
        dtype = host.choose_dtype(precision, "fp16")
        return _load(load_tokenizer, TOKENIZER, TOKENIZER.find(tokenizer), dtype, CASTING)


class SeedLlamaLoader(io.ComfyNode):
    """Combo of `models/seed_llm` -> SEED_LLM."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SEEDLLaMALoader",
            display_name="Load SEED LLM",
            category=CATEGORY,
            description="Loads the language model that reads and writes text and picture codes.",
            search_aliases=[
                *("SEED-LLaMA", "multimodal LLM", "vision language model", "VLM", "caption model"),
                *("draw", "describe", "VQA"),
            ],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=LLM.choices(),
                    default=LLM.bundled_choice,
                    tooltip="A Hugging Face folder inside models/seed_llm (with config.json and "
                    "weights), or a converted file. seed-mini comes with the pack.",
                ),
                _precision(
                    LLM_PRECISIONS,
                    "bf16",
                    "fp8 needs a model that was converted to fp8 (see the help page); on a "
                    "graphics card, auto uses fp8 for such a model. ",
                ),
            ],
            outputs=[SeedLlmWire.Output("llm", tooltip="The loaded model, for SEED Generate.")],
        )

    @classmethod
    def validate_inputs(cls, model: str = "") -> bool | str:
        return LLM.check(model)

    @classmethod
    def fingerprint_inputs(cls, model: str, precision: str) -> str:
        return LLM.fingerprint(model)

    @classmethod
    def execute(cls, model: str, precision: str) -> io.NodeOutput:
        source, options = LLM.find(model), CASTING
        wanted = precision == "fp8" or (precision == "auto" and host.prefers_fp8())
        if wanted and is_fp8(source):
            precision, options = "fp8", {"operations": host.fp8_operations()}
        dtype = host.choose_dtype(precision, "bf16")  # in which the reference was trained
        return _load(load_llm, LLM, source, dtype, options, _longest_reply)


class SeedDecoderLoader(io.ComfyNode):
    """Combo of unCLIP folders -> SEED_DECODER."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SEEDDecoderLoader",
            display_name="Load SEED Decoder",
            category=CATEGORY,
            description="Loads the diffusion model that paints a picture from an image embedding "
            "(a diffusers unCLIP folder).",
            search_aliases=["unCLIP", "SEED decoder", "SEED de-tokenizer", "text to image"],
            inputs=[
                io.Combo.Input(
                    "decoder",
                    options=DECODER.choices(),
                    default=DECODER.bundled_choice,
                    tooltip="A diffusers unCLIP folder (with model_index.json) inside "
                    "models/seed_decoder or models/diffusers, or a converted file. seed-mini "
                    "comes with the pack.",
                ),
                _precision(PRECISIONS, "fp16"),
            ],
            outputs=[
                SeedDecoderWire.Output("decoder", tooltip="The loaded decoder, for SEED Decode.")
            ],
        )

    @classmethod
    def validate_inputs(cls, decoder: str = "") -> bool | str:
        return DECODER.check(decoder)

    @classmethod
    def fingerprint_inputs(cls, decoder: str, precision: str) -> str:
        return DECODER.fingerprint(decoder)

    @classmethod
    def execute(cls, decoder: str, precision: str) -> io.NodeOutput:
        dtype = host.choose_dtype(precision, "fp16")
        return _load(load_decoder, DECODER, DECODER.find(decoder), dtype, CASTING)
