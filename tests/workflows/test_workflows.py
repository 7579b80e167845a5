"""The templates as files: whole, tidy, within the contract, and equal to their API twins.

No host is needed here. That the real frontend loads, queues and draws them is tests/browser's.
"""

import importlib.util
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WORKFLOWS = ROOT / "workflows"
SAMPLES = ROOT / "seed_core" / "weights" / "seed-mini" / "samples"
NAMES = (
    "ask_about_a_picture",
    "conversation",
    "edit_by_instruction",
    "mix_two_pictures",
    "reconstruct",
    "text_to_image",
)
TITLE_HEIGHT = 30  # LiteGraph draws a node's title above its position
MARGIN = 5  # pixels between neighbours below which a graph looks crammed

_spec = importlib.util.spec_from_file_location("workflow_contract", HERE / "contract.py")
contract = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(contract)

TABLE = contract.nodes([path.stem for path in SAMPLES.glob("*.png")])
each_template = pytest.mark.parametrize("name", NAMES)


def read(name: str) -> dict[str, Any]:
    return json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))


def nodes_of(name: str, *types: str) -> list[dict[str, Any]]:
    return [node for node in read(name)["nodes"] if not types or node["type"] in types]


def box(node: dict[str, Any]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a node, its title included."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE_HEIGHT, x + width, y + height


def overlap(a: tuple[float, ...], b: tuple[float, ...], margin: float = 0) -> bool:
    return (
        a[0] < b[2] + margin
        and b[0] < a[2] + margin
        and a[1] < b[3] + margin
        and b[1] < a[3] + margin
    )


def inside(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] >= b[0] and a[1] >= b[1] and a[2] <= b[2] and a[3] <= b[3]


def group_boxes(name: str) -> dict[str, tuple[float, float, float, float]]:
    groups = {g["title"]: g["bounding"] for g in read(name)["groups"]}
    return {title: (x, y, x + w, y + h) for title, (x, y, w, h) in groups.items()}


def test_the_folder_holds_the_templates_and_their_thumbnails_only():
    expected = {f"{name}{suffix}" for name in NAMES for suffix in (".json", ".jpg")}
    assert {path.name for path in WORKFLOWS.iterdir()} == expected


@each_template
def test_has_the_shape_the_frontend_saves(name):
    workflow = read(name)
    assert workflow["version"] == 0.4
    ids = [node["id"] for node in workflow["nodes"]]
    assert len(set(ids)) == len(ids)
    assert workflow["last_node_id"] == max(ids)
    assert workflow["last_link_id"] == max(link[0] for link in workflow["links"])
    assert not workflow.get("definitions", {}).get("subgraphs"), "templates are flat"


@each_template
def test_links_agree_with_both_of_their_ends(name):
    workflow = read(name)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    seen_inputs, seen_outputs = set(), set()
    for link_id, origin, origin_slot, target, target_slot, kind in workflow["links"]:
        output = nodes[origin]["outputs"][origin_slot]
        socket = nodes[target]["inputs"][target_slot]
        assert socket["link"] == link_id
        assert link_id in output["links"]
        assert output["type"] == kind
        assert socket["type"] in (kind, "*")
        seen_inputs.add(link_id)
        seen_outputs.add((origin, link_id))
    for node in workflow["nodes"]:
        for socket in node["inputs"]:
            assert socket["link"] is None or socket["link"] in seen_inputs
        for output in node["outputs"]:
            assert all((node["id"], link) in seen_outputs for link in output["links"] or [])


@each_template
def test_sockets_and_outputs_are_those_of_the_contract(name):
    for node in nodes_of(name):
        row = TABLE[node["type"]]
        sockets = [(s["name"], s["type"]) for s in node["inputs"] if not s.get("widget")]
        assert sockets == list(row.sockets), node["type"]
        assert [(o["name"], o["type"]) for o in node["outputs"]] == list(row.outputs)
        unwired = {s["name"] for s in node["inputs"] if not s.get("widget") and s["link"] is None}
        assert unwired <= set(row.optional), f"{node['type']} lacks a required input"


@each_template
def test_widget_values_are_complete_and_in_range(name):
    for node in nodes_of(name):
        row = TABLE[node["type"]]
        values = contract.widget_values(node, row)
        for widget, check in row.widgets.items():
            assert check(values[widget]), f"{node['type']}.{widget} = {values[widget]!r}"


@each_template
def test_every_run_gives_the_picture_of_the_thumbnail(name):
    """A random seed that changes by itself would show everybody something else."""
    controls = [
        contract.widget_values(node, TABLE[node["type"]])["control_after_generate"]
        for node in nodes_of(name, "SEEDGenerate", "SEEDMixCodes", "SEEDDecode")
    ]
    assert controls
    assert set(controls) == {"fixed"}


@each_template
def test_pictures_are_painted_the_way_seed_mini_is_at_its_best(name):
    for node in nodes_of(name, "SEEDDecode"):
        values = contract.widget_values(node, TABLE["SEEDDecode"])
        assert (values["guidance_scale"], values["steps"]) == (2, 20)


@each_template
def test_nodes_say_which_pack_they_come_from(name):
    """The manager offers to install a missing pack by this id."""
    for node in nodes_of(name):
        if TABLE[node["type"]].is_ours:
            found = {key: node["properties"].get(key) for key in contract.PACK}
            assert found == contract.PACK
        elif node["type"] not in contract.NOTES:
            assert node["properties"]["cnr_id"] == contract.CORE_ID


@pytest.mark.parametrize("name", [n for n in NAMES if n != "text_to_image"])
def test_a_template_with_a_picture_starts_from_a_bundled_one(name):
    expected = 2 if name == "mix_two_pictures" else 1
    assert len(nodes_of(name, "SEEDSamplePicture")) == expected


def test_the_two_mixes_are_each_other_turned_round():
    mixes = [node["inputs"] for node in nodes_of("mix_two_pictures", "SEEDMixCodes")]
    origins = {link[0]: link[1] for link in read("mix_two_pictures")["links"]}
    (a, b), (c, d) = [[origins[socket["link"]] for socket in inputs[:2]] for inputs in mixes]
    assert a != b
    assert (a, b) == (d, c)


def test_a_conversation_hands_its_chat_from_turn_to_turn():
    """Only the first turn is given a picture; the view at the end has the last turn's chat."""
    links = {link[0]: link[1] for link in read("conversation")["links"]}
    turns = nodes_of("conversation", "SEEDGenerate")
    (view,) = nodes_of("conversation", "SEEDChatView")
    wired = [
        {s["name"]: links[s["link"]] for s in node["inputs"] if s["link"] is not None}
        for node in (*turns, view)
    ]
    assert [inputs.get("chat") for inputs in wired] == [None, *(turn["id"] for turn in turns)]
    assert ["codes" in inputs for inputs in wired[:3]] == [True, False, False]
    assert {"tokenizer", "decoder"} <= wired[3].keys()


def test_text_to_image_needs_no_picture():
    (generate,) = nodes_of("text_to_image", "SEEDGenerate")
    assert next(s for s in generate["inputs"] if s["name"] == "codes")["link"] is None
    assert contract.widget_values(generate, TABLE["SEEDGenerate"])["reply"] == "image"


@each_template
def test_a_note_explains_what_happens(name):
    notes = [node["widgets_values"][0] for node in nodes_of(name, *contract.NOTES)]
    assert any(text.startswith("# ") and "**Press Run**" in text for text in notes)


@each_template
def test_nothing_overlaps(name):
    for a, b in itertools.combinations(nodes_of(name), 2):
        assert not overlap(box(a), box(b), MARGIN), f"{a['type']} {a['id']} / {b['type']} {b['id']}"
    for (title_a, a), (title_b, b) in itertools.combinations(group_boxes(name).items(), 2):
        assert not overlap(a, b), f"groups {title_a} / {title_b}"


@each_template
def test_groups_hold_their_nodes_whole(name):
    """A node is inside one group or, if it is a note, outside of all of them."""
    groups = group_boxes(name).values()
    for node in nodes_of(name):
        homes = [group for group in groups if inside(box(node), group)]
        touched = [group for group in groups if overlap(box(node), group)]
        assert homes == touched, f"{node['type']} {node['id']} sticks out of its group"
        assert homes or node["type"] in contract.NOTES, f"{node['type']} {node['id']} has no group"


@each_template
def test_the_graph_runs_from_left_to_right(name):
    nodes = {node["id"]: node for node in nodes_of(name)}
    for _, origin, _, target, _, _ in read(name)["links"]:
        assert box(nodes[origin])[2] < box(nodes[target])[0], (origin, target)


@each_template
def test_has_a_thumbnail(name):
    with Image.open(WORKFLOWS / f"{name}.jpg") as picture:
        assert picture.format == "JPEG"
        assert min(picture.size) >= 400
        assert 0.9 <= picture.width / picture.height <= 2
        channels = picture.convert("RGB").getextrema()
    assert all(high - low > 100 for low, high in channels), "the thumbnail is nearly one colour"
    assert (WORKFLOWS / f"{name}.jpg").stat().st_size < 200_000


@each_template
def test_api_twin_says_the_same_as_the_template(name):
    twin = json.loads((HERE / "api" / f"{name}.json").read_text(encoding="utf-8"))
    assert contract.without_titles(twin) == contract.to_api(read(name), TABLE)


def test_every_api_twin_belongs_to_a_template():
    assert {path.stem for path in (HERE / "api").iterdir()} == set(NAMES)
