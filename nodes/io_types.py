"""The wires of the pack. Their names are a public contract: saved workflows hold them.

Tokenizer, LLM and decoder travel as `host.LoadedModel`, an LLM on a server as `ServedModel`, codes as
`SeedCodes`, a conversation as `SeedChat`. CLIP_VISION_OUTPUT, IMAGE and STRING are the host's own,
EMBEDS is IPAdapter's: a tensor.
"""

from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

from ..seed_core import SeedCodes, ServedLLM
from . import host

SeedTokenizerWire = io.Custom("SEED_TOKENIZER")
SeedLlmWire = io.Custom("SEED_LLM")
SeedDecoderWire = io.Custom("SEED_DECODER")
SeedCodesWire = io.Custom("SEED_CODES")
SeedChatWire = io.Custom("SEED_CHAT")
IpAdapterEmbeds = io.Custom("EMBEDS")

CATEGORY = "SEED"

NO_PICTURE = (
    "these codes hold no picture, so there is nothing to paint. A reply of SEED Generate that is only "
    "text has none: set its reply to image to get a picture each time."
)
MAX_SEED = 0xFFFFFFFFFFFFFFFF  # the host's own range for random seeds


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A language model on a server: ready as it is, for it has no weights here."""

    core: ServedLLM

    def ready(self, memory_required: int) -> ServedLLM:
        """Return the core object; the host is not asked for any memory."""
        return self.core


def lack_a_picture(*connected: SeedCodes | None) -> bool:
    """Tell whether any codes that are connected hold no picture."""
    return any(codes is not None and not len(codes) for codes in connected)


def no_picture(outputs: int = 1) -> io.NodeOutput:
    """Say on the node that its codes hold no picture; what hangs on its outputs is not run.

    It is told without an error: whether the model draws or only talks may be its own choice.
    """
    said = NO_PICTURE[0].upper() + NO_PICTURE[1:]
    return io.NodeOutput(*(host.nothing() for _ in range(outputs)), ui=host.say(said))


def without_words(*results: Any) -> io.NodeOutput:
    """Give results and take what the node said in the last run off it.

    Of several runs over a list the host joins only the entries that the first one has.
    """
    return io.NodeOutput(*results, ui={"text": []})


def random_seed_input(effect: str) -> io.Int.Input:
    """The `seed` widget: always the random seed, never the model family."""
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=MAX_SEED,
        control_after_generate=True,
        tooltip=f"Random seed: the same seed {effect} (Not the SEED model.)",
    )
