"""The pack in other languages: what nodes, widgets, tooltips and help pages say in the frontend."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
HELP = ROOT / "nodes" / "web" / "docs"
LANGUAGES = sorted(folder.name for folder in (ROOT / "locales").iterdir())
LABELS = """(type) => {
    const node = app.rootGraph._nodes.find((node) => node.type === type);
    return {
        title: node.title,
        inputs: Object.fromEntries(node.inputs.map((i) => [i.name, i.label ?? i.localized_name])),
        widgets: Object.fromEntries(node.widgets.map((w) => [w.name, w.label])),
        outputs: node.outputs.map((output) => output.label ?? output.localized_name),
    };
}"""

# Puts one node on an empty graph, where its buttons are in sight.
ALONE = """(type) => {
    app.rootGraph.clear();
    const node = LiteGraph.createNode(type);
    node.pos = [400, 400];
    app.rootGraph.add(node);
}"""
UNFIT = """(page) => {
    const isWide = (element) => element.scrollWidth > element.clientWidth + 1;
    const lines = (cell) => cell.clientHeight / parseFloat(getComputedStyle(cell).lineHeight);
    return [
        ...[...page.querySelectorAll('h1, h2, p, li, table')].filter(isWide),
        ...[...page.querySelectorAll('td, th')].filter((cell) => lines(cell) > 4),
    ].map((element) => element.innerText);
}"""


def definitions(language: str) -> dict:
    file = ROOT / "locales" / language / "nodeDefs.json"
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_nodes_and_widgets_are_called_by_their_translated_names(
    language, open_frontend, screenshot_folder
):
    """Put a node on the canvas: its title, sockets and widgets are what the file says.

    Templates have names of their own for some, in English.
    """
    frontend = open_frontend(vue_nodes=True, locale=language)
    frontend.page.evaluate(ALONE, "SEEDGenerate")
    frontend.fit_view()
    wanted = definitions(language)["SEEDGenerate"]
    shown = frontend.page.evaluate(LABELS, "SEEDGenerate")
    names = {key: entry["name"] for key, entry in wanted["inputs"].items()}
    assert shown["title"] == wanted["display_name"]
    assert shown["widgets"] == {key: names[key] for key in shown["widgets"]}
    assert shown["inputs"] == {key: names[key] for key in shown["inputs"]}
    assert shown["outputs"] == [entry["name"] for entry in wanted["outputs"].values()]
    node = frontend.page.locator("[data-node-id]").filter(has_text=wanted["display_name"]).first
    words = node.inner_text()
    assert [name for name in (names["prompt"], names["temperature"]) if name not in words] == []
    frontend.fit_view()
    frontend.screenshot(screenshot_folder / f"language-{language}.png")
    assert frontend.complaints() == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_node_is_found_by_its_translated_name(language, open_frontend):
    frontend = open_frontend(vue_nodes=False, locale=language)
    frontend.command("Comfy.NewBlankWorkflow")
    frontend.settle()
    name = definitions(language)["SEEDMixCodes"]["display_name"]
    assert name in frontend.search(name).first.inner_text()


@pytest.mark.parametrize(
    ("language", "page"), [("en", "{}.md"), ("zh", "{}/zh.md"), ("fr", "{}.md")]
)
def test_help_opens_in_the_language_or_else_in_english(
    language, page, open_frontend, screenshot_folder
):
    """Select a node, press its information button: our page and its picture, not a stub."""
    frontend = open_frontend(vue_nodes=False, locale=language)
    frontend.load_template("reconstruct")
    shown = frontend.open_help("SEEDEncode")
    source = HELP / page.format("SEEDEncode")
    heading = source.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
    assert shown.locator("h1").first.inner_text() == heading
    picture = shown.locator("img").first
    frontend.page.wait_for_function("(img) => img.naturalWidth > 0", arg=picture.element_handle())
    frontend.screenshot(screenshot_folder / f"help-{language}.png")
    assert frontend.complaints() == []


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_help_page_reads_well_in_its_narrow_panel(language, open_frontend):
    """Nothing but a command is wider than the panel, and no cell of a table is squeezed."""
    frontend = open_frontend(vue_nodes=False, locale=language)
    unfit = {}
    for node_type in ("SEEDGenerate", "SEEDLLaMALoader", "SEEDMixCodes"):  # long, and with tables
        frontend.page.evaluate(ALONE, node_type)
        frontend.settle()
        unfit[node_type] = frontend.open_help(node_type).evaluate(UNFIT)
    assert {node_type: found for node_type, found in unfit.items() if found} == {}
