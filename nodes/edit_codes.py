"""Nodes that look at codes or change them, without any model."""

from typing import Any

from comfy_api.latest import io, ui

from ..seed_core import NUM_CODES, SeedCodes, seeded_generators
from ..seed_core.codes.edits import MIX_MODES, check_range, join_codes, mix_codes, select_codes
from ..seed_core.codes.picture import draw_comparison, draw_together
from ..seed_core.codes.value import MOST_AT_ONCE
from . import host
from .io_types import CATEGORY, SeedCodesWire, no_picture, random_seed_input, without_words

MOST_SHOWN = 64  # pictures in a node
NO_PICTURE_TO_SEE = "These codes hold no picture: a reply that is only text has none."


class SeedPreviewCodes(io.ComfyNode):
    """SEED_CODES -> a picture of them in the node, and the codes again."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SEEDPreviewCodes",
            display_name="SEED Preview Codes",
            category=CATEGORY,
            description="Shows the 32 codes of each picture as signs: equal codes look alike. Codes "
            "that pictures share are framed, those of a batch or of two batches that are compared. "
            "Also tells how well the model knows such pictures.",
            search_aliases=["image codes", "image tokens", "show codes", "compare codes"],
            inputs=[
                SeedCodesWire.Input("codes", tooltip="The codes to look at."),
                SeedCodesWire.Input(
                    "compare_with",
                    optional=True,
                    tooltip="Codes of the same family to see below them in the same picture, with a "
                    "frame around those that are equal: one for all, or one for each.",
                ),
            ],
            outputs=[SeedCodesWire.Output("codes", tooltip="The same codes, passed on.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, codes: SeedCodes, compare_with: SeedCodes | None = None) -> io.NodeOutput:
        """Draw the first of them and say how many there are. Empty codes draw nothing."""
        if not len(codes):
            return _shown(codes, [], [NO_PICTURE_TO_SEE])
        if compare_with is None or not len(compare_with):
            pictures, count = draw_together(codes, MOST_SHOWN), len(codes)
        else:
            pictures = draw_comparison(codes, compare_with, ("upper", "lower"), MOST_SHOWN)
            count = max(len(codes), len(compare_with))
        said = []
        if compare_with is not None and not len(compare_with):
            said.append("compare_with holds no picture, so these are the codes alone")
        if count > MOST_SHOWN:
            said.append(f"{count} pictures; the first {MOST_SHOWN} are shown")
        return _shown(codes, ui.PreviewImage(pictures, cls=cls).values, said)


def _shown(codes: SeedCodes, images: list[Any], said: list[str]) -> io.NodeOutput:
    # Always both: of codes in a list the host joins the entries that the first of them has.
    if said:
        host.show_text("\n".join(said))
    return io.NodeOutput(codes, ui={"images": images, "text": said})


def _position(name: str, default: int, tooltip: str) -> io.Int.Input:
    return io.Int.Input(name, default=default, min=0, max=NUM_CODES, tooltip=tooltip)


class SeedMixCodes(io.ComfyNode):
    """Two SEED_CODES -> one, with some positions from each."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SEEDMixCodes",
            display_name="SEED Mix Codes",
            category=CATEGORY,
            description="Puts a stretch of one picture's codes into another's. Early codes hold "
            "what the picture is about, later ones its details.",
            search_aliases=["mix images", "merge codes", "splice", "crossover", "image codes"],
            inputs=[
                SeedCodesWire.Input("codes_a", tooltip="The pictures to start from."),
                SeedCodesWire.Input(
                    "codes_b",
                    tooltip="The pictures to take codes from: as many as in codes_a, or one for "
                    "all (or many for one).",
                ),
                _position("start", NUM_CODES // 2, "First position taken from codes_b, from 0."),
                _position(
                    "end",
                    NUM_CODES,
                    "Position to stop before: from 16 to 32 takes positions 16 to 31.",
                ),
                io.Combo.Input(
                    "mode",
                    options=list(MIX_MODES),
                    default=MIX_MODES[0],
                    tooltip="splice takes every position from start to end from codes_b; random "
                    "takes each of them with the probability amount.",
                ),
                io.Float.Input(
                    "amount",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Only with random: probability of each position, 0 (none) to 1 (all).",
                ),
                random_seed_input("takes the same positions. Only with random."),
            ],
            outputs=[
                SeedCodesWire.Output("codes", tooltip="The mixed codes, one row per picture.")
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, start: int | None = None, end: int | None = None) -> bool | str:
        """A position that arrives by wire is None here."""
        first, last = 0 if start is None else start, NUM_CODES if end is None else end
        return host.message_of(lambda: check_range(first, last))

    @classmethod
    def execute(
        cls,
        codes_a: SeedCodes,
        codes_b: SeedCodes,
        start: int,
        end: int,
        mode: str,
        amount: float,
        seed: int,
    ) -> io.NodeOutput:
        if not (len(codes_a) and len(codes_b)):
            return no_picture()
        pictures = max(len(codes_a), len(codes_b))
        # One after the other: each takes five thousand bytes.
        generators = (seeded_generators(seed + row, 1)[0] for row in range(pictures))
        return without_words(mix_codes(codes_a, codes_b, start, end, mode, amount, generators))


class SeedBatchCodes(io.ComfyNode):
    """Up to four SEED_CODES -> one batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        more = {"optional": True, "tooltip": "More codes of the same family, added at the end."}
        return io.Schema(
            node_id="SEEDBatchCodes",
            display_name="SEED Batch Codes",
            category=CATEGORY,
            description="Joins the codes of several pictures into one batch, in the order of the "
            "inputs.",
            search_aliases=["batch codes", "join codes", "combine image codes", "image tokens"],
            inputs=[
                SeedCodesWire.Input("codes_1", tooltip="The codes that come first."),
                SeedCodesWire.Input(
                    "codes_2", tooltip="Codes of the same family, which come next."
                ),
                SeedCodesWire.Input("codes_3", **more),
                SeedCodesWire.Input("codes_4", **more),
            ],
            outputs=[SeedCodesWire.Output("codes", tooltip="All of them in one batch.")],
        )

    @classmethod
    def execute(
        cls,
        codes_1: SeedCodes,
        codes_2: SeedCodes,
        codes_3: SeedCodes | None = None,
        codes_4: SeedCodes | None = None,
    ) -> io.NodeOutput:
        given = (codes_1, codes_2, codes_3, codes_4)
        return io.NodeOutput(join_codes([codes for codes in given if codes is not None]))


class SeedSelectCodes(io.ComfyNode):
    """SEED_CODES -> some of its rows."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SEEDSelectCodes",
            display_name="SEED Select Codes",
            category=CATEGORY,
            description="Picks the codes of one picture, or of several in a row, from a batch.",
            search_aliases=["select codes", "pick from batch", "codes from batch", "image codes"],
            inputs=[
                SeedCodesWire.Input("codes", tooltip="The batch to pick from."),
                io.Int.Input(
                    "index",
                    default=0,
                    min=-MOST_AT_ONCE,
                    max=MOST_AT_ONCE,
                    tooltip="Which picture: 0 is the first, 1 the second; -1 is the last.",
                ),
                io.Int.Input(
                    "length",
                    default=1,
                    min=1,
                    max=MOST_AT_ONCE,
                    tooltip="How many pictures, from index on. There must be that many.",
                ),
            ],
            outputs=[SeedCodesWire.Output("codes", tooltip="The codes that were picked.")],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, codes: SeedCodes, index: int, length: int) -> io.NodeOutput:
        if not len(codes):
            return no_picture()
        return without_words(select_codes(codes, index, length))
