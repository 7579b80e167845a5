"""The map in CONTRIBUTING.md: every file and folder that it names is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
# A name is told from the pack's folder, or from the one that the sentence is about.
BASES = [
    ROOT / base for base in ("", "seed_core", "nodes", "tests/workflows", "tests/card/invented")
]
BASES += [ROOT / base for base in ("seed_core/cli", "seed_core/fetching")]
NAMED = sorted(set(re.findall(r"`(?:python )?([\w./-]+(?:\.py|\.md|/))`", TEXT)))


def test_the_map_names_the_folders_of_the_library():
    folders = {path.parent.name for path in (ROOT / "seed_core").glob("*/__init__.py")}
    assert folders == {name for name in folders if f"{name}/`" in TEXT}


@pytest.mark.parametrize("name", NAMED)
def test_what_contributing_names_is_there(name):
    assert any((base / name).exists() for base in BASES)
