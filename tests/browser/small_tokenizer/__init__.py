"""A custom node pack for the tests only: seed-tokenizer-2 is small, and all of it on a test's server.

One of its files has an address of its own, whose size and hash the pack knows, and what its network
looks like is known too. Nor is the small decoder the one whose hash the pack knows.
"""

import sys
from dataclasses import replace

from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS: dict[str, type] = {}


@PromptServer.instance.routes.post("/seed_test/tokenizer")
async def tokenizer(request: web.Request) -> web.Response:
    """Take page, size and sha256 of the file, and the name of the one that describes the network."""
    told = await request.json()
    ending = ".seed_core.fetching.downloads"
    (module,) = [each for name, each in sys.modules.items() if name.endswith(ending)]
    known = module.DOWNLOADS["seed-tokenizer-2"]
    hub, single = known.sources
    hub = replace(hub, files=(*hub.files, told.pop("config")))
    sources = (hub, replace(single, **told))
    module.DOWNLOADS["seed-tokenizer-2"] = known._replace(sources=sources)
    decoder = module.DOWNLOADS["stable-diffusion-2-1-unclip"]
    sources = tuple(replace(source, known={}) for source in decoder.sources)
    module.DOWNLOADS["stable-diffusion-2-1-unclip"] = decoder._replace(sources=sources)
    return web.Response()
