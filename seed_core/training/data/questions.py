"""Documents that become conversations: what is asked in each format, and what is answered."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from ...llm.chat import Part, Turn
from .fields import DocumentError, Fields

# Twenty ways to ask for a picture, each with a sentence to answer before the picture.
DRAW = (
    ("Draw {}.", "This is my drawing."),
    ("Show me {}.", "Have a look at this."),
    ("Paint {}.", "This is what I painted."),
    ("Make a picture of {}.", "I made this picture."),
    ("Please draw {}.", "With pleasure, this is it."),
    ("I would like to see {}.", "Then look at this."),
    ("I want a picture of {}.", "Then this one is for you."),
    ("Give me an image of {}.", "This image is for you."),
    ("Imagine {}.", "This is how I imagine it."),
    ("Illustrate this: {}.", "My illustration looks like this."),
    ("Turn these words into a picture: {}.", "As a picture they look like this."),
    ("Sketch {}.", "The sketch is done."),
    ("Can you draw {}?", "Yes, like this."),
    ("Could you make an image of {}?", "Sure, I made this one."),
    ("Can you show me {}?", "Of course, look."),
    ("Would you paint {}?", "Gladly, this is the painting."),
    ("Can I see {}?", "You can see it in this picture."),
    ("Will you make a picture of {}?", "I will, and this is it."),
    ("What does this look like: {}?", "It looks like this."),
    ("How would you draw {}?", "I would draw it like this."),
)


def _conversation(read: Fields, chance: random.Random) -> list[Turn]:
    turns = []
    for i, fields in enumerate(read.items("turns")):
        role: Literal["user", "assistant"] = "assistant" if i % 2 else "user"
        if not isinstance(fields, Mapping) or fields.get("role") != role:
            raise DocumentError(
                f"turn {i + 1} of a conversation must have the role {role}; got {fields!r:.60}"
            )
        turns.append(Turn(role, tuple(Fields(fields, read.codebook_size).parts("parts"))))
    if len(turns) % 2:
        raise DocumentError("a conversation must end with a turn of the role assistant")
    return turns


def _text_to_image(read: Fields, chance: random.Random) -> list[Turn]:
    """Ask for a picture in one of twenty ways; the document may bring an answer of its own."""
    prompt, response = chance.choice(DRAW)
    # The question has its own punctuation.
    text = read.any_text("text", chance).rstrip().removesuffix(".")
    question = prompt.format(text)
    return _ask([question], [read.optional_text("response", response), read.picture("codes")])


def _edit(read: Fields, chance: random.Random) -> list[Turn]:
    response = read.optional_text("response", "")
    question: list[Part] = [read.picture("source"), read.text("instruction")]
    return _ask(question, [response, read.picture("target")])


def _two_images(read: Fields, chance: random.Random) -> list[Turn]:
    pictures = [read.as_picture(picture, "pictures") for picture in read.items("pictures")]
    if len(pictures) != 2:
        raise DocumentError(f"two_images have two pictures; got {len(pictures)}")
    return _ask([*pictures, read.text("question")], read.parts("answer"))


def _story(read: Fields, chance: random.Random) -> list[Turn]:
    """Answer a question with the whole story, or else each text with its picture."""
    pieces: list[tuple[str, Part]] = []
    for piece in read.items("pieces"):
        if not isinstance(piece, list) or len(piece) != 2:
            raise DocumentError(f"pieces of a story are pairs of text and codes; got {piece!r:.60}")
        text, codes = piece
        pieces.append((read.as_text(text, "pieces"), read.as_picture(codes, "pieces")))
    if "question" not in read.fields:
        return [turn for text, picture in pieces for turn in _ask([text], [picture])]
    answer: list[Part] = []
    for text, picture in pieces:
        answer += ["\n", text, picture] if answer else [text, picture]
    return _ask([read.text("question")], answer)


def _ask(question: Sequence[Part], answer: Sequence[Part]) -> list[Turn]:
    return [
        Turn("user", tuple(part for part in question if part)),
        Turn("assistant", tuple(part for part in answer if part)),
    ]


CONVERSATIONS: dict[str, Callable[[Fields, random.Random], list[Turn]]] = {
    "conversation": _conversation,
    "text_to_image": _text_to_image,
    "edit": _edit,
    "two_images": _two_images,
    "story": _story,
}
