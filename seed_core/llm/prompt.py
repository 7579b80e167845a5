"""Prompts: pictures put at their marks, conversations put into a model's template, replies split.

Source: AILab-CVC/SEED at 93b3cf4, its inference scripts and the conversations of its demo.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ..codes.value import codes_to_text
from ..errors import PromptError
from .chat import IMAGE_MARK, Part, SeedChat, stack_pictures


@dataclass(frozen=True)
class PromptTemplate:
    """How a conversation is written for one family of language models.

    The strings surround each turn; ``opening`` follows the last turn and asks for the answer.
    """

    name: str
    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    opening: str

    def render(self, chat: SeedChat, system: str = "") -> list[Part]:
        """Return the conversation as text and pictures, without the begin-of-text token."""
        pieces: list[Part] = []
        if system:
            pieces += [self.system[0], system, self.system[1]]
        for turn in chat.turns:
            before, after = self.user if turn.role == "user" else self.assistant
            pieces += [before, *turn.parts, after]
        return [*pieces, self.opening]


VICUNA = PromptTemplate(  # of SEED-LLaMA-8B and seed-mini
    name="vicuna",
    system=("", "\n"),
    user=("USER: ", "\n"),
    assistant=("ASSISTANT: ", "\n"),
    opening="ASSISTANT:",
)

LLAMA_2 = PromptTemplate(  # of SEED-LLaMA-14B
    name="llama-2",
    system=("<<SYS>>\n", "\n<</SYS>>\n\n"),
    user=("[INST] ", " [/INST]\n"),
    assistant=("", "\n"),
    opening="",
)


def split_marks(text: str, codes: torch.Tensor) -> tuple[Part, ...]:
    """Return a prompt's text and pictures in order.

    Pictures, int64 ``[N, 32]``, take the place of the ``<image>`` marks in order; those without a
    mark go first.

    Raises:
        PromptError: there are neither words nor pictures, or more marks than pictures.
    """
    stretches = text.split(IMAGE_MARK)
    pictures = [tuple(row) for row in codes.tolist()]
    marks = len(stretches) - 1
    if marks > len(pictures):
        raise PromptError(
            f"the prompt has {marks} {IMAGE_MARK} mark(s), but {len(pictures)} picture(s) came "
            "with it. Connect codes with as many pictures, or take marks out."
        )
    if not pictures and not text.strip():
        raise PromptError("the prompt is empty: write what the model should do, or connect codes")
    first = len(pictures) - marks
    parts: list[Part] = [*pictures[:first], stretches[0]]
    for picture, stretch in zip(pictures[first:], stretches[1:], strict=True):
        parts += [picture, stretch]
    return tuple(part for part in parts if part)


def join_parts(parts: Iterable[Part]) -> tuple[str, torch.Tensor]:
    """Return text with a mark for each picture, and the pictures' codes int64 ``[N, 32]``."""
    parts = list(parts)
    text = "".join(part if isinstance(part, str) else IMAGE_MARK for part in parts)
    return text, stack_pictures([part for part in parts if not isinstance(part, str)])


def pieces_to_string(pieces: Iterable[Part]) -> str:
    """Return pieces as the one string the reference would hand to its tokenizer."""
    return "".join(piece if isinstance(piece, str) else codes_to_text(piece) for piece in pieces)
