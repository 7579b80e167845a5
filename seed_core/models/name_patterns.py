"""Regular expressions over the names of modules, as adapters hold them and strangers write them.

Python's matcher goes back over every way in which an expression can fit, which may take years for a
short one. So only forms whose ways can be counted are read, and only if they are few.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator

_MOST_PATTERNS = 1000  # that a name is held against; a model has some hundred modules
_MOST_CHARACTERS = 1000  # of one expression
_MOST_WAYS = 50_000  # in which one expression can fit
_MOST_WAYS_TOGETHER = 60_000  # of all expressions of an adapter
_NAME = 64  # characters of a long name

_SET = r"\[\^?\]?(?:[^\]\[\\]|\\\S)*\]"
_TOKEN = re.compile(
    rf"""
    (?P<begin> \((?:\?:)?(?!\?) )
    | (?P<or> \| )
    | (?P<atom> \) | \. | [\w\-] | \\[dDwWsS] | \\[^\w\s] | {_SET} )
      (?P<repeat> [*+?]\?? | \{{\d{{1,3}}(?:,\d{{0,3}})?\}}\?? )?
    """,
    re.VERBOSE,
)
_PIECE = re.compile(rf"\\.|{_SET}|.", re.DOTALL)


class PatternError(ValueError):
    """An expression of a form that is not read here; the message says which part of it."""


class NamePattern:
    r"""One expression, for whole names.

    Args:
        text: literals, ``.``, ``\d`` and its like, sets, groups, ``|`` and repeats, as Python means
            them; a group may be repeated by ``?`` alone. ``^`` and ``$`` only at the ends.
        after_dot: whether any names of enclosing modules may come first, where there is no ``^``.

    Raises:
        PatternError: it is of another form, or can fit in too many ways.
    """

    def __init__(self, text: str, after_dot: bool = False) -> None:
        if len(text) > _MOST_CHARACTERS:
            raise PatternError(f"{text!r:.80} is longer than {_MOST_CHARACTERS:,} characters")
        self.ways = 0
        self._alternatives = []
        for each in _alternatives(text):
            is_anchored = each.startswith("^")
            inside = each[is_anchored:]
            if inside.endswith("$") and not inside.endswith(r"\$"):
                inside = inside[:-1]
            self.ways += _ways(inside, text)
            self._alternatives.append((_compiled(inside, text), after_dot and not is_anchored))
        if self.ways > _MOST_WAYS:
            raise PatternError(f"{text!r:.80} asks for too much work")

    def matches(self, name: str) -> bool:
        """Tell whether it matches a whole name."""
        dots = [at + 1 for at, char in enumerate(name) if char == "."]
        return any(
            pattern.fullmatch(name, start) is not None
            for pattern, may_follow in self._alternatives
            for start in (0, *(dots if may_follow else ()))
        )


class PatternTable:
    """Several expressions, of which the first that matches counts, as in peft's patterns.

    Raises:
        PatternError: one is of another form, or there are too many.
    """

    def __init__(self, texts: Collection[str]) -> None:
        if len(texts) > _MOST_PATTERNS:
            raise PatternError(f"it has {len(texts):,} patterns, more than {_MOST_PATTERNS:,}")
        self._patterns = {text: NamePattern(text, after_dot=True) for text in texts}
        if sum(each.ways for each in self._patterns.values()) > _MOST_WAYS_TOGETHER:
            raise PatternError("its patterns ask for too much work")

    def find(self, name: str) -> str | None:
        """Return the first expression that matches the end of a name."""
        return next((text for text, each in self._patterns.items() if each.matches(name)), None)


def _alternatives(text: str) -> Iterator[str]:
    """Yield what stands between ``|`` outside of groups."""
    depth, begin = 0, 0
    for piece in _PIECE.finditer(text):
        depth += (piece[0] == "(") - (piece[0] == ")")
        if piece[0] == "|" and not depth:
            yield text[begin : piece.start()]
            begin = piece.end()
    yield text[begin:]


def _compiled(inside: str, text: str) -> re.Pattern[str]:
    try:
        return re.compile(inside)
    except re.error as error:
        raise PatternError(f"{text!r:.80} cannot be read: {error}") from error


def _ways(inside: str, text: str) -> int:
    """Return in how many ways an alternative can fit at most; `PatternError` for a form not read."""
    ways, at, endless = 1, 0, 0
    choices: list[int] = []  # of the groups that are open
    while at < len(inside):
        token = _TOKEN.match(inside, at)
        if token is None or (token["atom"] == ")" and not choices):
            raise PatternError(f"{inside[at:]!r:.40} in {text!r:.80} is not read here")
        at = token.end()
        if token["begin"]:
            choices.append(1)
        elif token["or"]:
            choices[-1] += 1
        elif token["atom"] == ")":
            ways *= choices.pop()
            if token["repeat"] not in (None, "?", "??"):
                raise PatternError(f"{text!r:.80} repeats a group")
        repeats = _repeats(token["repeat"])
        ways, endless = ways * (repeats or 1), endless + (repeats is None)
    if choices:
        raise PatternError(f"{text!r:.80} has a group that is not closed")
    return ways * math.comb(_NAME + endless, endless)


def _repeats(sign: str | None) -> int | None:
    """Return how many numbers of times a repeat allows; None if any."""
    if sign is None:
        return 1
    if sign[0] == "?":
        return 2
    low, comma, high = sign.strip("{}?").partition(",")
    if sign[0] == "{" and (high or not comma):
        return max(int(high or low) - int(low) + 1, 1)
    return None
