"""Codes in the real frontend: two that are compared in one picture, and files that are dropped."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser

BUILD = """([first, second]) => {
    app.rootGraph.clear();
    const add = (type, x, y, size) => {
        const node = LiteGraph.createNode(type);
        app.rootGraph.add(node);
        node.pos = [x, y];
        node.setSize(size);
        return node;
    };
    const typed = (text, y) => {
        const node = add('SEEDTextToCodes', 0, y, [300, 200]);
        node.widgets.find((widget) => widget.name === 'text').value = text;
        node.widgets.find((widget) => widget.name === 'family').value = 'seed-mini';
        return node;
    };
    const preview = add('SEEDPreviewCodes', 400, 0, [360, 560]);
    typed(first, 0).connect(0, preview, 0);
    typed(second, 300).connect(0, preview, 1);
    return String(preview.id);
}"""
LOADER = """() => {
    app.rootGraph.clear();
    const loader = LiteGraph.createNode('SEEDLoadCodes');
    const preview = LiteGraph.createNode('SEEDPreviewCodes');
    for (const [node, x] of [[loader, 100], [preview, 600]]) {
        app.rootGraph.add(node);
        node.pos = [x, 100];
    }
    loader.connect(0, preview, 0);
    return String(loader.id);
}"""
# Where the node's title is, on the screen.
PLACE = """(id) => {
    const { pos } = app.rootGraph.getNodeById(Number(id));
    const { ds, canvas } = app.canvas;
    const { left, top } = canvas.getBoundingClientRect();
    return [left + (pos[0] + ds.offset[0] + 60) * ds.scale,
        top + (pos[1] + ds.offset[1] + 20) * ds.scale];
}"""
DROP = """async ([x, y, name, text]) => {
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([text], name));
    const target = document.elementFromPoint(x, y);
    for (const kind of ['dragenter', 'dragover', 'drop']) {
        target.dispatchEvent(new DragEvent(kind, {
            dataTransfer, bubbles: true, cancelable: true, clientX: x, clientY: y,
        }));
        await new Promise(requestAnimationFrame);
    }
}"""
CHOSEN = """(id) => app.rootGraph.getNodeById(Number(id)).widgets
    .find((widget) => widget.name === 'file').value"""
PRESS = """(id) => app.rootGraph.getNodeById(Number(id)).widgets
    .find((widget) => widget.type === 'button').callback()"""


@pytest.fixture(params=[False, True], ids=["classic", "vue"])
def frontend(request, open_frontend):
    return open_frontend(request.param)


@pytest.fixture
def loader(frontend):
    """The id of a node SEED Load Codes in front of a preview."""
    node = frontend.page.evaluate(LOADER)
    frontend.settle()
    return node


def text_of(first: int) -> str:
    return "# seed-mini\n" + " ".join(str(code) for code in range(first, first + 32))


def drop(frontend, node: str, name: str, text: str) -> None:
    frontend.page.evaluate(DROP, [*frontend.page.evaluate(PLACE, node), name, text])


def wait_for_choice(frontend, node: str, name: str) -> None:
    frontend.page.wait_for_function(f"([id, name]) => ({CHOSEN})(id) === name", arg=[node, name])


def test_what_is_compared_is_one_picture_on_the_node(frontend, screenshot_folder):
    codes = list(range(32)), [*range(12), *range(100, 120)]
    preview = frontend.page.evaluate(BUILD, [json.dumps(row) for row in codes])
    frontend.settle()
    outputs = frontend.run()
    assert len(outputs[preview]["images"]) == 1
    assert frontend.unseen_pictures([preview]) == []
    frontend.screenshot(screenshot_folder / "codes_compared.png")


def test_a_file_that_is_dropped_is_chosen_and_loaded(frontend, loader, screenshot_folder):
    drop(frontend, loader, "dropped.txt", text_of(7))
    wait_for_choice(frontend, loader, "dropped.txt")
    uploaded = frontend.server.base_dir / "input" / "dropped.txt"
    assert uploaded.read_text(encoding="utf-8") == text_of(7)
    outputs = frontend.run()
    assert [len(output["images"]) for output in outputs.values()] == [1]
    frontend.screenshot(screenshot_folder / "codes_dropped.png")


def test_a_file_of_another_kind_is_refused_in_words_and_changes_nothing(frontend, loader):
    drop(frontend, loader, "first.txt", text_of(0))
    wait_for_choice(frontend, loader, "first.txt")
    drop(frontend, loader, "fox.png", "no picture of codes")
    frontend.page.get_by_text("'fox.png' is not a file of codes").first.wait_for()
    assert frontend.page.evaluate(CHOSEN, loader) == "first.txt"
    assert not (frontend.server.base_dir / "input" / "fox.png").exists()


def test_the_button_takes_a_file(frontend, loader, tmp_path):
    file: Path = tmp_path / "chosen.txt"
    file.write_text(text_of(3), encoding="utf-8")
    with frontend.page.expect_file_chooser() as chooser:
        frontend.page.evaluate(PRESS, loader)
    chooser.value.set_files(file)
    wait_for_choice(frontend, loader, "chosen.txt")
    assert "upload" not in frontend.api_prompt()[loader]["inputs"]


def test_what_was_saved_is_in_the_list_after_r_and_can_be_run(frontend, loader):
    graph = {
        "text": {
            "class_type": "SEEDTextToCodes",
            "inputs": {"text": str(list(range(32))), "family": "seed-mini"},
        },
        "save": {
            "class_type": "SEEDSaveCodes",
            "inputs": {"codes": ["text", 0], "filename_prefix": "codes/browser"},
        },
    }
    (file,) = frontend.server.run(graph).outputs["save"]["codes"]
    name = f"{file['subfolder']}/{file['filename']} [output]"
    frontend.command("Comfy.RefreshNodeDefinitions")
    frontend.page.wait_for_function(
        "([id, name]) => app.rootGraph.getNodeById(Number(id)).widgets"
        ".find((widget) => widget.name === 'file').options.values.includes(name)",
        arg=[loader, name],
    )
    frontend.page.evaluate(
        "([id, name]) => { app.rootGraph.getNodeById(Number(id)).widgets"
        ".find((widget) => widget.name === 'file').value = name; }",
        [loader, name],
    )
    assert [len(output["images"]) for output in frontend.run().values()] == [1]
