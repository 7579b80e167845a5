"""The command line on the bundled model, end to end."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image

from seed_core import SeedCodes
from seed_core.__main__ import main
from seed_core.codes.text import codes_from_json, codes_to_json
from seed_core.models import names

FOX = str(names.sample_pictures()["fox_on_yellow"])
CAT = str(names.sample_pictures()["cat_on_orange"])


@pytest.fixture
def codes_file(tmp_path, sample_codes):
    path = tmp_path / "codes.json"
    path.write_text(codes_to_json(SeedCodes(sample_codes, "seed-mini", 512)), encoding="utf-8")
    return path


def test_encode_writes_the_codes_of_its_pictures(tmp_path, sample_codes, capsys):
    output = tmp_path / "out.json"
    assert main(["encode", FOX, CAT, "-o", str(output)]) == 0
    codes = codes_from_json(output.read_text(encoding="utf-8"))
    assert torch.equal(codes.values, sample_codes[:2])
    assert codes.family == "seed-mini"
    assert str(output) in capsys.readouterr().out


def test_decode_writes_one_picture_a_row(tmp_path, codes_file, capsys):
    output = tmp_path / "out.png"
    arguments = ["decode", str(codes_file), "-o", str(output), "--steps", "2"]
    assert main([*arguments, "--guidance-scale", "2", "--width", "64", "--height", "96"]) == 0
    written = [line.removeprefix("wrote ") for line in capsys.readouterr().out.splitlines()]
    assert len(written) == 3
    for path in written:
        with Image.open(path) as picture:
            assert picture.size == (64, 96)


def test_decode_row_i_uses_seed_plus_i(tmp_path, codes_file):
    def decode(name, codes, seed):
        arguments = ["decode", str(codes), "-o", str(tmp_path / name), "--steps", "1"]
        assert main([*arguments, "--seed", str(seed)]) == 0

    record = json.loads(codes_file.read_text(encoding="utf-8"))
    second = tmp_path / "second.json"
    second.write_text(json.dumps({**record, "codes": record["codes"][1:2]}), encoding="utf-8")
    decode("all.png", codes_file, 10)
    decode("one.png", second, 11)
    assert (tmp_path / "all_01.png").read_bytes() == (tmp_path / "one.png").read_bytes()


def test_chat_answers_about_a_picture(capsys):
    arguments = ["chat", "What is this?", "--picture", FOX, "--temperature", "0"]
    assert main([*arguments, "--max-new-tokens", "40"]) == 0
    assert capsys.readouterr().out.strip() == "It is a fox."


def test_chat_writes_the_codes_it_drew(tmp_path, capsys):
    output = tmp_path / "reply.json"
    arguments = ["chat", "a panda on blue", "--reply", "image", "--temperature", "0"]
    assert main([*arguments, "--max-new-tokens", "40", "-o", str(output)]) == 0
    assert len(codes_from_json(output.read_text(encoding="utf-8"))) == 1
    assert "<image>" in capsys.readouterr().out


def test_chat_takes_codes_in_place_of_pictures(tmp_path, codes_file, capsys):
    record = json.loads(codes_file.read_text(encoding="utf-8"))
    codes_file.write_text(json.dumps({**record, "codes": record["codes"][1:2]}), encoding="utf-8")
    assert main(["chat", "What is this?", "--codes", str(codes_file), "--temperature", "0"]) == 0
    assert capsys.readouterr().out.strip() == "It is a cat."


def test_convert_writes_a_file_that_chat_loads_in_fp8(tmp_path, capsys):
    mini, output = str(names.bundled("llm")), tmp_path / "mini-fp8.safetensors"
    command = ["convert", mini, "-o", str(output), "--precision", "fp8"]
    assert main([*command, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "llm" in said
    assert "in fp8, with config.json, generation_config.json, tokenizer.model" in said
    assert list(tmp_path.iterdir()) == []
    assert main(command) == 0
    digest = hashlib.sha256(output.read_bytes()).hexdigest()
    assert capsys.readouterr().out == f"{said}wrote {output}\nSHA-256 {digest}\n"
    chat = ["chat", "What is this?", "--picture", FOX, "--temperature", "0"]
    assert main([*chat, "--model", str(output), "--precision", "fp8"]) == 0
    assert capsys.readouterr().out == "It is a fox.\n"


def test_convert_leaves_a_file_that_exists_alone(codes_file, capsys):
    output = codes_file.with_suffix(".safetensors")
    output.write_text("mine", encoding="utf-8")
    assert main(["convert", str(names.bundled("llm")), "-o", str(output)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert output.read_text("utf-8") == "mine"
    dry_run = ["convert", str(names.bundled("llm")), "--dry-run", "-o"]
    assert main([*dry_run, str(output)]) == 1
    assert main([*dry_run, str(output.with_suffix(".txt"))]) == 1


def arguments_of(tmp_path):
    names = ("empty.json", "broken.png", "v2.json", "none.json")
    empty, broken, foreign, none = (tmp_path / name for name in names)
    none.write_text(codes_to_json(SeedCodes.empty("seed-mini", 512)), encoding="utf-8")
    empty.write_text("", encoding="utf-8")
    broken.write_bytes(b"no picture")
    record = {"family": "seed-2", "codebook_size": 8192, "codes": [[8000] * 32]}
    foreign.write_text(json.dumps(record), encoding="utf-8")
    return {
        "missing picture": (["encode", str(tmp_path / "gone.png")], "gone.png"),
        "broken picture": (["encode", str(broken)], "broken.png"),
        "missing codes": (["decode", str(tmp_path / "gone.json")], "gone.json"),
        "empty codes": (["decode", str(empty)], "JSON"),
        "codes of no picture": (["decode", str(none)], "none.json holds no picture"),
        "codes of another family": (["decode", str(foreign)], "seed-2"),
        "missing model": (["chat", "hi", "--model", str(tmp_path / "gone")], "gone"),
        "fp8 of other weights": (["chat", "hi", "--precision", "fp8"], "convert FOLDER"),
        "empty prompt": (["chat", ""], "empty"),
        "mark without picture": (["chat", "what is <image>?"], "<image>"),
        "option out of range": (["chat", "hi", "--top-p", "7"], "top_p"),
    }


@pytest.mark.parametrize(
    "case",
    [
        "missing picture",
        "broken picture",
        "missing codes",
        "empty codes",
        "codes of no picture",
        "codes of another family",
        "missing model",
        "fp8 of other weights",
        "empty prompt",
        "mark without picture",
        "option out of range",
    ],
)
def test_a_mistake_is_one_sentence_and_status_1(case, tmp_path, capsys):
    arguments, named = arguments_of(tmp_path)[case]
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert named in captured.err
    assert "Traceback" not in captured.err


UNWRITABLE = [
    (["demo"], "picture.xyz"),
    (["demo"], "gone/picture.png"),
    (["decode", "gone.json"], "picture.xyz"),
    (["decode", "gone.json"], "gone/picture.png"),
    (["encode", "gone.png"], "gone/codes.json"),
    (["chat", ""], "gone/codes.json"),
]


@pytest.mark.parametrize(("command", "output"), UNWRITABLE)
def test_an_output_that_cannot_be_written_is_refused_before_anything_else(
    command, output, tmp_path, capsys
):
    """Before what else is wrong with these commands, and so before a minute of computing."""
    assert main([*command, "-o", str(tmp_path / output)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert output.split("/")[0] in captured.err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["paint"],
        ["encode"],
        ["decode", "x", "--steps", "a"],
        ["convert", "seed-mini"],
        ["encode", "x", "--precision", "fp8"],
        ["decode", "x", "--precision", "fp8"],
    ],
)
def test_a_wrong_command_shows_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_the_module_runs_as_a_program(tmp_path):
    """From another folder, with a console that can show nothing but ASCII."""
    found = subprocess.run(
        [
            sys.executable,
            "-m",
            "seed_core",
            "chat",
            "What is this?",
            "--picture",
            FOX,
            "--temperature",
            "0",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "It is a fox."
    assert list(tmp_path.iterdir()) == []
