"""What a part found: figures and verdicts, written down at once so that a crash loses none."""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

# Names of findings that stand in the table, too.
EQUAL_GRAPHS = "greedy tokens with graphs as without"
EQUAL_SHORT = "greedy tokens with little memory as with much"
LEFT = "free memory of the card while generating"
LEAKED = "memory of the card that is gone afterwards"
MOVED = "a further Decode, moved to the card"
SECOND_START = "second Decode, to its first step"
UNLOADED = "memory of the card after unloading, more than before"
SAME_REPLY = "second Generate gives the same reply"
LORA = "a LoRA changes the reply, and none gives the old one back"
MOST = "most memory in use"
STOPPED = "Stop in the middle of a {}, to its end"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what it is.
        figure: how much of `unit`; None for a verdict without a number.
        ok: whether it is as it has to be; None if nothing is asked of it.
        note: what else there is to say.
        peak: the most memory in use meanwhile, in GiB.
    """

    name: str
    figure: float | None = None
    unit: str = ""
    ok: bool | None = None
    note: str = ""
    peak: float | None = None

    def __str__(self) -> str:
        verdict = {None: "", True: "ok", False: "WRONG"}[self.ok]
        figure = "" if self.figure is None else f"{short(self.figure)} {self.unit}".strip()
        peak = "" if self.peak is None else f"peak of memory {self.peak:.2f} GiB"
        told = ", ".join(filter(None, (figure, verdict, peak, self.note)))
        return f"{self.name}: {told}"


class Findings:
    """Adds findings to a file, one line each.

    Args:
        path: the file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(
        self,
        name: str,
        figure: float | None = None,
        unit: str = "",
        ok: bool | None = None,
        note: str = "",
        peak: float | None = None,
    ) -> None:
        """Write a finding down, and print it."""
        finding = Finding(name, figure, unit, ok, note, peak)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(finding)) + "\n")
        sys.stdout.write(f"{finding}\n")
        sys.stdout.flush()

    @contextlib.contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Make an error in the block a finding, and go on after it."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever went wrong, the rest can still be found
            traceback.print_exc()
            self.add(name, ok=False, note=f"{type(error).__name__}: {error}"[:1000])


def read(path: Path) -> list[Finding]:
    """Return what was written down; a last line that is cut is left out."""
    if not path.is_file():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    return [Finding(**json.loads(line)) for line in whole.splitlines()]


def short(value: float) -> str:
    """Return a number with about three digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
