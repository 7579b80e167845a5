"""One run of the benchmark: how much is measured, beside whom, and where its rows go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from . import peers
from .meter import Meter
from .subject import Subject
from .table import OURS, Table

# All peers; those that do not compile, which takes minutes on a card; none.
ALL_PEERS, EAGER_PEERS, NO_PEERS = COMPARED_WITH = ("all", "eager", "none")

STATIC = f"{peers.TRANSFORMERS}, static"
PROMPT_TOKENS = 16  # of the prompt that replies begin with

Result = TypeVar("Result")


@dataclass(frozen=True)
class Work:
    """How much is measured.

    Attributes:
        tokens: new tokens of a timed reply; equality is checked over four times as many.
        steps: diffusion steps of a picture.
        peers: one of `COMPARED_WITH`.
    """

    tokens: int = 128
    steps: int = 20
    peers: str = ALL_PEERS

    @property
    def has_peers(self) -> bool:
        """Whether anything is compared with."""
        return self.peers != NO_PEERS

    @property
    def caches(self) -> dict[str, str | None]:
        """The caches that transformers generates with, by its name in the table."""
        static = {STATIC: "static"} if self.peers == ALL_PEERS else {}
        return {peers.TRANSFORMERS: None, **static}


@dataclass(frozen=True)
class Bench:
    """What every section needs."""

    subject: Subject
    meter: Meter
    table: Table
    work: Work

    def speed(self, measure: str, who: str, amount: int, call: Callable[[], object]) -> None:
        """Add the tokens a second of a call that makes or reads so many; ours must not fail."""
        rate = partial(self.meter.rate, amount, "tokens/s", call)
        self.table.add(measure, who, rate() if who.startswith(OURS) else attempt(rate))

    def peer(self, measure: str, who: str, call: Callable[[], None]) -> None:
        """Run a peer's rows of the table; if it fails, add the reason."""
        if self.work.has_peers and isinstance(failure := attempt(call), str):
            self.table.add(measure, who, failure)

    @property
    def longest(self) -> int:
        """Tokens over which ours and the peer's are compared."""
        return min(
            4 * self.work.tokens, self.subject.config.max_position_embeddings - PROMPT_TOKENS
        )


def attempt(call: Callable[[], Result]) -> Result | str:
    """Call a peer; return what it raised as a text."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001 - a peer may fail in any way, and the rest goes on
        first = (str(error).strip().splitlines() or [""])[0]
        return f"{type(error).__name__}: {first}"[:120]
