"""Pictures on the command line: read as they look, or refused in one sentence by every command."""

import json
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seed_core.__main__ import main
from seed_core.codes.file import read_codes_file
from seed_core.files import pictures as picture_files


@pytest.fixture(scope="module")
def odd(load_helper):
    return load_helper(Path(__file__).parents[2] / "odd_pictures.py")


COMMANDS = {
    "encode": lambda path: ["encode", path],
    "decode": lambda path: ["decode", path, "--steps", "1"],
    "a negative": lambda path: ["decode", path, "--negative", path, "--steps", "1"],
    "chat": lambda path: ["chat", "What is this?", "--image", path],
}


@pytest.mark.parametrize("name", ["fox.jpg", "früh 狐\n.png"])
@pytest.mark.parametrize("command", COMMANDS)
def test_what_shows_no_picture_ends_every_command_in_one_sentence(
    odd, tmp_path, monkeypatch, capfd, name, command
):
    monkeypatch.chdir(tmp_path)
    for content, _ in odd.refused().values():
        Path(name).write_bytes(content)
        assert main(COMMANDS[command](name)) == 1
        out, err = capfd.readouterr()
        assert out == ""
        (line,) = err.splitlines()
        shown = name.replace("\n", "\\n")
        assert line.startswith(f"error: {shown} cannot be read as a picture: ")
    Path(name).unlink()
    assert main(COMMANDS[command](name)) == 1
    assert "does not exist" in capfd.readouterr().err
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".json", ".png")]


def test_a_folder_in_place_of_a_picture_is_one_sentence(tmp_path, capfd):
    assert main(["encode", str(tmp_path)]) == 1
    assert "this is a folder; name the pictures in it\n" in capfd.readouterr().err


@pytest.fixture
def codes_of(tmp_path, monkeypatch):
    """Codes of a file as `encode` writes them, or chat and decode hand them on."""

    def encode(content, name="picture.png"):
        path = tmp_path / name
        path.write_bytes(content)
        assert main(["encode", str(path), "-o", str(tmp_path / "codes.json")]) == 0
        return json.loads((tmp_path / "codes.json").read_text(encoding="utf-8"))["codes"]

    return encode


# What an upright picture is turned by to be stored under each orientation.
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_a_phone_photo_has_the_codes_of_the_upright_one(odd, codes_of, orientation, form):
    options = {"lossless": True} if form == "WEBP" else {}
    exif = Image.Exif()
    exif[274] = orientation
    lying = odd.fox().transpose(STORED[orientation])
    upright, by_the_way = codes_of(odd.saved(odd.fox())), codes_of(odd.saved(lying))
    assert codes_of(odd.saved(lying, form, exif=exif, **options)) == upright != by_the_way


def test_a_16_bit_picture_has_the_codes_of_the_8_bit_one(odd, codes_of):
    grey = odd.fox().convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    upright = codes_of(odd.saved(grey))
    assert codes_of(odd.saved(deep)) == upright
    assert codes_of(odd.saved(deep, "TIFF"), "deep.tif") == upright


@pytest.mark.parametrize("name", ["fox", "fox.txt", "fox.jpg", "fox.json"])
def test_a_picture_under_another_name_is_encoded(odd, tmp_path, codes_of, name):
    """By `encode`, and by `decode` and `chat`, which also read files of codes."""
    expected = codes_of(odd.saved(odd.fox()))
    assert codes_of(odd.saved(odd.fox()), name) == expected
    painted = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    for path, output in zip((tmp_path / "picture.png", tmp_path / name), painted, strict=True):
        assert main(["decode", str(path), "--steps", "1", "-o", output]) == 0
    assert Path(painted[0]).read_bytes() == Path(painted[1]).read_bytes()


def test_many_large_pictures_take_the_memory_of_one(odd, tmp_path, monkeypatch):
    """A folder of photos has more pixels than the memory."""
    alive, most = set(), 0
    original = picture_files.read_picture

    def read(path):
        nonlocal most
        picture = original(path)
        alive.add(path)
        weakref.finalize(picture, alive.discard, path)
        most = max(most, len(alive))
        return picture

    monkeypatch.setattr("seed_core.cli.codes.read_picture", read)
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for path in paths:
        path.write_bytes(odd.saved(odd.fox()))
    output = tmp_path / "codes.json"
    assert main(["encode", *map(str, paths), "-o", str(output)]) == 0
    assert len(read_codes_file(output)) == 4
    assert 1 <= most <= 2  # the next is there before the last is gone


def test_a_bad_picture_is_told_before_a_model_is_loaded(odd, tmp_path, monkeypatch, capfd):
    (tmp_path / "fox.png").write_bytes(odd.saved(odd.fox())[:-500])
    monkeypatch.setattr("seed_core.cli.codes.load_tokenizer", None)
    assert main(["encode", str(tmp_path / "fox.png")]) == 1
    assert "damaged or not whole" in capfd.readouterr().err
