"""A part: one process with a time of its own, and all that it leaves behind, however it ends."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import findings, goals, processes
from .findings import Finding
from .goals import Outcome

BASE = ("torch", "numpy", "PIL", "safetensors", "sentencepiece")
FULL, TINY = "full", "tiny"
LEAST = 10  # seconds with which a part is still begun


@dataclass(frozen=True)
class Setting:
    """Where everything runs.

    Attributes:
        size: full or tiny.
        device: cuda or cpu.
        facts: what torch says of itself and of the card.
        comfyui: the checkout, if one was found.
        host_args: of ComfyUI on a card.
        folder: for large files; everything in it is removed.
    """

    size: str
    device: str
    facts: Mapping[str, Any]
    comfyui: Path | None
    folder: Path
    root: Path
    host_args: str = ""

    @property
    def is_full(self) -> bool:
        """Whether the models have their published sizes."""
        return self.size == FULL


@dataclass(frozen=True)
class Part:
    """One process.

    Attributes:
        name: as on the command line and in the table.
        limit: seconds it may take, where so many are left.
        command: makes the command from the setting and the part's own folder.
        needs: packages.
        why_not: says why it cannot run here; an empty text where it can.
        environment: set for the process.
    """

    name: str
    limit: int
    command: Callable[[Setting, Path], list[str]]
    needs: tuple[str, ...] = ()
    why_not: Callable[[Setting], str] = lambda setting: ""
    environment: Mapping[str, str] = field(default_factory=dict)


def why_not(part: Part, setting: Setting, seconds_left: float) -> str:
    """Say why a part cannot run; an empty text where it can."""
    missing = [name for name in (*BASE, *part.needs) if importlib.util.find_spec(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if reason := part.why_not(setting):
        return reason
    return "" if seconds_left >= LEAST else f"{max(seconds_left, 0):.0f} s were left"


def run_part(part: Part, setting: Setting, limit: float, folder: Path) -> Outcome:
    """Run a part and read what it left behind, however it ended."""
    folder.mkdir(parents=True)
    log = folder / "log.txt"
    places = os.pathsep.join([str(setting.root), str(setting.root / "benchmarks")])
    environment = {"PYTHONPATH": places, "HF_HUB_OFFLINE": "1", **part.environment}
    command = part.command(setting, folder)
    ended = processes.run(command, log, limit, setting.root, environment)
    rows, found = read_rows(folder), [*findings.read(folder / "findings.jsonl")]
    found += read_tests(folder / "tests.xml")
    if ended.code is None:
        status, note = "out of time", f"ended after {ended.seconds:.0f} s"
    elif ended.code:
        status, note = "failed", last_words(log) or f"exit status {ended.code}"
    else:
        status, note = "ended", ""
    is_well = status == "ended" and all(finding.ok is not False for finding in found)
    lines = [] if is_well else processes.tail(log)
    return Outcome(status, note, ended.seconds, found, rows, lines)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the table of a benchmark that came to its end."""
    path = folder / "bench.json"
    if not path.is_file():
        return []
    return list(json.loads(path.read_text(encoding="utf-8"))["rows"])


def read_tests(path: Path) -> list[Finding]:
    """Return what pytest's report says: how many passed, and each that did not."""
    if not path.is_file():
        return []
    cases = list(ET.parse(path).getroot().iter("testcase"))
    bad = {case: [*case.iter("failure"), *case.iter("error")] for case in cases}
    failed = [case for case in cases if bad[case]]
    skipped = [case for case in cases if case.find("skipped") is not None]
    passed = len(cases) - len(failed) - len(skipped)
    note = f"{len(failed)} failed, {len(skipped)} skipped"
    is_good = passed > 0 and not failed
    total = Finding(goals.TESTS, passed, "passed", is_good, note)
    return [total] + [
        Finding(
            f"{case.get('classname')}.{case.get('name')}",
            ok=False,
            note=str(bad[case][0].get("message"))[:500],
        )
        for case in failed
    ]


def last_words(log: Path) -> str:
    """Return the last line of a log that says something."""
    lines = processes.tail(log)
    return lines[-1].strip()[:200] if lines else ""


def run_all(
    parts: Sequence[Part], setting: Setting, deadline: float
) -> Iterator[tuple[str, Outcome]]:
    """Run parts one after the other until a time; yield what became of each."""
    for number, part in enumerate(parts):
        left = deadline - time.monotonic()
        limit = min(part.limit, left)
        if reason := why_not(part, setting, left):
            yield part.name, Outcome("not run", reason)
            continue
        sys.stdout.write(f"--- {part.name}: at most {limit:.0f} s\n")
        sys.stdout.flush()
        folder = setting.folder / f"{number}"
        try:
            yield part.name, run_part(part, setting, limit, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # models of many gigabytes, for one
