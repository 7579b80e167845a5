"""The nodes of the pack, what is needed most often first, and the extension the host asks for them.

Nothing here may import transformers or diffusers: this runs at every start of ComfyUI.
"""

from comfy_api.latest import ComfyExtension, io

from . import host, kinds
from .chat import SeedChatView
from .decode import SeedDecode
from .edit_codes import SeedBatchCodes, SeedMixCodes, SeedPreviewCodes, SeedSelectCodes
from .embed import (
    SeedBlendEmbeddings,
    SeedCodesToConditioning,
    SeedCodesToEmbedding,
    SeedCodesToIpAdapter,
)
from .encode import SeedEncode, SeedSamplePicture
from .generate import SeedGenerate
from .get_model import SeedGetModel
from .ip_adapter import SeedIpAdapter
from .loaders import SeedDecoderLoader, SeedLlamaLoader, SeedTokenizerLoader
from .lora import SeedLoraLoader
from .server_loader import SeedServerLoader
from .store_codes import SeedCodesToText, SeedLoadCodes, SeedSaveCodes, SeedTextToCodes

# A wire that is let go over the canvas suggests the first nodes of this list that fit it.
NODES: list[type[io.ComfyNode]] = [
    SeedSamplePicture,
    SeedTokenizerLoader,
    SeedLlamaLoader,
    SeedServerLoader,
    SeedDecoderLoader,
    SeedEncode,
    SeedGenerate,
    SeedLoraLoader,
    SeedChatView,
    SeedDecode,
    SeedPreviewCodes,
    SeedCodesToEmbedding,
    SeedCodesToIpAdapter,
    SeedCodesToConditioning,
    SeedIpAdapter,
    SeedBlendEmbeddings,
    SeedCodesToText,
    SeedTextToCodes,
    SeedMixCodes,
    SeedBatchCodes,
    SeedSelectCodes,
    SeedSaveCodes,
    SeedLoadCodes,
    SeedGetModel,
]


class SeedExtension(ComfyExtension):
    """What ComfyUI loads."""

    async def on_load(self) -> None:
        """Make our model folders known before the first loader lists them, and name our errors."""
        host.register_model_folders(kinds.SUFFIXES)
        host.name_for_people("SEED")

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node of the pack."""
        return NODES


async def comfy_entrypoint() -> SeedExtension:
    """Answer the host's request for the extension."""
    return SeedExtension()
