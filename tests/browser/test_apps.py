"""The app views of templates in the real frontend: a form, Run, results."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser

WORKFLOWS = Path(__file__).parents[2] / "workflows"
APPS_SINCE = (1, 58)
# What each app shows after a run: so many pictures, and words.
RESULTS = {
    "ask_about_a_picture": (1, "A big sunflower on an orange background."),
    "conversation": (3, "Assistant: It is a cupcake."),
    "edit_by_instruction": (2, None),
    "text_to_image": (4, None),
}


@pytest.fixture
def frontend(open_frontend):
    opened = open_frontend(vue_nodes=True)
    if opened.version() < APPS_SINCE:
        pytest.skip("an older frontend, which has no app views like these")
    return opened


def form_of(name: str) -> dict[str, str]:
    """What the file calls each field of the form, with its description."""
    workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    labels = {
        (node["id"], slot["name"]): slot.get("label")
        for node in workflow["nodes"]
        for slot in node["inputs"]
    }
    fields = workflow["extra"]["linearData"]["inputs"]
    return {
        labels[int(place.split(":")[1]), widget]: told["description"]
        for place, widget, told in fields
    }


def open_app(page) -> None:
    page.get_by_test_id("linear-right-panel").wait_for()
    skip = page.get_by_role("button", name="Skip", exact=True)  # a tour, on a fresh server
    page.wait_for_timeout(1000)
    if skip.count():
        skip.click()


# A miniature's job is over before a busy page has read the answer to its own queueing. The page then
# drops the first results, and the word that the queue is empty while it still reads the queue. Here it
# is told one thing after another, as by a job that takes seconds, and the end of the queue again.
KEEP_UP = """() => {
    const { api } = app, { queuePrompt, dispatchCustomEvent } = api;
    const rest = () => new Promise((done) => setTimeout(() => requestIdleCallback(done), 100));
    let line = Promise.resolve();
    api.queuePrompt = (...given) => {
        const answer = queuePrompt.apply(api, given);
        line = line.then(() => answer).catch(() => {}).then(rest);
        return answer;
    };
    api.dispatchCustomEvent = (type, detail) => {
        const dispatch = () => dispatchCustomEvent.call(api, type, detail);
        if (!/^(execut|status)/.test(type)) return dispatch();
        line = line.then(dispatch).then(rest);
        if (type === 'status') setTimeout(dispatch, 3000);
        return true;
    };
}"""


@pytest.mark.parametrize("name", RESULTS)
def test_a_template_opens_as_a_graph_and_is_an_app_at_a_click(name, frontend, screenshot_folder):
    page = frontend.page
    frontend.load_template(name)
    assert not page.get_by_test_id("linear-right-panel").count()
    frontend.command("Comfy.ToggleLinear")
    open_app(page)
    form = form_of(name)
    assert page.get_by_test_id("builder-widget-label").all_inner_texts() == list(form)
    told = page.get_by_test_id("app-mode-widget-description")
    assert told.all_inner_texts() == list(form.values())
    for text in told.all():
        assert text.evaluate("(shown) => shown.scrollWidth <= shown.clientWidth"), "cut short"

    page.evaluate(KEEP_UP)
    frontend.run()
    pictures, words = RESULTS[name]
    results = page.get_by_test_id("linear-history-item")
    results.nth(pictures - (words is None)).wait_for()
    shown = page.get_by_test_id("linear-image-output")
    assert shown.count() == pictures
    page.wait_for_function(
        "(all) => all.every((img) => img.naturalWidth > 0)", arg=shown.element_handles()
    )
    frontend.screenshot(screenshot_folder / f"app-{name}.png")
    if words:
        results.filter(has_not=page.locator("img")).first.click()
        page.get_by_text(words).wait_for()
        frontend.screenshot(screenshot_folder / f"app-{name}-words.png")
