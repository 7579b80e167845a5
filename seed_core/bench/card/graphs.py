"""Graphs in the API's format, as an artist's session on a card sends them."""

from __future__ import annotations

from typing import Any

# What the loaders' lists call the models; a tokenizer is called by its file.
LLM, TOKENIZER, DECODER, LORA = "random.safetensors", "random", "random", "random"
TOKENIZER_FILE = f"{TOKENIZER}/seed_quantizer.safetensors"

CODES = str([list(range(32))])
PROMPT = "Draw a red fox on a blue background."

Graph = dict[str, Any]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """Return one node of an API-format prompt."""
    return {"class_type": class_type, "inputs": inputs}


def reply(seed: int, precision: str = "auto", lora: float = 0.0, **options: Any) -> Graph:
    """Return a graph that has the model draw, greedily, and shows the codes as text."""
    usual = {"reply": "image", "variations": 1, "max_new_tokens": 34, "temperature": 0.0}
    options = {**usual, "top_p": 0.5, "top_k": 50, "seed": seed, "prompt": PROMPT, **options}
    graph = {
        "llm": node("SEEDLLaMALoader", model=LLM, precision=precision),
        "generate": node("SEEDGenerate", llm=["llm", 0], **options),
        "text": node("SEEDCodesToText", codes=["generate", 1]),
        "read": node("PreviewAny", source=["text", 0]),
    }
    if lora:
        graph["lora"] = node("SEEDLoRALoader", llm=["llm", 0], lora=LORA, strength=lora)
        graph["generate"]["inputs"]["llm"] = ["lora", 0]
    return graph


def picture(seed: int, steps: int) -> Graph:
    """Return a graph that paints given codes."""
    return {
        "tokenizer": tokenizer_node(),
        "codes": node("SEEDTextToCodes", text=CODES, family="seed-2"),
        "decoder": node("SEEDDecoderLoader", decoder=DECODER, precision="auto"),
        "decode": node(
            "SEEDDecode",
            **{"tokenizer": ["tokenizer", 0], "decoder": ["decoder", 0], "codes": ["codes", 0]},
            **{"seed": seed, "steps": steps, "guidance_scale": -1, "noise_level": 0},
            **{"width": 0, "height": 0},
        ),
        "show": node("PreviewImage", images=["decode", 0]),
    }


def tokenizer_node() -> dict[str, Any]:
    """Return the tokenizer's loader."""
    return node("SEEDTokenizerLoader", tokenizer=TOKENIZER_FILE, precision="auto")


def encoding() -> Graph:
    """Return a graph that encodes a sample picture."""
    return {
        "tokenizer": tokenizer_node(),
        "picture": node("SEEDSamplePicture", picture="fox_on_yellow"),
        "encode": node(
            "SEEDEncode", tokenizer=["tokenizer", 0], image=["picture", 0], fit="stretch"
        ),
        "text": node("SEEDCodesToText", codes=["encode", 0]),
        "read": node("PreviewAny", source=["text", 0]),
    }
