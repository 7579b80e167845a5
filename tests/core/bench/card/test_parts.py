"""Parts in processes of their own: none takes another with it, and all that is found is kept."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from seed_core.bench.card import parts as card
from seed_core.bench.card import processes


@pytest.fixture
def setting(tmp_path):
    root = Path(__file__).parents[4]
    return card.Setting(card.TINY, "cpu", {"device": None}, None, tmp_path / "work", root)


def part(name, program, limit=60, **options):
    """A part that runs a program of a few lines; FINDINGS in it is its file."""

    def command(setting, folder):
        text = program.replace("FINDINGS", repr(str(folder / "findings.jsonl")))
        return [sys.executable, "-c", text]

    return card.Part(name, limit, command, **options)


def outcomes(setting, *parts, seconds=60):
    return dict(card.run_all(parts, setting, time.monotonic() + seconds))


FOUND = """
from pathlib import Path
from seed_core.bench.card.findings import Findings
Findings(Path(FINDINGS)).add("speed", 3.0, "tokens/s", True)
"""


def test_a_part_that_crashes_or_hangs_takes_no_other_with_it(setting):
    found = outcomes(
        setting,
        part("crash", FOUND + "import os; os.kill(os.getpid(), 9)"),
        part("error", FOUND + "raise MemoryError('no room')"),
        part("hang", FOUND + "import time\ndef asleep(): time.sleep(99)\nasleep()", limit=10),
        part("good", FOUND),
    )
    statuses = {name: outcome.status for name, outcome in found.items()}
    assert statuses == {
        "crash": "failed",
        "error": "failed",
        "hang": "out of time",
        "good": "ended",
    }
    for outcome in found.values():  # what was found before counts
        assert [str(finding) for finding in outcome.found] == ["speed: 3 tokens/s, ok"]
    assert found["error"].note == "MemoryError: no room"
    assert found["error"].log[-1] == "MemoryError: no room"
    assert any("in asleep" in line for line in found["hang"].log)
    assert not list(setting.folder.iterdir())


def test_parts_share_the_time_that_is_left(setting, monkeypatch):
    limits = {}

    def run(command, log, limit, *rest):
        limits[log.parent.name] = limit
        monkeypatch.setattr(card.time, "monotonic", lambda: before() + 30 * len(limits))
        return processes.Ended(30.0, 0)

    before = time.monotonic
    monkeypatch.setattr(processes, "run", run)
    parts = [part(str(number), "", limit=40) for number in range(3)]
    found = outcomes(setting, *parts, seconds=65)
    assert limits["0"] == 40
    assert 30 < limits["1"] < 36
    assert found["2"].status == "not run"
    assert "s were left" in found["2"].note


def test_a_failed_gpu_test_is_told_by_its_name(tmp_path):
    (tmp_path / "test_it.py").write_text("def test_a(): pass\ndef test_b(): assert 1 == 2\n")
    command = [sys.executable, "-m", "pytest", "-q", "--junitxml=tests.xml", "test_it.py"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    total, failed = card.read_tests(tmp_path / "tests.xml")
    assert (total.figure, total.ok, total.note) == (1, False, "1 failed, 0 skipped")
    assert (failed.name, failed.ok) == ("test_it.test_b", False)
    assert "assert 1 == 2" in failed.note
