"""What a node says while it runs: the progress bar and live text. Each step is a chance to Stop."""

import html
import time
from collections.abc import Callable

import comfy.model_management
import comfy.utils
from comfy_execution.utils import get_executing_context
from server import PromptServer

TEXT_INTERVAL = 0.25  # seconds between two live texts


class Progress:
    """One node's progress bar and live text; every call of `step` is a chance to Stop."""

    def __init__(self, total: int):
        self._bar = comfy.utils.ProgressBar(total)
        self._next_text = 0.0

    def step(self, done: int, total: int) -> None:
        """Move the bar. Raises the host's interruption when Stop was pressed."""
        self._bar.update_absolute(done, total)
        # The bar skips updates that come too fast, and with them the check.
        comfy.model_management.throw_exception_if_processing_interrupted()

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
