"""Documents: pictures and text as people collect them, and the examples that they become.

A document is one JSON object. Its ``format`` decides which tokens count in the loss; see `FORMATS`.

A picture is the list of its 32 codes. Other fields are allowed and ignored, except for ``family``,
which must be the model's if it is given. Formats and masks are the reference's; the functions here
decide what its description leaves open.

Source: the training of AILab-CVC/SEED at 93b3cf4, pretraining and instruction tuning.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Literal

from ...errors import OptionError
from ...llm.chat import Part, Turn
from ...llm.prompt import VICUNA, PromptTemplate
from ...llm.vocab import Vocabulary
from .examples import IGNORED, Example
from .fields import Document, DocumentError, Fields
from .questions import CONVERSATIONS


class DocumentWriter:
    """Turns documents into examples for one model.

    Args:
        vocab: the model's.
        family: of the codes that it reads and writes.
        pieces: how conversations become tokens. ``separate`` is the reference's way: each question
            with its surroundings and each answer is encoded by itself, and an answer ends with a
            full stop. It needs Vicuna's template. ``joined`` encodes the whole conversation as it
            is rendered when the model is used, where a few tokens next to the seams differ.
            seed-mini learned that way.
        template: of ``joined`` conversations.

    Raises:
        OptionError: separate pieces are asked for in another template than Vicuna's.
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
        """Return the tokens and labels of a document, however many they are.

        Args:
            document: see the module.
            chance: decides what the format leaves to chance.
            most_pictures: an interleaved document ends before the picture after these, since the
                text that follows may speak of it; None for no limit.
            swapped: probability that each picture of an interleaved document changes places with
                the text after it, if it has one.

        Raises:
            DocumentError: the document does not fit its format, or the model's codes.
        """
        if not isinstance(document, Mapping):
            raise DocumentError(f"a document must be a JSON object; got {document!r:.60}")
        if (family := document.get("family", self.family)) != self.family:
            raise DocumentError(
                f"its codes are of {family}, and the model reads {self.family} codes"
            )
        kind, vocab = document.get("format"), self.vocab
        read = Fields(document, vocab.codebook_size)
        if isinstance(kind, str) and kind in CONVERSATIONS:
            return self._converse(CONVERSATIONS[kind](read, chance))
        if kind == "interleaved":
            parts = _interleaved(read, chance, most_pictures, swapped)
        elif kind == "caption":
            parts = [read.picture("codes"), read.any_text("text", chance)]
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
            fields = ", ".join(map(str, document)) or "nothing"
            raise DocumentError(
                f"the format must be one of {known}; got {kind!r:.60} in a document with {fields:.80}"
            )
        token_ids = [*vocab.encode(parts), vocab.eos]
        return Example(token_ids, list(token_ids))

    def _video(self, read: Fields) -> Example:
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
    read: Fields, chance: random.Random, most_pictures: int | None, swapped: float
) -> list[Part]:
    """Return pieces in order, with a space between two texts that would run together."""
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


# format         other fields                                         counts in the loss
# caption        codes, text or a list of texts, one of them by       everything
#                chance
# picture        codes                                                everything
# interleaved    parts: strings and pictures                          everything
# text           text                                                 everything
# video          frames: pictures; text                               the text and the end
# conversation   turns: each with role and parts                      answers and the end
# text_to_image  codes, text or a list of texts, one of them by       answers and the end
#                chance; optionally response
# edit           source, instruction, target, optionally response     answers and the end
# two_images     pictures: two; question; answer: text, a picture,    answers and the end
#                or a list of both
# story          pieces: pairs of text and picture; optionally        answers and the end
#                question
FORMATS = ("caption", "picture", "interleaved", "text", "video", *CONVERSATIONS)
