"""What the host, every saved workflow and the help pages know about the nodes."""

import importlib.util
import inspect
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HELP = ROOT / "nodes" / "web" / "docs"

_spec = importlib.util.spec_from_file_location("help_pages", ROOT / "tests" / "help_pages.py")
help_pages = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(help_pages)

# The public contract: node ids, input ids ("?" = optional socket) and types, outputs ("*" = a list).
# Saved workflows depend on it: never renamed, never reordered, only appended to.
CONTRACT = {
    "SEEDSamplePicture": (["picture COMBO"], ["image IMAGE"]),
    "SEEDTokenizerLoader": (
        ["tokenizer COMBO", "precision COMBO"],
        ["tokenizer SEED_TOKENIZER"],
    ),
    "SEEDLLaMALoader": (["model COMBO", "precision COMBO"], ["llm SEED_LLM"]),
    "SEEDDecoderLoader": (["decoder COMBO", "precision COMBO"], ["decoder SEED_DECODER"]),
    "SEEDLoRALoader": (["llm SEED_LLM", "lora COMBO", "strength FLOAT"], ["llm SEED_LLM"]),
    "SEEDEncode": (
        ["tokenizer SEED_TOKENIZER", "image IMAGE", "fit COMBO"],
        ["codes SEED_CODES"],
    ),
    "SEEDGenerate": (
        [
            "llm SEED_LLM",
            "prompt STRING",
            "codes? SEED_CODES",
            "chat? SEED_CHAT",
            "reply COMBO",
            "variations INT",
            "max_new_tokens INT",
            "temperature FLOAT",
            "top_p FLOAT",
            "top_k INT",
            "seed INT",
        ],
        ["text* STRING", "codes SEED_CODES", "chat* SEED_CHAT"],
    ),
    "SEEDChatView": (
        ["chat SEED_CHAT", "tokenizer? SEED_TOKENIZER", "decoder? SEED_DECODER"],
        ["text STRING", "codes SEED_CODES"],
    ),
    "SEEDDecode": (
        [
            "tokenizer SEED_TOKENIZER",
            "decoder SEED_DECODER",
            "codes SEED_CODES",
            "negative_codes? SEED_CODES",
            "seed INT",
            "steps INT",
            "guidance_scale FLOAT",
            "noise_level INT",
            "width INT",
            "height INT",
        ],
        ["image IMAGE"],
    ),
    "SEEDCodesToEmbedding": (
        ["tokenizer SEED_TOKENIZER", "codes SEED_CODES"],
        ["clip_vision_output* CLIP_VISION_OUTPUT"],
    ),
    "SEEDCodesToIPAdapter": (
        ["tokenizer SEED_TOKENIZER", "codes SEED_CODES"],
        ["pos_embed EMBEDS", "neg_embed EMBEDS"],
    ),
    "SEEDCodesToConditioning": (
        ["tokenizer SEED_TOKENIZER", "codes SEED_CODES"],
        ["conditioning CONDITIONING"],
    ),
    "SEEDBlendEmbeddings": (
        ["a CLIP_VISION_OUTPUT", "b CLIP_VISION_OUTPUT", "factor FLOAT", "mode COMBO"],
        ["clip_vision_output CLIP_VISION_OUTPUT"],
    ),
    "SEEDCodesToText": (["codes SEED_CODES"], ["text STRING"]),
    "SEEDTextToCodes": (["text STRING", "family COMBO"], ["codes SEED_CODES"]),
    "SEEDMixCodes": (
        [
            "codes_a SEED_CODES",
            "codes_b SEED_CODES",
            "start INT",
            "end INT",
            "mode COMBO",
            "amount FLOAT",
            "seed INT",
        ],
        ["codes SEED_CODES"],
    ),
    "SEEDBatchCodes": (
        [
            "codes_1 SEED_CODES",
            "codes_2 SEED_CODES",
            "codes_3? SEED_CODES",
            "codes_4? SEED_CODES",
        ],
        ["codes SEED_CODES"],
    ),
    "SEEDSelectCodes": (["codes SEED_CODES", "index INT", "length INT"], ["codes SEED_CODES"]),
    "SEEDPreviewCodes": (["codes SEED_CODES"], ["codes SEED_CODES"]),
    "SEEDSaveCodes": (["codes SEED_CODES", "filename_prefix STRING"], ["codes SEED_CODES"]),
    "SEEDLoadCodes": (["file COMBO"], ["codes SEED_CODES"]),
}
DEFAULTS = {
    "SEEDGenerate": {
        "reply": "auto",
        "variations": 1,
        "max_new_tokens": 512,
        "temperature": 1.0,
        "top_p": 0.5,
        "top_k": 50,
    },
    "SEEDDecode": {
        "steps": 20,
        "guidance_scale": 10.0,
        "noise_level": 0,
        "width": 0,
        "height": 0,
    },
    "SEEDLoRALoader": {"strength": 1.0},
    "SEEDEncode": {"fit": "stretch"},
    "SEEDBlendEmbeddings": {"factor": 0.5, "mode": "linear"},
}
OPTIONS = {
    ("SEEDEncode", "fit"): ["stretch", "crop", "pad"],
    ("SEEDBlendEmbeddings", "mode"): ["linear", "spherical"],
    ("SEEDGenerate", "reply"): ["auto", "text", "image"],
    ("SEEDTokenizerLoader", "precision"): ["auto", "fp32", "fp16", "bf16"],
    ("SEEDLLaMALoader", "precision"): ["auto", "bf16", "fp16", "fp32", "fp8"],
    ("SEEDDecoderLoader", "precision"): ["auto", "fp32", "fp16", "bf16"],
    ("SEEDTextToCodes", "family"): ["seed-1", "seed-2", "seed-mini"],
    ("SEEDMixCodes", "mode"): ["splice", "random"],
}
# Combos that list what lies on the disk; what comes with the pack stands first and is named so.
FROM_DISK = {"tokenizer", "model", "decoder", "lora", "file"}
BUNDLED = "(bundled)"
MOST_OPTIONS_IN_A_ROW = 10  # more of them have a list of their own on the help page
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


@pytest.fixture(params=CONTRACT)
def node_id(request):
    return request.param


@pytest.fixture
def node(pack, node_id):
    return pack.nodes_by_id[node_id]


@pytest.fixture
def schema(node):
    return node.GET_SCHEMA()


def test_the_nodes_come_in_the_order_of_a_graph(pack):
    assert list(pack.nodes_by_id) == list(CONTRACT)


def test_ids_types_and_order_are_the_contract(schema, node_id):
    inputs = [f"{i.id}{'?' if i.optional else ''} {i.get_io_type()}" for i in schema.inputs]
    outputs = [f"{o.id}{'*' if o.is_output_list else ''} {o.get_io_type()}" for o in schema.outputs]
    assert (inputs, outputs) == CONTRACT[node_id]


def test_the_schema_is_valid_and_filled(schema):
    schema.validate()
    assert schema.category == "SEED"
    assert schema.display_name
    assert len(schema.description) > 40
    assert schema.search_aliases


def test_every_socket_and_widget_is_explained(schema):
    short = [s.id for s in (*schema.inputs, *schema.outputs) if len(s.tooltip or "") < 12]
    assert not short


def test_defaults_are_the_references(schema, node_id):
    found = {i.id: getattr(i, "default", None) for i in schema.inputs}
    wanted = DEFAULTS.get(node_id, {})
    assert {name: found[name] for name in wanted} == wanted


def test_defaults_lie_in_their_ranges(schema):
    for widget in schema.inputs:
        low, high = getattr(widget, "min", None), getattr(widget, "max", None)
        if low is not None:
            assert low <= widget.default <= high, widget.id
        if getattr(widget, "options", None) and widget.default is not None:
            assert widget.default in widget.options, widget.id


def test_choices_are_the_contract(pack, node_id):
    for (owner, name), options in OPTIONS.items():
        if owner == node_id:
            widgets = {i.id: i for i in pack.nodes_by_id[owner].GET_SCHEMA().inputs}
            assert widgets[name].options == options


def test_random_seeds_can_be_varied_after_each_run(schema):
    for widget in schema.inputs:
        if widget.id == "seed":
            assert widget.control_after_generate
            assert (widget.min, widget.max) == (0, 2**64 - 1)


def test_execute_takes_exactly_the_inputs(node, schema):
    taken = [name for name in inspect.signature(node.execute).parameters if name != "cls"]
    assert sorted(taken) == sorted(i.id for i in schema.inputs)


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


def node_types(graph):
    """The types of all nodes of a template or blueprint, those inside its subgraphs too."""
    saved = json.loads(graph.read_text(encoding="utf-8"))
    graphs = (saved, *saved.get("definitions", {}).get("subgraphs", []))
    return {node["type"] for each in graphs for node in each["nodes"]}


def fixed_options(widget):
    """The options of a combo that everybody has."""
    options = getattr(widget, "options", None) or []
    if widget.id in FROM_DISK:
        return [option for option in options if option.endswith(BUNDLED)]
    return options


def test_every_node_has_a_help_page():
    assert {path.stem for path in HELP.glob("*.md")} == set(CONTRACT)


def test_a_help_page_begins_with_the_nodes_name_and_a_picture_of_it(page, described):
    assert page.text.startswith("# ")
    assert page.title == described.display_name or page.language
    assert [file for _, file in page.pictures] == [f"images/{page.node_id}.jpg"]


def test_its_first_two_tables_are_the_inputs_and_the_outputs_in_order(page, described):
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
        row = "".join(page.inputs[widget.id].cells)
        where = row if len(options) <= MOST_OPTIONS_IN_A_ROW else page.text
        assert not [option for option in options if f"`{option}`" not in where], widget.id


def test_it_says_last_which_choice_or_text_a_widget_begins_with(page, described):
    for widget in described.inputs:
        default = getattr(widget, "default", None)
        if isinstance(default, str) and default and widget.id not in FROM_DISK:
            assert page.inputs[widget.id].named[-1] == default, widget.id


def test_its_tables_are_whole_and_narrow_enough_for_the_side_bar(page):
    for table in help_pages.tables(page.text):
        headings = len(table[0].cells)
        assert headings in (2, 3)
        assert [row for row in table if len(row.cells) != headings] == []


def test_it_quotes_messages_that_somebody_really_says(page, texts):
    assert page.errors
    for row in page.errors:
        assert row.messages, row
        made_up = [
            message
            for message in row.messages
            if message not in SAID_BY_OTHERS and not help_pages.is_said(message, texts)
        ]
        assert not made_up


def test_every_message_of_others_is_on_a_help_page():
    pages = [path.read_text(encoding="utf-8") for path in HELP.glob("*.md")]
    assert not [said for said in SAID_BY_OTHERS if not any(f"`{said}`" in page for page in pages)]


def test_it_points_to_graphs_that_have_the_node(page):
    graphs = [ROOT / "workflows" / f"{name}.json" for name in page.templates]
    graphs += [ROOT / "subgraphs" / f"{name}.json" for name in page.blueprints]
    assert page.templates
    assert not [graph.stem for graph in graphs if not graph.is_file()]
    assert not [graph.stem for graph in graphs if page.node_id not in node_types(graph)]
