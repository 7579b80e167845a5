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

from seed_core.fetching.downloads import DOWNLOADS
from seed_core.models.tokenizer import SEED_1_LINK

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WORKFLOWS = ROOT / "workflows"
SAMPLES = ROOT / "seed_core" / "weights" / "seed-mini" / "samples"
RUNNABLE = (
    "ask_about_a_picture",
    "caption_a_folder",
    "conversation",
    "draft_then_your_model",
    "edit_by_instruction",
    "get_the_real_models",
    "keep_codes",
    "keep_the_layout",
    "lora",
    "mix_two_pictures",
    "reconstruct",
    "story",
    "text_to_image",
    "variations_grid",
)
# Model files that must be there before these run: in the node that loads them, and in the note.
NATIVE = {
    "ipadapter_sd15": (
        "v1-5-pruned-emaonly-fp16.safetensors",
        "ip-adapter_sd15.safetensors",
        "seed_quantizer.pt",
        "eva_vit_g.pth",
    ),
    "ipadapter_plus_sdxl": (
        "sd_xl_base_1.0.safetensors",
        "ip-adapter_sdxl_vit-h.safetensors",
        "seed_quantizer.pt",
        "eva_vit_g.pth",
    ),
    "ipadapter_sdxl": (
        "sd_xl_base_1.0.safetensors",
        "ip-adapter_sdxl_vit-h.safetensors",
        "seed_quantizer.pt",
        "eva_vit_g.pth",
    ),
    "native_blend": ("sd21-unclip-h.ckpt", "seed_quantizer.pt", "eva_vit_g.pth"),
    "native_unclip": ("sd21-unclip-h.ckpt", "seed_quantizer.pt", "eva_vit_g.pth"),
    "seed1_stable_diffusion": (
        "v1-5-pruned-emaonly-fp16.safetensors",
        "seed_tokenizer.pth",
        "causal_qformer.pth",
        "eva_vit_g.pth",
    ),
}
NAMES = (*RUNNABLE, *NATIVE)
GET = "get_the_real_models"
APPS = ("ask_about_a_picture", "conversation", "edit_by_instruction", "text_to_image")
DRAWN_FROM_WORDS = (
    *("draft_then_your_model", "get_the_real_models", "lora", "story", "text_to_image"),
    "variations_grid",
)
PARTLY_OFF = ("draft_then_your_model", "keep_codes", "keep_the_layout", "native_unclip")
TWO_PICTURES = ("mix_two_pictures", "native_blend", "native_unclip")
BY_HAND = {"seed_tokenizer.pth", "causal_qformer.pth"}  # on a Google Drive, behind a page
LOADERS = (
    *("SEEDTokenizerLoader", "CheckpointLoaderSimple", "IPAdapterModelLoader"),
    "SEEDIPAdapter",
)
CHANCE = ("SEEDGenerate", "SEEDMixCodes", "SEEDDecode", "KSampler", "PrimitiveInt")
BUNDLED_LOADERS = ("SEEDTokenizerLoader", "SEEDLLaMALoader", "SEEDDecoderLoader")
# What the frontend lets people download: from its missingModelDownload module.
OFFERED_SOURCES = ("https://huggingface.co/", "https://civitai.com/")
TOKENIZER = "seed-tokenizer-2"  # what fetch calls the one that the native templates load
TOKENIZER_SOURCES = DOWNLOADS[TOKENIZER].sources
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


def test_every_template_has_its_place_in_the_list():
    script = (ROOT / "nodes" / "web" / "seed.js").read_text(encoding="utf-8")
    assert sorted(re.search(r"ORDER = `(.+?)`", script, re.DOTALL)[1].split()) == sorted(NAMES)


def test_every_node_is_in_a_template():
    """Where people can see it at work; help pages name all nodes there are."""
    all_there_are = {page.stem for page in (ROOT / "nodes" / "web" / "docs").glob("*.md")}
    assert {node["type"] for name in NAMES for node in nodes_of(name)} >= all_there_are


def test_each_template_has_an_id_of_its_own():
    """The frontend keeps what it knows of a graph under it."""
    assert len({read(name)["id"] for name in NAMES}) == len(NAMES)


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
        for node in nodes_of(name, *CHANCE)
    ]
    assert controls
    assert set(controls) == {"fixed"}


@each_template
def test_pictures_follow_the_codes_as_the_decoder_likes(name):
    """So another decoder in step 1 paints at its best at once."""
    for node in nodes_of(name, "SEEDDecode"):
        values = contract.widget_values(node, TABLE["SEEDDecode"])
        assert (values["guidance_scale"], values["steps"]) == (contract.DECODERS_OWN, 20)


@each_template
def test_nodes_say_which_pack_they_come_from(name):
    """The manager offers to install a missing pack by this id."""
    for node in nodes_of(name):
        if node["type"] not in contract.DRAWN_ALONE:
            origin = contract.origin(node["type"], TABLE[node["type"]])
            assert {key: node["properties"].get(key) for key in origin} == origin


@pytest.mark.parametrize("name", [n for n in NAMES if n not in DRAWN_FROM_WORDS])
def test_a_template_with_a_picture_starts_from_a_bundled_one(name):
    """It opens without a warning, where an example of the host's may not lie in the input folder.
    The second picture of native_unclip is the one to steer away from, which is switched off."""
    expected = 2 if name in TWO_PICTURES else 1
    assert len(nodes_of(name, "SEEDSamplePicture")) == expected


@each_runnable
def test_runs_before_any_model_is_downloaded(name):
    loaders = nodes_of(name, *BUNDLED_LOADERS)
    assert loaders
    assert {node["widgets_values"][0] for node in loaders} == {contract.BUNDLED_CHOICE}
    off = [node["mode"] for node in nodes_of(name, "CheckpointLoaderSimple", "ControlNetLoader")]
    assert set(off) <= {contract.BYPASSED}


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


@pytest.mark.parametrize("name", [n for n in NAMES if n not in PARTLY_OFF])
def test_nothing_is_switched_off(name):
    assert {node["mode"] for node in nodes_of(name)} == {0}


@pytest.mark.parametrize("name", ["draft_then_your_model", "keep_codes", "keep_the_layout"])
def test_what_a_fresh_install_has_no_file_for_is_switched_off(name):
    """It is the whole of groups that say so, and nothing else waits for it."""
    off = [node for node in nodes_of(name) if node["mode"] == contract.BYPASSED]
    homes = [home for title, home in group_boxes(name).items() if "Off" in title]
    inside_them = [n for n in nodes_of(name) if any(inside(box(n), home) for home in homes)]
    assert [node for node in inside_them if node["type"] not in contract.NOTES] == off
    ids = {node["id"] for node in off}
    assert [link for link in read(name)["links"] if link[1] in ids and link[3] not in ids] == []


def test_what_is_off_in_keep_codes_is_the_saved_file_and_its_note_says_which():
    off = [node for node in nodes_of("keep_codes") if node["mode"] == contract.BYPASSED]
    assert sorted(node["type"] for node in off) == ["PreviewImage", "SEEDDecode", "SEEDLoadCodes"]
    (home,) = [home for title, home in group_boxes("keep_codes").items() if "Off" in title]
    (note,) = [node for node in nodes_of("keep_codes", *contract.NOTES) if inside(box(node), home)]
    (save,) = nodes_of("keep_codes", "SEEDSaveCodes")
    saved = f"{save['widgets_values'][0]}_00001_.safetensors"
    for words in (saved, "**R**", "**Ctrl+B**"):
        assert words in note["widgets_values"][0]


def test_the_edited_text_of_keep_codes_is_that_of_its_picture_with_one_number_replaced():
    """As the note tells it: the picture's codes have 355 four times, the text says 304 there."""
    import seed_core
    from seed_core.codes.text import codes_from_text

    (chosen,) = nodes_of("keep_codes", "SEEDSamplePicture")
    (edited,) = nodes_of("keep_codes", "SEEDTextToCodes")
    tokenizer = seed_core.load_tokenizer("seed-mini")
    with Image.open(SAMPLES / f"{chosen['widgets_values'][0]}.png") as picture:
        codes = tokenizer.encode(tokenizer.preprocess([picture.convert("RGB")]))[0].tolist()
    assert (codes.count(355), codes.count(304)) == (4, 0)
    written = codes_from_text(*edited["widgets_values"]).values[0].tolist()
    assert written == [304 if code == 355 else code for code in codes]


def test_the_two_rows_of_lora_differ_by_the_lora_alone():
    twin = contract.to_api(read("lora"), TABLE)
    one, other = [node["inputs"] for node in twin.values() if node["class_type"] == "SEEDGenerate"]
    assert {name for name in one if one[name] != other[name]} == {"llm"}
    types = {key: node["class_type"] for key, node in twin.items()}
    assert [types[inputs["llm"][0]] for inputs in (one, other)] == [
        "SEEDLLaMALoader",
        "SEEDLoRALoader",
    ]
    for shared in ("prompt", "seed"):  # one place to change both
        assert types[one[shared][0]].startswith("Primitive")
    paint, repaint = [n["inputs"] for n in twin.values() if n["class_type"] == "SEEDDecode"]
    assert {name for name in paint if paint[name] != repaint[name]} == {"codes"}


@pytest.mark.parametrize("name", APPS)
def test_an_app_view_names_fields_and_results_that_are_there(name):
    """Each field has words of its own. The file opens as a graph."""
    workflow = read(name)
    app = workflow["extra"]["linearData"]
    assert "linearMode" not in workflow["extra"]
    nodes = {str(node["id"]): node for node in workflow["nodes"]}
    assert app["outputs"]
    assert set(app["outputs"]) <= nodes.keys()
    for place, widget, told in app["inputs"]:
        home, node, named = place.split(":")
        assert (home, named) == (workflow["id"], widget)
        (slot,) = [slot for slot in nodes[node]["inputs"] if slot["name"] == widget]
        assert slot["link"] is None
        assert slot["label"]
        assert slot["label"] != widget
        assert told["description"]


@each_template
def test_a_note_explains_what_happens(name):
    notes = [node["widgets_values"][0] for node in nodes_of(name, *contract.NOTES)]
    assert any(text.startswith("# ") and "**Press Run**" in text for text in notes)


@each_template
def test_the_first_lines_of_a_note_are_large_enough_for_the_whole_view(name):
    """Where the graph fills the window, only headings of the first two sizes can be read."""
    for node in nodes_of(name, *contract.NOTES):
        first, *_ = node["widgets_values"][0].split("\n")
        assert first.startswith(("# ", "## ")), node["title"]


@each_template
def test_a_note_says_how_to_get_the_full_size_models(name):
    """First without a terminal, then with one."""
    notes = [node["widgets_values"][0] for node in nodes_of(name, *contract.NOTES)]
    (note,) = [text for text in notes if "python custom_nodes/seed-llama fetch" in text]
    first = "**fetch now**" if name == GET else f"*{GET}*"
    assert first in note.partition("python custom_nodes/seed-llama fetch")[0]


def test_the_models_to_get_are_three_that_work_together():
    """In the precisions and with the sizes that its note tells; the smallest whole set."""
    chosen = [tuple(node["widgets_values"][:2]) for node in nodes_of(GET, "SEEDGetModel")]
    assert chosen == [
        ("seed-tokenizer-2", "fp16"),
        ("seed-llama-8b-sft", "fp8"),
        ("stable-diffusion-2-1-unclip", "fp16"),
    ]
    notes = "\n".join(node["widgets_values"][0] for node in nodes_of(GET, *contract.NOTES))
    told = re.findall(r"^\| (\S+), (\w+) \| ([\d.]+) GB \| ([\d.]+) GB \|$", notes, re.MULTILINE)
    assert {row[:2] for row in told} >= set(chosen)
    for model, precision, comes, stays in told:
        assert float(comes) == round(DOWNLOADS[model].published_gigabytes, 1)
        assert float(stays) == DOWNLOADS[model].gigabytes[precision]


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
        assert [model["name"] for model in node["properties"]["models"]] == [chosen]


@each_native
def test_download_all_and_fetch_together_get_what_its_loaders_need(name):
    """The frontend offers what a widget names; the rest is on the tokenizer loader's help page."""
    offered = {model["name"] for model in models_of(name) if model["name"] not in BY_HAND}
    fetched = {file for source in TOKENIZER_SOURCES for file in source.files}
    assert set(NATIVE[name]) - offered - fetched == BY_HAND & set(NATIVE[name])
    page = (ROOT / "nodes/web/docs/SEEDTokenizerLoader.md").read_text(encoding="utf-8")
    assert [file for file in set(NATIVE[name]) - offered if f"`{file}`" not in page] == []


@each_native
def test_what_fetch_gets_too_is_offered_from_the_same_page(name):
    homes = {file: source for source in TOKENIZER_SOURCES for file in source.files}
    for model in models_of(name):
        if model["name"] in homes:
            home = homes[model["name"]]
            assert model["url"] == f"{home.page}/resolve/main/{model['name']}"
            assert model["directory"] == DOWNLOADS[TOKENIZER].folder


@each_native
def test_models_are_offered_from_where_the_frontend_downloads(name):
    """For a file published elsewhere it shows the page's link, without a button."""
    assert models_of(name)
    for model in models_of(name):
        if model["name"] in BY_HAND:
            assert model["url"] == SEED_1_LINK
            continue
        assert model["url"].startswith(OFFERED_SOURCES)
        assert model["url"].endswith("/" + model["name"])
        assert model["name"].endswith(OFFERED_SUFFIXES)
        assert model["directory"] in MODEL_FOLDERS
        if "hash" in model:
            assert model["hash_type"] == "SHA256"
            assert len(bytes.fromhex(model["hash"])) == 32


@each_native
def test_the_note_says_name_source_size_and_folder_of_every_file(name):
    notes = [n["widgets_values"][0] for n in nodes_of(name, *contract.NOTES)]
    (note,) = [text for text in notes if "folder in **models**" in text]
    rows = re.findall(r"^\| \[(\S+)\]\((https://\S+)\) \| (.+) \| (.+) \|$", note, re.MULTILINE)
    assert {row[0] for row in rows} == set(NATIVE[name])
    folders = {model["name"]: model["directory"] for model in models_of(name)}
    for file, _, size, folder in rows:
        assert folder.split(",")[0] == folders.get(file, "seed_tokenizer")
        assert size == "see there" if file in BY_HAND else re.fullmatch(r"[\d.]+ [GM]B", size)


def test_native_blend_paints_with_the_models_and_settings_of_native_unclip():
    for kind in ("CheckpointLoaderSimple", "SEEDTokenizerLoader", "EmptyLatentImage", "KSampler"):
        (one,), (other,) = (nodes_of(name, kind) for name in ("native_blend", "native_unclip"))
        for part in ("widgets_values", "properties"):
            assert one[part] == other[part]


@pytest.mark.parametrize("name", ["native_blend", "native_unclip"])
def test_sd_2_1_unclip_is_said_to_come_from_an_unofficial_mirror(name):
    notes = [note["widgets_values"][0] for note in nodes_of(name, *contract.NOTES)]
    (note,) = [text for text in notes if "sd2-community/" in text]
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
