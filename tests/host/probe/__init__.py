"""A custom node pack for the tests only: tells what is inside the running ComfyUI."""

import gc
import sys

import comfy.model_management
from aiohttp import web
from comfy_api.latest import ComfyExtension, io
from server import PromptServer


def _state() -> dict[str, object]:
    gc.collect()
    handles = [o for o in gc.get_objects() if type(o).__name__ == "LoadedModel" and _is_ours(o)]
    return {
        "packages": sorted({name.partition(".")[0] for name in sys.modules}),
        "loaded": [m.model.__class__.__name__ for m in comfy.model_management.loaded_models()],
        "alive": sorted(type(handle.core).__name__ for handle in handles),
    }


def _is_ours(handle: object) -> bool:
    return type(handle).__module__.endswith("nodes.host")


@PromptServer.instance.routes.get("/seed_test/state")
async def state(request: web.Request) -> web.Response:
    """Answer what a test asks."""
    return web.json_response(_state())


class Probe(ComfyExtension):
    """No nodes, only the route."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return nothing."""
        return []


async def comfy_entrypoint() -> Probe:
    """Answer the host."""
    return Probe()
