"""The goals of the project that a card decides, beside what was found. Judges; measures nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import findings
from .findings import Finding, short

FASTER_THAN_TRANSFORMERS = 1.5
FASTER_TOGETHER = 6.0  # 8 variations to 1, in tokens/s
OURS, LIMIT, TRANSFORMERS = "ours", "limit", "transformers"
ONE, EIGHT = "decode, 1 variation", "decode, 8 variations"
EQUAL_TOKENS = "equal greedy tokens"

TESTS, BF16, FP8, SMALL = "gpu tests", "decode bf16", "decode fp8", "decode small"
COMFYUI, ENCODE, DRAW = "comfyui", "encode", "draw"
MEMORY, MEMORY_ASYNC = "little memory", "little memory async"


@dataclass(frozen=True)
class Outcome:
    """What became of a part.

    Attributes:
        status: ended, failed, out of time, or not run.
        note: why, where it did not end well.
        found: what it wrote down; of a part that failed, until then.
        rows: of the benchmark's parts, its table.
        log: last lines, where it did not end well.
    """

    status: str
    note: str = ""
    seconds: float = 0.0
    found: Sequence[Finding] = ()
    rows: Sequence[Mapping[str, Any]] = ()
    log: Sequence[str] = ()


Measured = tuple[str, bool | None]
"""What the table says, and whether the goal is met; None where that is not for us to say."""


@dataclass(frozen=True)
class Goal:
    """One line of the table.

    Attributes:
        name: what is looked at.
        wanted: what it should be; empty where the figure is only told.
        part: whose figures it needs.
        only_full: whether it says nothing in tiny sizes.
        measure: makes the cell of a part that ran; None where it did not get so far.
    """

    name: str
    wanted: str
    part: str
    measure: Callable[[Outcome], Measured | None]
    only_full: bool = False


def figure(outcome: Outcome, measure: str, who: str = OURS) -> float | None:
    """Return the median of a row of the benchmark."""
    for row in outcome.rows:
        if (row["measure"], row["who"]) == (measure, who) and row["figure"]:
            return float(row["figure"]["median"])
    return None


def found(outcome: Outcome, name: str) -> list[Finding]:
    """Return the findings of a name."""
    return [finding for finding in outcome.found if finding.name == name]


def faster(measure: str, other: str, at_least: float) -> Callable[[Outcome], Measured | None]:
    """Compare ours with another's row."""

    def compare(outcome: Outcome) -> Measured | None:
        ours, theirs = figure(outcome, measure), figure(outcome, measure, other)
        if not (ours and theirs):
            return None
        text = f"{ours / theirs:.2f} x ({short(ours)} to {short(theirs)} tokens/s)"
        return text, ours / theirs >= at_least

    return compare


def together(outcome: Outcome) -> Measured | None:
    """Compare 8 variations with 1."""
    one, eight = figure(outcome, ONE), figure(outcome, EIGHT)
    if not (one and eight):
        return None
    return f"{eight / one:.2f} x ({short(eight)} tokens/s)", eight / one >= FASTER_TOGETHER


def share(outcome: Outcome) -> Measured | None:
    """Tell the share of the limit."""
    ours, limit = figure(outcome, ONE), figure(outcome, ONE, LIMIT)
    return (f"{ours / limit:.0%} ({short(ours)} tokens/s)", None) if ours and limit else None


def agreement(outcome: Outcome) -> Measured | None:
    """Tell how often fp8 chooses the token of bf16."""
    share = figure(outcome, "tokens as in bf16", "ours, fp8")
    return None if share is None else (f"{short(share)} %", None)


def equal_tokens(outcome: Outcome) -> Measured | None:
    """Compare the greedy tokens with transformers'."""
    for row in outcome.rows:
        if (row["measure"], row["who"]) == (EQUAL_TOKENS, TRANSFORMERS) and row["figure"]:
            count, of = round(row["figure"]["median"]), int(row["note"].removeprefix("of "))
            return f"{count} of {of}", count == of
    return None


def verdicts(*names: str) -> Callable[[Outcome], Measured | None]:
    """Tell findings, all of which have to be right where that is known; None until all are there."""

    def judge(outcome: Outcome) -> Measured | None:
        lists = [found(outcome, name) for name in names]
        judged = [finding for each in lists for finding in each if finding.ok is not None]
        if not all(lists):
            return None
        is_met = all(finding.ok for finding in judged) if judged else None
        return told([each[-1] for each in lists]), is_met

    return judge


def told(found: Sequence[Finding]) -> str:
    """Return findings as one cell: figures, or notes, or the verdict itself."""
    cells = []
    for one in found:
        if one.figure is None:
            cells.append({True: "yes", False: "no", None: ""}[one.ok] or one.note)
        else:
            count = one.note if one.note.startswith("of ") else ""
            cells.append(f"{short(one.figure)} {one.unit} {count}")
    return "; ".join(dict.fromkeys(cell.strip() for cell in cells))[:120]


def figures(*names: str) -> Callable[[Outcome], Measured | None]:
    """Tell figures that nothing is asked of."""

    def tell(outcome: Outcome) -> Measured | None:
        lists = [found(outcome, name) for name in names]
        return (told([each[-1] for each in lists]), None) if all(lists) else None

    return tell


def rates(*measures: str) -> Callable[[Outcome], Measured | None]:
    """Tell rows of the benchmark whose names begin so; ours, and how many times better."""

    def tell(outcome: Outcome) -> Measured | None:
        cells: dict[str, str] = {}
        for row in outcome.rows:
            measure, figure = row["measure"], row["figure"]
            if not figure or not measure.startswith(measures):
                continue
            if row["who"] == OURS:
                cells[measure] = f"{short(figure['median'])} {figure['unit']}"
            elif row["ratio"] and measure in cells:
                cells[measure] += f" ({row['ratio']:.2f} x {row['who']})"
        return ("; ".join(cells.values()), None) if cells else None

    return tell


def tests_pass(outcome: Outcome) -> Measured | None:
    """Tell how many of the gpu tests passed."""
    for finding in found(outcome, TESTS):
        return f"{short(finding.figure or 0)} passed, {finding.note}", finding.ok
    return None


_TOGETHER = f"at least {FASTER_TOGETHER:.0f} x 1 variation"
_MEMORY = verdicts(findings.EQUAL_SHORT, findings.LEAKED)
_STOPPED = verdicts(*(findings.STOPPED.format(what) for what in ("reply", "picture")))

GOALS = (
    Goal("tests that need a card", "all pass", TESTS, tests_pass),
    Goal(
        "8B in bf16, 1 variation",
        f"at least {FASTER_THAN_TRANSFORMERS} x transformers' default generate",
        BF16,
        faster(ONE, TRANSFORMERS, FASTER_THAN_TRANSFORMERS),
        only_full=True,
    ),
    Goal("8B in bf16, 8 variations", _TOGETHER, BF16, together, only_full=True),
    Goal("8B in bf16, share of what the memory allows", "", BF16, share, only_full=True),
    Goal("8B in fp8, share of what the memory allows", "", FP8, share, only_full=True),
    Goal("8B in fp8, 8 variations", _TOGETHER, FP8, together, only_full=True),
    Goal("8B, tokens in fp8 as in bf16", "", FP8, agreement, only_full=True),
    Goal("8B in bf16, reading a prompt", "", BF16, rates("prefill"), only_full=True),
    Goal("greedy tokens as transformers', seed-mini in fp32", "all", SMALL, equal_tokens),
    Goal("greedy tokens as transformers', 8B in bf16", "all", BF16, equal_tokens, only_full=True),
    Goal("greedy tokens with graphs as without", "all", MEMORY, verdicts(findings.EQUAL_GRAPHS)),
    Goal(
        "a reply with under 300 MB of free memory on the card",
        "the one it was, nothing leaks",
        MEMORY,
        _MEMORY,
    ),
    Goal("the same with CUDA's own allocator", "likewise", MEMORY_ASYNC, _MEMORY),
    Goal("second SEED Decode in ComfyUI", "moves nothing", COMFYUI, verdicts(findings.MOVED)),
    Goal("its time to the first step", "", COMFYUI, figures(findings.SECOND_START)),
    Goal("second SEED Generate", "the same reply", COMFYUI, verdicts(findings.SAME_REPLY)),
    Goal("a LoRA on and off", "each its own reply", COMFYUI, verdicts(findings.LORA)),
    Goal("Stop in the middle of a reply, of a picture", "within 2 s", COMFYUI, _STOPPED),
    Goal("unloading", "gives the memory back", COMFYUI, verdicts(findings.UNLOADED)),
    Goal("most memory in use in ComfyUI, all told", "", COMFYUI, figures(findings.MOST)),
    Goal("encode, batch 1, 8, 64", "", ENCODE, rates("encode, batch"), only_full=True),
    Goal("draw, 768 pixels, 20 steps", "", DRAW, rates("draw,"), only_full=True),
)

NOT_FOUND = "did not get so far"


def table(outcomes: Mapping[str, Outcome], is_full: bool = True) -> list[str]:
    """Return the table as Markdown; without outcomes, the goals alone."""
    lines = ["| what | goal | found | met |", "|---|---|---|---|"]
    for goal in GOALS:
        text, met = cells(goal, outcomes.get(goal.part), is_full)
        lines.append(f"| {goal.name} | {goal.wanted} | {text} | {met} |")
    return lines


def cells(goal: Goal, outcome: Outcome | None, is_full: bool) -> tuple[str, str]:
    """Return what was found for a goal, and whether it is met."""
    if outcome is None:
        return "", ""
    if goal.only_full and not is_full and outcome.status == "ended":
        return "not told: tiny sizes", ""
    measured = goal.measure(outcome)
    if measured is None:
        reason = ": ".join(filter(None, (outcome.status, outcome.note)))
        return (NOT_FOUND if outcome.status == "ended" else reason).replace("|", "/"), ""
    text, met = measured
    return text.replace("|", "/"), {True: "yes", False: "**no**", None: ""}[met]
