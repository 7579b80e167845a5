"""Measure this library beside transformers and diffusers in one run, and print one table.

Not imported by the library: only the command line's ``bench`` needs it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..compute.precision import LLM_PRECISIONS
from ..errors import OptionError
from . import peers
from .meter import Meter, device_name
from .sections import NEEDED, SECTIONS
from .subject import LANGUAGE_ONLY, MINI, SIZES, Subject
from .table import Table
from .work import ALL_PEERS, COMPARED_WITH, NO_PEERS, Bench, Work

__all__ = ["SECTIONS", "SIZES", "BenchOptions", "run_bench"]


@dataclass(frozen=True)
class BenchOptions:
    """What is measured, on what, and how often.

    Attributes:
        size: one of `SIZES`.
        device: where everything computes.
        precision: of both; for fp8 weights a peer has bf16. None is fp16 on CUDA, fp32 elsewhere.
        only: which of `SECTIONS`, in this order; all that the size has if empty.
        repeat: how often each thing is measured, after a first call that does not count.
        tokens: new tokens of a timed reply.
        steps: diffusion steps of a picture.
        peers: one of `COMPARED_WITH`.

    Raises:
        OptionError: a value is outside its range, or the size lacks a section.
    """

    size: str = SIZES[0]
    device: torch.device = torch.device("cpu")
    precision: str | None = None
    only: Sequence[str] = ()
    repeat: int = 3
    tokens: int = 128
    steps: int = 20
    peers: str = ALL_PEERS

    def __post_init__(self) -> None:
        for name, most in (("repeat", 1000), ("tokens", 4096), ("steps", 1000)):
            if not 1 <= getattr(self, name) <= most:
                raise OptionError(f"{name} must lie in 1..{most}; got {getattr(self, name)}")
        if self.size not in SIZES:
            raise OptionError(f"size must be one of {', '.join(SIZES)}; got {self.size!r}")
        if self.peers not in COMPARED_WITH:
            raise OptionError(
                f"peers must be one of {', '.join(COMPARED_WITH)}; got {self.peers!r}"
            )
        if self.precision == "fp8" and self.size == MINI:
            raise OptionError(f"size {MINI} is not stored in fp8; choose another size or precision")
        if wrong := [name for name in self.only if name not in self.sections()]:
            raise OptionError(
                f"size {self.size} has no section {', '.join(wrong)}; it has "
                f"{', '.join(self.sections())}"
            )

    def sections(self) -> tuple[str, ...]:
        """Return the sections that the size has."""
        language_only = self.size in LANGUAGE_ONLY
        return ("load", "decode", "quality") if language_only else tuple(SECTIONS)

    def libraries(self) -> tuple[str, ...]:
        """Return the peers' libraries that have to be there."""
        needed = {x for section in self.only or self.sections() for x in NEEDED[section]}
        # Without peers, diffusers is still what our decoder is built of.
        unused = {peers.TRANSFORMERS} if self.peers == NO_PEERS else set()
        return tuple(name for name in peers.PEERS if name in needed - unused)

    def precision_name(self) -> str:
        """Return the precision, by its usual name."""
        return self.precision or ("fp16" if self.device.type == "cuda" else "fp32")


def run_bench(options: BenchOptions, write: Callable[[str], None]) -> dict[str, Any]:
    """Measure, writing the table line by line; return everything as plain values.

    Raises:
        OptionError: a peer is not installed.
    """
    libraries = options.libraries()
    peers.check_installed(libraries)
    peers.silence(libraries)
    precision = options.precision_name()
    device, versions = device_name(options.device), peers.versions(libraries)
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    write(f"{options.size}, {precision} on {device}; {listed}\n")
    bench = Bench(
        Subject(options.size, options.device, LLM_PRECISIONS[precision]),
        Meter(options.device, options.repeat),
        Table(write),
        Work(options.tokens, options.steps, options.peers),
    )
    # Building a network of transformers or diffusers draws numbers that nobody uses.
    with torch.random.fork_rng(devices=[]):
        for name in options.only or options.sections():
            SECTIONS[name](bench)
            bench.meter.free()
            bench.table.flush()
    facts = {"size": options.size, "precision": precision, "device": device, "versions": versions}
    return {**facts, "rows": bench.table.to_json()}


def save_report(report: dict[str, Any], path: Path) -> None:
    """Write what `run_bench` returned to a JSON file."""
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
