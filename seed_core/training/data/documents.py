"""Documents: pictures and text as people collect them, and the tokens and labels they become.

A document is one JSON object. Its ``format`` says what it is, and so which tokens count in the loss:

==================  ======================================================  =====================
format              other fields                                            counts
==================  ======================================================  =====================
``caption``         ``codes``, ``text``                                     everything
``picture``         ``codes``                                               everything
``interleaved``     ``parts``: strings and pictures                         everything
``text``            ``text``                                                everything
``video``           ``frames``: pictures, ``text``                          the text and the end
``conversation``    ``turns``: each ``role`` and ``parts``                  answers and the end
``text_to_image``   ``codes``, ``text``, perhaps ``response``               answers and the end
``edit``            ``source``, ``instruction``, ``target``, perhaps        answers and the end
                    ``response``
``two_images``      ``pictures``: two, ``question``, ``answer``: text, a    answers and the end
                    picture, or a list of both
``story``           ``pieces``: pairs of text and picture, perhaps          answers and the end
                    ``question``
==================  ======================================================  =====================

A picture is the list of its 32 codes. Other fields are allowed and mean nothing here, but for
``family``: where a document has it, it must be the model's. Formats and masks are the reference's.
Where its description leaves something open, the function that decides says what.

Knows nothing of files (see ``sources``).

Source: the training of AILab-CVC/SEED at 93b3cf4, pretraining and instruction tuning.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ...codes.value import NUM_CODES
from ...errors import OptionError, SeedError
from ...llm.chat import Part, Turn
from ...llm.prompt import VICUNA, PromptTemplate
from ...llm.vocab import Vocabulary

IGNORED = -100
"""The label of a token that does not count, as torch and transformers know it."""

_FILLING = 0

Document = Mapping[str, Any]


class DocumentError(SeedError, ValueError):
    """A document that does not fit its format."""


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
"""Twenty ways to ask for a picture, each with an answer that goes before it."""


@dataclass(frozen=True)
class Example:
    """What a language model learns from.

    Attributes:
        token_ids: of the whole, begin-of-text first.
        labels: as many; the same token ids, or `IGNORED`. They are not shifted: position i holds
            what the model should say there, after it has read the positions before i.
    """

    token_ids: list[int]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def teaches(self) -> bool:
        """Whether any token counts; the first never does, since nothing goes before it."""
        return any(label != IGNORED for label in self.labels[1:])


class DocumentWriter:
    """Turns documents into examples for one model.

    Args:
        vocab: the model's.
        family: of the codes it reads and writes.
        pieces: how conversations become tokens. ``separate`` is the reference's way: a question with
            all that surrounds it is encoded by itself, and so is an answer, which gets a full stop
            where it has none; it knows the template of Vicuna alone. ``joined`` encodes the whole
            conversation as it is rendered when the model is used: there past turns are encoded
            together with their surroundings, so that a few tokens beside the seams differ (the line
            break after a drawn picture, the space before an answer). seed-mini learned that way.
        template: of ``joined`` conversations.

    Raises:
        OptionError: separate pieces in another template than Vicuna's.
    """

    def __init__(
        self,
        vocab: Vocabulary,
        family: str,
        pieces: Literal["separate", "joined"] = "separate",
        template: PromptTemplate = VICUNA,
    ) -> None:
        if pieces == "separate" and template != VICUNA:
            raise OptionError(
                f"conversations in separate pieces are written in the template {VICUNA.name} alone; "
                f"for {template.name} they have to be joined"
            )
        self.vocab = vocab
        self.family = family
        self._template = template
        self._converse = self._separate if pieces == "separate" else self._joined

    def write(
        self,
        document: Document,
        chance: random.Random,
        most_pictures: int | None = None,
        swapped: float = 0.0,
    ) -> Example:
        """Return the tokens and labels of a document, however many they are; see `cut`.

        Args:
            document: see the module.
            chance: decides what the format leaves to chance.
            most_pictures: an interleaved document ends before the picture after these many, since
                the text that follows may speak of it; None for no limit.
            swapped: how probable it is that each picture of an interleaved document changes places
                with the text after it. (One that another picture follows stays.)

        Raises:
            DocumentError: an unknown format, a field that is missing or of another kind, codes the
                model does not have, or another family's.
        """
        if not isinstance(document, Mapping):
            raise DocumentError(f"a document is a JSON object; got {document!r:.60}")
        if (family := document.get("family", self.family)) != self.family:
            raise DocumentError(
                f"its codes are of {family}, and the model reads {self.family} codes"
            )
        kind, vocab = document.get("format"), self.vocab
        read = _Fields(document, vocab.codebook_size)
        if isinstance(kind, str) and kind in _CONVERSATIONS:
            return self._converse(_CONVERSATIONS[kind](read, chance))
        if kind == "interleaved":
            parts = _interleaved(read, chance, most_pictures, swapped)
        elif kind == "caption":
            parts = [read.picture("codes"), read.text("text")]
            if chance.random() >= 0.5:
                parts.reverse()
        elif kind == "picture":
            parts = [read.picture("codes")]
        elif kind == "text":
            parts = [read.text("text")]
        elif kind == "video":
            return self._video(read)
        else:
            known = ", ".join(FORMATS)
            raise DocumentError(f"a document has one of the formats {known}; got {kind!r:.60}")
        token_ids = [*vocab.encode(parts), vocab.eos]
        return Example(token_ids, list(token_ids))

    def _video(self, read: _Fields) -> Example:
        frames = [read.as_picture(frame, "frames") for frame in read.items("frames")]
        shown = self.vocab.encode(frames)
        token_ids = [*self.vocab.encode([*frames, read.text("text")]), self.vocab.eos]
        return Example(token_ids, [IGNORED] * len(shown) + token_ids[len(shown) :])

    def _separate(self, turns: Sequence[Turn]) -> Example:
        vocab = self.vocab
        token_ids, labels = [vocab.bos], [IGNORED]
        for i, turn in enumerate(turns):
            if turn.role == "user":
                opening = "\nUSER: " if i else "USER: "
                pieces: list[Part] = [opening, *turn.parts, "\nASSISTANT:"]
            else:
                pieces = _with_full_stop(turn.parts)
            written = vocab.encode(pieces)[1:]
            token_ids += written
            labels += written if turn.role == "assistant" else [IGNORED] * len(written)
        return Example([*token_ids, vocab.eos], [*labels, vocab.eos])

    def _joined(self, turns: Sequence[Turn]) -> Example:
        vocab, template = self.vocab, self._template
        pieces: list[Part] = []
        spans: list[tuple[list[int], list[int]]] = []
        for turn in turns:
            before, after = template.user if turn.role == "user" else template.assistant
            if turn.role == "assistant":
                is_drawn = not isinstance(turn.parts[0], str)
                asked = vocab.encode([*pieces, template.opening], before_image=is_drawn)
                spans.append((asked, vocab.encode([*pieces, before, *turn.parts])))
            pieces += [before, *turn.parts, after]
        token_ids = [*spans[-1][1], vocab.eos]
        labels = [IGNORED] * len(token_ids)
        labels[-1] = vocab.eos
        for asked, answered in spans:
            for prefix in (asked, answered):
                if token_ids[: len(prefix)] != prefix:
                    raise DocumentError(
                        "what follows an answer or a question changes how it is cut into tokens; "
                        "take white space away from its ends"
                    )
            labels[len(asked) : len(answered)] = answered[len(asked) :]
        return Example(token_ids, labels)


def _with_full_stop(answer: Sequence[Part]) -> list[Part]:
    *others, last = answer
    if isinstance(last, str) and not last.endswith("."):
        last += "."
    return [*others, last]


def _interleaved(
    read: _Fields, chance: random.Random, most_pictures: int | None, swapped: float
) -> list[Part]:
    """Return pieces in their order, with a space between two texts that would run together."""
    parts = read.parts("parts")
    pictures = [i for i, part in enumerate(parts) if not isinstance(part, str)]
    if most_pictures is not None and len(pictures) > most_pictures:
        parts = parts[: pictures[most_pictures]]
    if chance.random() < swapped:
        i = 0
        while i + 1 < len(parts):
            if not isinstance(parts[i], str) and isinstance(parts[i + 1], str):
                parts[i], parts[i + 1] = parts[i + 1], parts[i]
                i += 1
            i += 1
    spaced: list[Part] = []
    for part in parts:
        last = spaced[-1] if spaced else ()
        if isinstance(part, str) and isinstance(last, str) and last and part:
            is_apart = last[-1].isspace() or part[0].isspace()
            spaced.append(part if is_apart else f" {part}")
        else:
            spaced.append(part)
    return spaced


# --- what is asked and answered ---------------------------------------------------------------


def _conversation(read: _Fields, chance: random.Random) -> list[Turn]:
    turns = []
    for i, fields in enumerate(read.items("turns")):
        role: Literal["user", "assistant"] = "assistant" if i % 2 else "user"
        if not isinstance(fields, Mapping) or fields.get("role") != role:
            raise DocumentError(
                f"turn {i + 1} of a conversation must have the role {role}; got {fields!r:.60}"
            )
        turns.append(Turn(role, tuple(_Fields(fields, read.codebook_size).parts("parts"))))
    if len(turns) % 2:
        raise DocumentError("a conversation must end with a turn of the role assistant")
    return turns


def _text_to_image(read: _Fields, chance: random.Random) -> list[Turn]:
    """Ask for a picture in one of twenty ways; the answer before it is the way's, or its own.

    A full stop at the end of the text goes, since the question brings its own.
    """
    prompt, response = chance.choice(DRAW)
    question = prompt.format(read.text("text").rstrip().removesuffix("."))
    return _ask([question], [read.optional_text("response", response), read.picture("codes")])


def _edit(read: _Fields, chance: random.Random) -> list[Turn]:
    response = read.optional_text("response", "")
    question: list[Part] = [read.picture("source"), read.text("instruction")]
    return _ask(question, [response, read.picture("target")])


def _two_images(read: _Fields, chance: random.Random) -> list[Turn]:
    pictures = [read.as_picture(picture, "pictures") for picture in read.items("pictures")]
    if len(pictures) != 2:
        raise DocumentError(f"two_images have two pictures; got {len(pictures)}")
    return _ask([*pictures, read.text("question")], read.parts("answer"))


def _story(read: _Fields, chance: random.Random) -> list[Turn]:
    """With a question the story is its answer, a line a piece; otherwise each text is a question."""
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


_CONVERSATIONS: dict[str, Callable[[_Fields, random.Random], list[Turn]]] = {
    "conversation": _conversation,
    "text_to_image": _text_to_image,
    "edit": _edit,
    "two_images": _two_images,
    "story": _story,
}

FORMATS = ("caption", "picture", "interleaved", "text", "video", *_CONVERSATIONS)


@dataclass(frozen=True)
class _Fields:
    """The fields of a document, read strictly."""

    fields: Document
    codebook_size: int

    def get(self, name: str) -> Any:
        if name not in self.fields:
            raise DocumentError(f"there is no {name}; there are {', '.join(map(str, self.fields))}")
        return self.fields[name]

    def text(self, name: str) -> str:
        return self.as_text(self.get(name), name)

    def as_text(self, text: Any, name: str) -> str:
        if not isinstance(text, str) or not text.strip():
            raise DocumentError(f"{name} must be text; got {text!r:.60}")
        return text

    def optional_text(self, name: str, usual: str) -> str:
        """Return text that may be left out, or be empty."""
        return self.text(name) if self.fields.get(name, "") else self.fields.get(name, usual)

    def items(self, name: str) -> list[Any]:
        items = self.get(name)
        if not isinstance(items, list) or not items:
            raise DocumentError(f"{name} must be a list with something in it; got {items!r:.60}")
        return items

    def picture(self, name: str) -> tuple[int, ...]:
        return self.as_picture(self.get(name), name)

    def parts(self, name: str) -> list[Part]:
        """Return text and pictures in order; one text or picture may stand there by itself."""
        value = self.get(name)
        is_one = isinstance(value, str) or (
            isinstance(value, list) and value[:1] and _is_int(value[0])
        )
        parts: list[Part] = []
        for part in [value] if is_one else self.items(name):
            parts.append(part if isinstance(part, str) else self.as_picture(part, name))
        if not any(not isinstance(part, str) or part.strip() for part in parts):
            raise DocumentError(f"{name} must have text or a picture in it; got {value!r:.60}")
        return [part for part in parts if part]

    def as_picture(self, codes: Any, name: str) -> tuple[int, ...]:
        if not isinstance(codes, list) or len(codes) != NUM_CODES:
            raise DocumentError(f"a picture in {name} must be {NUM_CODES} codes; got {codes!r:.60}")
        for code in codes:
            if not _is_int(code) or not 0 <= code < self.codebook_size:
                raise DocumentError(
                    f"codes in {name} must be integers in 0..{self.codebook_size - 1}; got {code!r}"
                )
        return tuple(codes)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# --- examples ---------------------------------------------------------------------------------


def cut(example: Example, length: int, vocab: Vocabulary) -> Example:
    """Return an example without what is beyond a length, and without the picture across its end.

    The end goes too, end-of-text included: what was cut has not ended there.

    Args:
        example: of any length.
        length: most tokens.
        vocab: what its token ids mean.
    """
    if len(example) <= length:
        return example
    kept = example.token_ids[:length]
    begins = [i for i, token_id in enumerate(kept) if token_id == vocab.begin_image]
    if begins and vocab.end_image not in kept[begins[-1] :]:
        length = begins[-1]
    return Example(kept[:length], example.labels[:length])


def with_wrong_codes(
    example: Example, part: float, vocab: Vocabulary, chance: random.Random
) -> Example:
    """Return an example with wrong codes among those the model reads of its own answers.

    The labels stay right. So the model learns to go on well after a code that it got wrong, as
    happens when it draws; without that it only ever reads pictures without a mistake. How much is
    wrong is drawn for each example, evenly from nothing to ``part``; a wrong code is any other.

    Args:
        example: any.
        part: most of the codes that are wrong, 0 to 1.
        vocab: what its token ids mean.
        chance: decides which.
    """
    rate, size = chance.uniform(0, part), vocab.codebook_size
    token_ids = list(example.token_ids)
    for i, label in enumerate(example.labels):
        code = label - vocab.first_code
        if 0 <= code < size and chance.random() < rate:
            token_ids[i] = vocab.first_code + (code + chance.randrange(1, size)) % size
    return Example(token_ids, example.labels)


def collate(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Return a batch: ``input_ids`` and ``labels``, each int64 ``[B, T]``.

    Examples begin together; shorter ones are filled up at their end, with the unknown token as in the
    reference and with `IGNORED`. No mask: a causal network never looks at what comes after, and
    without one attention has its fastest form.
    """
    shape = (len(examples), max(map(len, examples)))
    token_ids, labels = torch.full(shape, _FILLING), torch.full(shape, IGNORED)
    for i, example in enumerate(examples):
        token_ids[i, : len(example)] = torch.tensor(example.token_ids)
        labels[i, : len(example)] = torch.tensor(example.labels)
    return {"input_ids": token_ids, "labels": labels}
