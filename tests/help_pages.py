"""Help pages taken apart by the order of their parts, so that a page in any language can be checked.

A page is a heading, an introduction with a picture, and sections. The first section has the table of
inputs, the second that of outputs, the last but one that of errors; the last names templates and
blueprints. Also here: what the code can say, to tell whether a quoted message is a real one.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HIGHEST_SEED = "2^64 - 1"
"""How a page writes the end of a random seed's range, which has twenty digits."""

SHORTEST_PIECE = 12
"""Characters of a quoted message without a gap that tell it from any other."""

_BELOW_HEADINGS = re.compile(r"\|[\s:|-]+\|")
_TABLE_EDGE = re.compile(r"(?<!\\)\|")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_IN_BACKTICKS = re.compile(r"`([^`]+)`")
_IN_ITALICS = re.compile(r"(?<!\*)\*([^*]+)\*(?!\*)")


class Row(NamedTuple):
    """One row of a table."""

    cells: tuple[str, ...]

    @property
    def id(self) -> str:
        """What the first cell begins with in bold."""
        found = re.match(r"\*\*(\w+)\*\*", self.cells[0])
        return found[1] if found else ""

    @property
    def numbers(self) -> list[str]:
        """The numbers of the second cell."""
        return _NUMBER.findall(self.cells[1].replace(HIGHEST_SEED, str(2**64 - 1)))

    @property
    def named(self) -> list[str]:
        """The choices that the second cell names."""
        return _IN_BACKTICKS.findall(self.cells[1])

    @property
    def messages(self) -> list[str]:
        """What the first cell quotes."""
        return _IN_BACKTICKS.findall(self.cells[0])


class HelpPage:
    """One page; `language` is None for the one that stands for all languages without their own."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.language = None if path.parent == folder else path.stem
        self.node_id = path.stem if self.language is None else path.parent.name
        self.text = path.read_text(encoding="utf-8")
        self.introduction, *self.sections = re.split(r"^## .*$", self.text, flags=re.M)

    @property
    def title(self) -> str:
        """The heading of the page."""
        return self.introduction.partition("\n")[0].removeprefix("# ")

    @property
    def pictures(self) -> list[tuple[str, str]]:
        """What the pictures of the introduction show, and their files."""
        return re.findall(r"^!\[(.+)\]\((\S+)\)$", self.introduction, flags=re.M)

    @property
    def inputs(self) -> dict[str, Row]:
        """The rows of the table of inputs, by input."""
        return {row.id: row for row in rows(self.sections[0])}

    @property
    def outputs(self) -> list[str]:
        """The outputs that have a row."""
        return [row.id for row in rows(self.sections[1])]

    @property
    def errors(self) -> list[Row]:
        """The rows of the table of errors."""
        return rows(self.sections[-2])

    @property
    def templates(self) -> list[str]:
        """The templates that the page points to."""
        return _IN_BACKTICKS.findall(self.sections[-1])

    @property
    def blueprints(self) -> list[str]:
        """The blueprints that the page points to."""
        return _IN_ITALICS.findall(self.sections[-1])


def paths(folder: Path) -> list[Path]:
    """Return every help page in a folder as the frontend finds them, of all languages."""
    return sorted((*folder.glob("*.md"), *folder.glob("*/*.md")))


def tables(text: str) -> list[list[Row]]:
    """Return the tables of a text, the row of headings first in each."""
    blocks = re.findall(r"(?:^\|.*\n?)+", text, flags=re.M)
    lines = [[line.strip() for line in block.splitlines()] for block in blocks]
    return [[_row(line) for line in each if not _BELOW_HEADINGS.fullmatch(line)] for each in lines]


def rows(section: str) -> list[Row]:
    """Return the rows of a section's first table, without its headings."""
    return tables(section)[0][1:]


def _row(line: str) -> Row:
    cells = _TABLE_EDGE.split(line)[1:-1]
    return Row(tuple(cell.strip().replace(r"\|", "|") for cell in cells))


def plain(number: float) -> str:
    """Return a number as a page writes it."""
    return str(int(number)) if number == int(number) else f"{number:g}"


def texts_of_the_code(*folders: Path) -> list[str]:
    """Return every text in the code but docstrings; of those with values in them, the rest of it.

    Texts that stand side by side are one, as Python joins them.
    """
    files = [file for folder in folders for file in sorted(folder.rglob("*.py"))]
    return [text for file in files for text in _texts(ast.parse(file.read_text(encoding="utf-8")))]


def _texts(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return  # a docstring
    if isinstance(node, ast.JoinedStr):
        pieces = (part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
        yield "".join(pieces)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    else:
        for child in ast.iter_child_nodes(node):
            yield from _texts(child)


def is_said(message: str, texts: list[str]) -> bool:
    """Tell whether one of the texts has all pieces of a message, in order, between its gaps."""
    pieces = [piece.strip() for piece in message.split("...")]
    if max(map(len, pieces)) < SHORTEST_PIECE:
        return False
    wanted = re.compile(".*".join(map(re.escape, pieces)), re.S)
    return any(wanted.search(text) for text in texts)
