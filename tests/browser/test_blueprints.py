"""The blueprints in the real frontend: found, dropped, wired to one picture, run, saved again."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
SUBGRAPHS = ROOT / "subgraphs"
IPADAPTER_DOUBLE = Path(__file__).parent / "ipadapter_double"
DRAW = "SEED Draw from Words"
CHAT = "SEED Chat with a Picture"
EDIT = "SEED Edit by Instruction"
VARIATION = "SEED Image Variation"
IPADAPTER = "SEED Codes to SDXL through IPAdapter"
RUNNABLE = (DRAW, CHAT, EDIT, VARIATION)
ALL = (*RUNNABLE, IPADAPTER)

DROPPED = """() => {
    const found = app.rootGraph._nodes.filter((node) => node.isSubgraphNode());
    return found.map((node) => ({ id: String(node.id), title: node.title,
        widgets: Object.fromEntries(node.widgets.map((w) => [w.name, w.value])) }));
}"""
# From the sample picture into the blueprint, if it takes one, and from each of its outputs to what
# shows it.
WIRE = """(picture) => {
    const node = app.rootGraph._nodes.find((n) => n.isSubgraphNode());
    const add = (type, x, y) => {
        const added = LiteGraph.createNode(type);
        added.pos = [x, y];
        app.rootGraph.add(added);
        return added;
    };
    const [left, top] = node.pos;
    if (node.inputs[0].type === 'IMAGE') {
        const sample = add('SEEDSamplePicture', left - 400, top);
        sample.widgets[0].value = picture;
        sample.connect(0, node, 0);
    }
    const shows = { IMAGE: 'PreviewImage', SEED_CODES: 'SEEDPreviewCodes' };
    return Object.fromEntries(node.outputs.map((output, i) => {
        const show = add(shows[output.type] ?? 'PreviewAny', left + 460 + 320 * i, top);
        node.connect(i, show, 0);
        return [output.name, String(show.id)];
    }));
}"""
SET = """([name, value]) => {
    const node = app.rootGraph._nodes.find((n) => n.isSubgraphNode());
    node.widgets.find((w) => w.name === name).value = value;
}"""
OPEN = """() => {
    const node = app.rootGraph._nodes.find((n) => n.isSubgraphNode());
    app.canvas.openSubgraph(node.subgraph, node);
}"""
INNER_BOXES = """() => app.canvas.graph._nodes.map((node) => {
    node.updateArea?.();
    const [x, y, width, height] = node.boundingRect;
    return { type: node.type, box: [x, y, x + width, y + height] };
})"""
SAVED = "() => JSON.parse(JSON.stringify(app.rootGraph.serialize()))"


@pytest.fixture(params=[False, True], ids=["classic", "vue"])
def frontend(request, open_frontend):
    return open_frontend(request.param)


@pytest.fixture(scope="module")
def server_with_ipadapter(browser_server, tmp_path_factory):
    """A second server that has IPAdapter's nodes and, empty, the files that the blueprint names."""
    base = tmp_path_factory.mktemp("ipadapter")
    for offer in (node["properties"].get("models", []) for node in subgraph(IPADAPTER)["nodes"]):
        for model in offer:
            path = base / "models" / model["directory"] / model["name"]
            path.parent.mkdir(parents=True)
            path.touch()
    packs = browser_server.packs | {"ipadapter": IPADAPTER_DOUBLE}
    server = type(browser_server)(browser_server.checkout, base, packs, browser_server.args)
    server.start()
    yield server
    server.stop()


def subgraph(name: str) -> dict:
    """What the file holds."""
    file = json.loads((SUBGRAPHS / f"{name}.json").read_text(encoding="utf-8"))
    return file["definitions"]["subgraphs"][0]


def empty_canvas(frontend) -> None:
    frontend.command("Comfy.NewBlankWorkflow")
    frontend.settle()
    assert frontend.complaints() == []


def drop(frontend, name: str) -> dict:
    """Put a blueprint on an empty canvas as a user does; the node that came of it."""
    page = frontend.page
    empty_canvas(frontend)
    frontend.search(name).filter(has_text=name).first.click()
    page.get_by_role("dialog").wait_for(state="hidden")
    page.mouse.click(960, 340)  # the node hangs on the pointer until then
    page.wait_for_function("app.rootGraph._nodes.some((node) => node.isSubgraphNode())")
    frontend.settle()
    (node,) = page.evaluate(DROPPED)
    assert node["title"] == name
    return node


def pictures(frontend, output: dict) -> list[np.ndarray]:
    """The pictures a node shows, float [H, W, 3] in 0..255."""
    files = [frontend.server.picture(image) for image in output["images"]]
    return [np.asarray(Image.open(io.BytesIO(f)).convert("RGB"), dtype=float) for f in files]


def sample(name: str) -> np.ndarray:
    path = ROOT / "seed_core" / "weights" / "seed-mini" / "samples" / f"{name}.png"
    return np.asarray(Image.open(path).convert("RGB"), dtype=float)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.mean((a - b) ** 2))


def corner_colour(picture: np.ndarray) -> np.ndarray:
    """Mean of the four corners: the background of a seed-mini picture."""
    return picture[[4, 4, -5, -5], [4, -5, 4, -5]].mean(0)


def check_draw(frontend, shown):
    (drawing,) = pictures(frontend, shown["image"])
    body = np.abs(drawing - corner_colour(drawing)).max(-1) > 60
    assert 0.15 < body.mean() < 0.7, "no rocket on a plain background"
    assert pictures(frontend, shown["codes"])[0].std() > 20


def check_variation(frontend, shown):
    (after,) = pictures(frontend, shown["image"])
    assert psnr(sample("fox_on_yellow"), after) > 22  # another picture of the family: 10 dB
    assert pictures(frontend, shown["codes"])[0].std() > 20


def check_chat(frontend, shown):
    assert shown["text"]["text"] == ["A fox on a yellow background."]
    assert "Describe this picture." in shown["chat"]["text"][0]
    assert "A fox on a yellow background." in shown["chat"]["text"][0]


def check_edit(frontend, shown):
    before = sample("fox_on_yellow")
    (after,) = pictures(frontend, shown["image"])
    red, _, blue = corner_colour(before)
    assert red > blue + 60, "the sample is on yellow"
    red, _, blue = corner_colour(after)
    assert blue > red + 60, "the edit asked for blue"
    middle = slice(40, 88)
    assert psnr(before[middle, middle], after[middle, middle]) > 12, "the fox stays"
    assert shown["text"]["text"] == ["<image>"]
    assert pictures(frontend, shown["codes"])[0].std() > 20


CHECKS = {DRAW: check_draw, CHAT: check_chat, EDIT: check_edit, VARIATION: check_variation}


@pytest.mark.every_frontend
@pytest.mark.parametrize("name", RUNNABLE)
def test_drops_clean_runs_on_one_picture_and_gives_the_right_thing(
    name, frontend, request, screenshot_folder
):
    """A user's whole way: search, drop, connect a picture, press Run, look."""
    drop(frontend, name)
    assert frontend.complaints() == []
    shows = frontend.page.evaluate(WIRE, "fox_on_yellow")
    outputs = frontend.run()
    CHECKS[name](frontend, {output: outputs.get(node) for output, node in shows.items()})
    assert frontend.complaints() == []
    assert frontend.unseen_pictures(list(outputs)) == []
    frontend.screenshot(screenshot_folder / f"{request.node.callspec.id}.png")


@pytest.mark.usefixtures("current_frontend")
def test_a_blueprint_is_listed_with_what_it_does(open_frontend, screenshot_folder):
    """In the node library, under its category, and among the results of a search."""
    frontend = open_frontend(vue_nodes=True)
    page = frontend.page
    empty_canvas(frontend)
    results = frontend.search("SEED ").all_inner_texts()
    for name in ALL:
        (found,) = [text for text in results if text.startswith(name)]
        assert subgraph(name)["description"] in found
    page.keyboard.press("Escape")
    frontend.command("Workspace.ToggleSidebarTab.node-library")
    page.get_by_text("Comfy Blueprints").click()
    page.get_by_text("SEED", exact=True).first.click()
    for name in ALL:
        page.get_by_text(name, exact=True).wait_for()
    frontend.screenshot(screenshot_folder / "blueprints_in_the_library.png")
    assert frontend.complaints() == []


# Outside: a value unlike the one it begins with, and the inputs inside that it must reach.
TOKENIZER = {"tokenizer": ("a.pt", ["SEEDTokenizerLoader.tokenizer"])}
READING = {**TOKENIZER, "language_model": ("b", ["SEEDLLaMALoader.model"])}
PAINTING = {
    "guidance_scale": (4, ["SEEDDecode.guidance_scale"]),
    "steps": (9, ["SEEDDecode.steps"]),
}
DECODER = {"decoder": ("c", ["SEEDDecoderLoader.decoder"])}
REACHES = {
    DRAW: {
        "prompt": ("a panda on red", ["SEEDGenerate.prompt"]),
        "variations": (3, ["SEEDGenerate.variations"]),
        "temperature": (0.5, ["SEEDGenerate.temperature"]),
        "seed": (7, ["SEEDGenerate.seed", "SEEDDecode.seed"]),
        **PAINTING,
        **READING,
        **DECODER,
    },
    CHAT: {
        "prompt": ("What is this?", ["SEEDGenerate.prompt"]),
        "reply": ("text", ["SEEDGenerate.reply"]),
        "temperature": (0.5, ["SEEDGenerate.temperature"]),
        "max_new_tokens": (99, ["SEEDGenerate.max_new_tokens"]),
        "seed": (7, ["SEEDGenerate.seed"]),
        **READING,
    },
    EDIT: {
        "instruction": ("Turn it into a pizza", ["SEEDGenerate.prompt"]),
        "variations": (3, ["SEEDGenerate.variations"]),
        "seed": (7, ["SEEDGenerate.seed", "SEEDDecode.seed"]),
        **PAINTING,
        **READING,
        **DECODER,
    },
    VARIATION: {
        "seed": (7, ["SEEDDecode.seed"]),
        "noise_level": (300, ["SEEDDecode.noise_level"]),
        **PAINTING,
        **TOKENIZER,
        **DECODER,
    },
}


def queued(frontend) -> dict[str, object]:
    """Every input of the API form, as "node type.input"."""
    prompt = frontend.api_prompt().values()
    return {
        f"{node['class_type']}.{name}": value
        for node in prompt
        for name, value in node["inputs"].items()
    }


def test_each_widget_outside_sets_those_inside_and_no_other(frontend):
    for name, widgets in REACHES.items():
        assert list(drop(frontend, name)["widgets"]) == list(widgets)
        before = queued(frontend)
        for widget, (value, targets) in widgets.items():
            frontend.page.evaluate(SET, [widget, value])
            after = queued(frontend)
            assert {key for key in after if after[key] != before[key]} == set(targets), widget
            assert [after[target] for target in targets] == [value] * len(targets)
            before = after


def test_a_question_typed_outside_is_answered(frontend):
    drop(frontend, CHAT)
    shows = frontend.page.evaluate(WIRE, "fox_on_yellow")
    box = frontend.page.locator("textarea:visible").first
    box.fill("What color is the background?")
    box.blur()
    (answer,) = frontend.run()[shows["text"]]["text"]
    assert "yellow" in answer.lower()
    assert "fox" not in answer.lower()


def test_in_vue_nodes_every_widget_outside_is_on_the_screen(open_frontend):
    """Rare widgets are hidden there, and a subgraph's node has no button to show them."""
    frontend = open_frontend(vue_nodes=True)
    for name in RUNNABLE:
        node = drop(frontend, name)
        shown = frontend.page.locator(f'[data-node-id="{node["id"]}"]').inner_text().splitlines()
        assert set(node["widgets"]) <= set(shown), name


def test_the_inside_is_tidy(frontend, request, screenshot_folder, is_current):
    for name in RUNNABLE:
        drop(frontend, name)
        boxes = look_inside(frontend, screenshot_folder, f"{request.node.callspec.id}-{name}")
        assert not (is_current and frontend.overlapping(boxes)), name


def look_inside(frontend, screenshots: Path, shot: str) -> list[dict]:
    """Open the blueprint on the canvas and give the boxes of its nodes."""
    frontend.fit_view()
    frontend.screenshot(screenshots / f"closed-{shot}.png")
    frontend.page.evaluate(OPEN)
    frontend.settle()
    frontend.fit_view()
    frontend.screenshot(screenshots / f"open-{shot}.png")
    boxes = frontend.page.evaluate(INNER_BOXES)
    assert len(boxes) > 3
    assert frontend.complaints() == []
    return boxes


def comparable(graph: dict) -> dict:
    """A subgraph without what is given anew on every canvas: identifiers and numbers.

    And without what frontends after 1.47 add and leave out: the widgets' values by their names, and
    the empty list of a node that has none.
    """
    place = {node["id"]: i for i, node in enumerate(graph["nodes"])} | {-10: "in", -20: "out"}
    numbers = ("id", "order", "link", "links", "linkIds", "pos")
    wires = [
        (place[w["origin_id"]], w["origin_slot"], place[w["target_id"]], w["target_slot"])
        for w in graph["links"]
    ]

    def slots(found: list[dict]) -> list[dict]:
        return [{k: v for k, v in slot.items() if k not in numbers} for slot in found]

    nodes = [
        {"widgets_values": []}
        | {k: v for k, v in node.items() if k not in ("id", "order", "widgets_values_named")}
        | {side: slots(node[side]) for side in ("inputs", "outputs")}
        for node in graph["nodes"]
    ]
    ends = {side: slots(graph[side]) for side in ("inputs", "outputs")}
    kept = ("name", "description", "inputNode", "outputNode", "groups", "widgets")
    return (
        {key: graph[key] for key in kept}
        | ends
        | {"nodes": nodes, "wires": sorted(map(str, wires))}
    )


@pytest.mark.every_frontend
def test_the_frontend_saves_what_the_file_says(frontend):
    """A file that the frontend would repair or fill in is not the file people get."""
    for name in RUNNABLE:
        drop(frontend, name)
        (saved,) = frontend.page.evaluate(SAVED)["definitions"]["subgraphs"]
        assert comparable(saved) == comparable(subgraph(name))


@pytest.mark.usefixtures("current_frontend")
def test_without_ipadapters_pack_the_blueprint_says_what_is_missing(
    frontend, request, screenshot_folder
):
    """No word of it before it is dropped. Then the node is marked and keeps our own widget's value,
    and Run shows the pack's name and the missing file, which it offers to download."""
    assert not [text for text in frontend.complaints() if "Node Packs" in text]
    node = drop(frontend, IPADAPTER)
    assert node["widgets"] == {"tokenizer": "seed_quantizer.pt"}
    (mark,) = frontend.complaints()
    assert mark.endswith("marked as broken")
    page = frontend.page
    frontend.command("Comfy.QueuePrompt")
    page.get_by_role("button", name="View details").click()
    for text in ("Missing Node Packs", "comfyui_ipadapter_plus", "Missing Models"):
        page.get_by_text(text, exact=True).first.wait_for()
    page.get_by_role("button", name="Download seed_quantizer.pt").wait_for()
    frontend.screenshot(screenshot_folder / f"missing-pack-{request.node.callspec.id}.png")


@pytest.mark.usefixtures("current_frontend")
@pytest.mark.parametrize("vue_nodes", [False, True], ids=["classic", "vue"])
def test_with_ipadapters_nodes_the_blueprint_is_whole(
    vue_nodes, request, frontend_module, server_with_ipadapter, chromium, screenshot_folder
):
    frontend = frontend_module.Frontend(chromium, server_with_ipadapter, vue_nodes)
    node = drop(frontend, IPADAPTER)
    assert frontend.complaints() == []
    assert list(node["widgets"].values()) == [
        "seed_quantizer.pt",
        "ip-adapter_sdxl_vit-h.safetensors",
        *(0.8, "linear", 0, 1),
    ]
    inputs = {n["class_type"]: n["inputs"] for n in frontend.api_prompt().values()}
    embeds = {k: v for k, v in inputs["IPAdapterEmbeds"].items() if not isinstance(v, list)}
    assert embeds == {
        "weight": 0.8,
        "weight_type": "linear",
        "start_at": 0,
        "end_at": 1,
        "embeds_scaling": "V only",
    }
    assert inputs["IPAdapterEmbeds"]["pos_embed"][1] == 0
    assert inputs["IPAdapterEmbeds"]["neg_embed"][1] == 1
    frontend.page.evaluate(SET, ["weight", 0.5])
    assert queued(frontend)["IPAdapterEmbeds.weight"] == 0.5
    (saved,) = frontend.page.evaluate(SAVED)["definitions"]["subgraphs"]
    assert comparable(saved) == comparable(subgraph(IPADAPTER))
    boxes = look_inside(frontend, screenshot_folder, f"{request.node.callspec.id}-{IPADAPTER}")
    assert frontend.overlapping(boxes) == []
    frontend.close()
