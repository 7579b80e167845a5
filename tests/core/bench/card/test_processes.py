"""One command in a process of its own."""

import sys
import time

from seed_core.bench.card import processes


def test_what_a_part_has_started_ends_with_it(tmp_path):
    """A server, say, that a part leaves behind when its time is over."""
    alive = tmp_path / "alive"
    child = f"import pathlib, time\nfor i in range(99): pathlib.Path({str(alive)!r}).touch(); time.sleep(.05)"
    program = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(99)"
    start = time.monotonic()
    ended = processes.run([sys.executable, "-c", program], tmp_path / "log", 2, tmp_path, {})
    assert ended.code is None
    assert time.monotonic() - start < 30
    assert alive.exists()
    alive.unlink()
    time.sleep(0.5)
    assert not alive.exists()
