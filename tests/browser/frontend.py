"""Drives ComfyUI's frontend in Chromium the way a user's clicks would.

Knows the page, not the pack: what is loaded and what must come out is the tests' business.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, ConsoleMessage, Locator, Page

# Headless, as root, in a container, without a GPU, and silent towards the outside.
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WINDOW = {"width": 1920, "height": 1080}
SETTINGS = {
    "Comfy.TutorialCompleted": True,  # no first-run tour over the graph
    "Comfy.Validation.Workflows": True,  # the schema and link check, off by default
    "Comfy.Workflow.Persist": False,  # every page starts without the tabs of the last one
    "Comfy.Minimap.Visible": False,
}
# What the frontend says by itself on a fresh server, whatever is loaded: its own old interfaces,
# user files that do not exist yet, and the models of its default graph, which cannot be reached.
OWN_NOISE = (
    "Failed to load resource: the server responded with a status of 404",
    "legacy queue/history menu",
    "[MaskEditor]",
    "ComfyApp graph accessed before initialization",
    "huggingface.co",
    "Invalid layout total size",
    "input.link is deprecated",
)
READY = "window.app?.extensionManager && window.app.canvas && window.app.rootGraph?._nodes.length"
LOAD = """async ([url, name]) => {
    const graph = await (await fetch(url)).json();
    await app.loadGraphData(graph, true, true, name, { openSource: 'template' });
}"""
LOAD_TEXT = "async (graph) => { await app.loadGraphData(JSON.parse(graph)); }"
# What Load does in the list of past runs.
LOAD_LAST_RUN = """async () => {
    const [run] = Object.values(await (await fetch('/api/history?max_items=1')).json());
    await app.loadGraphData(run.prompt[3].extra_pnginfo.workflow);
    app.nodeOutputs = run.outputs;
}"""
# What queuePrompt returns means one thing in some releases and another in others.
QUEUE = """async () => {
    window.seedRun = { outputs: {}, end: null };
    const run = window.seedRun;
    app.api.addEventListener('executed', (e) => { run.outputs[e.detail.node] = e.detail.output; });
    for (const end of ['execution_success', 'execution_error', 'execution_interrupted'])
        app.api.addEventListener(end, (e) => { run.end ??= [end, e.detail]; }, { once: true });
    let queued = false;
    app.api.addEventListener('promptQueued', () => { queued = true; }, { once: true });
    await app.queuePrompt(0, 1);
    return queued;
}"""
BOXES = """() => app.rootGraph._nodes.map((node) => {
    node.updateArea?.();
    const [x, y, width, height] = node.boundingRect;
    return { id: node.id, type: node.type, box: [x, y, x + width, y + height] };
})"""
SELECT = """(type) => {
    const node = app.rootGraph._nodes.find((node) => node.type === type);
    app.canvas.selectNode(node);
}"""
# Resolves when nothing has moved, come or gone for a while in which the page had time: on a busy
# machine that takes longer.
SETTLED = """async () => {
    const rest = () => new Promise((done) => setTimeout(() => requestIdleCallback(done), 100));
    const look = () => JSON.stringify([
        document.querySelectorAll('*').length,
        [app.canvas.ds.scale, ...app.canvas.ds.offset],
        app.rootGraph._nodes.map((node) => [node.id, ...node.pos, ...node.size]),
    ]);
    let before = '';
    for (let looks = 0, same = 0; looks < 100 && same < 4; looks++) {
        await rest();
        const now = look();
        same = now === before ? same + 1 : 0;
        before = now;
    }
}"""
# Vue nodes draw <img> elements, classic nodes draw node.imgs on the canvas.
UNSEEN = """(ids) => ids.filter((id) => {
    const node = app.rootGraph.getNodeById(Number(id));
    if (!app.nodeOutputs[id]?.images?.length) return false;
    const mounted = document.querySelectorAll(`[data-node-id="${id}"] img`);
    return ![...(node.imgs ?? []), ...mounted].some((img) => img.naturalWidth > 0);
})"""
# The words under a node's widgets; the second is what older releases call that widget.
SHOWN_TEXT = """(id) => app.rootGraph.getNodeById(id).widgets
    .find(({ name }) => ['preview_text', '$$node-text-preview'].includes(name))?.value ?? ''"""
# The middle of a classic node's first widget of a type, on the screen.
WIDGET = """([id, type]) => {
    const node = app.rootGraph.getNodeById(id);
    const widget = node.widgets.find((each) => each.type === type);
    const { ds, canvas } = app.canvas;
    const { left, top } = canvas.getBoundingClientRect();
    return [left + (node.pos[0] + node.size[0] / 2 + ds.offset[0]) * ds.scale,
        top + (node.pos[1] + widget.last_y + 10 + ds.offset[1]) * ds.scale];
}"""
COMPLAINTS = """() => [...document.querySelectorAll(
    '.p-toast-message-warn, .p-toast-message-error, [role=alertdialog], [role=dialog], ' +
    '[data-testid=error-overlay]'
)].map((element) => element.innerText.trim())"""
BROKEN_NODES = """() => app.rootGraph._nodes
    .filter((node) => node.has_errors || !(node.type in LiteGraph.registered_node_types))
    .map((node) => `${node.type} ${node.id} is unknown or marked as broken`)"""


def find_chromium() -> str | None:
    """The first Chromium on PATH."""
    return next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)


@contextlib.contextmanager
def launch(executable: str, profile: Path) -> Iterator[BrowserContext]:
    """Chromium with its own profile folder. headless=False leaves the choice to FLAGS."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(profile), executable_path=executable, headless=False, args=FLAGS, viewport=WINDOW
        )
        try:
            yield context
        finally:
            context.close()


def patience() -> contextlib.AbstractContextManager[None]:
    """For a wait that may end without what it waited for."""
    from playwright.sync_api import TimeoutError as TooLateError

    return contextlib.suppress(TooLateError)


class Frontend:
    """One open page of ComfyUI."""

    def __init__(self, context: BrowserContext, server: Any, vue_nodes: bool, locale: str = "en"):
        self.server = server
        self.messages: list[str] = []
        chosen = {"Comfy.VueNodes.Enabled": vue_nodes, "Comfy.Locale": locale}
        for key, value in (SETTINGS | chosen).items():
            status, reply = server.post(f"/settings/{key}", value)
            assert status == 200, reply
        self.page: Page = context.new_page()
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.messages.append(f"page error: {error}"))
        self.page.goto(server.base_url)
        self.page.wait_for_function(READY, timeout=90_000)

    def close(self) -> None:
        self.page.close()

    def load_template(self, name: str) -> None:
        """What a click in the template browser does."""
        self.page.evaluate(LOAD, [f"/api/workflow_templates/seed-llama/{name}.json", name])
        self.settle()

    def load_json(self, text: str) -> None:
        """What dropping a workflow file on the canvas does."""
        self.page.evaluate(LOAD_TEXT, text)
        self.settle()

    def load_last_run(self) -> None:
        """Reload the page and open the last run again, with all that it showed."""
        self.page.reload()
        self.page.wait_for_function(READY, timeout=90_000)
        self.page.evaluate(LOAD_LAST_RUN)
        self.settle()

    def settle(self) -> None:
        """Let Vue mount and measure the nodes, and delayed checks report."""
        self.page.evaluate(SETTLED)

    def complaints(self) -> list[str]:
        """Everything the page holds against the graph: console, toasts, dialogs, broken nodes."""
        shown = self.page.evaluate(COMPLAINTS) + self.page.evaluate(BROKEN_NODES)
        return self.messages + [text for text in shown if text]

    def api_prompt(self) -> dict[str, Any]:
        """The API form the frontend would queue now, without the pack that newer ones name."""
        prompt = self.page.evaluate("async () => (await app.graphToPrompt()).output")
        for node in prompt.values():
            for key in ("cnr_id", "ver"):
                node.get("_meta", {}).pop(key, None)
        return prompt

    def run(self, timeout: float = 120) -> dict[str, Any]:
        """Queue the graph, wait for its end and give each node's shown output by node id."""
        self.queue()
        return self.wait_for_end(timeout)

    def queue(self) -> None:
        assert self.page.evaluate(QUEUE), "the frontend did not queue the graph"

    def wait_for_end(self, timeout: float = 120) -> dict[str, Any]:
        """Wait until what was queued has succeeded; each node's shown output by node id."""
        self.page.wait_for_function("window.seedRun.end", timeout=timeout * 1000)
        end, detail = self.page.evaluate("window.seedRun.end")
        assert end == "execution_success", detail
        return self.page.evaluate("window.seedRun.outputs")

    def unseen_pictures(self, ids: list[str]) -> list[str]:
        """Nodes whose pictures arrived but are not on the screen."""
        self.fit_view()  # what lies outside the window is not drawn
        with patience():
            self.page.wait_for_function(f"(ids) => !({UNSEEN})(ids).length", arg=ids, timeout=5000)
        return self.page.evaluate(UNSEEN, ids)

    def shown_text(self, node: int) -> str:
        """The words that a node shows."""
        return self.page.evaluate(SHOWN_TEXT, node)

    def wait_for_text(self, node: int, pattern: str) -> None:
        """Wait until the words that a node shows match a regular expression."""
        matches = f"([id, pattern]) => new RegExp(pattern).test(({SHOWN_TEXT})(id))"
        self.page.wait_for_function(matches, arg=[node, pattern])

    def click_widget(self, node: int, kind: str) -> None:
        """Click the first widget of a kind, such as button or combo, of a classic node."""
        self.page.mouse.click(*self.page.evaluate(WIDGET, [node, kind]))

    def boxes(self) -> list[dict[str, Any]]:
        """Every node's id, type and box with its title, as drawn (left, top, right, bottom)."""
        return self.page.evaluate(BOXES)

    @staticmethod
    def overlapping(boxes: list[dict[str, Any]]) -> list[tuple[str, str]]:
        """The types of each two nodes that lie on one another."""

        def overlap(a: list[float], b: list[float]) -> bool:
            return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]

        pairs = itertools.combinations(boxes, 2)
        return [(a["type"], b["type"]) for a, b in pairs if overlap(a["box"], b["box"])]

    def fit_view(self) -> None:
        self.command("Comfy.Canvas.FitView")
        self.settle()

    def version(self) -> tuple[int, ...]:
        """Of the frontend, as (1, 47, 10)."""
        return tuple(map(int, self.page.evaluate("__COMFYUI_FRONTEND_VERSION__").split(".")))

    def scale(self) -> float:
        """How large the graph is drawn; 1 is its own size."""
        return self.page.evaluate("app.canvas.ds.scale")

    def command(self, name: str) -> None:
        self.page.evaluate("(name) => app.extensionManager.command.execute(name)", name)

    def search(self, words: str) -> Locator:
        """Open the node search by a double click and type; its results."""
        dialog = self.page.get_by_role("dialog")
        for _ in range(5):  # a busy page may take a double click for two single ones
            self.page.mouse.dblclick(960, 640)
            with patience():
                dialog.locator("input:focus").wait_for(timeout=3000)
                break
        self.page.keyboard.type(words)
        results = self.page.get_by_test_id("result-item")
        results.filter(has_text=words).first.wait_for()
        return results

    def open_help(self, node_type: str) -> Locator:
        """Select the first node of a type and press its information button; the page that opens."""
        self.page.evaluate(SELECT, node_type)
        self.page.get_by_test_id("info-button").click()
        classes = (".markdown-content", ".comfy-markdown-content")  # the second since 1.58
        content = self.page.locator(".node-help-content").locator(",".join(classes)).first
        content.wait_for()
        return content

    def screenshot(self, path: Path) -> None:
        self.page.screenshot(path=str(path))

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            text = f"{message.type}: {message.text}"
            if not any(noise in text for noise in OWN_NOISE):
                self.messages.append(text)
