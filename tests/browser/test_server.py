"""SEED-LLaMA on a server, as an artist meets it: chosen, run, read, and said plainly when it is off."""

import io
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = [
    pytest.mark.browser,
    pytest.mark.every_frontend,
    pytest.mark.usefixtures("current_frontend"),
]

TESTS = Path(__file__).parents[1]
FILE = "studio.server.json"
# Puts SEED-LLaMA on a Server in place of Load SEED LLM; its id.
EXCHANGE = """() => {
    const graph = app.rootGraph;
    const old = graph._nodes.find((node) => node.type === 'SEEDLLaMALoader');
    const node = LiteGraph.createNode('SEEDServerLoader');
    node.pos = [...old.pos];
    graph.add(node);
    const links = [...graph.links.values()].filter(({ origin_id }) => origin_id === old.id);
    for (const { target_id, target_slot } of links)
        node.connect(0, graph.getNodeById(target_id), target_slot);
    graph.remove(old);
    return node.id;
}"""
CHOICES = "(id) => app.rootGraph.getNodeById(id).widgets[0].options.values"
CHOICE = "(id) => app.rootGraph.getNodeById(id).widgets[0].value"
# The first SEED Generate, that of the conversation's first turn.
FIRST_TURN = """() => Math.min(...app.rootGraph._nodes
    .filter((node) => node.type === 'SEEDGenerate').map((node) => node.id))"""
# The texts of a Vue node's list that its box is too narrow for.
CUT_OFF = """(id) => {
    const box = document.querySelector(`[data-node-id="${id}"] [role=combobox]`);
    return [box, ...box.querySelectorAll('*')].filter((part) => part.scrollWidth > part.clientWidth)
        .map((part) => part.innerText);
}"""
CENTRE = """(id) => {
    const node = app.rootGraph.getNodeById(id), { canvas, ds } = app.canvas;
    ds.scale = 1;
    ds.offset[0] = canvas.clientWidth / 2 - node.pos[0] - node.size[0] / 2;
    ds.offset[1] = canvas.clientHeight / 2 - node.pos[1] - node.size[1] / 2;
    app.canvas.setDirty(true, true);
}"""


@pytest.fixture
def engine(load_helper, mini_llm):
    with load_helper(TESTS / "engine_double.py").Engine(mini_llm) as engine:
        yield engine


@pytest.fixture
def server_file(browser_server, engine):
    """Where the file that names the engine goes; it is not there yet."""
    file = browser_server.base_dir / "models" / "seed_llm" / FILE
    file.parent.mkdir(exist_ok=True)
    yield file
    file.unlink(missing_ok=True)


def write(file, engine):
    fields = {"address": f"http://127.0.0.1:{engine.port}", "model": "seed-mini"}
    file.write_text(json.dumps({**fields, "vocabulary": "seed-mini"}), encoding="utf-8")


class Artist:
    """Somebody with a conversation open, whose loader they exchange for the server's."""

    def __init__(self, frontend, is_vue: bool):
        self.frontend, self.page, self.is_vue = frontend, frontend.page, is_vue
        frontend.load_template("conversation")
        self.loader = self.page.evaluate(EXCHANGE)
        self.first_turn = self.page.evaluate(FIRST_TURN)
        frontend.settle()

    def look_at_the_loader(self) -> None:
        self.page.evaluate(CENTRE, self.loader)
        self.frontend.settle()

    def choose(self, name: str) -> None:
        """Press R, open the loader's list and click."""
        self.frontend.command("Comfy.RefreshNodeDefinitions")
        listed = f"([id, name]) => ({CHOICES})(id).includes(name)"
        self.page.wait_for_function(listed, arg=[self.loader, name])
        self.look_at_the_loader()
        if self.is_vue:
            self.page.locator(f'[data-node-id="{self.loader}"]').get_by_role("combobox").click()
            self.page.get_by_role("option", name=name).click()
        else:
            self.frontend.click_widget(self.loader, "combo")
            self.page.locator(".litemenu-entry").get_by_text(name).click()
        self.frontend.settle()


@pytest.fixture(params=[False, True], ids=["classic", "vue"])
def artist(request, open_frontend, browser_server):
    # A node whose result is still known does not run, and asks no server.
    browser_server.post_plain("/free", {"free_memory": True})
    return Artist(open_frontend(request.param), request.param)


@pytest.fixture
def screenshot(artist, request, screenshot_folder):
    def take(what: str) -> None:
        name = f"server-{request.node.callspec.id}-{what}.png"
        artist.frontend.screenshot(screenshot_folder / name)

    return take


def test_the_server_is_chosen_words_come_and_stay_and_a_picture_is_painted(
    artist, engine, server_file, screenshot
):
    """In the middle of the first reply the engine waits until the page has shown some of it."""
    frontend, page = artist.frontend, artist.page
    artist.look_at_the_loader()
    screenshot("1-none-yet")
    assert not artist.is_vue or page.evaluate(CUT_OFF, artist.loader) == []
    write(server_file, engine)
    artist.choose(FILE)
    screenshot("2-chosen")
    assert page.evaluate(CHOICE, artist.loader) == FILE
    assert engine.paths == []

    tokens, shown = [], threading.Event()

    def wait(event):
        tokens.append(event)
        if len(tokens) == 8:
            shown.wait(60)
        return event

    engine.faults.mangle = wait
    frontend.fit_view()
    frontend.queue()
    frontend.wait_for_text(artist.first_turn, "^[A-Z](?!aiting)")
    frontend.settle()
    begun = frontend.shown_text(artist.first_turn)
    screenshot("3-words-come")
    shown.set()
    outputs = frontend.wait_for_end()
    frontend.settle()
    said = frontend.shown_text(artist.first_turn)
    assert said.startswith(begun)
    assert len(said) > len(begun)
    assert "hedgehog" in said
    screenshot("4-done")
    assert engine.served == 3
    painted = {
        str(node): output["images"] for node, output in outputs.items() if "images" in output
    }
    assert frontend.unseen_pictures(list(painted)) == []
    for file in (file for files in painted.values() for file in files):
        assert np.std(Image.open(io.BytesIO(frontend.server.picture(file)))) > 20
    assert frontend.complaints() == []
    saved = page.evaluate("() => JSON.stringify(app.rootGraph.serialize())")
    assert FILE in saved
    assert "127.0.0.1" not in saved


def test_a_server_that_is_off_is_one_sentence_in_the_one_message(
    artist, engine, server_file, screenshot
):
    """And once it is on, the same page runs."""
    frontend, overlay = artist.frontend, artist.page.get_by_test_id("error-overlay")
    write(server_file, engine)
    on = server_file.read_text(encoding="utf-8")
    server_file.write_text(on.replace(str(engine.port), "1"), encoding="utf-8")
    artist.choose(FILE)
    frontend.fit_view()
    frontend.command("Comfy.QueuePrompt")
    overlay.get_by_text("refuses connections").wait_for()
    frontend.settle()
    screenshot("off")
    (message,) = [text for text in frontend.complaints() if "marked as broken" not in text]
    assert message.count(f"of {FILE} refuses connections: it is off") == 1
    assert "GenerationError" not in message
    assert engine.paths == []
    server_file.write_text(on, encoding="utf-8")
    assert any("images" in output for output in frontend.run().values())


def test_after_stop_the_node_waits_for_nothing_any_more(artist, engine, server_file):
    frontend, page = artist.frontend, artist.page
    write(server_file, engine)
    artist.choose(FILE)
    engine.faults.silence = "first token"
    frontend.queue()
    frontend.wait_for_text(artist.first_turn, "^Waiting")
    frontend.command("Comfy.Interrupt")
    page.wait_for_function("window.seedRun.end")
    assert page.evaluate("window.seedRun.end[0]") == "execution_interrupted"
    frontend.settle()
    assert frontend.shown_text(artist.first_turn) == ""
    assert frontend.complaints() == []


def test_without_a_server_file_the_message_says_what_to_put_where(artist, server_file, screenshot):
    artist.frontend.command("Comfy.QueuePrompt")
    overlay = artist.page.get_by_test_id("error-overlay")
    overlay.get_by_text("there is no server file yet").wait_for()
    assert "studio.server.json" in overlay.inner_text()
    assert str(server_file.parent) in overlay.inner_text()
    screenshot("no-file")
