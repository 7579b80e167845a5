"""Conversations made visible."""

from typing import Any

from comfy_api.latest import io, ui

from ..seed_core import DecodeOptions, SeedChat, SeedDecoder, SeedTokenizer
from ..seed_core.errors import OptionError
from . import host
from .decode import paint
from .io_types import CATEGORY, SeedChatWire, SeedCodesWire, SeedDecoderWire, SeedTokenizerWire

SKETCH = DecodeOptions(num_inference_steps=8)  # few: to be recognised, not kept


class SeedChatView(io.ComfyNode):
    """SEED_CHAT -> its text and pictures, in the node and on wires."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SEEDChatView",
            display_name="SEED Chat View",
            category=CATEGORY,
            description="Shows a conversation: who said what, and quick sketches of its pictures "
            "when a tokenizer and a decoder are connected.",
            search_aliases=[
                "show chat",
                "conversation",
                "read reply",
                "chat history",
                "multimodal LLM",
            ],
            inputs=[
                SeedChatWire.Input("chat", tooltip="The conversation, from SEED Generate."),
                SeedTokenizerWire.Input(
                    "tokenizer",
                    optional=True,
                    tooltip="Connect it together with a decoder to see the pictures too.",
                ),
                SeedDecoderWire.Input(
                    "decoder",
                    optional=True,
                    tooltip="Connect it together with a tokenizer to see the pictures too.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "text",
                    tooltip="The conversation, one paragraph per turn; <image> marks a picture.",
                ),
                SeedCodesWire.Output(
                    "codes",
                    tooltip="All pictures of the conversation in order, for SEED Decode. Empty if "
                    "it has none.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(
        cls, tokenizer: Any = host.NOT_CONNECTED, decoder: Any = host.NOT_CONNECTED
    ) -> bool | str:
        given = (each is not host.NOT_CONNECTED for each in (tokenizer, decoder))
        return host.message_of(lambda: _require_both(*given))

    @classmethod
    def execute(
        cls,
        chat: SeedChat,
        tokenizer: host.LoadedModel[SeedTokenizer] | None = None,
        decoder: host.LoadedModel[SeedDecoder] | None = None,
    ) -> io.NodeOutput:
        _require_both(tokenizer is not None, decoder is not None)
        text, codes = chat.to_text(), host.codes_to_wire(chat.codes, chat)
        said = chat.to_text(is_numbered=True)
        host.show_text(said)
        # Always both: of many conversations the host joins the entries that the first one has.
        shown = {**host.words([said]), "images": []}
        if tokenizer and decoder and len(codes):
            sketches = paint(tokenizer, decoder, codes, SKETCH)
            shown["images"] = ui.PreviewImage(sketches, cls=cls).values
        return io.NodeOutput(text, codes, ui=shown)


def _require_both(has_tokenizer: bool, has_decoder: bool) -> None:
    if has_tokenizer != has_decoder:
        raise OptionError(
            f"the {'decoder' if has_tokenizer else 'tokenizer'} is missing: connect tokenizer and "
            "decoder to see the pictures, or neither of them to see only the text"
        )
