"""A language model on a server, named by a file of the models folder: nothing of it is loaded here.

An address and a key stand in files of this computer alone. A workflow only names such a file, so
whoever sends one cannot choose where prompts go.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from comfy_api.latest import io

from ..seed_core import load_served_llm
from ..seed_core.errors import CheckpointError, SeedError
from ..seed_core.models.names import bundled
from ..seed_core.serving.server_file import SERVER_SUFFIX, read_server_file
from . import host
from .io_types import CATEGORY, SeedLlmWire, ServedModel
from .kinds import LLM, NONE_YET, state_of

ADVICE = (
    "The help page of this node shows what to write into a server file, and docs/serving.md how to "
    "start a server."
)


class SeedServerLoader(io.ComfyNode):
    """Combo of `models/seed_llm/*.server.json` -> SEED_LLM."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SEEDServerLoader",
            display_name="SEED-LLaMA on a Server",
            category=CATEGORY,
            description="Use it in place of Load SEED LLM: the language model then runs on a server of "
            "yours, such as vLLM on another computer. The rest of the graph stays as it is.",
            search_aliases=[
                *("vLLM", "SGLang", "remote LLM", "LLM server", "OpenAI API", "multi-GPU"),
                *("SEED-LLaMA", "14B", "multimodal LLM"),
            ],
            inputs=[
                io.Combo.Input(
                    "server",
                    options=choices(),
                    tooltip="A file in models/seed_llm whose name ends in .server.json. It says where the "
                    "server is and which model it offers; the help page shows one. Press R to see new "
                    "ones.",
                )
            ],
            outputs=[
                SeedLlmWire.Output(
                    "llm",
                    tooltip="The model on the server, for SEED Generate. What you ask there, pictures as "
                    "codes included, is sent to that server.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, server: str | None = None) -> bool | str:
        """Say early what is wrong with the file; the server is asked when there is a prompt for it."""
        if server is None:  # it comes by wire, and is looked for when it has
            return True
        return host.message_of(lambda: _open(server).core.server.key())

    @classmethod
    def fingerprint_inputs(cls, server: str) -> str:
        """New when the file is, or the vocabulary; key and certificate are read at each request."""
        try:
            file = find(server)
            vocabulary = read_server_file(file).vocabulary_place(_vocabulary_elsewhere)
        except SeedError:
            return "missing"
        return str((state_of(file), state_of(vocabulary)))

    @classmethod
    def execute(cls, server: str) -> io.NodeOutput:
        return io.NodeOutput(_open(server))


def choices() -> list[str]:
    """The options of the combo: server files, or what says that there are none."""
    return sorted(_files()) or [NONE_YET]


def find(choice: str) -> Path:
    """The server file of a choice, which is one of the list and nothing else.

    Raises:
        CheckpointError: it is not there; the message says what to put where.
    """
    files = _files()
    if choice in files:
        return files[choice]
    folder = host.model_folders(LLM.folder)[0]
    if files:
        why = f"'{choice}' is not in models/{LLM.folder}; these are: {', '.join(sorted(files))}."
    else:
        why = "there is no server file yet."
    raise CheckpointError(
        f"{why} Put one, such as studio{SERVER_SUFFIX}, into {folder}, then press R. {ADVICE}"
    )


def _open(choice: str) -> ServedModel:
    return ServedModel(load_served_llm(find(choice), _vocabulary_elsewhere))


def _files() -> dict[str, Path]:
    """Server files by name; of two with one name the first folder's counts."""
    return {file.name: file for file in reversed(list(_all_files()))}


def _all_files() -> Iterator[Path]:
    for root in map(Path, host.model_folders(LLM.folder)):
        found = sorted(root.glob(f"[!.]*{SERVER_SUFFIX}"))
        yield from (file for file in found if os.path.isfile(file))


def _vocabulary_elsewhere(name: str) -> Path | None:
    """A model or a vocabulary in another folder of the host's, or the bundled one as it is listed."""
    if name == LLM.bundled_choice:
        return bundled(LLM.name)
    places = (Path(root, name) for root in host.model_folders(LLM.folder))
    return next((place for place in places if os.path.exists(place)), None)
