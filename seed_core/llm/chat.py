"""The conversation: turns of text and pictures' codes. Immutable; appending makes a new one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch

from ..codes.value import NUM_CODES, check_codes
from ..errors import CodesError

Part = str | tuple[int, ...]  # a stretch of text, or the 32 codes of one picture

Role = Literal["user", "assistant"]

IMAGE_MARK = "<image>"  # stands for a picture in text that people read or write
NUMBERED_MARK = "[picture {}]".format


@dataclass(frozen=True)
class Turn:
    """What one side said: text and pictures in order."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def pictures(self) -> list[tuple[int, ...]]:
        """The codes of the pictures in this turn, in order."""
        return [part for part in self.parts if not isinstance(part, str)]

    def to_text(self, numbers: Iterator[int] | None = None) -> str:
        """Return the text with a mark in place of each picture, or its number where there are some."""
        marks = itertools.repeat(IMAGE_MARK) if numbers is None else map(NUMBERED_MARK, numbers)
        return "".join(part if isinstance(part, str) else next(marks) for part in self.parts)


@dataclass(frozen=True)
class SeedChat:
    """A conversation whose pictures are codes of one family; others raise `CodesError`."""

    family: str
    codebook_size: int
    turns: tuple[Turn, ...] = ()

    def __post_init__(self) -> None:
        if any(turn.pictures for turn in self.turns):
            check_codes(self.codes, self.codebook_size)

    def ask(self, parts: tuple[Part, ...]) -> SeedChat:
        """Return a new conversation with a user turn appended."""
        return replace(self, turns=(*self.turns, Turn("user", tuple(parts))))

    def answer(self, parts: tuple[Part, ...]) -> SeedChat:
        """Return a new conversation with an assistant turn appended."""
        return replace(self, turns=(*self.turns, Turn("assistant", tuple(parts))))

    @property
    def codes(self) -> torch.Tensor:
        """Codes of every picture in order, int64 ``[N, 32]``."""
        return stack_pictures([picture for turn in self.turns for picture in turn.pictures])

    def to_text(self, is_numbered: bool = False) -> str:
        """Return the conversation as people read it, one turn a paragraph.

        Marks of pictures are all the same, or the pictures are numbered as in `codes`, from 1.
        """
        numbers = itertools.count(1) if is_numbered else None
        said = ((turn.role.capitalize(), turn.to_text(numbers)) for turn in self.turns)
        return "\n\n".join(f"{role}: {text}" for role, text in said)


def stack_pictures(pictures: list[tuple[int, ...]]) -> torch.Tensor:
    """Return codes of pictures as int64 ``[N, 32]``; N may be 0."""
    for picture in pictures:
        if len(picture) != NUM_CODES:
            raise CodesError(f"a picture has exactly {NUM_CODES} codes; got {len(picture)}")
    return torch.tensor(pictures, dtype=torch.int64).reshape(-1, NUM_CODES)
