"""Nodes that look at codes or change them, without any model."""

from comfy_api.latest import io, ui

from ..seed_core import SeedCodes
from ..seed_core.code_picture import draw_codes
from .io_types import CATEGORY, SeedCodesWire


class SeedPreviewCodes(io.ComfyNode):
    """SEED_CODES -> a picture of them in the node, and the codes again."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SEEDPreviewCodes",
            display_name="SEED Preview Codes",
            category=CATEGORY,
            description="Shows the 32 codes of each picture as coloured numbers. Equal codes have "
            "equal colours.",
            search_aliases=["image codes", "image tokens", "show codes"],
            inputs=[SeedCodesWire.Input("codes", tooltip="The codes to look at.")],
            outputs=[SeedCodesWire.Output("codes", tooltip="The same codes, to go on with.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, codes: SeedCodes) -> io.NodeOutput:
        """Draw them. Codes without a picture draw nothing."""
        picture = ui.PreviewImage(draw_codes(codes.values.cpu()), cls=cls) if len(codes) else None
        return io.NodeOutput(codes, ui=picture)
