"""Nodes that take codes out of the graph and bring them back: as text, and as files."""

from pathlib import Path

from comfy_api.latest import io

from ..seed_core import CODEBOOK_SIZES, SeedCodes
from ..seed_core.codes.file import (
    CODES_SUFFIX,
    CODES_SUFFIXES,
    looks_like_codes,
    read_codes_file,
    save_codes_file,
)
from ..seed_core.codes.text import codes_from_text
from ..seed_core.errors import CodesError
from . import host
from .io_types import CATEGORY, SeedCodesWire


class SeedCodesToText(io.ComfyNode):
    """SEED_CODES -> STRING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SEEDCodesToText",
            display_name="SEED Codes to Text",
            category=CATEGORY,
            description="Writes codes as text, one line a picture, to read, edit or keep. SEED Text "
            "to Codes reads it again.",
            search_aliases=["image tokens", "image codes", "export codes", "codes as text"],
            inputs=[SeedCodesWire.Input("codes", tooltip="The codes to write down.")],
            outputs=[
                io.String.Output(
                    "text",
                    tooltip="<img><img_00012>...</img>, one line a picture; empty for codes without "
                    "a picture.",
                )
            ],
        )

    @classmethod
    def execute(cls, codes: SeedCodes) -> io.NodeOutput:
        return io.NodeOutput(codes.to_text())


class SeedTextToCodes(io.ComfyNode):
    """STRING -> SEED_CODES."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SEEDTextToCodes",
            display_name="SEED Text to Codes",
            category=CATEGORY,
            description="Reads codes from text: what SEED Codes to Text wrote, plain numbers, or "
            "JSON. Nothing is guessed: what is not 32 codes a picture is refused.",
            search_aliases=["image tokens", "image codes", "import codes", "parse codes", "JSON"],
            inputs=[
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    placeholder="<img><img_00012>...</img>",
                    tooltip="One line a picture as SEED Codes to Text writes it; or whole numbers "
                    "with spaces or commas between them, 32 a picture, where a line holds one or "
                    "more whole pictures; or JSON.",
                ),
                io.Combo.Input(
                    "family",
                    options=list(CODEBOOK_SIZES),
                    default="seed-mini",
                    tooltip="The model the codes were made with. Codes of one family mean nothing "
                    "to another.",
                ),
            ],
            outputs=[SeedCodesWire.Output("codes", tooltip="The codes, one row a picture.")],
        )

    @classmethod
    def validate_inputs(cls, text: str | None = None, family: str | None = None) -> bool | str:
        if text is None or family is None:  # one that arrives by wire is read when it is there
            return True
        return host.message_of(lambda: codes_from_text(text, family))

    @classmethod
    def execute(cls, text: str, family: str) -> io.NodeOutput:
        codes = codes_from_text(text, family)
        return io.NodeOutput(host.codes_to_wire(codes.values, codes, codes.distances))


class SeedSaveCodes(io.ComfyNode):
    """SEED_CODES -> a file of the output folder, and the codes again."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SEEDSaveCodes",
            display_name="SEED Save Codes",
            category=CATEGORY,
            description="Saves codes to a small file in the output folder. It keeps the model family "
            "they belong to, and how well they fit their pictures.",
            search_aliases=["save codes", "export codes", "image tokens", "safetensors"],
            inputs=[
                SeedCodesWire.Input("codes", tooltip="The codes to save, in one file."),
                io.String.Input(
                    "filename_prefix",
                    default="codes/SEED",
                    tooltip="Start of the file's name in the output folder; folders and date marks "
                    "such as %year% work as in Save Image.",
                ),
            ],
            outputs=[SeedCodesWire.Output("codes", tooltip="The same codes, to go on with.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, codes: SeedCodes, filename_prefix: str) -> io.NodeOutput:
        path, shown = host.new_output_file(filename_prefix, CODES_SUFFIX)
        save_codes_file(codes, path)
        return io.NodeOutput(codes, ui={"codes": [shown]})


NO_FILE = "no file of codes yet"  # the one choice where there is none; nothing else can be run


def codes_files() -> list[str]:
    """The choices of SEED Load Codes: any file that may be meant, and what SEED Save Codes wrote."""
    given = sorted(name for suffix in CODES_SUFFIXES for name in host.input_files(suffix))
    saved = [f for f in host.output_files(CODES_SUFFIX) if looks_like_codes(f)]
    return [*given, *map(host.output_name, saved)] or [NO_FILE]


class SeedLoadCodes(io.ComfyNode):
    """A file of the input or output folder -> SEED_CODES."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SEEDLoadCodes",
            display_name="SEED Load Codes",
            category=CATEGORY,
            description="Loads codes from a file: one that SEED Save Codes or the command line "
            "wrote, JSON, or text. Drop a file on the node to use it.",
            search_aliases=["load codes", "import codes", "image tokens", "safetensors", "JSON"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=codes_files(),
                    tooltip="What SEED Save Codes wrote to the output folder, and .safetensors, "
                    ".json and .txt files of the input folder. Press R to see new ones.",
                )
            ],
            outputs=[SeedCodesWire.Output("codes", tooltip="The codes, one row a picture.")],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        if file is None:  # one that arrives by wire is looked for when it is loaded
            return True
        return host.message_of(lambda: find(file))

    @classmethod
    def fingerprint_inputs(cls, file: str) -> str:
        try:
            state = host.find_file(file).stat()
        except (CodesError, OSError):
            return "missing"
        return f"{state.st_size} {state.st_mtime_ns}"

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        codes = read_codes_file(find(file))
        return io.NodeOutput(host.codes_to_wire(codes.values, codes, codes.distances))


def find(file: str) -> Path:
    """The path of a choice; `CodesError` if it is not there."""
    if file in ("", NO_FILE):
        raise CodesError(
            "no file of codes is chosen. Drop one on the node, or save codes with SEED Save Codes and "
            "press R; then choose it under file."
        )
    return host.find_file(file)
