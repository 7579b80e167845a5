"""The templates that need large models, in the real frontend: they open clean where the files are,
and where they are not, people are offered exactly those.

The files are empty here: the frontend reads their names, and nothing is run.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
WORKFLOWS = ROOT / "workflows"
TWINS = ROOT / "tests" / "workflows" / "api"
IPADAPTER_DOUBLE = Path(__file__).parent / "ipadapter_double"
NATIVE = (
    *("ipadapter_plus_sdxl", "ipadapter_sd15", "ipadapter_sdxl", "native_blend", "native_unclip"),
    "seed1_stable_diffusion",
)
FOLDERS = {
    "CheckpointLoaderSimple": "checkpoints",
    "IPAdapterModelLoader": "ipadapter",
    "SEEDIPAdapter": "ipadapter",
    "SEEDTokenizerLoader": "seed_tokenizer",
}
IPADAPTER_NODES = {
    "IPAdapterModelLoader": "comfyui_ipadapter_plus",
    "IPAdapterEmbeds": "comfyui_ipadapter_plus",
}
# What the page's own lists of missing things hold: the error panel is drawn from them.
MISSING = """() => {
    const app = document.querySelector('#vue-app').__vue_app__;
    const stores = app.config.globalProperties.$pinia.state.value;
    const models = stores.missingModel.missingModelCandidates ?? [];
    const nodes = stores.missingNodesError.missingNodesError?.nodeTypes ?? [];
    const missing = {
        models: models.filter((model) => model.isMissing).map((model) => ({
            name: model.name, url: model.url, directory: model.directory,
            hash: model.hash, hash_type: model.hashType })),
        nodes: Object.fromEntries(nodes.map((node) => [node.type, node.cnrId])),
    };
    return JSON.parse(JSON.stringify(missing));  // without what is undefined
}"""


@pytest.fixture(scope="module")
def server(comfy, browser_server, tmp_path_factory):
    """One that has IPAdapter's nodes: the installed ones, or ones that look like them."""
    ipadapter = comfy.find_ipadapter() or IPADAPTER_DOUBLE
    packs = browser_server.packs | {"ComfyUI_IPAdapter_plus": ipadapter}
    base = tmp_path_factory.mktemp("with_ipadapter")
    server = type(browser_server)(browser_server.checkout, base, packs, browser_server.args)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def open_template(frontend_module, chromium):
    """Opens a template in a new page of a server, and closes it after the test."""
    opened = []

    def open_on(server, name: str, vue_nodes: bool = False):
        opened.append(frontend_module.Frontend(chromium, server, vue_nodes))
        opened[-1].load_template(name)
        return opened[-1]

    yield open_on
    for frontend in opened:
        frontend.close()


def nodes_of(name: str) -> list[dict]:
    return json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))["nodes"]


def models_of(name: str) -> list[dict]:
    """What the file asks the frontend to offer."""
    return [model for node in nodes_of(name) for model in node["properties"].get("models", [])]


@contextlib.contextmanager
def model_files(server, name: str) -> Iterator[None]:
    """Empty files of the names that the template's loaders hold."""
    models = server.base_dir / "models"
    chosen = [
        models / FOLDERS[node["type"]] / node["widgets_values"][0]
        for node in nodes_of(name)
        if node["type"] in FOLDERS
    ]
    for path in chosen:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    try:
        yield
    finally:
        for path in chosen:
            path.unlink()


def without_titles(prompt: dict) -> dict:
    """Titles follow the display names, which the double of IPAdapter does not have."""
    return {key: node | {"_meta": None} for key, node in prompt.items()}


@pytest.mark.parametrize("vue_nodes", [False, True], ids=["classic", "vue"])
@pytest.mark.parametrize("name", NATIVE)
def test_opens_clean_where_its_files_are(
    name, vue_nodes, server, open_template, request, screenshot_folder
):
    with model_files(server, name):
        frontend = open_template(server, name, vue_nodes)
        assert frontend.complaints() == []
        twin = json.loads((TWINS / f"{name}.json").read_text(encoding="utf-8"))
        assert without_titles(frontend.api_prompt()) == without_titles(twin)
        assert frontend.overlapping(frontend.boxes()) == []
        frontend.fit_view()
        frontend.screenshot(screenshot_folder / f"{request.node.callspec.id}.png")


@pytest.mark.usefixtures("current_frontend")
@pytest.mark.parametrize("name", NATIVE)
def test_offers_its_models_and_no_others_where_they_are_missing(
    name, server, open_template, screenshot_folder
):
    frontend = open_template(server, name)
    missing = frontend.page.evaluate(MISSING)
    assert missing["nodes"] == {}
    # A file that is found nowhere on the sources is missing too, but nothing is offered for it.
    offered = [model for model in missing["models"] if "url" in model]
    by_name = {model["name"]: model for model in models_of(name)}
    assert {model["name"]: model for model in offered} == by_name
    frontend.page.get_by_role("button", name="View details").click()
    for model in by_name:
        frontend.page.get_by_text(model, exact=True).first.wait_for()
    frontend.screenshot(screenshot_folder / f"{name}_missing.png")


@pytest.mark.usefixtures("current_frontend")
def test_without_ipadapter_its_two_nodes_are_missing_and_nothing_else(
    browser_server, open_template
):
    """With the id of their pack, by which ComfyUI Manager installs it."""
    name = "ipadapter_plus_sdxl"
    with model_files(browser_server, name):
        frontend = open_template(browser_server, name)
        missing = frontend.page.evaluate(MISSING)
        assert missing == {"models": [], "nodes": IPADAPTER_NODES}
        dialog, *broken = frontend.complaints()
        assert "Missing Node Packs" in dialog.splitlines()[:2]  # "Warning" comes first since 1.58
        assert sorted(line.split()[0] for line in broken) == sorted(IPADAPTER_NODES)
