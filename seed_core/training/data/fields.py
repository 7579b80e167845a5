"""The fields of a document, read strictly."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...codes.value import NUM_CODES
from ...errors import SeedError
from ...llm.chat import Part

Document = Mapping[str, Any]


class DocumentError(SeedError, ValueError):
    """A document that does not fit its format."""


@dataclass(frozen=True)
class Fields:
    """The fields of a document, read strictly."""

    fields: Document
    codebook_size: int

    def get(self, name: str) -> Any:
        """Return a field that must be there."""
        if name not in self.fields:
            raise DocumentError(
                f"the field {name} is missing; got {', '.join(map(str, self.fields))}"
            )
        return self.fields[name]

    def text(self, name: str) -> str:
        """Return a field of text."""
        return self.as_text(self.get(name), name)

    def any_text(self, name: str, chance: random.Random) -> str:
        """Return a field of text, or one of the texts that it lists."""
        texts = self.get(name)
        if not isinstance(texts, list):
            return self.as_text(texts, name)
        return chance.choice([self.as_text(text, name) for text in self.items(name)])

    def as_text(self, text: Any, name: str) -> str:
        """Return text that is not empty."""
        if not isinstance(text, str) or not text.strip():
            raise DocumentError(f"{name} must be text; got {text!r:.60}")
        return text

    def optional_text(self, name: str, usual: str) -> str:
        """Return text, or the usual one if the field is missing; it may be empty."""
        return self.text(name) if self.fields.get(name, "") else self.fields.get(name, usual)

    def items(self, name: str) -> list[Any]:
        """Return a list that is not empty."""
        items = self.get(name)
        if not isinstance(items, list) or not items:
            raise DocumentError(f"{name} must be a list with something in it; got {items!r:.60}")
        return items

    def picture(self, name: str) -> tuple[int, ...]:
        """Return the codes of a picture."""
        return self.as_picture(self.get(name), name)

    def parts(self, name: str) -> list[Part]:
        """Return text and pictures in order; the field may also hold a single one of them."""
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
        """Return codes that the model has."""
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
