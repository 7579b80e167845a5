"""Writes subgraphs/*.json, the blueprints, from the short descriptions below.

    python tests/workflows/make_blueprints.py

Knows the form in which ComfyUI's frontend saves a subgraph, nothing of what the nodes do. Needs no
ComfyUI: sockets, widgets and outputs come from contract.py. The identifiers follow from the names,
so the same descriptions always give the same files.
"""

import importlib.util
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SUBGRAPHS = HERE.parents[1] / "subgraphs"
SAMPLES = HERE.parents[1] / "seed_core" / "weights" / "seed-mini" / "samples"

_spec = importlib.util.spec_from_file_location("blueprint_contract", HERE / "contract.py")
contract = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(contract)
Row = contract.Node

_rows = contract.nodes([path.stem for path in SAMPLES.glob("*.png")])
_embeds = _rows["IPAdapterEmbeds"]
# Its declaration, and so the frontend's drawing, calls one more input optional.
ROWS = _rows | {"IPAdapterEmbeds": replace(_embeds, optional=("neg_embed", *_embeds.optional))}
# The wire type of a widget, as the frontend writes it. A widget that is not here is a COMBO.
WIDGET_TYPES = {
    "prompt": "STRING",
    **dict.fromkeys(("seed", "steps", "noise_level", "width", "height"), "INT"),
    **dict.fromkeys(("variations", "max_new_tokens", "top_k"), "INT"),
    **dict.fromkeys(("temperature", "top_p", "guidance_scale"), "FLOAT"),
    **dict.fromkeys(("weight", "start_at", "end_at"), "FLOAT"),
}
LISTS = {("SEEDGenerate", "text"), ("SEEDGenerate", "chat")}
OPTIONAL, LIST = 7, 6  # the shapes of slots in LiteGraph
INPUTS, OUTPUTS = -10, -20  # the ids of a subgraph's own two ends


@dataclass(frozen=True)
class Inner:
    """A node inside. `wires` says where an input comes from: "node.output", or "@input" for an
    input of the blueprint itself, which on a widget shows that widget outside. `models` is what
    the frontend offers to download when the chosen file is missing."""

    type: str
    place: tuple[int, int]
    size: tuple[int, int]
    values: tuple[Any, ...] = ()
    wires: Mapping[str, str] = field(default_factory=dict)
    title: str = ""
    models: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True)
class Blueprint:
    """`inputs` in the order they are shown; `outputs` as name -> "node.output"."""

    name: str
    description: str
    search: tuple[str, ...]
    size: tuple[int, int]
    nodes: Mapping[str, Inner]
    inputs: tuple[str, ...]
    outputs: Mapping[str, str]


def loader(
    kind: str,
    row: int,
    model: str = contract.BUNDLED_CHOICE,
    offers: tuple[Mapping[str, str], ...] = (),
) -> Inner:
    """One of the three loaders, in the left column."""
    types = {"tokenizer": "Tokenizer", "language_model": "LLaMA", "decoder": "Decoder"}
    widget = "model" if kind == "language_model" else kind
    return Inner(
        f"SEED{types[kind]}Loader",
        (0, 190 * row),
        (300, 120),
        (model, "auto"),
        {widget: f"@{kind}"},
        models=offers,
    )


def note(text: str, width: int, height: int) -> Inner:
    """A card above the row of nodes."""
    return Inner("MarkdownNote", (0, -60 - height), (width, height), (text,), title="How it works")


def encode(row_x: int) -> Inner:
    return Inner(
        "SEEDEncode",
        (row_x, 0),
        (300, 110),
        ("stretch",),
        {"tokenizer": "tokenizer.tokenizer", "image": "@image"},
    )


def decode(row_x: int, codes: str, *more: str) -> Inner:
    shown = {name: f"@{name}" for name in ("seed", "steps", "guidance_scale", *more)}
    wires = {"tokenizer": "tokenizer.tokenizer", "decoder": "decoder.decoder", "codes": codes}
    values = (1, "fixed", 20, contract.DECODERS_OWN, 0, 0, 0)
    return Inner("SEEDDecode", (row_x, 0), (300, 290), values, wires | shown)


def generate(
    row_x: int, size: tuple[int, int], values: tuple[Any, ...], wires: Mapping[str, str]
) -> Inner:
    return Inner("SEEDGenerate", (row_x, 0), size, values, {"llm": "language_model.llm", **wires})


GUIDANCE = "*guidance_scale*: how closely the picture follows the codes; -1 is the decoder's own."

DRAW = Blueprint(
    name="SEED Draw from Words",
    description="Draws what you say: 'Draw a big rocket', 'a panda on red'. Connect image to Save "
    "Image or Preview Image. Each variation is another drawing.",
    search=("text to image", "txt2img", "draw", "generate image", "prompt", "SEED-LLaMA"),
    size=(360, 350),
    nodes={
        "note": note(
            "SEED-LLaMA writes 32 codes for each variation as if they were words, and the decoder "
            "paints them. One *seed* serves both.\n\n"
            f"{GUIDANCE}\n\n"
            "seed-mini knows 192 objects, three sizes and eight plain backgrounds. For everything "
            "else choose the full-size SEED-2 models in all three loaders.",
            700,
            120,
        ),
        "tokenizer": loader("tokenizer", 0),
        "language_model": loader("language_model", 1),
        "decoder": loader("decoder", 2),
        "generate": generate(
            400,
            (300, 470),
            ("Draw a big rocket", "image", 1, 512, 1, 0.9, 50, 1, "fixed"),
            {
                "prompt": "@prompt",
                "variations": "@variations",
                "temperature": "@temperature",
                "seed": "@seed",
            },
        ),
        "decode": decode(800, "generate.codes"),
    },
    inputs=(
        *("prompt", "variations", "temperature", "seed", "guidance_scale", "steps"),
        *("tokenizer", "language_model", "decoder"),
    ),
    outputs={"image": "decode.image", "codes": "generate.codes"},
)

VARIATION = Blueprint(
    name="SEED Image Variation",
    description="Paints a picture anew from what it shows: the same things, never the same pixels. "
    "Change the seed for another version, raise noise_level for looser ones.",
    search=("image variation", "reimagine", "reconstruct", "unCLIP", "SEED", "image codes"),
    size=(340, 250),
    nodes={
        "note": note(
            "The picture becomes 32 codes, and the decoder paints a new picture from them.\n\n"
            f"{GUIDANCE}\n\n"
            "seed-mini knows 192 objects on plain backgrounds. For photographs choose the "
            "full-size SEED-2 models in both loaders.",
            700,
            110,
        ),
        "tokenizer": loader("tokenizer", 0),
        "decoder": loader("decoder", 1),
        "encode": encode(400),
        "decode": decode(800, "encode.codes", "noise_level"),
    },
    inputs=("image", "seed", "noise_level", "guidance_scale", "steps", "tokenizer", "decoder"),
    outputs={"image": "decode.image", "codes": "encode.codes"},
)

CHAT = Blueprint(
    name="SEED Chat with a Picture",
    description="Ask about a picture, or have it described. Codes hold what the reply draws; chat "
    "goes on to SEED Generate for the next turn.",
    search=("caption", "describe image", "ask image", "VQA", "vision language model", "SEED-LLaMA"),
    size=(360, 370),
    nodes={
        "note": note(
            "The picture becomes 32 codes, which SEED-LLaMA reads with your words.\n\n"
            "To go on talking, connect *chat* to SEED Generate. If the reply draws, connect "
            "*codes* to SEED Decode.\n\n"
            "seed-mini knows 192 objects on plain backgrounds and short English sentences. For "
            "photographs choose the full-size SEED-2 models in both loaders.",
            700,
            120,
        ),
        "tokenizer": loader("tokenizer", 0),
        "language_model": loader("language_model", 1),
        "encode": encode(400),
        "generate": generate(
            800,
            (360, 470),
            ("Describe this picture.", "auto", 1, 512, 1, 0.5, 50, 1, "fixed"),
            {
                "codes": "encode.codes",
                "prompt": "@prompt",
                "reply": "@reply",
                "temperature": "@temperature",
                "max_new_tokens": "@max_new_tokens",
                "seed": "@seed",
            },
        ),
    },
    inputs=(
        *("image", "prompt", "reply", "temperature", "max_new_tokens", "seed"),
        *("tokenizer", "language_model"),
    ),
    outputs={"text": "generate.text", "codes": "generate.codes", "chat": "generate.chat"},
)

EDIT = Blueprint(
    name="SEED Edit by Instruction",
    description="Changes a picture by what you say: 'Make the background blue', 'Turn it into a "
    "pizza'. The whole picture is painted anew.",
    search=("edit image", "instruct", "image to image", "change picture", "SEED-LLaMA"),
    size=(360, 370),
    nodes={
        "note": note(
            "The picture becomes 32 codes. SEED-LLaMA reads them with your instruction and answers "
            "with 32 new codes for each variation, which the decoder paints. One *seed* serves "
            "both.\n\n"
            f"{GUIDANCE}\n\n"
            "seed-mini knows 192 objects on plain backgrounds. For photographs choose the "
            "full-size SEED-2 models in all three loaders.",
            700,
            120,
        ),
        "tokenizer": loader("tokenizer", 0),
        "language_model": loader("language_model", 1),
        "decoder": loader("decoder", 2),
        "encode": encode(400),
        "generate": generate(
            800,
            (300, 470),
            ("Make the background blue", "image", 1, 512, 1, 0.5, 50, 1, "fixed"),
            {
                "codes": "encode.codes",
                "prompt": "@instruction",
                "variations": "@variations",
                "seed": "@seed",
            },
        ),
        "decode": decode(1200, "generate.codes"),
    },
    inputs=(
        *("image", "instruction", "variations", "seed", "guidance_scale", "steps"),
        *("tokenizer", "language_model", "decoder"),
    ),
    outputs={"image": "decode.image", "text": "generate.text", "codes": "generate.codes"},
)

SEED_2 = {
    "name": "seed_quantizer.pt",
    "url": "https://huggingface.co/AILab-CVC/seed-tokenizer-2/resolve/main/seed_quantizer.pt",
    "directory": "seed_tokenizer",
}
VIT_H = {
    "name": "ip-adapter_sdxl_vit-h.safetensors",
    "url": "https://huggingface.co/h94/IP-Adapter/resolve/main/sdxl_models/"
    "ip-adapter_sdxl_vit-h.safetensors",
    "directory": "ipadapter",
}
IPADAPTER = Blueprint(
    name="SEED Codes to SDXL through IPAdapter",
    description="Guides an SDXL model by codes, of a picture or of what SEED-LLaMA drew. Needs the "
    "pack ComfyUI_IPAdapter_plus, the SEED-2 tokenizer and ip-adapter_sdxl_vit-h.",
    search=("IPAdapter", "IP-Adapter", "SDXL", "image prompt", "SEED", "image codes"),
    size=(400, 240),
    nodes={
        "note": note(
            "The codes become the image embedding that IPAdapter reads, and your SDXL model paints "
            "by it.\n\n"
            "Needs the pack **ComfyUI_IPAdapter_plus**, **ip-adapter_sdxl_vit-h.safetensors** in "
            "models/ipadapter, and the SEED-2 tokenizer: **seed_quantizer.pt** in "
            "models/seed_tokenizer, with **eva_vit_g.pth** beside it. seed-mini does not fit: its "
            "embeddings are too short.\n\n"
            "For SD 1.5 choose ip-adapter_sd15. The *plus* versions do not fit.",
            700,
            140,
        ),
        # The bundled tokenizer is of no use here: its embeddings are too short.
        "tokenizer": loader("tokenizer", 0, SEED_2["name"], (SEED_2,)),
        "ipadapter": Inner(
            "IPAdapterModelLoader",
            (0, 190),
            (300, 60),
            (VIT_H["name"],),
            {"ipadapter_file": "@ipadapter_file"},
            models=(VIT_H,),
        ),
        "embeds": Inner(
            "SEEDCodesToIPAdapter",
            (400, 0),
            (300, 60),
            (),
            {"tokenizer": "tokenizer.tokenizer", "codes": "@codes"},
        ),
        "apply": Inner(
            "IPAdapterEmbeds",
            (800, 0),
            (300, 290),
            (0.8, "linear", 0, 1, "V only"),
            {
                "model": "@model",
                "ipadapter": "ipadapter.IPADAPTER",
                "pos_embed": "embeds.pos_embed",
                "neg_embed": "embeds.neg_embed",
                **{name: f"@{name}" for name in ("weight", "weight_type", "start_at", "end_at")},
            },
        ),
    },
    inputs=(
        # Its own first: while the other pack is missing, only its own widgets are there.
        *("model", "codes", "tokenizer", "ipadapter_file"),
        *("weight", "weight_type", "start_at", "end_at"),
    ),
    outputs={"model": "apply.MODEL"},
)

BLUEPRINTS = (DRAW, VARIATION, CHAT, EDIT, IPADAPTER)


def identifier(*names: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join(("seed-llama", *names))))


class Writer:
    """One blueprint on its way to JSON."""

    def __init__(self, blueprint: Blueprint):
        self.blueprint = blueprint
        self.ids = {name: i for i, name in enumerate(blueprint.nodes, 1)}
        self.links: list[dict[str, Any]] = []
        self.nodes = [self._node(name, inner) for name, inner in blueprint.nodes.items()]
        self.nodes_by_id = {node["id"]: node for node in self.nodes}
        for wire in self._wires():
            self._link(*wire)

    def workflow(self) -> dict[str, Any]:
        """The file: one subgraph and one node that shows it."""
        outer = len(self.nodes) + 1
        subgraph = self._subgraph()
        return {
            "revision": 0,
            "last_node_id": outer,
            "last_link_id": 0,
            "nodes": [self._outer_node(outer, subgraph)],
            "links": [],
            "version": 0.4,
            "definitions": {"subgraphs": [subgraph]},
            "extra": {"BlueprintSearchAliases": list(self.blueprint.search)},
        }

    def _row(self, name: str) -> Row:
        return ROWS[self.blueprint.nodes[name].type]

    def _node(self, name: str, inner: Inner) -> dict[str, Any]:
        row = self._row(name)
        note = inner.type in contract.NOTES
        inputs = [_input(n, kind, n in row.optional) for n, kind in row.sockets]
        if not note:
            inputs += [_widget(widget) for widget in row.widgets]
        outputs = [_output(n, kind, (inner.type, n) in LISTS) for n, kind in row.outputs]
        return {
            "id": self.ids[name],
            "type": inner.type,
            "pos": list(inner.place),
            "size": list(inner.size),
            "flags": {},
            "order": self.ids[name] - 1,
            "mode": 0,
            "inputs": inputs,
            "outputs": outputs,
            **({"title": inner.title} if inner.title else {}),
            "properties": {} if note else _properties(inner, row),
            "widgets_values": list(inner.values),
            **({"color": "#432", "bgcolor": "#653"} if note else {}),
        }

    def _wires(self) -> list[tuple[int, int, int, int]]:
        """Origin id and slot, target id and slot, first of the blueprint's inputs."""
        found = []
        for name, inner in self.blueprint.nodes.items():
            for target, source in inner.wires.items():
                row = self._row(name)
                slot = [*(n for n, _ in row.sockets), *row.widgets].index(target)
                found.append((*self._origin(source), self.ids[name], slot))
        for slot, source in enumerate(self.blueprint.outputs.values()):
            found.append((*self._origin(source), OUTPUTS, slot))
        return sorted(found, key=lambda wire: (wire[0] != INPUTS, wire))

    def _origin(self, source: str) -> tuple[int, int]:
        if source.startswith("@"):
            return INPUTS, self.blueprint.inputs.index(source[1:])
        name, output = source.split(".")
        return self.ids[name], [n for n, _ in self._row(name).outputs].index(output)

    def _link(self, origin: int, origin_slot: int, target: int, target_slot: int) -> None:
        number = len(self.links) + 1
        socket = self.nodes_by_id[target]["inputs"][target_slot] if target != OUTPUTS else None
        output = self.nodes_by_id[origin]["outputs"][origin_slot] if origin != INPUTS else None
        if socket:
            socket["link"] = number
        if output:
            output["links"].append(number)
        self.links.append(
            {
                "id": number,
                "origin_id": origin,
                "origin_slot": origin_slot,
                "target_id": target,
                "target_slot": target_slot,
                "type": (output or socket)["type"],
            }
        )

    def _subgraph(self) -> dict[str, Any]:
        blueprint = self.blueprint
        right = max(inner.place[0] + inner.size[0] for inner in blueprint.nodes.values())
        inputs = [
            self._end("input", name, [x for x in self.links if _is(x, "origin", INPUTS, i)])
            for i, name in enumerate(blueprint.inputs)
        ]
        outputs = [
            self._end("output", name, [x for x in self.links if _is(x, "target", OUTPUTS, i)])
            for i, name in enumerate(blueprint.outputs)
        ]
        return {
            "id": identifier(blueprint.name),
            "version": 1,
            "state": {
                "lastGroupId": 0,
                "lastNodeId": len(self.nodes),
                "lastLinkId": len(self.links),
                "lastRerouteId": 0,
            },
            "revision": 0,
            "config": {},
            "name": blueprint.name,
            "inputNode": {"id": INPUTS, "bounding": [-280, 0, 160, 40 + 20 * len(inputs)]},
            "outputNode": {
                "id": OUTPUTS,
                "bounding": [right + 100, 0, 120, 40 + 20 * len(outputs)],
            },
            "inputs": inputs,
            "outputs": outputs,
            "widgets": [],
            "nodes": self.nodes,
            "groups": [],
            "links": self.links,
            "extra": {},
            "category": "SEED",
            "description": blueprint.description,
        }

    def _end(self, side: str, name: str, links: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": identifier(self.blueprint.name, side, name),
            "name": name,
            "type": links[0]["type"],
            "linkIds": [link["id"] for link in links],
        }

    def _outer_node(self, number: int, subgraph: dict[str, Any]) -> dict[str, Any]:
        inputs, values = [], []
        for end in subgraph["inputs"]:
            inputs.append({"name": end["name"], "type": end["type"], "link": None})
            link = self.links[end["linkIds"][0] - 1]
            inner = self.nodes_by_id[link["target_id"]]
            widget = inner["inputs"][link["target_slot"]].get("widget")
            if widget:
                inputs[-1]["widget"] = {"name": end["name"]}
                values.append(contract.widget_values(inner, ROWS[inner["type"]])[widget["name"]])
        return {
            "id": number,
            "type": subgraph["id"],
            "pos": [0, 0],
            "size": list(self.blueprint.size),
            "flags": {},
            "order": 0,
            "mode": 0,
            "showAdvanced": True,  # a subgraph's node has no button to show them
            "inputs": inputs,
            "outputs": [
                {"name": end["name"], "type": end["type"], "links": []}
                for end in subgraph["outputs"]
            ],
            "title": self.blueprint.name,
            "properties": {},
            # As inside. Without them the frontend may show those of a node deleted before.
            "widgets_values": values,
        }


def _is(link: dict[str, Any], side: str, node: int, slot: int) -> bool:
    return (link[f"{side}_id"], link[f"{side}_slot"]) == (node, slot)


def _slot(name: str, kind: str, shape: int | None = None) -> dict[str, Any]:
    return {
        "localized_name": name,
        "name": name,
        **({"shape": shape} if shape else {}),
        "type": kind,
    }


def _input(name: str, kind: str, is_optional: bool) -> dict[str, Any]:
    return _slot(name, kind, OPTIONAL if is_optional else None) | {"link": None}


def _widget(name: str) -> dict[str, Any]:
    kind = WIDGET_TYPES.get(name, "COMBO")
    return _slot(name, kind) | {"widget": {"name": name}, "link": None}


def _output(name: str, kind: str, is_list: bool) -> dict[str, Any]:
    return _slot(name, kind, LIST if is_list else None) | {"links": []}


def _properties(inner: Inner, row: Row) -> dict[str, Any]:
    pack = contract.origin(inner.type, row)
    models = {"models": [dict(model) for model in inner.models]} if inner.models else {}
    return pack | {"Node name for S&R": inner.type} | models


def text_of(blueprint: Blueprint) -> str:
    """The content of the blueprint's file."""
    return json.dumps(Writer(blueprint).workflow(), indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    SUBGRAPHS.mkdir(exist_ok=True)
    for blueprint in BLUEPRINTS:
        (SUBGRAPHS / f"{blueprint.name}.json").write_text(text_of(blueprint), encoding="utf-8")
        print(f"{blueprint.name}: written")


if __name__ == "__main__":
    main()
