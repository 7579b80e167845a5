"""The command line on the bundled model, end to end."""

import hashlib
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from seed_core import SeedCodes, SeedLLM
from seed_core.__main__ import main
from seed_core.codes.file import read_codes_file, save_codes_file
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


@pytest.mark.parametrize("name", ["out.safetensors", "out.json", "out.txt", "out"])
def test_encode_writes_the_form_of_the_ending(tmp_path, sample_codes, name):
    assert main(["encode", FOX, CAT, "-o", str(tmp_path / name)]) == 0
    codes = read_codes_file(tmp_path / name)
    assert torch.equal(codes.values, sample_codes[:2])
    assert codes.has_distances == (name != "out.txt")
    is_json = (tmp_path / name).read_bytes().startswith(b"{")
    assert is_json == (name in ("out.json", "out"))


def test_a_picture_is_made_square_alike_wherever_it_is_encoded(tmp_path):
    wide, codes, painted = tmp_path / "wide.png", tmp_path / "wide.json", tmp_path / "out.png"
    with Image.open(FOX) as fox:
        fox.crop((0, 0, 128, 64)).save(wide)

    def paint(*given):
        assert main(["decode", *map(str, given), "-o", str(painted), "--steps", "1"]) == 0
        return painted.read_bytes()

    assert main(["encode", str(wide), "--fit", "crop", "-o", str(codes)]) == 0
    assert paint(wide, "--fit", "crop") == paint(codes) != paint(wide)


def test_decode_takes_any_codes_file_and_pictures_in_order(tmp_path, sample_codes, capsys):
    """The same picture four ways: as a file of each form, and as itself."""
    fox = SeedCodes(sample_codes[:1], "seed-mini", 512)
    names = ["a.safetensors", "b.json", "c.txt", "untitled.txt"]
    for name in names[:3]:
        save_codes_file(fox, tmp_path / name)
    (tmp_path / "untitled.txt").write_text(fox.to_text(), encoding="utf-8")
    save_codes_file(SeedCodes(sample_codes[1:2], "seed-mini", 512), tmp_path / "cat.txt")
    paths = [str(tmp_path / name) for name in [*names, "cat.txt"]]
    arguments = ["decode", FOX, *paths, "-o", str(tmp_path / "out.png"), "--steps", "1"]
    assert main([*arguments, "--negative", CAT]) == 0
    pictures = [line.removeprefix("wrote ") for line in capsys.readouterr().out.splitlines()]
    assert pictures == [str(tmp_path / f"out_{i:02d}.png") for i in range(6)]

    def decode(given, seed):
        one = ["decode", given, "-o", str(tmp_path / "one.png"), "--steps", "1"]
        assert main([*one, "--negative", CAT, "--seed", str(seed)]) == 0
        return (tmp_path / "one.png").read_bytes()

    for seed, given in enumerate([FOX, *paths[:-1]]):
        assert decode(FOX, seed) == decode(given, seed)
    painted = [(tmp_path / f"out_{i:02d}.png").read_bytes() for i in range(6)]
    assert painted[4] == decode(FOX, 4)
    assert painted[5] == decode(CAT, 5) != decode(FOX, 5)


def test_decode_writes_one_picture_a_row(tmp_path, codes_file, capsys):
    output = tmp_path / "out.png"
    arguments = ["decode", str(codes_file), "-o", str(output), "--steps", "2"]
    assert main([*arguments, "--guidance-scale", "2", "--width", "64", "--height", "96"]) == 0
    written = [line.removeprefix("wrote ") for line in capsys.readouterr().out.splitlines()]
    assert len(written) == 3
    for path in written:
        with Image.open(path) as picture:
            assert picture.size == (64, 96)


def test_decode_follows_codes_as_strongly_as_the_decoder_likes(tmp_path):
    def paint(*given):
        output = tmp_path / "out.png"
        assert main(["decode", FOX, "-o", str(output), "--steps", "2", *given]) == 0
        return output.read_bytes()

    own = paint()
    assert own == paint("--guidance-scale", "2")
    assert own != paint("--guidance-scale", "10")


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


def test_chat_takes_pictures_and_codes_together_in_order(tmp_path, codes_file, capsys):
    def ask(*given):
        files = [word for path in given for word in ("--image", str(path))]
        arguments = ["chat", "What is this?", *files, "--temperature", "0"]
        assert main([*arguments, "--max-new-tokens", "20"]) == 0
        return capsys.readouterr().out

    fox, cat = tmp_path / "fox.safetensors", tmp_path / "cat.txt"
    assert main(["encode", FOX, "-o", str(fox)]) == main(["encode", CAT, "-o", str(cat)]) == 0
    capsys.readouterr()
    assert ask(FOX) == ask(fox) == "It is a fox.\n"
    assert ask(cat) == ask(CAT) == "It is a cat.\n"
    assert ask(FOX, CAT) == ask(fox, CAT) == ask(FOX, cat) == ask(fox, cat)


def test_chat_paints_what_it_draws(tmp_path, capsys):
    picture, codes = tmp_path / "panda.png", tmp_path / "panda.safetensors"
    arguments = ["chat", "a panda on blue", "--reply", "image", "--temperature", "0"]
    arguments += ["--steps", "2", "--guidance-scale", "2", "--seed", "7", "--max-new-tokens", "40"]
    assert main([*arguments, "-o", str(picture), "-o", str(codes)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1:] == [f"wrote the codes of 1 picture to {codes}", f"wrote {picture}"]
    again = tmp_path / "again.png"
    decode = ["decode", str(codes), "-o", str(again), "--seed", "7"]
    assert main([*decode, "--steps", "2", "--guidance-scale", "2"]) == 0
    assert picture.read_bytes() == again.read_bytes()


def test_chat_numbers_several_pictures(tmp_path, monkeypatch, sample_codes, capsys):
    def two_pictures(self, *_, **__):
        return SimpleNamespace(text="<image><image>", codes=sample_codes[:2])

    monkeypatch.setattr(SeedLLM, "generate", two_pictures)
    arguments = ["chat", "Draw two", "--steps", "1", "-o", str(tmp_path / "two.png")]
    assert main(arguments) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["two_00.png", "two_01.png"]


def test_a_reply_of_words_alone_writes_nothing_and_says_so_where_a_file_was_wanted(
    tmp_path, capsys
):
    arguments = ["chat", "What is this?", "--image", FOX, "--temperature", "0"]
    assert main([*arguments, "-o", str(tmp_path / "out.png")]) == 0
    captured = capsys.readouterr()
    assert captured.out == "It is a fox.\n"
    assert "--reply image" in captured.err
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_cannot_read_the_reply_is_refused_before_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(SeedLLM, "generate", None)  # calling it would be another error
    config = SimpleNamespace(family="seed-1", codebook_size=512, embedding_shape=(77, 768))
    monkeypatch.setattr("seed_core.cli.codes.tokenizer_config", lambda path: config)
    assert main(["chat", "Draw a fox", "-o", str(tmp_path / "out.png")]) == 1
    said = capsys.readouterr().err
    assert "seed-mini codes" in said
    assert "seed-1 codes" in said
    assert "--tokenizer" in said


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
        "decoder option out of range": (["chat", "hi", "--steps", "0"], "steps"),
        "codes of two families": (["decode", str(foreign), FOX], "cannot be put together"),
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
        "decoder option out of range",
        "codes of two families",
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
    (["encode", "gone.png"], "codes.png"),
    (["chat", ""], "gone/codes.json"),
    (["chat", ""], "gone/picture.png"),
    (["chat", ""], "picture.xbm"),
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
