"""What people are told to type, in each of their shells."""

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
