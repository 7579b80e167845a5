"""What breaks on Windows alone, looked for everywhere.

That no text file is opened without its encoding is ruff's PLW1514.
"""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from seed_core.cli.program import build_parser
from seed_core.models.names import sample_pictures

ROOT = Path(__file__).parents[3]
SOURCES = sorted(
    path for folder in ("nodes", "seed_core") for path in (ROOT / folder).rglob("*.py")
)
# Windows has no fork, and its processes start over: none of ours makes another but torch's, which
# make samples. A pipe reaches these there as well.
ELSEWHERE_ONLY = {"fcntl", "grp", "pty", "pwd", "resource", "termios"}
ELSEWHERE_ONLY |= {f"multiprocessing.{name}" for name in ("Process", "Pool", "get_context")}
ELSEWHERE_ONLY |= {"os.fork", "os.forkpty", "os.getuid", "os.geteuid", "os.mkfifo", "os.statvfs"}
DEVICES = {"con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(1, 10))}
LONGEST_PATH = 120  # characters, of the 260 that a path may have with the folders above the pack
CONSOLE = {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0", "LC_ALL": "C", "OMP_NUM_THREADS": "1"}
FILE_NAMES = {"LC_ALL": "C.UTF-8"}  # Windows keeps them whatever the console can show


@pytest.fixture(scope="module")
def tracked():
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"git tells no files here: {getattr(error, 'stderr', error)}")
    return [name for name in found.stdout.split("\0") if name]


def test_every_file_may_have_its_name_there(tracked):
    for name in tracked:
        assert name.isascii()
        assert not re.search(r'[<>:"\\|?*\x00-\x1f]', name)
        assert len(name) <= LONGEST_PATH
        for part in name.split("/"):
            assert not part.endswith((" ", "."))
            assert part.partition(".")[0].lower() not in DEVICES


def test_no_two_files_differ_by_case_alone(tracked):
    """Nor two folders: there, one of them would hold what both do."""
    names = {parent for name in tracked for parent in (name, *map(str, Path(name).parents))}
    assert len({name.lower() for name in names}) == len(names)


def names_used(path):
    """Modules that a file imports, and attributes of `os` that it asks for."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_source_file_says_and_uses_nothing_that_windows_lacks(path):
    """Plain ASCII: whatever it logs, a console of any encoding can show."""
    assert path.read_bytes().isascii()
    assert not ELSEWHERE_ONLY & set(names_used(path))


def run(program, folder, **environment):
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, **CONSOLE, **environment},
        capture_output=True,
        timeout=300,
        check=False,
    )


def commands():
    (of_all,) = (action for action in build_parser()._actions if action.choices)
    return sorted(of_all.choices)


def test_every_help_page_shows_on_a_console_of_western_windows(tmp_path):
    assert {"demo", "fetch"} <= set(commands())
    pages = [["--help"], *([name, "--help"] for name in commands())]
    program = f"""
from seed_core.__main__ import main
for page in {pages}:
    try:
        main(page)
    except SystemExit as end:
        assert end.code == 0
assert main(["fetch"]) == 0
"""
    found = run(program, tmp_path)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count(b"usage: ") == len(pages)


def test_a_file_name_that_the_console_cannot_show_is_no_error(tmp_path):
    """What is written does not depend on it; what is said has a ? where a letter is missing."""
    folder = tmp_path / "\u7a2e"  # "seed"
    folder.mkdir()
    picture, codes = str(sample_pictures()["fox_on_yellow"]), folder / "\u72d0.json"
    program = f"""
from seed_core.__main__ import main
assert main(["encode", {picture!a}, "-o", {str(codes)!a}]) == 0
assert main(["encode", {str(folder / "gone.png")!a}]) == 1
"""
    found = run(program, tmp_path, **FILE_NAMES)
    assert found.returncode == 0, found.stderr
    assert codes.is_file()
    assert b"?.json" in found.stdout
    assert b"gone.png" in found.stderr


def test_the_demo_says_what_it_does_on_a_console_of_western_windows(tmp_path):
    """Its progress bar is drawn in characters that the console has."""
    program = """
import torch
from seed_core.cli import demo
from seed_core.__main__ import main
torch.set_num_threads(1)
demo.RECONSTRUCTED, demo.DRAWN, demo.INSTRUCTIONS, demo.QUESTIONS = (
    names[:1] for names in (demo.RECONSTRUCTED, demo.DRAWN, demo.INSTRUCTIONS, demo.QUESTIONS)
)
assert main(["demo", "-o", "sheet.png"]) == 0
"""
    found = run(program, tmp_path)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "sheet.png").is_file()
    assert b"wrote " in found.stdout
    assert b"100%|##" in found.stderr
