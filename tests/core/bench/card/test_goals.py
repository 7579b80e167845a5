"""The table of goals: what a card decides, judged by what was found."""

import pytest

from seed_core.bench.card import findings, goals
from seed_core.bench.card.findings import Finding
from seed_core.bench.card.goals import Outcome


def row(measure, who, median, note="", ratio=None):
    figure = {"median": median, "unit": "tokens/s"}
    return {"measure": measure, "who": who, "figure": figure, "note": note, "ratio": ratio}


def lines(**outcomes):
    table = goals.table({name.replace("_", " "): x for name, x in outcomes.items()})
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]
    return {name: (found, met) for name, _, found, met in cells}


@pytest.mark.parametrize(("theirs", "eight", "met"), [(100, 960, "yes"), (140, 600, "**no**")])
def test_the_table_judges_by_the_goals(theirs, eight, met):
    rows = [row("decode, 1 variation", "ours", 160), row("decode, 8 variations", "ours", eight)]
    rows += [row("decode, 1 variation", "transformers", theirs)]
    rows += [row("decode, 1 variation", "limit", 320)]
    rows += [row("equal greedy tokens", "transformers", 384, "of 384")]
    table = lines(decode_bf16=Outcome("ended", rows=rows))
    assert table["8B in bf16, 1 variation"][1] == met
    assert table["8B in bf16, 8 variations"][1] == met
    assert table["8B in bf16, share of what the memory allows"] == ("50% (160 tokens/s)", "")
    assert table["greedy tokens as transformers', 8B in bf16"] == ("384 of 384", "yes")


def test_one_wrong_finding_of_several_fails_a_goal():
    found = [
        Finding(findings.EQUAL_SHORT, 300, "tokens", True, "of 300"),
        Finding(findings.EQUAL_SHORT, 12, "tokens", False, "of 300"),
        Finding(findings.EQUAL_SHORT, 300, "tokens", True, "of 300"),
        Finding(findings.LEAKED, 0.0, "MiB", True),
    ]
    table = lines(little_memory=Outcome("ended", found=found))
    assert table["a reply with under 300 MB of free memory on the card"][1] == "**no**"
    good = [one for one in found if one.ok]
    table = lines(little_memory=Outcome("ended", found=good))
    assert table["a reply with under 300 MB of free memory on the card"][1] == "yes"
    # A part that died before it looked at everything has not met the goal.
    table = lines(little_memory=Outcome("failed", "no room", found=good[:1]))
    assert table["a reply with under 300 MB of free memory on the card"] == ("failed: no room", "")
