"""The blueprints as files: whole, tidy, within the contract, and what their descriptions say.

No host is needed here. That the real frontend lists, drops and runs them is tests/browser's.
"""

import importlib.util
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SUBGRAPHS = ROOT / "subgraphs"
IPADAPTER = "SEED Codes to SDXL through IPAdapter"
DRAW = "SEED Draw from Words"
WITH_A_PICTURE = ("SEED Chat with a Picture", "SEED Edit by Instruction", "SEED Image Variation")
RUNNABLE = (DRAW, *WITH_A_PICTURE)
PAINTS = (DRAW, "SEED Edit by Instruction", "SEED Image Variation")
NAMES = (*RUNNABLE, IPADAPTER)
INPUTS, OUTPUTS = -10, -20
TITLE_HEIGHT = 30  # LiteGraph draws a node's title above its position
MARGIN = 10  # pixels

_spec = importlib.util.spec_from_file_location("blueprint_maker", HERE / "make_blueprints.py")
maker = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(maker)
contract, ROWS = maker.contract, maker.ROWS

each_blueprint = pytest.mark.parametrize("name", NAMES)
each_runnable = pytest.mark.parametrize("name", RUNNABLE)


def read(name: str) -> dict[str, Any]:
    return json.loads((SUBGRAPHS / f"{name}.json").read_text(encoding="utf-8"))


def subgraph(name: str) -> dict[str, Any]:
    (only,) = read(name)["definitions"]["subgraphs"]
    return only


def outer(name: str) -> dict[str, Any]:
    (only,) = read(name)["nodes"]
    return only


def nodes_of(name: str, *types: str) -> list[dict[str, Any]]:
    return [node for node in subgraph(name)["nodes"] if not types or node["type"] in types]


def values(node: dict[str, Any]) -> dict[str, Any]:
    return contract.widget_values(node, ROWS[node["type"]])


def shown_widgets(name: str) -> list[tuple[dict[str, Any], list[tuple[dict[str, Any], str]]]]:
    """Each input of the outer node that has a widget, with the widgets inside that it sets."""
    graph = subgraph(name)
    nodes = {node["id"]: node for node in graph["nodes"]}
    links = {link["id"]: link for link in graph["links"]}
    found = []
    for slot, end in zip(outer(name)["inputs"], graph["inputs"], strict=True):
        targets = [links[number] for number in end["linkIds"]]
        inside = [(nodes[t["target_id"]], t["target_slot"]) for t in targets]
        widgets = [(n, n["inputs"][i]["widget"]["name"]) for n, i in inside if "widget" in slot]
        if widgets:
            found.append((slot, widgets))
    return found


def test_the_folder_holds_the_blueprints_only():
    assert {path.name for path in SUBGRAPHS.iterdir()} == {f"{name}.json" for name in NAMES}


@each_blueprint
def test_is_what_its_description_in_make_blueprints_gives(name):
    (blueprint,) = [b for b in maker.BLUEPRINTS if b.name == name]
    text = (SUBGRAPHS / f"{name}.json").read_text(encoding="utf-8")
    assert text == maker.text_of(blueprint), "run make_blueprints.py"


@each_blueprint
def test_is_one_node_of_one_subgraph_with_the_files_name(name):
    """The frontend takes name and title from the file's name and refuses anything else."""
    node, graph = outer(name), subgraph(name)
    assert read(name)["links"] == []
    assert node["type"] == graph["id"]
    assert node["title"] == graph["name"] == name
    for side in ("inputs", "outputs"):
        ends = [(end["name"], end["type"]) for end in graph[side]]
        assert [(slot["name"], slot["type"]) for slot in node[side]] == ends
        assert len({slot for slot, _ in ends}) == len(ends)


def test_identifiers_are_all_different():
    ids = [subgraph(name)["id"] for name in NAMES]
    ids += [end["id"] for n in NAMES for side in ("inputs", "outputs") for end in subgraph(n)[side]]
    assert len(set(ids)) == len(ids)


@each_blueprint
def test_can_be_found_and_says_what_it_does(name):
    graph = subgraph(name)
    assert graph["category"] == "SEED"
    assert 40 < len(graph["description"]) < 200
    assert len(read(name)["extra"]["BlueprintSearchAliases"]) >= 3


@each_blueprint
def test_links_agree_with_both_of_their_ends(name):
    graph = subgraph(name)
    nodes = {node["id"]: node for node in graph["nodes"]}
    claimed = {INPUTS: graph["inputs"], OUTPUTS: graph["outputs"]}
    for link in graph["links"]:
        if link["origin_id"] == INPUTS:
            origin = claimed[INPUTS][link["origin_slot"]]
            assert link["id"] in origin["linkIds"]
        else:
            origin = nodes[link["origin_id"]]["outputs"][link["origin_slot"]]
            assert link["id"] in origin["links"]
        if link["target_id"] == OUTPUTS:
            target = claimed[OUTPUTS][link["target_slot"]]
            assert target["linkIds"] == [link["id"]]
        else:
            target = nodes[link["target_id"]]["inputs"][link["target_slot"]]
            assert target["link"] == link["id"]
        assert origin["type"] == target["type"] == link["type"]
    ids = [link["id"] for link in graph["links"]]
    ends = [number for end in (*graph["inputs"], *graph["outputs"]) for number in end["linkIds"]]
    sockets = [s["link"] for node in graph["nodes"] for s in node["inputs"]]
    outputs = [n for node in graph["nodes"] for o in node["outputs"] for n in o["links"]]
    assert len(set(ids)) == len(ids) == graph["state"]["lastLinkId"]
    assert set(ends) | {n for n in sockets if n is not None} | set(outputs) == set(ids)
    assert all(end["linkIds"] for end in (*graph["inputs"], *graph["outputs"]))


@each_blueprint
def test_sockets_and_outputs_are_those_of_the_contract(name):
    for node in nodes_of(name):
        row = ROWS[node["type"]]
        sockets = [(s["name"], s["type"]) for s in node["inputs"] if not s.get("widget")]
        assert sockets == list(row.sockets), node["type"]
        assert [(o["name"], o["type"]) for o in node["outputs"]] == list(row.outputs)
        unwired = {s["name"] for s in node["inputs"] if not s.get("widget") and s["link"] is None}
        assert unwired <= set(row.optional), f"{node['type']} lacks a required input"


@each_blueprint
def test_widget_values_are_complete_and_in_range(name):
    for node in nodes_of(name):
        found = values(node)
        for widget, check in ROWS[node["type"]].widgets.items():
            assert check(found[widget]), f"{node['type']}.{widget} = {found[widget]!r}"


@each_blueprint
def test_every_widget_shown_outside_begins_with_the_value_inside(name):
    shown = shown_widgets(name)
    assert [slot["name"] for slot, _ in shown] == [slot["widget"]["name"] for slot, _ in shown]
    for value, (slot, widgets) in zip(outer(name)["widgets_values"], shown, strict=True):
        assert {values(node)[widget] for node, widget in widgets} == {value}, slot["name"]


def sockets(name: str) -> list[tuple[str, str]]:
    """What can be connected to a blueprint's node and has no widget."""
    return [(slot["name"], slot["type"]) for slot in outer(name)["inputs"] if "widget" not in slot]


@pytest.mark.parametrize("name", WITH_A_PICTURE)
def test_one_picture_is_all_that_must_be_connected(name):
    assert sockets(name) == [("image", "IMAGE")]


def test_to_draw_from_words_nothing_need_be_connected():
    assert sockets(DRAW) == []


@each_runnable
def test_every_model_inside_is_chosen_outside(name):
    inside = {node["type"] for node in nodes_of(name) if node["type"].endswith("Loader")}
    chosen = {node["type"] for _, widgets in shown_widgets(name) for node, _ in widgets}
    assert inside <= chosen


@each_runnable
def test_begins_with_the_bundled_models(name):
    loaders = [node for node in nodes_of(name) if node["type"].endswith("Loader")]
    assert loaders
    assert {node["widgets_values"][0] for node in loaders} == {contract.BUNDLED_CHOICE}


@each_runnable
def test_every_random_seed_inside_is_the_one_outside(name):
    """And stays what it is: the same seed, the same picture."""
    seeded = [node for node in nodes_of(name) if "seed" in ROWS[node["type"]].widgets]
    ((_, widgets),) = [pair for pair in shown_widgets(name) if pair[0]["name"] == "seed"]
    assert [(node["id"], "seed") for node in seeded] == [(node["id"], w) for node, w in widgets]
    assert {values(node)["control_after_generate"] for node in seeded} == {"fixed"}


@pytest.mark.parametrize("name", PAINTS)
def test_pictures_follow_the_codes_as_the_decoder_likes(name):
    """So another decoder paints at its best at once."""
    (decode,) = nodes_of(name, "SEEDDecode")
    found = values(decode)["guidance_scale"], values(decode)["steps"]
    assert found == (contract.DECODERS_OWN, 20)


@each_blueprint
def test_nodes_say_which_pack_they_come_from(name):
    """The frontend tells which pack to install by this id."""
    for node in nodes_of(name):
        if node["type"] not in contract.NOTES:
            found = {key: node["properties"].get(key) for key in ("cnr_id", "ver")}
            assert found == contract.origin(node["type"], ROWS[node["type"]])


def test_files_that_are_not_bundled_can_be_offered():
    """The frontend offers a file whose entry names the very value of the widget."""
    loaders = nodes_of(IPADAPTER, "SEEDTokenizerLoader", "IPAdapterModelLoader")
    offers = [(node["widgets_values"][0], node["properties"]["models"][0]) for node in loaders]
    assert [offer["directory"] for _, offer in offers] == ["seed_tokenizer", "ipadapter"]
    for value, offer in offers:
        assert offer["name"] == value
        assert offer["url"].startswith("https://huggingface.co/")
        assert offer["url"].endswith(f"/{value}")


def test_without_the_other_pack_our_own_widget_keeps_its_value():
    """Saved values are positional over the widgets that exist: ours must be the first."""
    slot, ((node, _),) = shown_widgets(IPADAPTER)[0]
    assert slot["name"] == "tokenizer"
    assert ROWS[node["type"]].is_ours
    others = [node for _, widgets in shown_widgets(IPADAPTER)[1:] for node, _ in widgets]
    assert not [node for node in others if ROWS[node["type"]].is_ours]


def box(node: dict[str, Any]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a node, its title included."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE_HEIGHT, x + width, y + height


def end_box(end: dict[str, Any]) -> tuple[float, float, float, float]:
    x, y, width, height = end["bounding"]
    return x, y, x + width, y + height


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return (
        a[0] < b[2] + MARGIN
        and b[0] < a[2] + MARGIN
        and a[1] < b[3] + MARGIN
        and b[1] < a[3] + MARGIN
    )


@each_blueprint
def test_nothing_overlaps_inside(name):
    graph = subgraph(name)
    boxes = {f"{node['type']} {node['id']}": box(node) for node in graph["nodes"]}
    boxes |= {side: end_box(graph[side]) for side in ("inputNode", "outputNode")}
    for (name_a, a), (name_b, b) in itertools.combinations(boxes.items(), 2):
        assert not overlap(a, b), f"{name_a} / {name_b}"


@each_blueprint
def test_the_inside_runs_from_left_to_right(name):
    graph = subgraph(name)
    boxes = {node["id"]: box(node) for node in graph["nodes"]}
    boxes |= {INPUTS: end_box(graph["inputNode"]), OUTPUTS: end_box(graph["outputNode"])}
    for link in graph["links"]:
        assert boxes[link["origin_id"]][2] < boxes[link["target_id"]][0], link


@each_blueprint
def test_a_note_inside_explains_it(name):
    (note,) = nodes_of(name, *contract.NOTES)
    assert len(note["widgets_values"][0]) > 100
