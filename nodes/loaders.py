"""The three loaders: a choice on disk becomes a model on a wire.

Weights go to the host's offload device here; a node that computes asks the host for room and has
them brought to the device then.
"""

from functools import partial
from typing import Any

from comfy_api.latest import io

from ..seed_core import load_decoder, load_llm, load_tokenizer
from ..seed_core.errors import CheckpointError
from . import host, model_files
from .io_types import CATEGORY, SeedDecoderWire, SeedLlmWire, SeedTokenizerWire
from .model_files import DECODER, LLM, TOKENIZER, ModelKind

PRECISIONS = ["auto", "fp32", "fp16", "bf16"]
LLM_PRECISIONS = ["auto", "bf16", "fp16", "fp32", "fp8"]
# The reference runs SEED-2's tokenizer and decoder in fp16 and trained the language model in bf16.
PREFERRED_DTYPE = {TOKENIZER: "fp16", DECODER: "fp16", LLM: "bf16"}

# Layers that the host can keep in main memory and stream to the card.
CASTING = {"operations": host.cast_operations()}


def _load(core_loader: Any, kind: ModelKind, choice: str, precision: str, **options: Any) -> Any:
    source = model_files.find(kind, choice)
    dtype = host.choose_dtype(precision, PREFERRED_DTYPE[kind])
    load = partial(core_loader, source, dtype=dtype, **options)
    try:
        key = (kind.folder, dtype, model_files.fingerprint(source))
        return host.load_model(load, key, keep_whole=kind is LLM)
    except CheckpointError as error:
        raise model_files.with_advice(error, kind) from error


def _precision(options: list[str], usual: str, more: str = "") -> io.Combo.Input:
    return io.Combo.Input(
        "precision",
        options=options,
        default="auto",
        tooltip=f"Number format of the weights while they compute. auto: fp32 on a CPU, {usual} on "
        f"a graphics card that is fast at it. {more}Change it only to save memory or to compare.",
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
            "embedding a decoder paints from.",
            search_aliases=["SEED tokenizer", "image tokens", "image codes"],
            inputs=[
                io.Combo.Input(
                    "tokenizer",
                    options=model_files.choices(TOKENIZER),
                    default=TOKENIZER.bundled_choice,
                    tooltip="A file of models/seed_tokenizer, of SEED-2 or SEED-1. seed-mini comes with "
                    "the pack: a miniature that knows 192 emoji-like things, to try every workflow.",
                ),
                _precision(PRECISIONS, "fp16"),
            ],
            outputs=[
                SeedTokenizerWire.Output(
                    "tokenizer",
                    tooltip="The loaded tokenizer. Tokenizer, language model and decoder must be "
                    "of one family (seed-mini with seed-mini, SEED-2 with SEED-LLaMA).",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, tokenizer: str = "") -> bool | str:
        return model_files.check(TOKENIZER, tokenizer)

    @classmethod
    def fingerprint_inputs(cls, tokenizer: str, precision: str) -> str:
        return model_files.fingerprint_choice(TOKENIZER, tokenizer)

    @classmethod
    def execute(cls, tokenizer: str, precision: str) -> io.NodeOutput:
        loaded = _load(load_tokenizer, TOKENIZER, tokenizer, precision, **CASTING)
        return io.NodeOutput(loaded)


class SeedLlamaLoader(io.ComfyNode):
    """Combo of `models/seed_llm` -> SEED_LLM."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SEEDLLaMALoader",
            display_name="Load SEED-LLaMA",
            category=CATEGORY,
            description="Loads the language model that reads and writes text and picture codes.",
            search_aliases=["SEED-LLaMA", "multimodal LLM", "vision language model"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=model_files.choices(LLM),
                    default=LLM.bundled_choice,
                    tooltip="A Hugging Face folder inside models/seed_llm (with config.json and "
                    "weights), or a converted file. seed-mini comes with the pack.",
                ),
                _precision(
                    LLM_PRECISIONS,
                    "bf16",
                    "fp8 needs a model that was converted to it (see the help page), for which "
                    "it is also what auto means on a graphics card. ",
                ),
            ],
            outputs=[SeedLlmWire.Output("llm", tooltip="The loaded model, for SEED Generate.")],
        )

    @classmethod
    def validate_inputs(cls, model: str = "") -> bool | str:
        return model_files.check(LLM, model)

    @classmethod
    def fingerprint_inputs(cls, model: str, precision: str) -> str:
        return model_files.fingerprint_choice(LLM, model)

    @classmethod
    def execute(cls, model: str, precision: str) -> io.NodeOutput:
        options = CASTING
        wanted = precision == "fp8" or (precision == "auto" and host.prefers_fp8())
        if wanted and model_files.is_fp8(model):
            precision, options = "fp8", {"operations": host.fp8_operations()}
        return io.NodeOutput(_load(load_llm, LLM, model, precision, **options))


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
            search_aliases=["unCLIP", "SEED decoder", "SEED de-tokenizer"],
            inputs=[
                io.Combo.Input(
                    "decoder",
                    options=model_files.choices(DECODER),
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
        return model_files.check(DECODER, decoder)

    @classmethod
    def fingerprint_inputs(cls, decoder: str, precision: str) -> str:
        return model_files.fingerprint_choice(DECODER, decoder)

    @classmethod
    def execute(cls, decoder: str, precision: str) -> io.NodeOutput:
        return io.NodeOutput(_load(load_decoder, DECODER, decoder, precision, **CASTING))
