"""What our nodes say stays on them: after a run, another run, in a subgraph, and from the history."""

import json

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.every_frontend]

LIVE = "$$node-text-preview"
SAID = """() => {
    const all = [app.rootGraph, ...app.rootGraph.subgraphs.values()].flatMap((g) => g._nodes);
    return Object.fromEntries(all.filter((node) => node.type.startsWith('SEED')).map((node) => [
        node.type,
        (node.widgets ?? [])
            .filter((w) => ['preview_text', '$$node-text-preview'].includes(w.name))
            .map((w) => [w.name, w.value])]));
}"""
SAVED = """() => Object.fromEntries(
    app.rootGraph.serialize().nodes.map((n) => [n.id, n.widgets_values ?? []]))"""
FORGET = """() => { for (const node of app.rootGraph._nodes)
    if (node.type === 'SEEDGenerate') node.widgets.find((w) => w.name === 'seed').value += 1; }"""
# What opening a finished job from the history does with its words, in the page's own order.
FROM_HISTORY = """async (outputs) => { app.nodeOutputs = outputs; }"""
TUCK_AWAY = """() => {
    const node = app.rootGraph._nodes.find((node) => node.type === 'SEEDGenerate');
    app.rootGraph.convertToSubgraph(new Set([node]));
}"""
SAID_OUTSIDE = """() => app.rootGraph._nodes.filter((node) => node.subgraph)
    .flatMap((node) => node.widgets ?? []).filter((w) => w.name === 'preview_text')
    .map((w) => w.value)"""
WITHOUT = "**/extensions/seed-llama/*.js"


@pytest.fixture(params=[False, True], ids=["classic", "vue"])
def frontend(request, open_frontend, browser_server):
    # A node whose result is still known does not run, and says nothing to a page opened since.
    browser_server.post_plain("/free", {"free_memory": True})
    return open_frontend(request.param)


def said(frontend) -> dict[str, list[str]]:
    """What each of our nodes shows in boxes of words, by its type."""
    frontend.settle()
    return {
        kind: [text for _, text in boxes] for kind, boxes in frontend.page.evaluate(SAID).items()
    }


@pytest.mark.usefixtures("current_frontend")
def test_words_stay_once_and_change_nothing_that_is_saved(frontend, request, screenshot_folder):
    frontend.load_template("ask_about_a_picture")
    assert not any(said(frontend).values()), "no box before a word is said"
    saved, queued = frontend.page.evaluate(SAVED), frontend.api_prompt()
    outputs = frontend.run()
    (answer,) = next(o["text"] for o in outputs.values() if "sunflower" in str(o.get("text")))
    words = said(frontend)
    assert words["SEEDGenerate"] == [answer]
    assert len(words["SEEDEncode"]) == 1
    assert words["SEEDTokenizerLoader"] == []
    assert frontend.page.evaluate(SAVED) == saved
    assert frontend.api_prompt() == queued
    frontend.fit_view()
    frontend.screenshot(screenshot_folder / f"words-{request.node.callspec.id}.png")

    frontend.page.evaluate(FORGET)  # another run, another answer, still one box
    frontend.run()
    assert len(said(frontend)["SEEDGenerate"]) == 1

    whole = frontend.page.evaluate("() => JSON.stringify(app.rootGraph.serialize())")
    values = frontend.page.evaluate(SAVED)
    frontend.load_json(whole)
    assert frontend.page.evaluate(SAVED) == values
    assert not any(said(frontend).values())
    frontend.page.evaluate(FROM_HISTORY, outputs)
    assert said(frontend)["SEEDGenerate"] == [answer]
    assert frontend.complaints() == []


@pytest.mark.usefixtures("current_frontend")
def test_words_of_a_node_in_a_subgraph_stay_on_it(frontend):
    frontend.load_template("ask_about_a_picture")
    frontend.page.evaluate(TUCK_AWAY)
    frontend.run()
    assert said(frontend)["SEEDGenerate"] == ["A big sunflower on an orange background."]
    outputs = frontend.page.evaluate("() => ({ ...app.nodeOutputs })")
    frontend.load_json(frontend.page.evaluate("() => JSON.stringify(app.rootGraph.serialize())"))
    frontend.page.evaluate(FROM_HISTORY, outputs)
    assert said(frontend)["SEEDGenerate"] == ["A big sunflower on an orange background."]


@pytest.mark.usefixtures("current_frontend")
def test_all_of_several_replies_can_be_read(frontend, request, screenshot_folder):
    frontend.load_template("ask_about_a_picture")
    node = next(k for k, v in frontend.api_prompt().items() if v["class_type"] == "SEEDGenerate")
    replies = [f"Reply {i}: a fox." for i in range(3)]
    frontend.page.evaluate(FROM_HISTORY, {node: {"text": replies}})
    (shown,) = said(frontend)["SEEDGenerate"]
    assert shown.split("\n\n") == replies
    frontend.screenshot(screenshot_folder / f"several-{request.node.callspec.id}.png")


def test_the_pack_works_without_its_scripts(frontend_module, browser_server, chromium):
    """Where the files do not arrive: all nodes, all results, no complaint."""
    chromium.route(WITHOUT, lambda route: route.fulfill(body="", content_type="text/javascript"))
    frontend = frontend_module.Frontend(chromium, browser_server, vue_nodes=True)
    try:
        frontend.load_template("ask_about_a_picture")
        texts = json.dumps([output.get("text") for output in frontend.run().values()])
        assert "A big sunflower on an orange background." in texts
        assert frontend.complaints() == []
    finally:
        frontend.close()
        chromium.unroute(WITHOUT)


def test_what_is_said_in_a_blueprint_is_on_its_node(
    frontend, request, frontend_version, screenshot_folder
):
    """Its own nodes are out of sight. Nothing of it is saved or queued."""
    if frontend_version < (1, 58):
        pytest.skip("a subgraph's node takes no boxes before frontend 1.58")
    frontend.load_template("ask_about_a_picture")
    frontend.page.evaluate(TUCK_AWAY)
    queued, saved = frontend.api_prompt(), frontend.page.evaluate(SAVED)
    frontend.run()
    frontend.settle()
    (shown,) = frontend.page.evaluate(SAID_OUTSIDE)
    assert shown == "A big sunflower on an orange background."
    assert frontend.api_prompt() == queued
    assert {
        k: [v for v in values if v != shown] for k, values in frontend.page.evaluate(SAVED).items()
    } == saved
    frontend.screenshot(screenshot_folder / f"outside-{request.node.callspec.id}.png")


def test_an_old_frontend_without_such_boxes_says_nothing_about_it(open_frontend):
    """Where the page has no boxes for words, its live text is all there is."""
    frontend = open_frontend(vue_nodes=False)
    frontend.page.evaluate("() => { delete window.comfyAPI.textPreviewWidgets; }")
    frontend.load_template("ask_about_a_picture")
    frontend.run()
    names = {name for boxes in frontend.page.evaluate(SAID).values() for name, _ in boxes}
    assert names <= {LIVE}
    assert frontend.complaints() == []
