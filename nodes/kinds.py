"""What an artist may choose in a loader: what comes with the pack and the models found on disk.

Listing runs whenever the host describes its nodes, so it is cheap and never raises. A question
about one choice looks at that choice alone. Knows the shape of a model on disk, not its content.
"""

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..seed_core.command import command_line
from ..seed_core.errors import CheckpointError
from ..seed_core.files.folder import ModelFolder
from ..seed_core.files.safetensors import SAFETENSORS_SUFFIXES
from ..seed_core.files.side_files import read_json
from ..seed_core.files.weights import WEIGHT_SUFFIXES
from ..seed_core.llm.vocab import VOCABULARY_FILES
from ..seed_core.models.ip_adapter import IP_ADAPTER_LINK, open_ip_adapter
from ..seed_core.models.llm import LLM_LINK, open_llm
from ..seed_core.models.lora import SEED_MINI_NIGHT
from ..seed_core.models.lora_config import CONFIG_FILE as ADAPTER_CONFIG
from ..seed_core.models.names import CONFIG_FILE, SEED_MINI
from ..seed_core.models.tokenizer import (
    QFORMER_FILES,
    VISION_TOWER_FILES,
    open_tokenizer,
)
from ..seed_core.models.unclip import DECODER_LINK, open_decoder
from ..seed_core.tokenizer.config import TOKENIZER_LINK
from . import host

FOLDER_DEPTH = 4  # a Hugging Face cache keeps a model three folders down
TOKENIZER_PIECES = (*VISION_TOWER_FILES, *QFORMER_FILES)  # lie beside the tokenizer's own file
FILES_BESIDE = (*TOKENIZER_PIECES, CONFIG_FILE, ADAPTER_CONFIG)
NONE_YET = "none yet (see help)"  # longer words would be cut off on the node
SMALL_FILES = (".json", ".model", ".txt", ".md", ".jinja")  # what lies beside weights


@dataclass(frozen=True)
class ModelKind:
    """One loader's models: how they are told from other files, and what an artist reads of them.

    Attributes:
        name: what core calls the kind.
        what: what a model of this kind is, in an error.
        download: what the command line's fetch calls the usual one.
        folders: the host's model folders to look in; the first is ours.
        suffixes: endings of the files that the host shows in its own list of our folder.
        by_hand: where it is for those who do without the command line, or what to put there.
        is_folder: whether a folder is such a model.
        is_file: whether a file is one, where no header of a converted model says what it is.
        stands_alone: whether its files can be checked without another model.
        nests: whether others may lie inside one, as checkpoints do in the folder of a run.
        bundled: what core calls the one that comes with the pack, if one does.
    """

    name: str
    what: str
    download: str
    folders: tuple[str, ...]
    suffixes: frozenset[str]
    by_hand: str
    is_folder: Callable[[Path], bool]
    is_file: Callable[[Path], bool]
    stands_alone: bool = True
    nests: bool = False
    bundled: str = SEED_MINI

    @property
    def folder(self) -> str:
        """The model folder that is ours, below ComfyUI's models folder."""
        return self.folders[0]

    @property
    def bundled_choice(self) -> str:
        """What a loader's combo calls the bundled one."""
        return f"{self.bundled} (bundled)"

    def choices(self) -> list[str]:
        """The options of a loader's combo, the bundled model first, or what says there are none."""
        found = {
            path.relative_to(root).as_posix()
            for root in self._roots()
            for path in self._below(root)
        }
        return [self.bundled_choice] * bool(self.bundled) + sorted(found) or [NONE_YET]

    def find(self, choice: str) -> str | Path:
        """What core loads for a choice: the name of the bundled model, or a path.

        Raises:
            CheckpointError: the choice is not there; it says what to download and where to put it.
        """
        if self.bundled and choice == self.bundled_choice:
            return self.bundled
        # A list made on Windows may have "\\" where ours has "/".
        for name in (choice, choice.replace("\\", "/")):
            for root in self._roots():
                if self._offers(root, name):
                    return root / name
        choice = choice.replace("\\", "/")
        always = f"; '{self.bundled_choice}' is always there" if self.bundled else ""
        raise CheckpointError(f"{self._why_not(choice)}{always}. {self.how_to_get()}")

    def check(self, choice: str) -> bool | str:
        """Say early what is missing; a choice that arrives by wire is checked when it is loaded."""
        try:
            source = self.find(choice) if choice else self.bundled
            if isinstance(source, Path) and self.stands_alone:
                self._open(source)
        except CheckpointError as error:
            return str(error)
        return True

    def _open(self, source: Path) -> None:
        try:
            _is_quantised(self.name, source, state_of(source))
        except CheckpointError as error:
            raise self.with_advice(error) from error

    def fingerprint(self, choice: str) -> str:
        """A text that changes when the chosen model's files do, so that it is loaded again."""
        try:
            return str(state_of(self.find(choice)))
        except CheckpointError:
            return "missing"

    def how_to_get(self) -> str:
        """Which node gets one, what to type, or what to put where."""
        folder = host.model_folders(self.folder)[0]
        if not self.download:
            return f"Put {self.by_hand}, into {folder}, then press R."
        command = command_line("fetch", self.download, "--into", folder)
        return (
            f"To get one, add the node Get SEED Model, choose {self.download} and set action to fetch; "
            "the template get_the_real_models has it ready. By hand: "
            f"{self.by_hand}, as the help of this node says. Or run this line in a terminal, then "
            f"press R:\n{command}"
        )

    def with_advice(self, error: CheckpointError) -> CheckpointError:
        """The error with a sentence on where a whole model comes from."""
        return CheckpointError(f"{error} {self.how_to_get()}")

    def _roots(self) -> list[Path]:
        """Where models of this kind may lie; of two with one name the first counts."""
        return [Path(root) for name in self.folders for root in host.model_folders(name)]

    def _below(self, root: Path) -> Iterator[Path]:
        # os.walk skips what it may not read; the depth ends loops of links.
        for name, subfolders, files in os.walk(root, followlinks=True):
            folder = Path(name)
            depth = len(folder.relative_to(root).parts)
            names = [n for n in subfolders if not _is_hidden(n)]
            subfolders[:] = names if depth < FOLDER_DEPTH else []
            if depth and self.is_folder(folder):
                if not self.nests:
                    subfolders.clear()  # what lies inside a model belongs to it
                yield folder
                continue
            yield from (folder / f for f in files if self._is_file(folder / f))

    def _offers(self, root: Path, name: str) -> bool:
        """Whether `_below` finds a model of this name, told without the walk."""
        path = Path(name)
        if path.as_posix() != name or path.anchor or not path.parts or ".." in path.parts:
            return False
        is_folder = os.path.isdir(root / path)
        folders = path.parts if is_folder else path.parts[:-1]
        if len(folders) > FOLDER_DEPTH or any(map(_is_hidden, folders)):
            return False
        around = [root.joinpath(*path.parts[:depth]) for depth in range(1, len(path.parts))]
        if self.nests:
            around = [] if is_folder else around[-1:]
        if any(map(self.is_folder, around)):
            return False
        return self.is_folder(root / path) if is_folder else self._is_file(root / path)

    def _is_file(self, file: Path) -> bool:
        if not os.path.isfile(file):  # a link to what is gone
            return False
        kind = _converted_kind(file) if file.suffix.lower() in SAFETENSORS_SUFFIXES else None
        return self.is_file(file) if kind is None else kind == self.name

    def _why_not(self, choice: str) -> str:
        if choice == NONE_YET:
            return f"there is nothing in models/{self.folder} yet"
        inside = [] if ".." in Path(choice).parts else self._roots()
        if not any(os.path.exists(root / choice) for root in inside):
            return f"'{choice}' is not in models/{self.folder}"
        return f"'{choice}' is not {self.what}"


def _is_hidden(name: str) -> bool:
    return name.startswith(".")  # .unfinished, .cache


def _holds(name: str) -> Callable[[Path], bool]:
    return lambda folder: os.path.isfile(folder / name)


def _is_llm(folder: Path) -> bool:
    """Whether there is a config, and not just the vocabulary of a model on a server."""
    try:
        names = [name for name in os.listdir(folder) if not _is_hidden(name)]
    except OSError:
        return False
    is_list = any(name.endswith(".index.json") for name in names)  # of weights
    is_small = not is_list and all(name.endswith(SMALL_FILES) for name in names)
    return CONFIG_FILE in names and not (is_small and {*VOCABULARY_FILES} <= {*names})


def _is_unclip(folder: Path) -> bool:
    try:
        return "UnCLIP" in read_json(folder / "model_index.json")["_class_name"]
    except (CheckpointError, KeyError, TypeError):
        return False


def _is_tokenizer_file(file: Path) -> bool:
    return file.suffix.lower() in WEIGHT_SUFFIXES and file.name not in TOKENIZER_PIECES


TOKENIZER = ModelKind(
    "tokenizer",
    "a SEED tokenizer, which is a .safetensors, .pt or .pth file",
    "seed-tokenizer-2",
    ("seed_tokenizer",),
    frozenset(WEIGHT_SUFFIXES),
    TOKENIZER_LINK,
    is_folder=lambda folder: False,  # the choice is a file, and its pieces lie beside it
    is_file=_is_tokenizer_file,
)
LLM = ModelKind(
    "llm",
    "a SEED-LLaMA, which is a folder with config.json and weights, or a converted .safetensors file",
    "seed-llama-8b-sft",
    ("seed_llm",),
    frozenset(("folder", *SAFETENSORS_SUFFIXES)),
    LLM_LINK,
    is_folder=_is_llm,
    is_file=lambda file: False,  # only a converted one
)
DECODER = ModelKind(
    "decoder",
    "an unCLIP decoder, which is a diffusers folder or a converted .safetensors file",
    "stable-diffusion-2-1-unclip",
    ("seed_decoder", "diffusers"),
    frozenset(("folder", *SAFETENSORS_SUFFIXES)),
    DECODER_LINK,
    is_folder=_is_unclip,
    is_file=lambda file: False,  # only a converted one
)
LORA = ModelKind(
    "lora",
    "a LoRA adapter, which is a folder as peft saves it or a .safetensors file",
    "",
    ("seed_lora",),
    frozenset(("folder", ".safetensors")),
    f"the folder of a LoRA adapter as peft saves it, with {ADAPTER_CONFIG}",
    is_folder=_holds(ADAPTER_CONFIG),
    is_file=lambda file: file.suffix.lower() == ".safetensors",
    stands_alone=False,  # it fits one language model, which arrives by wire
    nests=True,
    bundled=SEED_MINI_NIGHT,
)
IP_ADAPTER = ModelKind(
    "ip_adapter",
    "an IP-Adapter, which is a .safetensors or .bin file",
    "",
    ("ipadapter",),
    frozenset(WEIGHT_SUFFIXES),
    f"it, from {IP_ADAPTER_LINK}",
    is_folder=lambda folder: False,
    is_file=lambda file: file.suffix.lower() in WEIGHT_SUFFIXES,
    bundled="",
)
SUFFIXES = {kind.folder: set(kind.suffixes) for kind in (TOKENIZER, LLM, DECODER, LORA, IP_ADAPTER)}


OPENS: dict[str, Callable[[str | Path], object]] = {
    "tokenizer": open_tokenizer,
    "llm": open_llm,
    "decoder": open_decoder,
    "ip_adapter": open_ip_adapter,
}


@lru_cache(maxsize=100)
def _is_quantised(kind: str, source: str | Path, state: tuple[Any, ...]) -> bool:
    """Whether a model is stored in fp8. What opens can be loaded; `state` is new when files are."""
    return getattr(OPENS[kind](source), "is_quantised", False)


def is_fp8(source: str | Path) -> bool:
    """Whether a language model is stored in fp8; what is wrong with its files is for the loader."""
    try:
        return _is_quantised(LLM.name, source, state_of(source))
    except (CheckpointError, OSError):
        return False


def state_of(source: str | Path) -> tuple[Any, ...]:
    """Names, sizes and times of a model's files: changes when the model does."""
    if isinstance(source, str):
        return (source,)
    if os.path.isdir(source):
        files = [Path(folder, name) for folder, _, names in os.walk(source) for name in names]
    else:
        files = [source, *(source.with_name(name) for name in FILES_BESIDE)]
    return tuple(state for file in sorted(files) if (state := _file_state(file)))


def _file_state(file: Path) -> tuple[str, int, int] | None:
    try:
        found = os.stat(file)
    except OSError:  # not there
        return None
    return (str(file), found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None


def _converted_kind(file: Path) -> str | None:
    """What a converted model is: tokenizer, llm or decoder; None of any other file."""
    return _kind_in_header(file, _file_state(file))


@lru_cache(maxsize=1000)
def _kind_in_header(file: Path, state: tuple[str, int, int] | None) -> str | None:
    # The state makes the answer new when the file is.
    try:
        return ModelFolder(file).kind
    except CheckpointError:
        return None
