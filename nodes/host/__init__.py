"""Everything this pack asks of ComfyUI.

`comfy.*` has no deprecation policy, so this folder is the only place that imports it. It knows how
the host moves weights and lays out pictures, and nothing of what the models compute.
"""

from ...seed_core.core import LoadedCore
from .attention import add_pictures, cross_attentions
from .errors import NOT_CONNECTED, message_of, name_for_people
from .folders import (
    find_file,
    input_files,
    model_folders,
    new_output_file,
    output_files,
    output_name,
    register_model_folders,
    words,
)
from .layers import cast_operations, fp8_operations, prefers_fp8
from .memory import Core, LoadedModel, choose_dtype, load_model, may_map_files
from .progress import Progress, latent_colours, say, show_text
from .wires import (
    SeedClipVisionOutput,
    codes_to_wire,
    embeddings_to_clip_vision,
    embeddings_to_conditioning,
    image_to_pixels,
    nothing,
    pixels_to_image,
    to_wire,
)

__all__ = [
    "NOT_CONNECTED",
    "Core",
    "LoadedCore",
    "LoadedModel",
    "Progress",
    "SeedClipVisionOutput",
    "add_pictures",
    "cast_operations",
    "choose_dtype",
    "codes_to_wire",
    "cross_attentions",
    "embeddings_to_clip_vision",
    "embeddings_to_conditioning",
    "fp8_operations",
    "image_to_pixels",
    "find_file",
    "input_files",
    "latent_colours",
    "load_model",
    "may_map_files",
    "message_of",
    "model_folders",
    "name_for_people",
    "new_output_file",
    "nothing",
    "output_files",
    "output_name",
    "pixels_to_image",
    "prefers_fp8",
    "register_model_folders",
    "say",
    "show_text",
    "to_wire",
    "words",
]
