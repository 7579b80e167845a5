"""What a saved workflow may hold: the sockets, widgets and outputs of every node a template uses.

The rows of our own nodes restate the public contract on purpose: workflow files outlive releases,
so a node that drifts from these rows breaks people's graphs even when everything else passes.
Widgets are in saved order; random seeds are followed in the file by their control_after_generate.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

PACK = {"cnr_id": "seed-llama", "ver": "0.1.0"}
CORE_ID = "comfy-core"
IPADAPTER = {"cnr_id": "comfyui_ipadapter_plus", "ver": "2.0.0"}
BYPASSED = 4  # a saved node's mode after Ctrl+B
CONTROL = ("fixed", "increment", "decrement", "randomize")

Check = Callable[[Any], bool]
Slots = tuple[tuple[str, str], ...]
Widgets = Mapping[str, Check]


@dataclass(frozen=True)
class Node:
    """Sockets and outputs as (name, wire type); widgets as name -> check of its value.

    `random_seed` is the widget that has a control_after_generate.
    """

    sockets: Slots = ()
    widgets: Widgets = field(default_factory=dict)
    outputs: Slots = ()
    optional: tuple[str, ...] = ()
    is_ours: bool = True
    random_seed: str = "seed"


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
# A name would be no better: older frontends call a file that is not listed a missing model, even of
# a node that is switched off.
NOT_THERE_YET = one_of("")
BUNDLED_CHOICE = "seed-mini (bundled)"
ALL_PICTURES = "all of them"
DECODERS_OWN = -1  # of guidance_scale
BUNDLED_LORA = "seed-mini night (bundled)"
BUNDLED = one_of(BUNDLED_CHOICE)  # folders: the frontend cannot offer to download one
TOKENIZER_FILE = one_of(BUNDLED_CHOICE, "seed_quantizer.pt", "seed_tokenizer.pth")
PRECISION = one_of("auto", "fp32", "fp16", "bf16")
FETCHED_AS = one_of("as published", "bf16", "fp16", "fp8")
NEVER_BY_ITSELF = one_of("show")  # a template that fetched would do so with the first Run
TOKENIZER = ("tokenizer", "SEED_TOKENIZER")
LLM = ("llm", "SEED_LLM")
DECODER = ("decoder", "SEED_DECODER")
CODES = ("codes", "SEED_CODES")
TEXT = ("text", "STRING")
IMAGE = ("image", "IMAGE")
CLIP_VISION = ("clip_vision_output", "CLIP_VISION_OUTPUT")
CONDITIONING = ("conditioning", "CONDITIONING")
CONDITIONED = ("CONDITIONING", "CONDITIONING")


def nodes(sample_pictures: list[str]) -> dict[str, Node]:
    """Node id -> row, for the given names of the bundled pictures."""
    return {
        "SEEDSamplePicture": Node(
            (), {"picture": one_of(*sample_pictures, ALL_PICTURES)}, (IMAGE,)
        ),
        "SEEDTokenizerLoader": Node(
            (), {"tokenizer": TOKENIZER_FILE, "precision": PRECISION}, (TOKENIZER,)
        ),
        "SEEDLLaMALoader": Node(
            (),
            {"model": BUNDLED, "precision": one_of("auto", "bf16", "fp16", "fp32", "fp8")},
            (LLM,),
        ),
        "SEEDServerLoader": Node((), {"server": NOT_THERE_YET}, (LLM,)),
        "SEEDDecoderLoader": Node((), {"decoder": BUNDLED, "precision": PRECISION}, (DECODER,)),
        "SEEDGetModel": Node(
            widgets={"model": is_filled_text, "precision": FETCHED_AS, "action": NEVER_BY_ITSELF},
            outputs=(("name", "STRING"),),
        ),
        "SEEDLoRALoader": Node(
            (LLM,), {"lora": one_of(BUNDLED_LORA), "strength": number(-10, 10)}, (LLM,)
        ),
        "SEEDEncode": Node((TOKENIZER, IMAGE), {"fit": one_of("stretch", "crop", "pad")}, (CODES,)),
        "SEEDGenerate": _generate(),
        "SEEDDecode": _decode(),
        "SEEDPreviewCodes": Node(
            (CODES, ("compare_with", "SEED_CODES")), {}, (CODES,), optional=("compare_with",)
        ),
        "SEEDMixCodes": _mix_codes(),
        "SEEDChatView": Node(
            sockets=(("chat", "SEED_CHAT"), TOKENIZER, DECODER),
            optional=("tokenizer", "decoder"),
            outputs=(TEXT, CODES),
        ),
        **_code_nodes(),
        **_core_nodes(),
        **_folder_nodes(),
        **_sampling_nodes(),
        **_ipadapter_nodes(),
    }


def _generate() -> Node:
    return Node(
        sockets=(LLM, CODES, ("chat", "SEED_CHAT")),
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
        outputs=(TEXT, CODES, ("chat", "SEED_CHAT")),
    )


def _decode() -> Node:
    return Node(
        sockets=(TOKENIZER, DECODER, CODES, ("negative_codes", "SEED_CODES")),
        optional=("negative_codes",),
        widgets={
            "seed": RANDOM_SEED,
            "steps": whole(1, 1000),
            "guidance_scale": number(DECODERS_OWN, 50),
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


def _code_nodes() -> dict[str, Node]:
    batch = tuple((f"codes_{i}", "SEED_CODES") for i in (1, 2, 3, 4))
    embeds = (("pos_embed", "EMBEDS"), ("neg_embed", "EMBEDS"))
    return {
        "SEEDSelectCodes": Node(
            (CODES,), {"index": whole(-4096, 4096), "length": whole(1, 4096)}, (CODES,)
        ),
        "SEEDBatchCodes": Node(batch, {}, (CODES,), optional=("codes_3", "codes_4")),
        "SEEDCodesToText": Node((CODES,), {}, (TEXT,)),
        "SEEDTextToCodes": Node(
            (),
            {"text": is_filled_text, "family": one_of("seed-1", "seed-2", "seed-mini")},
            (CODES,),
        ),
        "SEEDSaveCodes": Node((CODES,), {"filename_prefix": is_filled_text}, (CODES,)),
        "SEEDLoadCodes": Node((), {"file": NOT_THERE_YET}, (CODES,)),
        "SEEDCodesToEmbedding": Node((TOKENIZER, CODES), {}, (CLIP_VISION,)),
        "SEEDBlendEmbeddings": Node(
            (("a", "CLIP_VISION_OUTPUT"), ("b", "CLIP_VISION_OUTPUT")),
            {"factor": number(0, 1), "mode": one_of("linear", "spherical")},
            (CLIP_VISION,),
        ),
        "SEEDCodesToIPAdapter": Node((TOKENIZER, CODES), {}, embeds),
        "SEEDCodesToConditioning": Node((TOKENIZER, CODES), {}, (CONDITIONING,)),
        "SEEDIPAdapter": Node(
            (("model", "MODEL"), TOKENIZER, CODES, ("negative_codes", "SEED_CODES")),
            {
                "ipadapter": is_filled_text,
                "weight": number(-10, 10),
                "start_at": number(0, 1),
                "end_at": number(0, 1),
            },
            (("model", "MODEL"),),
            optional=("negative_codes",),
        ),
    }


def _core(
    sockets: Slots = (), widgets: Widgets | None = None, outputs: Slots = (), **more: Any
) -> Node:
    return Node(sockets, widgets or {}, outputs, is_ours=False, **more)


def _core_nodes() -> dict[str, Node]:
    images = (("images", "IMAGE"),)
    return {
        REROUTE: _core((("", "*"),), {}, (("", "IMAGE"),)),  # which carries pictures here
        "PreviewImage": _core(images, {}, images),
        "SaveImage": _core(images, {"filename_prefix": is_filled_text}, images),
        "PreviewAny": _core((("source", "*"),), {}, (("STRING", "STRING"),)),
        "MarkdownNote": _core((), {"text": is_filled_text}),
        "PrimitiveStringMultiline": _core((), {"value": is_filled_text}, (("STRING", "STRING"),)),
        "PrimitiveString": _core((), {"value": is_filled_text}, (("STRING", "STRING"),)),
        "PrimitiveInt": _core((), {"value": RANDOM_SEED}, (("INT", "INT"),), random_seed="value"),
    }


def _folder_nodes() -> dict[str, Node]:
    """Pictures of a folder one after the other, and back to a folder with their texts."""
    images = ("images", "IMAGE")
    return {
        "LoadImageDataSetFromFolder": _core((), {"folder": NOT_THERE_YET}, (images,)),
        "RebatchImages": _core((images,), {"batch_size": whole(1, 4096)}, (("IMAGE", "IMAGE"),)),
        "SaveImageTextDataSetToFolder": _core(
            (images, ("texts", "STRING")),
            {
                "folder_name": is_filled_text,
                "filename_prefix": is_filled_text,
                "mode": one_of("overwrite", "increment"),
            },
        ),
    }


def _sampling_nodes() -> dict[str, Node]:
    """The host's own sampling graph, from the checkpoint to the picture."""
    latent = ("LATENT", "LATENT")
    side = whole(16, 16384, 8)
    strength, share = number(-10, 10), number(0, 1)
    return {
        "CheckpointLoaderSimple": _core(
            (),
            {"ckpt_name": is_text},  # nothing where it is switched off
            (("MODEL", "MODEL"), ("CLIP", "CLIP"), ("VAE", "VAE")),
        ),
        "CLIPTextEncode": _core((("clip", "CLIP"),), {"text": is_text}, (CONDITIONED,)),
        "unCLIPConditioning": _core(
            (CONDITIONING, CLIP_VISION),
            {"strength": strength, "noise_augmentation": share},
            (CONDITIONED,),
        ),
        "EmptyLatentImage": _core(
            (), {"width": side, "height": side, "batch_size": whole(1, 4096)}, (latent,)
        ),
        "KSampler": _core(
            (
                ("model", "MODEL"),
                ("positive", "CONDITIONING"),
                ("negative", "CONDITIONING"),
                ("latent_image", "LATENT"),
            ),
            {
                "seed": RANDOM_SEED,
                "steps": whole(1, 10000),
                "cfg": number(0, 100),
                "sampler_name": is_filled_text,
                "scheduler": is_filled_text,
                "denoise": share,
            },
            (latent,),
        ),
        "VAEDecode": _core((("samples", "LATENT"), ("vae", "VAE")), {}, (("IMAGE", "IMAGE"),)),
        "VAEEncode": _core((("pixels", "IMAGE"), ("vae", "VAE")), {}, (latent,)),
        "ImageScale": _core(
            (IMAGE,),
            {
                "upscale_method": is_filled_text,
                "width": side,
                "height": side,
                "crop": one_of("disabled", "center"),
            },
            (("IMAGE", "IMAGE"),),
        ),
        **_controlnet_nodes(),
    }


def _controlnet_nodes() -> dict[str, Node]:
    share = number(0, 1)
    return {
        "ControlNetLoader": _core(
            (), {"control_net_name": NOT_THERE_YET}, (("CONTROL_NET", "CONTROL_NET"),)
        ),
        "Canny": _core(
            (IMAGE,),
            {"low_threshold": number(0.01, 0.99), "high_threshold": number(0.01, 0.99)},
            (("IMAGE", "IMAGE"),),
        ),
        "ControlNetApplyAdvanced": _core(
            (
                ("positive", "CONDITIONING"),
                ("negative", "CONDITIONING"),
                ("control_net", "CONTROL_NET"),
                IMAGE,
                ("vae", "VAE"),
            ),
            {"strength": number(0, 10), "start_percent": share, "end_percent": share},
            (("positive", "CONDITIONING"), ("negative", "CONDITIONING")),
            optional=("vae",),
        ),
    }


def _ipadapter_nodes() -> dict[str, Node]:
    """What ComfyUI_IPAdapter_plus declares, whether it is installed or not."""
    return {
        "IPAdapterModelLoader": Node(
            (), {"ipadapter_file": is_filled_text}, (("IPADAPTER", "IPADAPTER"),), is_ours=False
        ),
        "IPAdapterEmbeds": Node(
            sockets=(
                ("model", "MODEL"),
                ("ipadapter", "IPADAPTER"),
                ("pos_embed", "EMBEDS"),
                ("neg_embed", "EMBEDS"),
                ("attn_mask", "MASK"),
                ("clip_vision", "CLIP_VISION"),
            ),
            optional=("attn_mask", "clip_vision"),  # neg_embed is, too; without it the node fails
            widgets={
                "weight": number(-1, 3),
                "weight_type": is_filled_text,
                "start_at": number(0, 1),
                "end_at": number(0, 1),
                "embeds_scaling": is_filled_text,
            },
            outputs=(("MODEL", "MODEL"),),
            is_ours=False,
        ),
    }


NOTES = ("MarkdownNote",)
REROUTE = "Reroute"
DRAWN_ALONE = (*NOTES, REROUTE)  # of the frontend, which sends none of them to the server


def origin(node_type: str, row: Node) -> dict[str, str]:
    """What a file says of the pack a node comes from; of the host's own nodes, only the id."""
    if row.is_ours:
        return PACK
    return IPADAPTER if node_type in _ipadapter_nodes() else {"cnr_id": CORE_ID}


def widget_values(saved: dict[str, Any], row: Node) -> dict[str, Any]:
    """A saved node's positional widget values by name, with control_after_generate taken out."""
    values = list(saved.get("widgets_values", []))
    named: dict[str, Any] = {}
    for name in row.widgets:
        named[name] = values.pop(0)
        if name == row.random_seed:
            named["control_after_generate"] = values.pop(0)
    if saved["type"] == "PreviewAny":  # what it last showed and how; never sent to the server
        values.clear()
    if values:
        raise ValueError(f"{saved['type']} {saved['id']} has {len(values)} values too many")
    return named


def to_api(workflow: dict[str, Any], table: dict[str, Node]) -> dict[str, Any]:
    """The API form of a UI workflow, worked out from the file alone."""
    links = _sources(workflow)
    prompt = {}
    for saved in workflow["nodes"]:
        if saved["type"] in DRAWN_ALONE or saved["mode"] == BYPASSED:
            continue
        inputs = widget_values(saved, table[saved["type"]])
        inputs.pop("control_after_generate", None)
        wired = {s["name"]: links[s["link"]] for s in saved["inputs"] if s.get("link") is not None}
        prompt[str(saved["id"])] = {"class_type": saved["type"], "inputs": inputs | wired}
    return prompt


def _sources(workflow: dict[str, Any]) -> dict[int, list[Any]]:
    """Link id -> [node id, output] it comes from, where wires run through other nodes."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: link for link in workflow["links"]}

    def source(link: list[Any]) -> list[Any]:
        _, origin, slot, _, _, kind = link
        runs_through = nodes[origin]["mode"] == BYPASSED or nodes[origin]["type"] == REROUTE
        if not runs_through:
            return [str(origin), slot]
        inputs = nodes[origin]["inputs"]
        # Of several inputs of a kind, an output passes on that of its own place.
        ways = [*inputs[slot : slot + 1], *inputs]
        through = next(way for way in ways if way["type"] in (kind, "*"))
        return source(links[through["link"]])

    living = [link for link in workflow["links"] if nodes[link[3]]["mode"] != BYPASSED]
    return {link[0]: source(link) for link in living}


def without_titles(prompt: dict[str, Any]) -> dict[str, Any]:
    """An API workflow without `_meta`: titles follow the display names, which may change."""
    return {key: {k: v for k, v in node.items() if k != "_meta"} for key, node in prompt.items()}
