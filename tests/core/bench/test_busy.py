"""What is timed beside busy processes: the work itself, and processes that do not get done."""

import subprocess
import sys

import pytest

from seed_core.bench import busy

ANSWERS = """
import sys
print("ready", flush=True)
assert sys.stdin.readline() == "go\\n"
print("0.5\\n0.25")
"""


def test_what_the_process_says_is_returned_and_nothing_is_left_running(monkeypatch):
    started, start = [], subprocess.Popen
    monkeypatch.setattr(
        busy.subprocess,
        "Popen",
        lambda *args, **kw: started.append(start(*args, **kw)) or started[-1],
    )
    assert busy.measure([sys.executable, "-c", ANSWERS], busy=1, limit=60) == [0.5, 0.25]
    assert len(started) == 2
    assert all(process.poll() is not None for process in started)


@pytest.mark.parametrize("program", ["import time; time.sleep(99)", "raise SystemExit(1)"])
def test_a_process_that_is_never_ready_has_no_times(program):
    assert busy.measure([sys.executable, "-c", program], busy=0, limit=1) == []


def test_a_row_that_takes_too_long_says_the_limit():
    def command(name, who):
        return [sys.executable, "-c", "import time; time.sleep(99)"]

    row = busy.cells("draw", busy.OURS, 1, 1, command)
    assert row == ["draw", "ours", "over 1", "over 1", "over 1.0 x"]


@pytest.mark.parametrize("who", busy.WHO)
def test_served_work_says_when_it_is_ready_and_how_long_each_time_took(who):
    program = f"from seed_core.bench import busy; busy.serve('encode', {who!r})"
    seconds = busy.measure([sys.executable, "-c", program], busy=0, limit=120)
    assert len(seconds) == busy.REPEAT
    assert min(seconds) > 0
