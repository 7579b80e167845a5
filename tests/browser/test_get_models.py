"""From the open template to a picture of models that were fetched, without a terminal or a restart.

The models are the bundled ones in the folders, names and formats of the published ones, on a server
of this machine that answers as the Hub does.
"""

import io
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seed_core.fetching.downloads import DOWNLOADS

pytestmark = [pytest.mark.browser, pytest.mark.every_frontend]

TESTS = Path(__file__).parents[1]
TEMPLATE = "get_the_real_models"
KINDS = ("seed_tokenizer", "seed_llm", "seed_decoder")
# What comes: which loader, which widget of it, and the choice.
WANTED = (
    ("SEEDTokenizerLoader", "tokenizer", "seed-tokenizer-2-fp16.safetensors"),
    ("SEEDLLaMALoader", "model", "seed-llama-8b-sft-fp8.safetensors"),
    ("SEEDDecoderLoader", "decoder", "stable-diffusion-2-1-unclip-fp16.safetensors"),
)
LLM = 1  # of WANTED
LISTEN = """() => {
    window.seedEnds = [];
    for (const end of ['execution_success', 'execution_error', 'execution_interrupted'])
        app.api.addEventListener(end, ({ detail }) =>
            window.seedEnds.push([end, detail.exception_message ?? '']));
}"""
GETTERS = """() => app.rootGraph._nodes.filter((node) => node.type === 'SEEDGetModel')
    .map((node) => node.id).sort((a, b) => a - b)"""
# From this frontend on, no switch to Markdown takes room from the words.
WITHOUT_A_SWITCH = (1, 58)
# What has to be scrolled to be read.
CUT_OFF = """() => [...document.querySelectorAll('textarea')]
    .filter((box) => box.value.includes('is not there yet'))
    .filter((box) => box.scrollHeight > box.clientHeight + 1)
    .map((box) => [box.value.slice(0, 40), box.scrollHeight, box.clientHeight])"""
SAVED = """() => Object.fromEntries(
    app.rootGraph.serialize().nodes.map((n) => [n.id, n.widgets_values ?? []]))"""
LISTED = """([type, name, choice]) => app.rootGraph._nodes.find((node) => node.type === type)
    .widgets.find((widget) => widget.name === name).options.values.includes(choice)"""
PRESS_INSIDE = """() => {
    const getter = app.rootGraph._nodes.find((node) => node.type === 'SEEDGetModel');
    const { subgraph } = app.rootGraph.convertToSubgraph(new Set([getter]));
    subgraph._nodes[0].widgets.find((widget) => widget.type === 'button').callback();
}"""
ACTION_INSIDE = """() => [...app.rootGraph.subgraphs.values()][0]._nodes[0].widgets
    .find((widget) => widget.name === 'action').value"""
CHOOSE = """([type, name, choice]) => { app.rootGraph._nodes.find((node) => node.type === type)
    .widgets.find((widget) => widget.name === name).value = choice; }"""


@pytest.fixture(scope="module")
def hub_module(load_helper):
    return load_helper(TESTS / "hub.py")


@pytest.fixture(scope="module")
def hub(hub_module, load_helper, mini_folder, tmp_path_factory):
    """The published models, small, at the commits that the pack knows."""
    folder = tmp_path_factory.mktemp("published")
    published = load_helper(TESTS / "published.py")
    tower = published.write(mini_folder, folder)
    with hub_module.Hub() as hub:
        hub.serve_folder(folder)
        hub.web[tower.name] = tower
        for name, repo in (
            ("seed-tokenizer-2", published.TOKENIZER),
            ("seed-llama-8b-sft", published.LLM),
        ):
            hub.repositories[repo].commit = DOWNLOADS[name].sources[0].commit
        yield hub


@pytest.fixture(scope="module")
def server(browser_server, hub, tmp_path_factory):
    """One that asks the test's Hub."""
    packs = {**browser_server.packs, "small_tokenizer": TESTS / "browser" / "small_tokenizer"}
    base = tmp_path_factory.mktemp("with_a_hub")
    settings = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url}
    kind, checkout = type(browser_server), browser_server.checkout
    server = kind(checkout, base, packs, browser_server.args, settings)
    server.start()
    ((name, tower),) = hub.web.items()
    told = {"page": f"{hub.url}/{name}", "size": tower.stat().st_size, "sha256": hub.sha256(tower)}
    server.post_plain("/seed_test/tokenizer", {**told, "config": "config.json"})
    yield server
    server.stop()


class Artist:
    """Somebody at the open template, whose clicks are counted."""

    def __init__(self, frontend, is_vue: bool):
        self.frontend, self.page, self.is_vue = frontend, frontend.page, is_vue
        self.clicks = 0
        frontend.load_template(TEMPLATE)
        frontend.fit_view()
        self.page.evaluate(LISTEN)
        self.getters = self.page.evaluate(GETTERS)

    def click_fetch_now(self, node: int) -> None:
        self.clicks += 1
        if self.is_vue:
            home = self.page.locator(f'[data-node-id="{node}"]')
            home.get_by_role("button", name="fetch now").click()
        else:
            self.frontend.click_widget(node, "button")

    def wait_for_ends(self, count: int) -> list[list[str]]:
        """What became of so many jobs."""
        self.page.wait_for_function("(n) => window.seedEnds.length >= n", arg=count)
        return self.page.evaluate("window.seedEnds")

    def asked_for(self, count: int) -> list[list[str]]:
        """The nodes whose results each of the last jobs was to give."""
        jobs = self.frontend.server.get("/history").values()
        return [job["prompt"][4] for job in jobs][-count:]

    def wait_for_list(self, wanted: tuple[str, str, str]) -> None:
        self.page.wait_for_function(LISTED, arg=list(wanted))


@pytest.fixture(params=[False, True], ids=["classic", "vue"])
def artist(request, server, hub, chromium, frontend_module):
    """At a fresh server: nothing is fetched, and nobody has asked the Hub."""
    for kind in KINDS:
        shutil.rmtree(server.base_dir / "models" / kind, ignore_errors=True)
    server.post_plain("/free", {"free_memory": True, "unload_models": True})
    hub.asked.clear()
    hub.served.clear()
    frontend = frontend_module.Frontend(chromium, server, request.param)
    yield Artist(frontend, request.param)
    frontend.close()


@pytest.fixture
def screenshot(artist, request, screenshot_folder) -> Callable[[str], None]:
    def take(what: str) -> None:
        artist.frontend.settle()
        name = f"get_models-{request.node.callspec.id}-{what}.png"
        artist.frontend.screenshot(screenshot_folder / name)

    return take


def picture_of(frontend, outputs: dict) -> np.ndarray:
    """The picture that the template draws, [H, W, 3]."""
    ((image,),) = [shown["images"] for shown in outputs.values() if "images" in shown]
    file = io.BytesIO(frontend.server.picture(image))
    return np.asarray(Image.open(file).convert("RGB"), dtype=float)


def test_from_the_open_template_to_a_picture_of_fetched_models(artist, hub, screenshot, is_current):
    """One click for each model; nothing is asked of the Hub before, and nothing by a run after."""
    frontend, page = artist.frontend, artist.page
    screenshot("1-opened")
    saved, queued = page.evaluate(SAVED), frontend.api_prompt()
    outputs = frontend.run()
    told = [outputs[str(node)]["text"][0] for node in artist.getters]
    for text, (_, _, choice) in zip(told, WANTED, strict=True):
        assert text.startswith(f"{choice} is not there yet")
    if is_current:
        assert [frontend.shown_text(node) for node in artist.getters] == told
    assert hub.asked == []
    screenshot("2-shown")
    if frontend.version() >= WITHOUT_A_SWITCH:
        assert page.evaluate(CUT_OFF) == []

    page.evaluate("window.seedEnds.length = 0")
    for node in artist.getters:
        artist.click_fetch_now(node)
    assert artist.wait_for_ends(len(WANTED)) == [["execution_success", ""]] * len(WANTED)
    assert artist.asked_for(len(WANTED)) == [[str(node)] for node in artist.getters]
    for wanted in WANTED:
        artist.wait_for_list(wanted)
    assert artist.clicks == len(WANTED)
    screenshot("3-there")
    assert page.evaluate(SAVED) == saved
    assert frontend.api_prompt() == queued

    hub.asked.clear()
    for wanted in WANTED:
        page.evaluate(CHOOSE, list(wanted))
    outputs = frontend.run()
    for node, (_, _, choice) in zip(artist.getters, WANTED, strict=True):
        assert outputs[str(node)]["text"][0].startswith(f"{choice} is there")
    drawing = picture_of(frontend, outputs)
    red, _, blue = background = drawing[[4, 4, -5, -5], [4, -5, 4, -5]].mean(0)
    assert blue > red + 60, "a blue background was asked for"
    assert 0.15 < (np.abs(drawing - background).max(-1) > 60).mean() < 0.8
    assert hub.asked == []
    screenshot("4-drawn")
    assert frontend.complaints() == []


class Silence(threading.Event):
    """What a server waits for before it answers; tells when it does."""

    def __init__(self):
        super().__init__()
        self.reached = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        self.reached.set()
        return super().wait(timeout)


def test_a_fetch_that_is_stopped_ends_at_once_and_the_next_click_goes_on(
    artist, hub, hub_module, screenshot
):
    """It ends while the Hub is silent, and what had come whole is not sent again."""
    node, silence = artist.getters[LLM], Silence()
    fault = hub_module.Fault(path=r"pytorch_model-00002", silence=silence)
    hub.faults.append(fault)
    try:
        artist.click_fetch_now(node)
        assert artist.clicks == 1
        assert silence.reached.wait(60)
        artist.frontend.wait_for_text(node, " left")
        screenshot("fetching")
        artist.frontend.command("Comfy.Interrupt")
        assert artist.wait_for_ends(1) == [["execution_interrupted", ""]]
        assert not silence.is_set()
    finally:
        hub.faults.remove(fault)
        silence.set()
    artist.click_fetch_now(node)
    assert artist.wait_for_ends(2)[1] == ["execution_success", ""]
    artist.wait_for_list(WANTED[LLM])
    assert [row[0] for row in hub.served].count("pytorch_model-00001-of-00002.bin") == 1
    screenshot("went-on")
    assert artist.frontend.complaints() == []


def test_a_click_while_runs_are_being_queued_fetches_once(artist):
    """However the page takes turns, the runs show and the click fetches."""
    node = artist.getters[0]
    artist.page.evaluate("() => { app.queuePrompt(0, 3); }")
    artist.click_fetch_now(node)
    assert artist.wait_for_ends(4) == [["execution_success", ""]] * 4
    jobs = artist.frontend.server.get("/history").values()
    asked = [
        [id_ for id_, each in job["prompt"][2].items() if each["inputs"].get("action") == "fetch"]
        for job in list(jobs)[-4:]
    ]
    assert sorted(asked) == [[], [], [], [str(node)]]


def test_in_a_subgraph_the_button_fetches_what_its_own_node_says(artist, is_current):
    if not is_current:
        pytest.skip("told of newer frontends only")
    artist.page.evaluate(PRESS_INSIDE)
    assert artist.wait_for_ends(1) == [["execution_success", ""]]
    artist.wait_for_list(WANTED[0])
    assert artist.page.evaluate(ACTION_INSIDE) == "show"
    ((target,),) = artist.asked_for(1)
    assert target.count(":") == 1
