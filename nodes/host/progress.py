"""What a node shows while it runs: the progress bar, live text and previews.

Each step is a chance to Stop.
"""

import html
import time
from collections.abc import Callable

import comfy.latent_formats
import comfy.model_management
import comfy.utils
import torch
from comfy.cli_args import LatentPreviewMethod, args
from comfy_execution.utils import get_executing_context
from PIL import Image
from server import PromptServer

from ...seed_core import SeedDecoder
from ...seed_core.decoder.preview import rough_picture

TEXT_INTERVAL = 0.25  # seconds between two live texts
PREVIEW_INTERVAL = 0.25  # seconds between two previews


class Progress:
    """One node's progress bar, live text and previews; each `step` is a chance to Stop."""

    def __init__(self, total: int):
        self._bar = comfy.utils.ProgressBar(total)
        self._next_text = self._next_picture = 0.0
        self._preview: tuple[str, Image.Image, int] | None = None

    def step(self, done: int, total: int) -> None:
        """Move the bar. Raises the host's interruption when Stop was pressed."""
        self._bar.update_absolute(done, total, self._preview)
        self._preview = None
        # The bar skips updates that come too fast, and with them the check.
        comfy.model_management.throw_exception_if_processing_interrupted()

    def picture(self, look: Callable[[], torch.Tensor], colours: torch.Tensor) -> None:
        """Have the next step show latents in their colours, a few times a second at most."""
        now = time.monotonic()
        if now >= self._next_picture:
            self._next_picture = now + PREVIEW_INTERVAL
            pixels = rough_picture(look(), colours).mul(255).byte().numpy()
            self._preview = ("JPEG", Image.fromarray(pixels), args.preview_size)

    def show(self, text: Callable[[], str], is_final: bool = False) -> None:
        """Write on the node, a few times a second at most."""
        now = time.monotonic()
        if is_final or now >= self._next_text:
            self._next_text = now + TEXT_INTERVAL
            show_text(text())


def show_text(text: str) -> None:
    """Write on the node that is running. The frontend reads markup, where <image> would vanish."""
    context = get_executing_context()
    if context is not None:
        server = PromptServer.instance
        escaped = html.escape(text, quote=False)
        server.send_progress_text(escaped, context.node_id, server.client_id)


def latent_colours(decoder: SeedDecoder) -> torch.Tensor | None:
    """The colours of a decoder's latents, if previews are switched on and anybody knows them.

    The host knows those of Stable Diffusion's VAE, which SD 2.1 unCLIP has.
    """
    if args.preview_method == LatentPreviewMethod.NoPreviews:
        return None
    vae, known = decoder.module.vae.config, comfy.latent_formats.SD15()
    if decoder.colours is not None or vae.scaling_factor != known.scale_factor:
        return decoder.colours
    return torch.tensor([*known.latent_rgb_factors, [0.0, 0.0, 0.0]])
