"""The wires of the pack. Their names are a public contract: saved workflows hold them.

Tokenizer, LLM and decoder travel as `host.LoadedModel`, codes as `SeedCodes`, a conversation as
`SeedChat`. CLIP_VISION_OUTPUT, IMAGE and STRING are the host's own, EMBEDS is IPAdapter's: a tensor.
"""

from comfy_api.latest import io

SeedTokenizerWire = io.Custom("SEED_TOKENIZER")
SeedLlmWire = io.Custom("SEED_LLM")
SeedDecoderWire = io.Custom("SEED_DECODER")
SeedCodesWire = io.Custom("SEED_CODES")
SeedChatWire = io.Custom("SEED_CHAT")
IpAdapterEmbeds = io.Custom("EMBEDS")

CATEGORY = "SEED"

MAX_SEED = 0xFFFFFFFFFFFFFFFF  # the host's own range for random seeds


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
