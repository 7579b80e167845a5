"""SEED-LLaMA for ComfyUI: hands the host the list of nodes and the folder of help pages."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./nodes/web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
