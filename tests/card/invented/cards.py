"""The cards that there are none of, and what one action on them is measured to have done.

Needs neither torch nor ComfyUI: both the tests and the processes that play on a card read it.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

GIB = 2**30


@dataclass(frozen=True)
class Model:
    """What one kind of card says of itself.

    Attributes:
        gigabytes: its memory, in GiB.
        capability: its compute capability; 8.9 and above multiply fp8 numbers.
    """

    gigabytes: int
    capability: tuple[int, int]


MODELS = {
    "RTX 3050 Laptop": Model(4, (8, 6)),
    "RTX 3050": Model(6, (8, 6)),
    "RTX 4060": Model(8, (8, 9)),
    "RTX 3060": Model(12, (8, 6)),
    "RTX 4070": Model(12, (8, 9)),
    "RTX 4080": Model(16, (8, 9)),
    "RTX 3090": Model(24, (8, 6)),
    "RTX 4090": Model(24, (8, 9)),
    "H100": Model(80, (9, 0)),
}
"""To add a card, add a line here; a test names it, followed by ComfyUI's launch arguments."""


@dataclass(frozen=True)
class Row:
    """A card, and how ComfyUI was started on it.

    Attributes:
        card: one of `MODELS`.
        arguments: ComfyUI's launch arguments.
    """

    card: str
    arguments: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Row":
        """Read a row as tests write it, such as ``"RTX 4090 --novram"``."""
        card, *arguments = text.split(" --")
        if card not in MODELS:
            raise ValueError(f"there is no card {card!r} in MODELS")
        return cls(card, tuple(f"--{argument}" for argument in arguments))

    @property
    def model(self) -> Model:
        """What the card says of itself."""
        return MODELS[self.card]

    @property
    def allocator(self) -> str:
        """Torch's allocator: CUDA's own, which the host asks for, unless told otherwise."""
        return "native" if "--disable-cuda-malloc" in self.arguments else "cudaMallocAsync"


@dataclass
class Readiness:
    """One time that a model was made ready, up to the next.

    Attributes:
        model: the class of its network.
        asked: bytes of working memory asked for.
        used: most bytes in use at once from then on, beyond what was there when it was ready.
    """

    model: str
    asked: int
    used: int


@dataclass
class Graph:
    """One capture: what it launches when replayed."""

    launches: int
    replays: int = 0


@dataclass
class Record:
    """What one action did on the card.

    Attributes:
        action: its words.
        error: kind and message of what it raised; empty if nothing.
        up: bytes copied from main memory to the card.
        down: bytes copied back.
        copies: the same by direction and line of code: direction, line, bytes, times.
        waits: times the processor waited for the card, by what for and line of code.
        launches: kernels, by operation.
        planned: calls of attention for which cuDNN might be chosen, which plans for each new shape.
        masks: the shapes of attention's masks, without the last side.
        readied: each time that a model was made ready.
        graphs: captures that were tried.
        on_card: bytes of weights on the card at the end, by class of network.
        live: bytes on the card at the end, of everything.
        patchers: how the host moves each network's weights, by class of network.
        made: the tensors that the node put on wires, as "dtype [shape] device".
    """

    action: str
    error: str = ""
    up: int = 0
    down: int = 0
    copies: list[tuple[str, str, int, int]] = field(default_factory=list)
    waits: dict[str, int] = field(default_factory=dict)
    launches: dict[str, int] = field(default_factory=dict)
    planned: int = 0
    masks: list[list[int]] = field(default_factory=list)
    readied: list[Readiness] = field(default_factory=list)
    graphs: list[Graph] = field(default_factory=list)
    on_card: dict[str, int] = field(default_factory=dict)
    live: int = 0
    patchers: dict[str, str] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Record":
        """Read what `to_json` made."""
        readied = [Readiness(**each) for each in fields.pop("readied")]
        graphs = [Graph(**each) for each in fields.pop("graphs")]
        copies = [tuple(each) for each in fields.pop("copies")]
        return cls(readied=readied, graphs=graphs, copies=copies, **fields)
