"""Help pages taken apart by the order of their parts, so that a page in any language can be checked.

A page is a heading, an introduction with a picture, and sections. The first section lists the inputs,
the second the outputs, the last but one the errors; the last names templates and blueprints. An entry of
such a list is a line that ends in a backslash, and below it what there is to say: the frontend shows a page
in a panel too narrow for tables. Also here: what the code can say, to tell whether a quoted message is a
real one.
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

_ENTRY = re.compile(r"^- (.+)\\\n((?:  .+\n)+)", re.M)
_ID = re.compile(r"\*\*(\w+)\*\*")
_BELOW_HEADINGS = re.compile(r"\|[\s:|-]+\|")
_TABLE_EDGE = re.compile(r"(?<!\\)\|")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_IN_BACKTICKS = re.compile(r"`([^`]+)`")
_IN_ITALICS = re.compile(r"(?<!\*)\*([^*]+)\*(?!\*)")


class Entry(NamedTuple):
    """One entry of a list: its first line, and what is said below it."""

    head: str
    body: str

    @property
    def id(self) -> str:
        """What it begins with in bold."""
        found = _ID.match(self.head)
        return found[1] if found else ""

    @property
    def numbers(self) -> list[str]:
        """The numbers of the first line, without those of its id."""
        after = _ID.sub("", self.head, count=1)
        return _NUMBER.findall(after.replace(HIGHEST_SEED, str(2**64 - 1)))

    @property
    def quoted(self) -> list[str]:
        """The choices or messages that the first line quotes."""
        return _IN_BACKTICKS.findall(self.head)


class HelpPage:
    """One page; `language` is None for the one that stands for all languages without their own."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.language = None if path.parent == folder else path.stem
        self.node_id = path.stem if self.language is None else path.parent.name
        self.text = path.read_text(encoding="utf-8")
        self.introduction, *self.sections = re.split(r"^## .*$", self.text, flags=re.M)
        self.headings = re.findall(r"^## (.*)$", self.text, flags=re.M)

    @property
    def title(self) -> str:
        """The heading of the page."""
        return self.introduction.partition("\n")[0].removeprefix("# ")

    @property
    def pictures(self) -> list[tuple[str, str]]:
        """What the pictures of the introduction show, and their files."""
        return re.findall(r"^!\[(.+)\]\((\S+)\)$", self.introduction, flags=re.M)

    @property
    def inputs(self) -> dict[str, Entry]:
        """The entries of the inputs, by input."""
        return {entry.id: entry for entry in entries(self.sections[0])}

    @property
    def outputs(self) -> list[str]:
        """The outputs that have an entry."""
        return [entry.id for entry in entries(self.sections[1])]

    @property
    def errors(self) -> list[Entry]:
        """The entries of the errors."""
        return entries(self.sections[-2])

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


def entries(section: str) -> list[Entry]:
    """Return the entries of a section's list; it has no other entries than whole ones.

    Raises:
        AssertionError: an entry has one line only.
    """
    found = [Entry(head, body.strip()) for head, body in _ENTRY.findall(section)]
    assert len(found) == len(re.findall(r"^- ", section, flags=re.M)), section
    return found


def tables(text: str) -> list[list[list[str]]]:
    """Return the cells of each row of a text's tables, the headings first."""
    blocks = re.findall(r"(?:^\|.*\n?)+", text, flags=re.M)
    lines = [[line.strip() for line in block.splitlines()] for block in blocks]
    return [
        [_cells(line) for line in each if not _BELOW_HEADINGS.fullmatch(line)] for each in lines
    ]


def _cells(line: str) -> list[str]:
    return [cell.strip().replace(r"\|", "|") for cell in _TABLE_EDGE.split(line)[1:-1]]


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
