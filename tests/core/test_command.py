"""What people are told to type, in each of their shells."""

import re
import shlex
import subprocess
import sys

import pytest

from seed_core.__main__ import main
from seed_core.command import PACK, command_line, quoted


def test_the_command_runs_in_any_folder(tmp_path):
    words = shlex.split(command_line("fetch"))
    assert words[1:] == [str(PACK), "fetch"]
    words[1:1] = ["-I"]  # as the portable version's Python starts
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "seed-tokenizer-2: " in done.stdout


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([r"C:\c\python.exe", r"C:\c\seed-llama", "fetch"], r"C:\c\python.exe C:\c\seed-llama fetch"),
        ([r"C:\c\python.exe", r"C:\my c\seed"], r'C:\c\python.exe "C:\my c\seed"'),
        (
            [r"C:\Program Files (x86)\python.exe", "fetch"],
            r'"C:\Program Files (x86)\python.exe" fetch (in PowerShell with & before it)',
        ),
        ([r"C:\a&b\python.exe"], r'"C:\a&b\python.exe" (in PowerShell with & before it)'),
        ([r"C:\Künstler\python.exe"], r"C:\Künstler\python.exe"),
    ],
)  # fmt: skip
def test_windows_needs_quotes_around_spaces_and_powershell_a_sign_before_them(words, line):
    assert quoted(words, is_windows=True) == line


def test_other_shells_read_the_words_back():
    words = ["/opt/my python/bin/python", "/home/it's/seed-llama", "fetch", "$HOME"]
    assert shlex.split(quoted(words, is_windows=False)) == words


def test_help_names_the_command_as_it_was_started(monkeypatch, capsys):
    for started, named in (
        (str(PACK), f"python {PACK}"),
        ("/x/__main__.py", "python -m seed_core"),
    ):
        monkeypatch.setattr("sys.argv", [started, "fetch", "--help"])
        with pytest.raises(SystemExit):
            main(["fetch", "--help"])
        told = capsys.readouterr().out
        assert f"usage: {named} fetch" in told
        assert f"  {named} fetch seed-tokenizer-2" in told


def test_without_the_pack_around_it_the_library_is_run_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr("seed_core.command.PACK", tmp_path)
    assert command_line("demo").endswith(" -m seed_core demo")
    assert sys.executable in command_line("demo")


# --- what people read and type, with a Python that imports nothing from where it is started ---

TEXTS = (PACK / "README.md", *sorted((PACK / "nodes" / "web" / "docs").rglob("*.md")))
TYPED = re.compile(r"python (custom_nodes/seed-llama [^\n`]+?)(?:  |`|$)", re.MULTILINE)
COMMANDS = sorted({line for path in TEXTS for line in TYPED.findall(path.read_text("utf-8"))})


def test_readme_and_help_pages_give_commands():
    assert {line.split()[1] for line in COMMANDS} == {"fetch", "convert", "decode"}


@pytest.mark.parametrize("line", COMMANDS)
def test_what_readme_and_help_pages_give_runs_in_the_folder_of_a_comfyui(line, tmp_path):
    """But for what would go online or take long, which tells of itself instead."""
    (tmp_path / "custom_nodes").mkdir()
    (tmp_path / "custom_nodes" / "seed-llama").symlink_to(PACK)
    only_lists = line.endswith(" fetch")
    words = [sys.executable, "-I", *shlex.split(line), *(() if only_lists else ("--help",))]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = "seed-tokenizer-2: " if only_lists else "usage: python custom_nodes/seed-llama "
    assert told in done.stdout
