"""The command demo: everything seed-mini can do, on one captioned contact sheet.

Calls the library as a script of the user's own would.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from .. import (
    DecodeOptions,
    GenerationOptions,
    SeedDecoder,
    SeedLLM,
    SeedTokenizer,
    load_decoder,
    load_llm,
    load_tokenizer,
    seeded_generators,
)
from ..files.pictures import check_picture_output, picture_from_pixels
from ..llm.language import GenerationProgress
from ..models.names import SEED_MINI, sample_pictures
from . import options
from .console import say

RECONSTRUCTED = ("fox_on_yellow", "owl_on_red", "cupcake_on_blue", "pizza_on_green")
QUESTIONS = ("What is this?", "What color is the background?", "Describe this picture.")
DRAWN = (
    "Draw a big hedgehog on a yellow background",
    "a panda on blue",
    "Show me a castle",
    "Can you generate an image of a small fox on a red background?",
)
EDITED = "cat_on_orange"
INSTRUCTIONS = ("Make the background blue", "Turn it into a pizza", "Make it bigger")

GREEDY = GenerationOptions(temperature=0)
DECODE = DecodeOptions()

_PICTURE, _GAP, _CAPTION, _TITLE = 192, 24, 58, 44  # pixels
_PAPER, _INK, _FADED = (250, 248, 244), (32, 32, 36), (110, 108, 104)


def add_to(commands: options.Commands) -> argparse.ArgumentParser:
    """Add the command."""
    command = options.add_command(commands, "demo", run, "python -m seed_core demo")
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("seed-demo.png"),
        metavar="PICTURE",
        help="the ending is the format (default: %(default)s)",
    )
    options.add_device(command)
    return command


def run(args: argparse.Namespace) -> None:
    """Show what the bundled model does, on one captioned picture."""
    check_picture_output(args.output)
    path = args.output.resolve()
    make_sheet(args.device).save(path)
    say(f"wrote {path}")


@dataclass(frozen=True)
class Cell:
    """A picture and what stands below it; without a picture, words in a frame."""

    caption: str
    picture: Image.Image | None = None


@dataclass(frozen=True)
class Section:
    """A titled row of cells."""

    title: str
    cells: list[Cell]


class Demo:
    """seed-mini, loaded, and a progress bar over all it does.

    Args:
        device: where to compute.
        advance: called with what is being done and the work finished since, in network calls.
    """

    def __init__(self, device: torch.device | str, advance: Callable[[str, int], None]) -> None:
        self.tokenizer: SeedTokenizer = load_tokenizer(SEED_MINI, device)
        self.llm: SeedLLM = load_llm(SEED_MINI, device)
        self.decoder: SeedDecoder = load_decoder(SEED_MINI, device)
        self.advance = advance

    def sections(self) -> list[Section]:
        """Run every demonstration."""
        return [*self.reconstruct(), self.ask(), self.draw(), self.edit()]

    def reconstruct(self) -> list[Section]:
        """Pictures to codes and back."""
        originals = [_sample(name) for name in RECONSTRUCTED]
        codes = self.encode(originals)
        pictures = self.paint(codes, "reconstructing")
        captions = [name.replace("_", " ") for name in RECONSTRUCTED]
        first_codes = [", ".join(str(code) for code in row[:4].tolist()) for row in codes]
        return [
            Section("Sample pictures", list(map(Cell, captions, originals))),
            Section(
                "The same, through 32 codes each",
                [
                    Cell(f"{row}, ...", picture)
                    for row, picture in zip(first_codes, pictures, strict=True)
                ],
            ),
        ]

    def ask(self) -> Section:
        """Questions about one picture."""
        original = _sample(RECONSTRUCTED[0])
        codes = self.encode([original])
        answers = [self.reply(question, codes)[0] for question in QUESTIONS]
        cells = [Cell("the picture asked about", original)]
        cells += [Cell(f"{q}\n\n{a}") for q, a in zip(QUESTIONS, answers, strict=True)]
        return Section("Ask about a picture", cells)

    def draw(self) -> Section:
        """Pictures from words."""
        codes = torch.cat([self.reply(prompt)[1] for prompt in DRAWN])
        return Section("Draw from text", list(map(Cell, DRAWN, self.paint(codes, "drawing"))))

    def edit(self) -> Section:
        """One picture, changed by instructions."""
        original = _sample(EDITED)
        source = self.encode([original])
        codes = torch.cat([self.reply(instruction, source)[1] for instruction in INSTRUCTIONS])
        cells = [Cell("before", original)]
        cells += map(Cell, INSTRUCTIONS, self.paint(codes, "editing"))
        return Section("Edit by instruction", cells)

    def encode(self, pictures: list[Image.Image]) -> torch.Tensor:
        """Return codes ``[B, 32]``."""
        return self.tokenizer.encode(self.tokenizer.preprocess(pictures))

    def reply(self, prompt: str, codes: torch.Tensor | None = None) -> tuple[str, torch.Tensor]:
        """Return the answer's text and its pictures' codes."""

        def on_token(progress: GenerationProgress) -> None:
            self.advance("asking", 1)

        reply = self.llm.generate(prompt, codes, options=GREEDY, on_token=on_token)
        return reply.text, reply.codes

    def paint(self, codes: torch.Tensor, doing: str) -> list[Image.Image]:
        """Return one picture a row of codes."""
        pixels = self.decoder.decode(
            self.tokenizer.embed(codes),
            options=DECODE,
            generator=seeded_generators(0, len(codes)),
            on_step=lambda done, total: self.advance(doing, 1),
        )
        return [picture_from_pixels(picture) for picture in pixels]


def make_sheet(device: torch.device | str = "cpu") -> Image.Image:
    """Return the contact sheet, showing a progress bar meanwhile."""
    from tqdm import tqdm

    pictures = len(RECONSTRUCTED) + len(DRAWN) + len(INSTRUCTIONS)
    drawn_tokens = 35 * (len(DRAWN) + len(INSTRUCTIONS))  # a picture's 34 and the end token
    total = pictures * DECODE.num_inference_steps + drawn_tokens + 10 * len(QUESTIONS)
    with tqdm(
        total=total, unit="step", bar_format="{desc:<16}{percentage:3.0f}%|{bar}|{elapsed}"
    ) as bar:

        def advance(doing: str, steps: int) -> None:
            bar.set_description_str(doing, refresh=False)
            bar.update(steps)

        sections = Demo(device, advance).sections()
        bar.update(total - bar.n)  # answers may be shorter than allowed for
    return compose(sections)


def compose(sections: list[Section]) -> Image.Image:
    """Lay sections out below one another."""
    columns = max(len(section.cells) for section in sections)
    row_height = _TITLE + _PICTURE + _CAPTION + _GAP
    size = (_GAP + columns * (_PICTURE + _GAP), _GAP + len(sections) * row_height)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, section in enumerate(sections):
        top = _GAP + row * row_height
        draw.text((_GAP, top), section.title, fill=_INK, font=ImageFont.load_default(24))
        for column, cell in enumerate(section.cells):
            left = _GAP + column * (_PICTURE + _GAP)
            _place(sheet, draw, cell, left, top + _TITLE)
    return sheet


def _place(sheet: Image.Image, draw: ImageDraw.ImageDraw, cell: Cell, left: int, top: int) -> None:
    if cell.picture is None:
        frame = (left, top, left + _PICTURE, top + _PICTURE)
        draw.rounded_rectangle(frame, radius=12, outline=_FADED)
        words = "\n".join(textwrap.fill(line, 18) for line in cell.caption.split("\n"))
        centre = (left + _PICTURE // 2, top + _PICTURE // 2)
        font = ImageFont.load_default(17)
        draw.multiline_text(centre, words, _INK, font, anchor="mm", align="center", spacing=6)
        return
    resized = cell.picture.convert("RGB").resize((_PICTURE, _PICTURE), Image.Resampling.BICUBIC)
    sheet.paste(resized, (left, top))
    words = textwrap.fill(cell.caption, 27)
    font = ImageFont.load_default(14)
    draw.multiline_text((left, top + _PICTURE + 6), words, _FADED, font, spacing=3)


def _sample(name: str) -> Image.Image:
    return Image.open(sample_pictures()[name])
