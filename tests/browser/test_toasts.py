"""When one of our nodes fails, the page says the sentence itself, once."""

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.every_frontend]

# The text comes by wire, so that it is only read when it is there; or it is typed, and read at once.
GRAPH = """(isTyped) => {
    const node = LiteGraph.createNode('SEEDTextToCodes');
    const show = LiteGraph.createNode('SEEDPreviewCodes');
    const words = LiteGraph.createNode('PrimitiveStringMultiline');
    for (const added of isTyped ? [node, show] : [words, node, show]) app.rootGraph.add(added);
    show.pos = [900, 100];
    node.pos = [500, 100];
    node.connect(0, show, 0);
    const place = node.inputs.findIndex((input) => input.name === 'text');
    if (!isTyped) words.connect(0, node, place);
    (isTyped ? node : words).widgets[0].value = 'nothing that has codes';
}"""
SENTENCE = """() => app.api.addEventListener('execution_error',
    (event) => { window.seedError = event.detail.exception_message.trim(); })"""


@pytest.fixture(params=[False, True], ids=["classic", "vue"])
def frontend(request, open_frontend):
    return open_frontend(request.param)


@pytest.mark.usefixtures("current_frontend")
def test_the_sentence_is_in_the_one_message(frontend, request, screenshot_folder):
    page = frontend.page
    frontend.command("Comfy.NewBlankWorkflow")
    frontend.settle()
    page.evaluate(GRAPH, False)
    page.evaluate(SENTENCE)
    frontend.command("Comfy.QueuePrompt")
    page.wait_for_function("window.seedError", timeout=60_000)
    sentence = page.evaluate("window.seedError")
    page.get_by_test_id("error-overlay").get_by_text(sentence).wait_for()
    frontend.settle()
    (message,) = [text for text in frontend.complaints() if "marked as broken" not in text]
    assert message.count(sentence) == 1
    assert "threw an error" not in message
    assert page.get_by_test_id("error-overlay-see-errors").is_visible()
    frontend.screenshot(screenshot_folder / f"toast-{request.node.callspec.id}.png")


@pytest.mark.usefixtures("current_frontend")
def test_what_is_refused_before_a_run_is_said_too(frontend, request, screenshot_folder):
    frontend.command("Comfy.NewBlankWorkflow")
    frontend.settle()
    frontend.page.evaluate(GRAPH, True)
    frontend.command("Comfy.QueuePrompt")
    overlay = frontend.page.get_by_test_id("error-overlay")
    overlay.get_by_text("'nothing' is not a code").wait_for()
    assert "SEED" not in overlay.inner_text().replace("SEED Text to Codes", "")
    frontend.screenshot(screenshot_folder / f"refused-{request.node.callspec.id}.png")


@pytest.mark.usefixtures("current_frontend")
def test_an_error_of_another_pack_keeps_its_own_message(frontend):
    page = frontend.page
    page.evaluate(
        """() => app.api.dispatchCustomEvent('execution_error', {
            prompt_id: '1', node_id: String(app.rootGraph._nodes[0].id), node_type: 'KSampler',
            exception_message: 'this is not ours', exception_type: 'ValueError', traceback: [] })"""
    )
    overlay = page.get_by_test_id("error-overlay")
    overlay.wait_for()
    frontend.settle()
    assert "this is not ours" not in overlay.inner_text()
