"""What a saved workflow may hold: the sockets, widgets and outputs of every node a template uses.

The rows of our own nodes restate the public contract on purpose: workflow files outlive releases,
so a node that drifts from these rows breaks people's graphs even when everything else passes.
Widgets are in saved order; `seed` is followed in the file by its control_after_generate value.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

PACK = {"cnr_id": "seed-llama", "ver": "0.1.0"}
CORE_ID = "comfy-core"
CONTROL = ("fixed", "increment", "decrement", "randomize")

Check = Callable[[Any], bool]


@dataclass(frozen=True)
class Node:
    """Sockets and outputs as (name, wire type); widgets as name -> check of its value."""

    sockets: tuple[tuple[str, str], ...] = ()
    widgets: Mapping[str, Check] = field(default_factory=dict)
    outputs: tuple[tuple[str, str], ...] = ()
    optional: tuple[str, ...] = ()
    is_ours: bool = True


def one_of(*values: str) -> Check:
    return lambda value: value in values


def whole(low: int, high: int, step: int = 1) -> Check:
    return lambda value: type(value) is int and low <= value <= high and value % step == 0


def number(low: float, high: float) -> Check:
    return lambda value: type(value) in (int, float) and low <= value <= high


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_filled_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


RANDOM_SEED = whole(0, 2**64 - 1)
BUNDLED = one_of("seed-mini (bundled)")  # a template must run before any model is downloaded
PRECISION = one_of("auto", "fp32", "fp16", "bf16")
TOKENIZER = ("tokenizer", "SEED_TOKENIZER")
DECODER = ("decoder", "SEED_DECODER")
CODES = ("codes", "SEED_CODES")
IMAGE = ("image", "IMAGE")


def nodes(sample_pictures: list[str]) -> dict[str, Node]:
    """Node id -> row, for the given names of the bundled pictures."""
    return {
        "SEEDSamplePicture": Node((), {"picture": one_of(*sample_pictures)}, (IMAGE,)),
        "SEEDTokenizerLoader": Node(
            (), {"tokenizer": BUNDLED, "precision": PRECISION}, (TOKENIZER,)
        ),
        "SEEDLLaMALoader": Node(
            (),
            {"model": BUNDLED, "precision": one_of("auto", "bf16", "fp16", "fp32", "fp8")},
            (("llm", "SEED_LLM"),),
        ),
        "SEEDDecoderLoader": Node((), {"decoder": BUNDLED, "precision": PRECISION}, (DECODER,)),
        "SEEDEncode": Node((TOKENIZER, IMAGE), {"fit": one_of("stretch", "crop", "pad")}, (CODES,)),
        "SEEDGenerate": _generate(),
        "SEEDDecode": _decode(),
        "SEEDPreviewCodes": Node((CODES,), {}, (CODES,)),
        "SEEDMixCodes": _mix_codes(),
        "SEEDChatView": Node(
            sockets=(("chat", "SEED_CHAT"), TOKENIZER, DECODER),
            optional=("tokenizer", "decoder"),
            outputs=(("text", "STRING"), CODES),
        ),
        **_core_nodes(),
    }


def _generate() -> Node:
    return Node(
        sockets=(("llm", "SEED_LLM"), CODES, ("chat", "SEED_CHAT")),
        optional=("codes", "chat"),
        widgets={
            "prompt": is_filled_text,
            "reply": one_of("auto", "text", "image"),
            "variations": whole(1, 64),
            "max_new_tokens": whole(1, 4096),
            "temperature": number(0, 2),
            "top_p": number(0.01, 1),
            "top_k": whole(0, 1000),
            "seed": RANDOM_SEED,
        },
        outputs=(("text", "STRING"), CODES, ("chat", "SEED_CHAT")),
    )


def _decode() -> Node:
    return Node(
        sockets=(TOKENIZER, DECODER, CODES, ("negative_codes", "SEED_CODES")),
        optional=("negative_codes",),
        widgets={
            "seed": RANDOM_SEED,
            "steps": whole(1, 1000),
            "guidance_scale": number(0, 50),
            "noise_level": whole(0, 999),
            "width": whole(0, 2048, 8),
            "height": whole(0, 2048, 8),
        },
        outputs=(IMAGE,),
    )


def _mix_codes() -> Node:
    return Node(
        sockets=(("codes_a", "SEED_CODES"), ("codes_b", "SEED_CODES")),
        widgets={
            "start": whole(0, 32),
            "end": whole(0, 32),
            "mode": one_of("splice", "random"),
            "amount": number(0, 1),
            "seed": RANDOM_SEED,
        },
        outputs=(CODES,),
    )


def _core_nodes() -> dict[str, Node]:
    images = (("images", "IMAGE"),)
    return {
        "PreviewImage": Node(images, {}, images, is_ours=False),
        "SaveImage": Node(images, {"filename_prefix": is_filled_text}, images, is_ours=False),
        "PreviewAny": Node((("source", "*"),), {}, (("STRING", "STRING"),), is_ours=False),
        "MarkdownNote": Node((), {"text": is_filled_text}, (), is_ours=False),
    }


NOTES = ("MarkdownNote",)


def widget_values(saved: dict[str, Any], row: Node) -> dict[str, Any]:
    """A saved node's positional widget values by name, with control_after_generate taken out."""
    values = list(saved.get("widgets_values", []))
    named: dict[str, Any] = {}
    for name in row.widgets:
        named[name] = values.pop(0)
        if name == "seed":
            named["control_after_generate"] = values.pop(0)
    if saved["type"] == "PreviewAny":  # what it last showed and how; never sent to the server
        values.clear()
    if values:
        raise ValueError(f"{saved['type']} {saved['id']} has {len(values)} values too many")
    return named


def to_api(workflow: dict[str, Any], table: dict[str, Node]) -> dict[str, Any]:
    """The API form of a UI workflow, worked out from the file alone."""
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for saved in workflow["nodes"]:
        if saved["type"] in NOTES:
            continue
        inputs = widget_values(saved, table[saved["type"]])
        inputs.pop("control_after_generate", None)
        wired = {s["name"]: links[s["link"]] for s in saved["inputs"] if s.get("link") is not None}
        prompt[str(saved["id"])] = {"class_type": saved["type"], "inputs": inputs | wired}
    return prompt


def without_titles(prompt: dict[str, Any]) -> dict[str, Any]:
    """An API workflow without `_meta`: titles follow the display names, which may change."""
    return {key: {k: v for k, v in node.items() if k != "_meta"} for key, node in prompt.items()}
