"""``data encode``: every picture becomes codes once, wherever it comes from and however often stopped."""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from seed_core.errors import OptionError
from seed_core.training.data import command as data
from seed_core.training.data import encoding
from seed_core.training.data.documents import DocumentWriter
from seed_core.training.data.json_lines import JsonLines
from seed_core.training.streams import Streams

NAMES = ("castle_on_blue", "cat_on_orange", "fox_on_yellow", "frog_on_yellow", "ghost_on_black")


@pytest.fixture
def pictures(tmp_path: Path, mini_folder: Path) -> Path:
    """Five pictures in three folders; the fox has a text beside it, the cat one in metadata.jsonl."""
    folder = tmp_path / "pictures"
    for name, place in zip(NAMES, ("", "", "a", "b", "b"), strict=True):
        (folder / place).mkdir(parents=True, exist_ok=True)
        shutil.copy(mini_folder / "samples" / f"{name}.png", folder / place)
    with Image.open(folder / "b" / "ghost_on_black.png") as ghost:
        ghost.convert("RGB").resize((90, 60)).save(folder / "b" / "ghost_on_black.JPG")
    (folder / "b" / "ghost_on_black.png").unlink()
    (folder / "a" / "fox_on_yellow.txt").write_text("A fox, früh.\n", "utf-8")
    metadata = {"file_name": "cat_on_orange.png", "text": "A cat."}
    (folder / "metadata.jsonl").write_text(json.dumps(metadata) + "\n", "utf-8")
    return folder


def encode(*arguments: object) -> None:
    parser = argparse.ArgumentParser()
    data.add_arguments(parser)
    data.run(parser.parse_args(["encode", *map(str, arguments), "--device", "cpu"]))


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.jsonl"))}


def documents(folder: Path) -> list[dict]:
    return [json.loads(line) for shard in shards(folder).values() for line in shard.splitlines()]


def pack(folder: Path, archive: Path) -> Path:
    """Write the pictures of a folder as a webdataset archive, all texts as .txt but the cat's."""
    with tarfile.open(archive, "w") as file:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = path.relative_to(folder).as_posix()
            if path.name != "metadata.jsonl":
                file.add(path, name)
            if path.stem == "cat_on_orange":
                beside = folder.parent / "cat.json"
                beside.write_text(json.dumps({"caption": "A cat.", "width": 128}), "utf-8")
                file.add(beside, "cat_on_orange.json")
    return archive


def test_a_folder_becomes_shards_of_documents(pictures, tmp_path, mini_tokenizer, capsys):
    encode(pictures, "-o", tmp_path / "codes", "--shard-size", 2, "--batch", 2)
    assert {name: len(text.splitlines()) for name, text in shards(tmp_path / "codes").items()} == {
        "000000.jsonl": 2,
        "000001.jsonl": 2,
        "000002.jsonl": 1,
    }
    found = documents(tmp_path / "codes")
    assert [(each["picture"], each["format"], each.get("text")) for each in found] == [
        ("a/fox_on_yellow.png", "caption", "A fox, früh."),
        ("b/frog_on_yellow.png", "picture", None),
        ("b/ghost_on_black.JPG", "picture", None),
        ("castle_on_blue.png", "picture", None),
        ("cat_on_orange.png", "caption", "A cat."),
    ]
    for document in found:
        with Image.open(pictures / document["picture"]) as picture:
            (codes,) = mini_tokenizer.encode(mini_tokenizer.preprocess([picture])).tolist()
        assert (document["codes"], document["family"]) == (codes, "seed-mini")
    assert "pictures encoded: 5, left out: 0; shards written: 3" in capsys.readouterr().out


@pytest.mark.parametrize("kind", encoding.KINDS)
def test_what_is_written_can_be_learned_from(pictures, tmp_path, mini_llm, kind):
    encode(pictures, "-o", tmp_path / "codes", "--shard-size", 2, "--format", kind)
    assert {each["format"] for each in documents(tmp_path / "codes")} == {kind, "picture"}
    lines = JsonLines(tmp_path / "codes" / "*.jsonl")
    assert len(lines) == 5
    writer = DocumentWriter(mini_llm.vocab, "seed-mini")
    for number in range(5):
        assert len(writer.write(lines.document(number, Streams(0)), random.Random(0))) >= 36


def test_an_archive_gives_what_the_folder_gives(pictures, tmp_path):
    encode(pictures, "-o", tmp_path / "folder", "--shard-size", 2)
    archive = pack(pictures, tmp_path / "pictures.tar")
    encode(tmp_path / "*.tar", "-o", tmp_path / "archive", "--batch", 3, "--workers", 1)
    assert archive.is_file()
    expected = [
        {**each, "picture": each["picture"].replace(".JPG", ".jpg")}
        for each in documents(tmp_path / "folder")
    ]
    assert documents(tmp_path / "archive") == expected
    assert list(shards(tmp_path / "archive")) == ["000000.jsonl"]


class StoppedError(Exception):
    """What a killed process is to what it ran."""


@pytest.mark.parametrize("after", [0, 1, 3, 4])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(pictures, tmp_path, monkeypatch, after):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    arguments = ("--shard-size", 2, "--batch", 1)
    encode(pictures, "-o", whole, *arguments)
    original, calls = encoding.SeedTokenizer.encode, []

    def encode_some(self, pixels):
        if len(calls) == after:
            raise StoppedError
        calls.append(1)
        return original(self, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(encoding.SeedTokenizer, "encode", encode_some)
        with pytest.raises(StoppedError):
            encode(pictures, "-o", stopped, *arguments)
    assert len(shards(stopped)) == after // 2
    done = {path: path.stat().st_mtime_ns for path in stopped.glob("*.jsonl")}
    encode(pictures, "-o", stopped, *arguments)
    assert shards(stopped) == shards(whole)
    assert sorted(path.name for path in stopped.iterdir()) == sorted(
        path.name for path in whole.iterdir()
    )
    assert {path: path.stat().st_mtime_ns for path in done} == done  # finished ones were left alone


def test_a_killed_process_leaves_whole_shards_only(pictures, tmp_path):
    """The real thing: killed at its first shard, with the second under way."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    encode(pictures, "-o", whole, "--shard-size", 1, "--batch", 1)
    script = (
        "import os, sys\n"
        "from argparse import ArgumentParser\n"
        "from seed_core.training.data import command as data, encoding\n"
        "original = encoding.Encoder._document\n"
        "def document(self, name, text, codes):\n"
        "    if name.startswith('b/ghost'):\n"
        "        os._exit(9)\n"
        "    return original(self, name, text, codes)\n"
        "encoding.Encoder._document = document\n"
        "parser = ArgumentParser()\n"
        "data.add_arguments(parser)\n"
        "data.run(parser.parse_args(sys.argv[1:]))\n"
    )
    root = Path(encoding.__file__).parents[2]
    arguments = ["encode", pictures, "-o", killed, "--shard-size", 1, "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], env=environment, check=False
    )
    assert run.returncode == 9
    assert list(shards(killed)) == ["000000.jsonl", "000001.jsonl"]
    assert (killed / "000002.unfinished").is_file()
    encode(pictures, "-o", killed, "--shard-size", 1, "--batch", 1)
    assert shards(killed) == shards(whole)
    assert not list(killed.glob("*.unfinished"))


def test_parts_make_the_whole(pictures, tmp_path):
    encode(pictures, "-o", tmp_path / "whole", "--shard-size", 1)
    for part, names in (("1/2", [0, 2, 4]), ("2/2", [1, 3])):
        encode(pictures, "-o", tmp_path / part[0], "--shard-size", 1, "--part", part)
        assert list(shards(tmp_path / part[0])) == [f"{name:06d}.jsonl" for name in names]
        encode(pictures, "-o", tmp_path / "parts", "--shard-size", 1, "--part", part)
    assert shards(tmp_path / "parts") == shards(tmp_path / "whole")


def test_damaged_pictures_are_left_out_and_said(pictures, tmp_path, capsys):
    encode(pictures, "-o", tmp_path / "good", "--shard-size", 10)
    whole = (pictures / "castle_on_blue.png").read_bytes()
    (pictures / "b" / "cut.png").write_bytes(whole[:3000])
    (pictures / "b" / "empty.png").write_bytes(b"")
    (pictures / "b" / "garbled.png").write_bytes(whole[:200] + bytes(400) + whole[600:])
    (pictures / "b" / "words.jpg").write_text("no picture", "utf-8")
    shutil.copy(pictures / "castle_on_blue.png", pictures / "latin.png")
    (pictures / "latin.txt").write_bytes("früh".encode("latin-1"))
    (pictures / "notes.heic").write_text("of another format", "utf-8")
    capsys.readouterr()
    encode(pictures, "-o", tmp_path / "codes", "--batch", 2)
    out, err = capsys.readouterr()
    assert documents(tmp_path / "codes") == documents(tmp_path / "good")
    assert "pictures encoded: 5, left out: 5; shards written: 1" in out
    for name in ("b/cut.png", "b/empty.png", "b/garbled.png", "b/words.jpg", "latin.png"):
        (line,) = [line for line in err.splitlines() if f"{name} is left out" in line]
        assert str(pictures) in line
    assert "latin.txt is not in UTF-8" in err
    assert "nor texts of them: 1 (" in err
    assert "notes.heic)" in err
    pack(pictures, tmp_path / "pictures.tar")
    encode(tmp_path / "pictures.tar", "-o", tmp_path / "archive")
    out, err = capsys.readouterr()
    assert len(documents(tmp_path / "archive")) == 5
    assert "left out: 5" in out
    assert "pictures.tar: notes.heic)" in err


def test_the_end_of_a_damaged_archive_is_said_to_be_lost(pictures, tmp_path, capsys):
    archive = pack(pictures, tmp_path / "pictures.tar")
    archive.write_bytes(archive.read_bytes()[:40_000])
    encode(archive, "-o", tmp_path / "codes")
    names = [each["picture"] for each in documents(tmp_path / "codes")]
    assert 0 < len(names) < 5
    assert f"{archive} is damaged, and the rest of it is lost" in capsys.readouterr().err


def test_a_folder_of_other_codes_is_refused(pictures, tmp_path):
    encode(pictures, "-o", tmp_path / "codes")
    (pictures / "castle_on_blue.png").rename(pictures / "chateau.png")
    with pytest.raises(OptionError, match="holds the codes of other pictures"):
        encode(pictures, "-o", tmp_path / "codes")
    assert len(shards(tmp_path / "codes")) == 1


def without_pictures(folder: Path) -> None:
    for path in folder.rglob("*.*g"):
        path.unlink()
    (folder / "b" / "ghost_on_black.JPG").unlink(missing_ok=True)
    (folder / "metadata.jsonl").unlink()


def writing(name: str, text: str):
    return lambda folder: (folder / name).write_text(text, "utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "is missing; give folders, archives"),
        (without_pictures, "holds no picture; pictures end in .png"),
        (writing("cat_on_orange.txt", "A"), "cat_on_orange.png has a text .* keep one"),
        (writing("metadata.jsonl", "{}\n"), "metadata.jsonl, line 1 must be like"),
        (
            writing("metadata.jsonl", '{"file_name": "x.png"}\n'),
            "line 1: the picture .*x.png is missing",
        ),
    ],
    ids=["no folder", "no picture", "two texts", "bad metadata", "no such file"],
)
def test_folders_that_cannot_be_read_are_refused(pictures, tmp_path, change, message):
    change(pictures)
    with pytest.raises(OptionError, match=message):
        encode(pictures, "-o", tmp_path / "codes")
    assert not (tmp_path / "codes").exists()


def test_what_is_neither_folder_nor_archive_is_refused(pictures, tmp_path):
    with pytest.raises(OptionError, match=r"is neither a folder nor an archive \(.tar"):
        encode(pictures / "castle_on_blue.png", "-o", tmp_path / "codes")


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_parts_that_are_none_are_refused(part, capsys):
    with pytest.raises(SystemExit):
        encode("x", "-o", "y", f"--part={part}")
    assert "must be 1/4, 2/4" in capsys.readouterr().err
