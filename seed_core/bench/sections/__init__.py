"""The sections of the table, a module each, with the libraries that each compares with.

Each section runs ours, frees it, then runs the peer. A peer that fails becomes a text in the table.
"""

from __future__ import annotations

from collections.abc import Callable

from .. import peers
from ..work import Bench
from . import decode, draw, encode, load, quality

SECTIONS: dict[str, Callable[[Bench], None]] = {
    "load": load.load,
    "encode": encode.encode,
    "decode": decode.decode,
    "draw": draw.draw,
    "quality": quality.quality,
}

NEEDED: dict[str, tuple[str, ...]] = {
    "load": peers.PEERS,
    "encode": (peers.TRANSFORMERS,),
    "decode": (peers.TRANSFORMERS,),
    "draw": peers.PEERS,
    "quality": (),
}
