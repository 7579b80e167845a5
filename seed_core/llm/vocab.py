"""The vocabulary of a SEED-LLaMA: text and codes to token ids, and back.

Owns the segment rule: the models were trained with text cut at image tokens, white space beside
those dropped, and each piece encoded by itself. Current transformers releases keep that white space
and so produce token ids that the models never saw.

Source: AILab-CVC/SEED at 93b3cf4 with transformers 4.30.2, whose slow tokenizer it relied on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sentencepiece

from ..codes.value import BEGIN_IMAGE, END_IMAGE, image_token
from ..errors import CheckpointError, PromptError
from .chat import Part

VOCABULARY_FILES = ("tokenizer.model", "added_tokens.json")

# Rows that tables of tokens are filled up to a multiple of, so that products fit cards well.
_PADDED_TO = (1, 8, 16, 32, 64, 128, 256, 512, 1024)

# Text that is changed by a file which was cut before the rules at its end.
_LOSSLESS = "a  b"


class Vocabulary:
    """Text pieces below, then one token id for each code, then the two markers.

    Args:
        pieces: content of ``tokenizer.model``, sentencepiece's model.
        added: content of ``added_tokens.json``, the ids of image tokens and markers.
        source: where they come from, for messages.

    Raises:
        CheckpointError: one of them is damaged, or the ids of codes do not follow one another.
    """

    def __init__(self, pieces: bytes, added: Mapping[str, Any], source: object) -> None:
        text_file, added_file = (f"{name} of {source}" for name in VOCABULARY_FILES)
        self._text = _read_sentencepiece(pieces, text_file)
        for token in (BEGIN_IMAGE, END_IMAGE, image_token(0)):
            if not _is_id(added.get(token)):
                raise CheckpointError(
                    f"{added_file} lacks {token}; it must map {BEGIN_IMAGE}, {END_IMAGE} and "
                    f"{image_token(0)} ... to token ids"
                )
        self.begin_image: int = added[BEGIN_IMAGE]
        self.end_image: int = added[END_IMAGE]
        self.first_code: int = added[image_token(0)]
        self.codebook_size = 0
        while added.get(image_token(self.codebook_size)) == self.first_code + self.codebook_size:
            self.codebook_size += 1
        self._check(added, added_file)
        self.bos = int(self._text.bos_id())
        self.eos = int(self._text.eos_id())
        if min(self.bos, self.eos) < 0:
            raise CheckpointError(
                f"{text_file} has no tokens for begin and end of text: it is damaged, or not a LLaMA's"
            )

    @property
    def unknown(self) -> int:
        """The token id of text that has none."""
        return int(self._text.unk_id())

    def piece(self, token_id: int) -> str:
        """Return what the vocabulary calls a token of text."""
        return str(self._text.id_to_piece(token_id))

    def _check(self, added: Mapping[str, Any], where: str) -> None:
        """Refuse ids that overlap or are out of order, which would turn text into pictures."""
        images = [self.begin_image, self.end_image]
        images += range(self.first_code, self.first_code + self.codebook_size)
        listed = sum(1 for token in added if token.startswith("<img_"))
        if listed != self.codebook_size or len(set(images)) != len(images):
            raise CheckpointError(
                f"{where}: the ids of <img_00000> ... must follow one another without a gap, apart "
                f"from the markers' ids; {self.codebook_size} of {listed} do"
            )
        words = self._text.vocab_size()
        if min(images) < words:
            raise CheckpointError(
                f"{where}: image tokens start at id {min(images)}, inside the {words} ids of "
                "tokenizer.model"
            )
        ids = {i for i in added.values() if isinstance(i, int) and _is_id(i)}
        self.size = max(ids) + 1
        if len(ids) != len(added) or self.size != words + len(ids - set(range(words))):
            raise CheckpointError(
                f"{where} and the {words} pieces of tokenizer.model leave out token ids, or give "
                "some twice: one of the two is damaged or of another model"
            )

    def segments(self, pieces: Iterable[Part], before_image: bool = False) -> list[Part]:
        """Return the pieces as they are encoded: strings joined, cut and stripped at pictures.

        Args:
            pieces: text and pictures in order.
            before_image: whether a picture is going to follow the last piece.
        """
        joined: list[Part] = []
        for piece in pieces:
            if isinstance(piece, str) and joined and isinstance(joined[-1], str):
                joined[-1] += piece
            else:
                joined.append(piece)
        out: list[Part] = []
        for i, piece in enumerate(joined):
            if isinstance(piece, str):
                if i > 0:
                    piece = piece.lstrip()
                if before_image or i + 1 < len(joined):
                    piece = piece.rstrip()
            if piece:
                out.append(piece)
        return out

    def encode(self, pieces: Iterable[Part], before_image: bool = False) -> list[int]:
        """Return the token ids of pieces; `PromptError` for text with half a character in it."""
        token_ids = [self.bos]  # begin-of-text comes first
        for segment in self.segments(pieces, before_image):
            if isinstance(segment, str):
                token_ids += self._text.encode(_whole(segment))
            else:
                token_ids += self.encode_picture(segment)
        return token_ids

    def encode_picture(self, codes: Sequence[int]) -> list[int]:
        """Return the token ids of one picture, markers included."""
        return [self.begin_image, *(self.first_code + code for code in codes), self.end_image]

    def decode(self, token_ids: Sequence[int]) -> tuple[Part, ...]:
        """Return text and pictures in order, without control tokens and unfinished pictures."""
        parts: list[Part] = []
        text: list[int] = []
        codes: list[int] | None = None
        for token_id in token_ids:
            if token_id == self.begin_image:
                self._flush(text, parts)
                codes = []
            elif token_id == self.end_image and codes is not None:
                parts.append(tuple(codes))
                codes = None
            elif codes is not None:
                codes.append(token_id - self.first_code)
            elif token_id < self._text.vocab_size():
                text.append(token_id)
        self._flush(text, parts)
        return tuple(parts)

    def _flush(self, text: list[int], parts: list[Part]) -> None:
        if decoded := self._text.decode(text):
            parts.append(decoded)
        text.clear()


def is_padded(rows: int, tokens: int) -> bool:
    """Tell whether a table of so many rows is one for so many tokens, perhaps filled up."""
    return any(rows == -(-tokens // multiple) * multiple for multiple in _PADDED_TO)


def _whole(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            f"character {error.start + 1} of {text[:40]!r} is half of one, as some programs leave "
            "behind when they cut text; delete it"
        ) from error
    return text


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _read_sentencepiece(content: bytes, where: str) -> sentencepiece.SentencePieceProcessor:
    if not content:  # sentencepiece would take it for "no model given"
        raise CheckpointError(f"{where} is empty; download it again")
    try:
        text = sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError as error:
        raise CheckpointError(
            f"{where} is damaged, or not a sentencepiece model: {error}"
        ) from error
    if text.decode(text.encode(_LOSSLESS)) != _LOSSLESS:
        raise CheckpointError(
            f"{where} changes the text that it encodes, which a LLaMA's never does: it is damaged, "
            "or of another model"
        )
    return text
