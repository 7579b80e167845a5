"""What a loader's error tells people to type runs as it stands, also with an isolated Python."""

import shlex
import subprocess

import pytest

KINDS = ("TOKENIZER", "LLM", "DECODER")


def run(line, folder):
    """As the Python of the portable version starts; what would go online tells of itself instead."""
    python, *words = shlex.split(line)
    return subprocess.run(
        [python, "-I", *words, "--help"], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", KINDS)
def test_what_the_error_of_a_missing_model_gives_runs_in_any_folder(pack, tmp_path, name):
    kind = getattr(pack.kinds, name)
    with pytest.raises(pack.seed_core.errors.CheckpointError) as caught:
        kind.find("gone")
    done = run(str(caught.value).splitlines()[-1], tmp_path)
    assert done.returncode == 0, done.stderr
    assert f" fetch {kind.download}" in str(caught.value)
    assert done.stdout.startswith("usage: ")


def test_what_the_error_of_quantised_weights_gives_runs_in_any_folder(pack, tmp_path):
    from importlib import import_module

    quantization = import_module(f"{pack.seed_core.__name__}.models.quantization")
    told, _, line = quantization.HOW_TO_CONVERT.partition(": ")
    done = run(line, tmp_path)
    assert done.returncode == 0, done.stderr
    assert told == "in a terminal"
    assert " convert " in done.stdout
