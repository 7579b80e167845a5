"""The help pages say what the schemas say, quote what the code says, and point to what exists."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from seed_core.fetching.downloads import DOWNLOADS

ROOT = Path(__file__).resolve().parents[2]
HELP = ROOT / "nodes" / "web" / "docs"
LANGUAGES = (None, "zh")  # English is for every language without pages of its own

_spec = importlib.util.spec_from_file_location("help_pages", ROOT / "tests" / "help_pages.py")
help_pages = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(help_pages)

# Combos that list what lies on the disk; what comes with the pack stands first and is named so.
FROM_DISK = {"tokenizer", "model", "decoder", "lora", "file", "server", "ipadapter"}
BUNDLED = "(bundled)"
LOADERS = {
    "tokenizer": "SEEDTokenizerLoader",
    "llm": "SEEDLLaMALoader",
    "decoder": "SEEDDecoderLoader",
}
WHEN_MISSING = {None: "When a model is missing", "zh": "缺少模型时"}
COMMAND = "python custom_nodes/seed-llama"
GET_MODEL, GET_MODELS = "SEEDGetModel", "get_the_real_models"  # the node and its template
KEPT = re.compile(r"([\d.]+) in `(\w+)`|`(\w+)` 为 ([\d.]+)")  # gigabytes and a precision
WIDEST_CELL = 12  # characters; the panel has room for about 45 in a line
MOST_OPTIONS_IN_AN_ENTRY = 10  # more of them have a list of their own on the help page
# Messages on the help pages that our code does not say, with who does.
SAID_BY_OTHERS = {
    "Required input is missing": "ComfyUI, of an empty socket",
    "Missing connection": "the frontend 1.47, of the same",
    "Value not in list": "ComfyUI, of a choice that is none",
    "Invalid input": "the frontend 1.47, of the same",
    "This error means you ran out of memory on your GPU.": "ComfyUI, below the card's own words",
    "Saving image outside the output folder is not allowed.": "ComfyUI, of a file's name",
    "The size of tensor a (256) must match the size of tensor b (1024)": "torch, in KSampler",
    "Missing CLIPVision model.": "ComfyUI_IPAdapter_plus, without neg_embed",
}


@pytest.fixture(params=help_pages.paths(HELP), ids=lambda path: str(path.relative_to(HELP)))
def page(request):
    """A help page, in one of its languages."""
    return help_pages.HelpPage(request.param, HELP)


@pytest.fixture
def described(pack, page):
    """The schema of the node that the page is about."""
    return pack.nodes_by_id[page.node_id].GET_SCHEMA()


@pytest.fixture(scope="session")
def texts():
    """Whatever the code can say."""
    return help_pages.texts_of_the_code(ROOT / "nodes", ROOT / "seed_core")


def display_name(page, node_id):
    """What a node is called in the language of the page."""
    file = ROOT / "locales" / page.language / "nodeDefs.json"
    return json.loads(file.read_text(encoding="utf-8"))[node_id]["display_name"]


def node_types(graph):
    """The types of all nodes of a template or blueprint, those inside its subgraphs too."""
    saved = json.loads(graph.read_text(encoding="utf-8"))
    graphs = (saved, *saved.get("definitions", {}).get("subgraphs", []))
    return {node["type"] for each in graphs for node in each["nodes"]}


def fixed_options(widget):
    """The options of a combo that everybody has."""
    options = getattr(widget, "options", None) or []
    if widget.id in FROM_DISK and options != list(DOWNLOADS):
        return [option for option in options if option.endswith(BUNDLED)]
    return options


def test_every_node_has_a_help_page_in_both_languages(pack):
    pages = [help_pages.HelpPage(path, HELP) for path in help_pages.paths(HELP)]
    for language in LANGUAGES:
        of_language = [page.node_id for page in pages if page.language == language]
        assert sorted(of_language) == sorted(pack.nodes_by_id), language
    assert {page.language for page in pages} == set(LANGUAGES)


def test_every_picture_is_of_a_node_and_small_enough_to_ship(pack):
    files = list((HELP / "images").iterdir())
    assert sorted(file.name for file in files) == sorted(f"{name}.jpg" for name in pack.nodes_by_id)
    for file in files:
        with Image.open(file) as picture:
            assert min(picture.size) >= 150
            assert max(picture.size) <= 1200
        assert file.stat().st_size < 100_000


def test_a_help_page_begins_with_the_nodes_name_and_a_picture_of_it(page, described):
    assert page.text.startswith("# ")
    assert page.title == (
        display_name(page, page.node_id) if page.language else described.display_name
    )
    assert [file for _, file in page.pictures] == [f"images/{page.node_id}.jpg"]


def test_its_first_two_lists_are_the_inputs_and_the_outputs_in_order(page, described):
    assert list(page.inputs) == [widget.id for widget in described.inputs]
    assert page.outputs == [output.id for output in described.outputs]


def test_it_says_from_where_to_where_a_number_goes_and_where_it_begins(page, described):
    for widget in described.inputs:
        if getattr(widget, "min", None) is not None:
            wanted = [help_pages.plain(n) for n in (widget.min, widget.max, widget.default)]
            assert page.inputs[widget.id].numbers[:3] == wanted, widget.id


def test_it_names_every_choice(page, described):
    for widget in described.inputs:
        options = fixed_options(widget)
        entry = "".join(page.inputs[widget.id])
        where = entry if len(options) <= MOST_OPTIONS_IN_AN_ENTRY else page.text
        assert not [option for option in options if f"`{option}`" not in where], widget.id


def test_it_says_last_which_choice_or_text_a_widget_begins_with(page, described):
    for widget in described.inputs:
        default = getattr(widget, "default", None)
        if isinstance(default, str) and default and widget.id not in FROM_DISK:
            assert page.inputs[widget.id].quoted[-1] == default, widget.id


def test_its_tables_are_whole_and_narrow_enough_for_the_panel(page):
    """There only the last column may hold a sentence."""
    for headings, *rows in help_pages.tables(page.text):
        assert rows
        assert len(headings) in (2, 3)
        for row in (headings, *rows):
            assert len(row) == len(headings)
            assert max(map(len, row[:-1])) <= WIDEST_CELL


def test_it_quotes_messages_that_somebody_really_says(page, texts):
    assert page.errors
    for entry in page.errors:
        assert entry.quoted, entry
        made_up = [
            message
            for message in entry.quoted
            if message not in SAID_BY_OTHERS and not help_pages.is_said(message, texts)
        ]
        assert not made_up


@pytest.mark.parametrize("kind", ["TOKENIZER", "LLM", "DECODER"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_loaders_page_says_what_to_do_when_its_model_is_missing(pack, language, kind):
    """First the node, then what errors leave out: the command, the frontend's own offer, by hand."""
    kind = getattr(pack.kinds, kind)
    loader = LOADERS[kind.name]
    path = HELP / f"{loader}.md" if language is None else HELP / loader / f"{language}.md"
    page = help_pages.HelpPage(path, HELP)
    section = page.sections[page.headings.index(WHEN_MISSING[language])]
    node = pack.nodes_by_id[GET_MODEL].GET_SCHEMA().display_name
    get_model = node if language is None else display_name(page, GET_MODEL)
    before = section.partition(f"\n{COMMAND} fetch {kind.download}\n")[0]
    assert before != section
    assert [said for said in (f"`{GET_MODELS}`", get_model, "`fetch`") if said not in before] == []
    assert f"`{kind.bundled_choice}`" in section
    assert "*Download all*" in section
    for source in DOWNLOADS[kind.download].sources:
        assert f"]({source.page})" in section
        is_folder = any("*" in file for file in source.files)
        assert is_folder or [file for file in source.files if f"`{file}`" not in section] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_of_get_seed_model_has_the_sizes_of_the_downloads(language):
    """Of those that it advises; the others are for training."""
    path = HELP / f"{GET_MODEL}.md" if language is None else HELP / GET_MODEL / f"{language}.md"
    rows = [row for table in help_pages.tables(path.read_text(encoding="utf-8")) for row in table]
    for name, download in DOWNLOADS.items():
        if not name.endswith("-pretrain"):
            downloaded = f"{download.published_gigabytes:.1f} GB"
            kept = next(row[2] for row in rows if row[1] == downloaded)
            told = {(a or d): float(b or c) for b, a, d, c in KEPT.findall(kept)}
            assert told
            assert told == {precision: download.gigabytes[precision] for precision in told}, name


def test_every_message_of_others_is_on_a_help_page():
    pages = [path.read_text(encoding="utf-8") for path in HELP.glob("*.md")]
    assert not [said for said in SAID_BY_OTHERS if not any(f"`{said}`" in page for page in pages)]


def test_it_points_to_all_graphs_that_have_the_node_and_to_no_others(page):
    for named, folder in ((page.templates, "workflows"), (page.blueprints, "subgraphs")):
        graphs = (ROOT / folder).glob("*.json")
        having = [graph.stem for graph in graphs if page.node_id in node_types(graph)]
        assert sorted(named) == sorted(having)
