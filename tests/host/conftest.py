"""API-format prompts for the live server: the four templates' graphs, built node by node."""

import copy
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BUNDLED = "seed-mini (bundled)"

LOADERS: dict[str, Any] = {
    "tokenizer": ("SEEDTokenizerLoader", {"tokenizer": BUNDLED, "precision": "auto"}),
    "llm": ("SEEDLLaMALoader", {"model": BUNDLED, "precision": "auto"}),
    "decoder": ("SEEDDecoderLoader", {"decoder": BUNDLED, "precision": "auto"}),
    "picture": ("SEEDSamplePicture", {"picture": "fox_on_yellow"}),
    "encode": (
        "SEEDEncode",
        {"tokenizer": ["tokenizer", 0], "image": ["picture", 0], "fit": "stretch"},
    ),
    "decode": (
        "SEEDDecode",
        {
            "tokenizer": ["tokenizer", 0],
            "decoder": ["decoder", 0],
            "codes": ["encode", 0],
            "seed": 1,
            "steps": 4,
            "guidance_scale": 2.0,
            "noise_level": 0,
            "width": 0,
            "height": 0,
        },
    ),
    "generate": (
        "SEEDGenerate",
        {
            "llm": ["llm", 0],
            "prompt": "What is in this picture?",
            "reply": "auto",
            "variations": 1,
            "max_new_tokens": 80,
            "temperature": 0.0,
            "top_p": 0.5,
            "top_k": 50,
            "seed": 1,
        },
    ),
    "show": ("PreviewImage", {"images": ["decode", 0]}),
    "read": ("PreviewAny", {"source": ["generate", 0]}),
    "codes": ("SEEDPreviewCodes", {"codes": ["encode", 0]}),
}


class Graph(dict[str, Any]):
    """A prompt under construction: node names are its ids."""

    def add(self, *names: str) -> "Graph":
        for name in names:
            class_type, inputs = LOADERS[name]
            self[name] = {"class_type": class_type, "inputs": copy.deepcopy(inputs)}
        return self

    def set(self, node: str, **inputs: Any) -> "Graph":
        self[node]["inputs"].update(inputs)
        return self

    def reads(self, picture: str) -> "Graph":
        """Use a file of the input folder instead of the sample picture."""
        self["picture"] = {"class_type": "LoadImage", "inputs": {"image": picture}}
        return self


def reconstruct() -> Graph:
    return Graph().add("tokenizer", "decoder", "picture", "encode", "decode", "show", "codes")


def ask() -> Graph:
    graph = Graph().add("tokenizer", "llm", "picture", "encode", "generate", "read")
    return graph.set("generate", codes=["encode", 0], reply="text")


def text_to_image() -> Graph:
    graph = Graph().add("tokenizer", "llm", "decoder", "generate", "decode", "show")
    graph.set("generate", prompt="Draw a red fox on a blue background.", reply="image")
    return graph.set("decode", codes=["generate", 1])


def edit() -> Graph:
    graph = Graph().add(
        "tokenizer", "llm", "decoder", "picture", "encode", "generate", "decode", "show", "read"
    )
    graph.set("generate", codes=["encode", 0], reply="image")
    graph.set("generate", prompt="<image> Make the background green.")
    return graph.set("decode", codes=["generate", 1])


def all_graphs() -> dict[str, Graph]:
    return {
        "reconstruct": reconstruct(),
        "ask": ask(),
        "text_to_image": text_to_image(),
        "edit": edit(),
    }


@pytest.fixture(scope="session")
def make_graphs() -> Callable[[], dict[str, Graph]]:
    """Makes fresh prompts of the four templates by name."""
    return all_graphs


@pytest.fixture
def graphs() -> dict[str, Graph]:
    """The four prompts, for this test alone."""
    return all_graphs()


@pytest.fixture(scope="session")
def random_checkpoints(load_helper: Callable[[Path], ModuleType]) -> ModuleType:
    """The writers of full-size random checkpoints, imported from the file beside this one."""
    return load_helper(Path(__file__).with_name("random_checkpoints.py"))
