"""What the parts found, told on the console and written to a JSON file."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import findings, goals
from .goals import Outcome
from .parts import Setting


def tell(name: str, outcome: Outcome) -> None:
    """Print what became of a part."""
    lines = [f"{name}: {': '.join(filter(None, (outcome.status, outcome.note)))}"]
    if outcome.seconds:
        lines.append(f"  {outcome.seconds:.0f} s")
    lines += [f"  {finding}" for finding in outcome.found]
    lines += [f"  {row['measure']}, {row['who']}: {row_words(row)}" for row in outcome.rows]
    lines += [f"  | {line}" for line in outcome.log]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def row_words(row: Mapping[str, Any]) -> str:
    """Return a row of the benchmark in words."""
    if not row["figure"]:
        return f"none ({row['note']})"
    median, unit = row["figure"]["median"], row["figure"]["unit"]
    ratio = f", ours is {row['ratio']:.2f} x" if row["ratio"] else ""
    return f"{findings.short(median)} {unit}{ratio} {row['note']}".strip()


def save(path: Path, setting: Setting, outcomes: Mapping[str, Outcome]) -> None:
    """Write everything found so far."""
    parts = {name: dataclasses.asdict(outcome) for name, outcome in outcomes.items()}
    table = [
        {"what": goal.name, "goal": goal.wanted, "found": text, "met": met}
        for goal in goals.GOALS
        for text, met in [goals.cells(goal, outcomes.get(goal.part), setting.is_full)]
    ]
    facts = {"size": setting.size, "facts": dict(setting.facts)}
    report = {**facts, "table": table, "parts": parts}
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def is_bad(outcome: Outcome) -> bool:
    """Tell whether a part did not end well or found something wrong."""
    wrong = any(finding.ok is False for finding in outcome.found)
    return wrong or outcome.status in ("failed", "out of time")
