"""The language model: text and pictures in, text and pictures out."""

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import torch
from comfy_api.latest import io

from ..seed_core import (
    NUM_CODES,
    GenerationOptions,
    Reply,
    SeedChat,
    SeedCodes,
    SeedLLM,
    seeded_generators,
)
from ..seed_core.errors import OptionError
from ..seed_core.llm.prompt import split_marks
from ..seed_core.llm.sampling import REPLIES
from . import host
from .io_types import (
    CATEGORY,
    SeedChatWire,
    SeedCodesWire,
    SeedLlmWire,
    ServedModel,
    random_seed_input,
)

MOST_VARIATIONS = 64
WAITING = "Waiting for the first token ..."  # of a server, which others may be using


def _context_inputs() -> list[Any]:
    return [
        SeedLlmWire.Input("llm", tooltip="From Load SEED LLM."),
        io.String.Input(
            "prompt",
            multiline=True,
            default="",
            placeholder="What is in this picture? <image>",
            tooltip="What you ask or want drawn. Write <image> where each picture of `codes` "
            "belongs; pictures without a mark come before the text.",
        ),
        SeedCodesWire.Input(
            "codes",
            optional=True,
            tooltip="Pictures to talk about, from SEED Encode or an earlier reply.",
        ),
        SeedChatWire.Input(
            "chat", optional=True, tooltip="An earlier conversation, which this turn continues."
        ),
    ]


def _reply_inputs() -> list[Any]:
    return [
        io.Combo.Input(
            "reply",
            options=list(REPLIES),
            default="auto",
            tooltip="auto: the model decides. text: no picture. image: begins with a picture.",
        ),
        io.Int.Input(
            "variations",
            default=1,
            min=1,
            max=MOST_VARIATIONS,
            tooltip="How many replies to the same prompt. Reply i uses seed + i.",
        ),
        io.Int.Input(
            "max_new_tokens",
            default=512,
            min=1,
            max=4096,
            tooltip="The longest reply, in tokens. A picture takes 34; if one no longer fits, it is "
            "not begun.",
        ),
    ]


def _sampling_inputs() -> list[Any]:
    return [
        io.Float.Input(
            "temperature",
            default=1.0,
            min=0.0,
            max=2.0,
            step=0.05,
            tooltip="How freely each token is chosen. 0 always takes the likeliest one.",
        ),
        io.Float.Input(
            "top_p",
            default=0.5,
            min=0.01,
            max=1.0,
            step=0.01,
            tooltip="Choose among the likeliest tokens that together have this probability. 1 is "
            "off. Lower is safer, higher is more varied.",
            advanced=True,
        ),
        io.Int.Input(
            "top_k",
            default=50,
            min=0,
            max=1000,
            tooltip="Choose among this many of the likeliest tokens. 0 is off.",
            advanced=True,
        ),
        random_seed_input(
            "with the same number of variations and precision, on the same device, gives the same "
            "reply."
        ),
    ]


class SeedGenerate(io.ComfyNode):
    """SEED_LLM + prompt (+ codes, chat) -> text, codes, chat."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SEEDGenerate",
            display_name="SEED Generate",
            category=CATEGORY,
            description="Ask SEED-LLaMA: describe a picture, answer a question, draw from text, "
            "change a picture by an instruction.",
            search_aliases=[
                *("SEED-LLaMA", "multimodal LLM", "VLM", "ask image", "VQA", "visual question"),
                *("caption", "describe", "image to text", "img2txt", "interrogate", "prompt"),
                *("draw", "text to image", "txt2img", "edit image", "instruct", "chat"),
            ],
            inputs=[*_context_inputs(), *_reply_inputs(), *_sampling_inputs()],
            outputs=[
                io.String.Output(
                    "text",
                    tooltip="The reply, one for each variation; <image> stands for its pictures.",
                    is_output_list=True,
                ),
                SeedCodesWire.Output(
                    "codes",
                    tooltip="All pictures of all replies in order, for SEED Decode. Empty if the "
                    "replies are only text.",
                ),
                SeedChatWire.Output(
                    "chat",
                    tooltip="The conversation with this turn added, one for each variation.",
                    is_output_list=True,
                ),
            ],
            is_output_node=True,  # it answers a question by itself
        )

    @classmethod
    def validate_inputs(
        cls, prompt: str | None = None, codes: Any = host.NOT_CONNECTED
    ) -> bool | str:
        """A prompt that arrives by wire is None here; what codes hold is known when it runs."""
        if prompt is None or codes is not host.NOT_CONNECTED:
            return True
        return host.message_of(lambda: split_marks(prompt, torch.empty(0, NUM_CODES)))

    @classmethod
    def execute(
        cls,
        llm: host.LoadedModel[SeedLLM] | ServedModel,
        prompt: str,
        reply: Literal["auto", "text", "image"],
        variations: int,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        top_k: int,
        seed: int,
        codes: SeedCodes | None = None,
        chat: SeedChat | None = None,
    ) -> io.NodeOutput:
        # A number that arrives by wire may be any.
        if not 1 <= variations <= MOST_VARIATIONS:
            raise OptionError(f"variations must lie in 1..{MOST_VARIATIONS}; got {variations}")
        options = GenerationOptions(
            reply=reply,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
        )
        plan = llm.core.plan(prompt, codes, chat, options, seeded_generators(seed, variations))
        core = llm.ready(plan.memory_required)
        progress = host.Progress(max_new_tokens)

        def on_token(state: Any) -> None:
            progress.step(state.done, state.total)
            progress.show(state.text if state.done else lambda: WAITING)

        replies = core.answer(plan, on_token)
        pictures = host.codes_to_wire(torch.cat([r.codes for r in replies]), core)
        said = _say(replies)
        progress.show(lambda: "\n\n".join(said), is_final=True)
        results = [r.text for r in replies], pictures, [r.chat for r in replies]
        return io.NodeOutput(*results, ui=host.words(said))


def _say(replies: Sequence[Reply]) -> list[str]:
    """Return what the node says: each reply, whose pictures are numbered as in `codes`."""
    numbers = itertools.count(1)
    said = [reply.chat.turns[-1].to_text(numbers) for reply in replies]
    if len(said) > 1:
        said = [f"{number}: {text}" for number, text in enumerate(said, 1)]
    if any(len(reply.codes) for reply in replies):
        said.append("SEED Decode paints what is in codes.")
    return said
