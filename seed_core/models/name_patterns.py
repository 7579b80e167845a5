"""Regular expressions over the names of modules, matched without ever going back.

Adapters name modules by expressions that strangers wrote, and Python's own matcher can take years
over a short one. Here a name is read once, with all the places of the expression that may come next:
Glushkov, "The abstract theory of automata", 1961. What is not understood is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

_LONGEST = 10_000  # characters of one expression
_MOST_PLACES = 1000  # of one expression, where a counted repeat counts as often as it repeats
_MOST_GROUPS = 20  # inside one another
_MOST_PATTERNS = 1000  # that a name is held against; a model has some hundred modules
_MOST_STEPS = 2_000_000  # for all names and all expressions together; about a second

_ESCAPES: dict[str, Callable[[str], bool]] = {
    "d": str.isdecimal,
    "D": lambda char: not char.isdecimal(),
    "w": lambda char: char.isalnum() or char == "_",
    "W": lambda char: not (char.isalnum() or char == "_"),
    "s": str.isspace,
    "S": lambda char: not char.isspace(),
}

_MEANS_MORE = frozenset("()[]{}*+?|^$\\")


class PatternError(ValueError):
    """An expression of a form that is not read here; the message says which part of it."""


def _is_any(char: str) -> bool:
    return char != "\n"


@dataclass
class _Steps:
    """What matching may still cost."""

    left: int = _MOST_STEPS

    def take(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise PatternError("it asks for too much work")


class NamePattern:
    r"""One expression, for whole names.

    Args:
        text: literals, ``.``, ``\d`` and its like, sets, groups, ``|`` and the repeats ``*``,
            ``+``, ``?``, ``{m,n}``, as Python means them. ``^`` and ``$`` only at the ends.
        after_dot: whether any names of enclosing modules may come first, where there is no ``^``.
        steps: shared by expressions that together may ask for so much work.

    Raises:
        PatternError: it is of another form, or too large.
    """

    def __init__(self, text: str, after_dot: bool = False, steps: _Steps | None = None) -> None:
        parser = _Parser(text)
        self._whole = parser.whole(after_dot)
        self._tests, self._follow = parser.tests, parser.follow
        self._chars: dict[str, int] = {}  # the places that accept a character
        self._next: dict[int, int] = {}  # the places that may follow some places
        self._steps = steps or _Steps()

    def matches(self, name: str) -> bool:
        """Tell whether it matches a whole name; `PatternError` if that asks for too much work."""
        here, after = 0, self._whole.first
        for char in name:
            here = after & self._accepting(char)
            if not here:
                return False
            after = self._following(here)
        return bool(here & self._whole.last) if name else self._whole.may_be_empty

    def _accepting(self, char: str) -> int:
        if char not in self._chars:
            self._steps.take(len(self._tests))
            places = (1 << place for place, test in enumerate(self._tests) if test(char))
            self._chars[char] = sum(places)
        return self._chars[char]

    def _following(self, here: int) -> int:
        if here not in self._next:
            found = 0
            for place in _places(here):
                self._steps.take(1)
                found |= self._follow[place]
            self._next[here] = found
        return self._next[here]


class PatternTable:
    """Several expressions, of which the first that matches counts, as in peft's patterns.

    Raises:
        PatternError: one is of another form, or there are too many.
    """

    def __init__(self, texts: Collection[str]) -> None:
        if len(texts) > _MOST_PATTERNS:
            raise PatternError(f"it has {len(texts):,} patterns, more than {_MOST_PATTERNS:,}")
        steps = _Steps()
        self._patterns = {text: NamePattern(text, after_dot=True, steps=steps) for text in texts}

    def find(self, name: str) -> str | None:
        """Return the first expression that matches the end of a name.

        Raises:
            PatternError: matching asks for too much work.
        """
        return next((text for text, each in self._patterns.items() if each.matches(name)), None)


@dataclass(frozen=True)
class _Piece:
    """Part of an expression; sets of places are the bits of a number."""

    may_be_empty: bool
    first: int  # the places where it may begin
    last: int  # the places where it may end

    def or_nothing(self) -> _Piece:
        return _Piece(True, self.first, self.last)


_NOTHING = _Piece(True, 0, 0)
_NEVER = _Piece(False, 0, 0)


def _places(bits: int) -> Iterator[int]:
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


class _Parser:
    """Reads an expression; every character that it can accept becomes a place."""

    def __init__(self, text: str) -> None:
        self.tests: list[Callable[[str], bool]] = []  # by place: which characters it accepts
        self.follow: list[int] = []  # by place: the places that may come next
        if len(text) > _LONGEST:
            raise PatternError(f"{text!r:.80} is longer than {_LONGEST:,} characters")
        self._text = text
        self._at = 0
        self._depth = 0  # of groups
        self._repeats = False  # whether the last piece has a repeat in it

    def whole(self, after_dot: bool) -> _Piece:
        """Read all of it."""
        anchored, free = _NEVER, _NEVER
        while True:
            is_anchored = self._take("^")
            piece = self._sequence(is_outside=True)
            if is_anchored:
                anchored = _either(anchored, piece)
            else:
                free = _either(free, piece)
            if not self._take("|"):
                break
        if self._at < len(self._text):
            raise self._refused("closes a group that was not opened")
        if after_dot:
            names = self._again(self._place(_is_any)).or_nothing()
            before = self._joined(names, self._place(".".__eq__)).or_nothing()
            free = self._joined(before, free)
        return _either(anchored, free)

    def _sequence(self, is_outside: bool = False) -> _Piece:
        piece, repeats = _NOTHING, False
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            if is_outside and self._text[self._at :][:2] in ("$", "$|"):
                self._at += 1
                break
            piece = self._joined(piece, self._repeated())
            repeats |= self._repeats
        self._repeats = repeats
        return piece

    def _repeated(self) -> _Piece:
        begin = self._at
        piece = self._atom()
        repeats, end = self._repeats, self._at
        least, most = self._count(self._text[begin:end])
        self._repeats = repeats or (least, most) != (1, 1)
        if (least, most) == (1, 1):
            return piece
        if repeats:
            raise PatternError(f"{self._text[begin : self._at]!r:.80} repeats a repeat")
        after, self._at = self._at, begin
        copies = max(least, 1) if most is None else most
        pieces = [piece] if copies else []
        while len(pieces) < copies:
            self._at = begin
            pieces.append(self._atom())
        self._at, self._repeats = after, True
        if most is None:
            pieces[-1] = self._again(pieces[-1])
        whole = _NOTHING
        for number, copy in enumerate(pieces):
            whole = self._joined(whole, copy.or_nothing() if number >= least else copy)
        return whole

    def _count(self, atom: str) -> tuple[int, int | None]:
        """Read how often the piece before may occur."""
        found: tuple[int, int | None] = (1, 1)
        for sign, meaning in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(sign):
                found = meaning
                break
        else:
            if self._take("{"):
                found = self._braces(atom)
            else:
                return found
        self._take("?")  # takes as few as it can: of whole names the same
        if self._text[self._at : self._at + 1] in ("*", "+", "?", "{"):
            raise self._refused("repeats a repeat")
        return found

    def _braces(self, atom: str) -> tuple[int, int | None]:
        inside, brace, rest = self._text[self._at :].partition("}")
        low, comma, high = inside.partition(",")
        numbers = [number for number in (low, high) if number]
        is_read = brace and numbers and all(n.isascii() and n.isdigit() for n in numbers)
        if not is_read or max(map(len, numbers)) > 3 or atom.isalnum():
            raise self._refused("is not a count of something that varies")
        self._at = len(self._text) - len(rest)
        least = int(low or 0)
        most = (int(high) if high else None) if comma else least
        if most is not None and most < least:
            raise self._refused("counts backwards")
        return least, most

    def _atom(self) -> _Piece:
        self._repeats = False
        char = self._text[self._at]
        self._at += 1
        if char == "(":
            return self._group()
        if char == "[":
            return self._place(self._set())
        if char == "\\":
            return self._place(self._escape())
        if char == ".":
            return self._place(_is_any)
        if char in _MEANS_MORE:
            self._at -= 1
            raise self._refused("has no meaning there")
        return self._place(char.__eq__)

    def _group(self) -> _Piece:
        if self._take("?") and not self._take(":"):
            raise self._refused("is a group of a special kind")
        self._depth += 1
        if self._depth > _MOST_GROUPS:
            raise PatternError(f"{self._text!r:.80} has too many groups inside one another")
        piece, repeats = self._sequence(), self._repeats
        while self._take("|"):
            piece = _either(piece, self._sequence())
            repeats |= self._repeats
        if not self._take(")"):
            raise PatternError(f"{self._text!r:.80} has a group that is not closed")
        self._repeats = repeats
        self._depth -= 1
        return piece

    def _set(self) -> Callable[[str], bool]:
        """Read what is between square brackets."""
        is_negated = self._take("^")
        tests: list[Callable[[str], bool]] = []
        while not (tests and self._take("]")):
            test = self._set_item()
            if self._text[self._at :][:1] == "-" and self._text[self._at :][1:2] != "]":
                self._at += 1
                test = self._range(test, self._set_item())
            tests.append(test)
        return lambda char: is_negated != any(test(char) for test in tests)

    def _set_item(self) -> Callable[[str], bool]:
        char = self._text[self._at : self._at + 1]
        if not char:
            raise PatternError(f"{self._text!r:.80} has a set that is not closed")
        self._at += 1
        return self._escape() if char == "\\" else char.__eq__

    def _range(
        self, low: Callable[[str], bool], high: Callable[[str], bool]
    ) -> Callable[[str], bool]:
        first, last = (getattr(test, "__self__", None) for test in (low, high))
        if not isinstance(first, str) or not isinstance(last, str) or first > last:
            raise self._refused("ends a range that cannot be read")
        return lambda char: first <= char <= last

    def _escape(self) -> Callable[[str], bool]:
        char = self._text[self._at : self._at + 1]
        self._at += 1
        if char in _ESCAPES:
            return _ESCAPES[char]
        if not char or char.isalnum():
            raise PatternError(f"\\{char} in {self._text!r:.80} is not read here")
        return char.__eq__

    def _place(self, test: Callable[[str], bool]) -> _Piece:
        if len(self.tests) >= _MOST_PLACES:
            raise PatternError(f"{self._text!r:.80} asks for more than {_MOST_PLACES:,} characters")
        self.tests.append(test)
        self.follow.append(0)
        bit = 1 << (len(self.tests) - 1)
        return _Piece(False, bit, bit)

    def _joined(self, one: _Piece, other: _Piece) -> _Piece:
        for place in _places(one.last):
            self.follow[place] |= other.first
        first = one.first | (other.first if one.may_be_empty else 0)
        last = other.last | (one.last if other.may_be_empty else 0)
        return _Piece(one.may_be_empty and other.may_be_empty, first, last)

    def _again(self, piece: _Piece) -> _Piece:
        for place in _places(piece.last):
            self.follow[place] |= piece.first
        return piece

    def _take(self, text: str) -> bool:
        if not self._text.startswith(text, self._at):
            return False
        self._at += len(text)
        return True

    def _refused(self, why: str) -> PatternError:
        return PatternError(f"{self._text[self._at :]!r:.40} in {self._text!r:.80} {why}")


def _either(one: _Piece, other: _Piece) -> _Piece:
    may_be_empty = one.may_be_empty or other.may_be_empty
    return _Piece(may_be_empty, one.first | other.first, one.last | other.last)
