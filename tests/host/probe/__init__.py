"""A custom node pack for the tests only: tells what is inside the running ComfyUI."""

import gc
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import comfy.model_management
import psutil
import torch
from aiohttp import web
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import ComfyExtension, io
from safetensors.torch import save
from server import PromptServer

from .copies import count_copies


def _state() -> dict[str, object]:
    gc.collect()
    handles = [o for o in gc.get_objects() if type(o).__name__ == "LoadedModel" and _is_ours(o)]
    return {
        "packages": sorted({name.partition(".")[0] for name in sys.modules}),
        "loaded": [m.model.__class__.__name__ for m in comfy.model_management.loaded_models()],
        "alive": sorted(type(handle.core).__name__ for handle in handles),
    }


def _is_ours(handle: object) -> bool:
    return type(handle).__module__.endswith("nodes.host.memory")


@PromptServer.instance.routes.get("/seed_test/state")
async def state(request: web.Request) -> web.Response:
    """Answer what a test asks."""
    return web.json_response(_state())


@PromptServer.instance.routes.get("/seed_test/memory")
async def memory(request: web.Request) -> web.Response:
    """What the process takes of the machine's memory."""
    return web.json_response({"rss": psutil.Process().memory_info().rss})


@PromptServer.instance.routes.get("/seed_test/tensors")
async def tensors(request: web.Request) -> web.Response:
    """How many tensors there are, and the bytes of the numbers they hold, each counted once."""
    gc.collect()
    found = [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor)]
    storages = [t.untyped_storage() for t in found if t.layout == torch.strided]
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    return web.json_response({"tensors": len(found), "bytes": sum(sizes.values())})


_profiles: list[torch.profiler.profile] = []
"""The one that runs, if one does."""


@PromptServer.instance.routes.post("/seed_test/copies")
async def begin_counting(request: web.Request) -> web.Response:
    """Count what is copied to and from the card from now on, by whatever thread or library."""
    if torch.cuda.is_available():
        profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
        profile.start()
        _profiles.append(profile)
    return web.Response()


@PromptServer.instance.routes.get("/seed_test/copies")
async def copies(request: web.Request) -> web.Response:
    """Stop counting, and tell the bytes."""
    if not _profiles:
        return web.json_response({"why_not": "there is no card"})
    profile = _profiles.pop()
    profile.stop()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return web.json_response(count_copies(events))


_seen: dict[str, torch.Tensor] = {}
"""What the latest call of a watched UNet was given, such as ``positive.label``."""


@PromptServer.instance.routes.get("/seed_test/unet")
async def unet(request: web.Request) -> web.Response:
    """Send the tensors as a safetensors file: every bit of them."""
    return web.Response(body=save(_seen))


def _watch(
    run: Callable[..., torch.Tensor],
    x: torch.Tensor,
    timesteps: torch.Tensor,
    context: torch.Tensor,
    y: torch.Tensor | None,
    control: object,
    transformer_options: dict[str, list[int]],
    **others: object,
) -> torch.Tensor:
    sides = transformer_options["cond_or_uncond"]
    for name, rows in (("context", context), ("label", y)):
        if rows is not None:
            for is_negative, part in zip(sides, rows.chunk(len(sides)), strict=True):
                _seen[f"{'negative' if is_negative else 'positive'}.{name}"] = part.clone()
    return run(x, timesteps, context, y, control, transformer_options, **others)


class WatchUnet(io.ComfyNode):
    """MODEL -> the same MODEL, whose UNet tells what it is given."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return io.Schema(
            node_id="SEEDTestWatchUnet",
            category="tests",
            inputs=[io.Model.Input("model")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model: object) -> io.NodeOutput:
        """Wrap the call of the network itself: nothing comes between."""
        watched = model.clone()
        watched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "seed_test", _watch)
        return io.NodeOutput(watched)


class Probe(ComfyExtension):
    """The nodes of the tests; the routes are there by themselves."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return them."""
        return [WatchUnet]


async def comfy_entrypoint() -> Probe:
    """Answer the host."""
    return Probe()
