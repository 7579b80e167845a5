"""The templates as files: whole, tidy, within the contract, and equal to their API twins.

No host is needed here. That the real frontend loads, queues and draws them is tests/browser's.
"""

import importlib.util
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WORKFLOWS = ROOT / "workflows"
SAMPLES = ROOT / "seed_core" / "weights" / "seed-mini" / "samples"
RUNNABLE = (
    "ask_about_a_picture",
    "conversation",
    "edit_by_instruction",
    "mix_two_pictures",
    "reconstruct",
    "story",
    "text_to_image",
    "variations_grid",
)
# Model files that must be there before these run: in the node that loads them, and in the note.
NATIVE = {
    "ipadapter_sdxl": (
        "sd_xl_base_1.0.safetensors",
        "ip-adapter_sdxl_vit-h.safetensors",
        "seed_quantizer.pt",
        "eva_vit_g.pth",
    ),
    "native_unclip": ("sd21-unclip-h.ckpt", "seed_quantizer.pt", "eva_vit_g.pth"),
    "seed1_stable_diffusion": (
        "v1-5-pruned-emaonly-fp16.safetensors",
        "seed_tokenizer.pth",
        "causal_qformer.pth",
        "eva_vit_g.pth",
    ),
}
NAMES = (*RUNNABLE, *NATIVE)
DRAWN_FROM_WORDS = ("story", "text_to_image", "variations_grid")
PUBLISHED_ELSEWHERE = ("seed_tokenizer.pth",)  # on a Google Drive: the frontend offers none
LOADERS = ("SEEDTokenizerLoader", "CheckpointLoaderSimple", "IPAdapterModelLoader")
BUNDLED_LOADERS = ("SEEDTokenizerLoader", "SEEDLLaMALoader", "SEEDDecoderLoader")
# What the frontend lets people download: from its missingModelDownload module.
OFFERED_SOURCES = ("https://huggingface.co/", "https://civitai.com/")
OFFERED_SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pth", ".pt")
MODEL_FOLDERS = ("checkpoints", "ipadapter", "seed_tokenizer")
TITLE_HEIGHT = 30  # LiteGraph draws a node's title above its position
MARGIN = 5  # pixels between neighbours below which a graph looks crammed

_spec = importlib.util.spec_from_file_location("workflow_contract", HERE / "contract.py")
contract = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(contract)

TABLE = contract.nodes([path.stem for path in SAMPLES.glob("*.png")])
each_template = pytest.mark.parametrize("name", NAMES)
each_runnable = pytest.mark.parametrize("name", RUNNABLE)
each_native = pytest.mark.parametrize("name", NATIVE)


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
        for node in nodes_of(name, "SEEDGenerate", "SEEDMixCodes", "SEEDDecode", "KSampler")
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
        if node["type"] not in contract.NOTES:
            origin = contract.origin(node["type"], TABLE[node["type"]])
            assert {key: node["properties"].get(key) for key in origin} == origin


@pytest.mark.parametrize("name", [n for n in NAMES if n not in DRAWN_FROM_WORDS])
def test_a_template_with_a_picture_starts_from_a_bundled_one(name):
    """It opens without a warning, where an example of the host's may not lie in the input folder.
    The second picture of native_unclip is the one to steer away from, which is switched off."""
    expected = 2 if name in ("mix_two_pictures", "native_unclip") else 1
    assert len(nodes_of(name, "SEEDSamplePicture")) == expected


@each_runnable
def test_runs_before_any_model_is_downloaded(name):
    loaders = nodes_of(name, *BUNDLED_LOADERS)
    assert loaders
    assert {node["widgets_values"][0] for node in loaders} == {contract.BUNDLED_CHOICE}
    assert not nodes_of(name, "CheckpointLoaderSimple")


def test_the_two_mixes_are_each_other_turned_round():
    mixes = [node["inputs"] for node in nodes_of("mix_two_pictures", "SEEDMixCodes")]
    origins = {link[0]: link[1] for link in read("mix_two_pictures")["links"]}
    (a, b), (c, d) = [[origins[socket["link"]] for socket in inputs[:2]] for inputs in mixes]
    assert a != b
    assert (a, b) == (d, c)


@pytest.mark.parametrize(
    ("name", "given"),
    [("conversation", [True, False, False]), ("story", [False] * 4)],
)
def test_a_conversation_hands_its_chat_from_turn_to_turn(name, given):
    """At most the first turn is given a picture; the view at the end has the last turn's chat."""
    links = {link[0]: link[1] for link in read(name)["links"]}
    turns = nodes_of(name, "SEEDGenerate")
    (view,) = nodes_of(name, "SEEDChatView")
    wired = [
        {s["name"]: links[s["link"]] for s in node["inputs"] if s["link"] is not None}
        for node in (*turns, view)
    ]
    assert [inputs.get("chat") for inputs in wired] == [None, *(turn["id"] for turn in turns)]
    assert ["codes" in inputs for inputs in wired[:-1]] == given
    assert {"tokenizer", "decoder"} <= wired[-1].keys()


def test_the_variations_differ_by_one_knob_at_a_time():
    """What two neighbours have in common is all but what their titles and the notes speak of."""
    for kind, knobs in (
        ("SEEDGenerate", {"temperature", "top_p", "top_k"}),
        ("SEEDDecode", {"noise_level"}),
    ):
        one, other = (
            contract.widget_values(node, TABLE[kind]) for node in nodes_of("variations_grid", kind)
        )
        assert {name for name in one if one[name] != other[name]} == knobs


def test_text_to_image_needs_no_picture():
    (generate,) = nodes_of("text_to_image", "SEEDGenerate")
    assert next(s for s in generate["inputs"] if s["name"] == "codes")["link"] is None
    assert contract.widget_values(generate, TABLE["SEEDGenerate"])["reply"] == "image"


@pytest.mark.parametrize("name", [n for n in NAMES if n != "native_unclip"])
def test_nothing_is_switched_off(name):
    assert {node["mode"] for node in nodes_of(name)} == {0}


@each_template
def test_a_note_explains_what_happens(name):
    notes = [node["widgets_values"][0] for node in nodes_of(name, *contract.NOTES)]
    assert any(text.startswith("# ") and "**Press Run**" in text for text in notes)


def models_of(name: str) -> list[dict[str, str]]:
    """What the frontend offers to download where a file is missing."""
    return [model for node in nodes_of(name) for model in node["properties"].get("models", [])]


@each_runnable
def test_a_template_that_needs_no_download_offers_none(name):
    assert models_of(name) == []


@each_native
def test_the_chosen_files_are_those_offered_for_download(name):
    """The frontend compares names: one letter of difference, and it offers nothing."""
    for node in nodes_of(name, *LOADERS):
        chosen = node["widgets_values"][0]
        assert chosen in NATIVE[name]
        offered = [model["name"] for model in node["properties"].get("models", [])]
        assert offered == ([] if chosen in PUBLISHED_ELSEWHERE else [chosen])


@each_native
def test_models_are_offered_from_where_the_frontend_downloads(name):
    assert models_of(name)
    for model in models_of(name):
        assert model["url"].startswith(OFFERED_SOURCES)
        assert model["url"].endswith("/" + model["name"])
        assert model["name"].endswith(OFFERED_SUFFIXES)
        assert model["directory"] in MODEL_FOLDERS
        if "hash" in model:
            assert model["hash_type"] == "SHA256"
            assert len(bytes.fromhex(model["hash"])) == 32


@each_native
def test_the_note_says_name_source_size_and_folder_of_every_file(name):
    (note,) = [n["widgets_values"][0] for n in nodes_of(name, *contract.NOTES) if n["id"] == 1]
    rows = re.findall(r"^\| \[(\S+)\]\((https://\S+)\) \| (.+) \| (.+) \|$", note, re.MULTILINE)
    assert {row[0] for row in rows} == set(NATIVE[name])
    folders = {model["name"]: model["directory"] for model in models_of(name)}
    for file, _, size, folder in rows:
        assert folder.split(",")[0] == folders.get(file, "seed_tokenizer")
        on_google_drive = file in ("seed_tokenizer.pth", "causal_qformer.pth")
        assert size == "see there" if on_google_drive else re.fullmatch(r"[\d.]+ [GM]B", size)


def test_native_unclip_says_that_its_mirror_is_unofficial():
    note = nodes_of("native_unclip", *contract.NOTES)[0]["widgets_values"][0]
    assert "sd2-community/" in note
    assert "unofficial" in note


def test_only_the_second_picture_of_native_unclip_is_switched_off():
    """Then the negative prompt reaches the sampler as it is, the reference's way."""
    off = [n["type"] for n in nodes_of("native_unclip") if n["mode"] == contract.BYPASSED]
    assert sorted(off) == [
        "SEEDCodesToEmbedding",
        "SEEDEncode",
        "SEEDSamplePicture",
        "unCLIPConditioning",
    ]
    twin = contract.to_api(read("native_unclip"), TABLE)
    (sampler,) = [node for node in twin.values() if node["class_type"] == "KSampler"]
    assert twin[sampler["inputs"]["positive"][0]]["class_type"] == "unCLIPConditioning"
    assert twin[sampler["inputs"]["negative"][0]]["class_type"] == "CLIPTextEncode"


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
