"""``data encode`` on folders and archives as other programs and systems leave them.

Nothing is lost without a word: a text reaches its picture, or is counted and named at the end.
"""

import gzip
import io
import json
import logging
import os
import random
import re
import subprocess
import sys
import tarfile
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from PIL import Image

from seed_core.errors import CheckpointError, OptionError, PictureError, SeedError
from seed_core.training.__main__ import main
from seed_core.training.data import archives, command, picture_sources, pictures
from seed_core.training.data.captions import read_vocabulary
from seed_core.training.data.documents import DocumentWriter
from seed_core.training.data.passed_over import PassedOver
from seed_core.training.streams import Streams

Content = bytes | str


def png(shade: int = 0) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (shade % 256, 40, 90)).save(content, "PNG")
    return content.getvalue()


PNG = png()


def as_bytes(content: Content) -> bytes:
    return content.encode() if isinstance(content, str) else content


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes files by name; a picture is a name with None."""

    def write(files: dict[str, Content | None], name: str = "pictures") -> Path:
        made = tmp_path / name
        for i, (file, content) in enumerate(files.items()):
            (made / file).parent.mkdir(parents=True, exist_ok=True)
            (made / file).write_bytes(png(i) if content is None else as_bytes(content))
        return made

    return write


def packed(files: Iterable[tuple[str, Content | None]], mode: str = "w") -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as tar:
        for i, (name, each) in enumerate(files):
            some = png(i) if each is None else as_bytes(each)
            info = tarfile.TarInfo(name)
            info.size = len(some)
            tar.addfile(info, io.BytesIO(some))
    return content.getvalue()


@pytest.fixture
def archive(tmp_path: Path) -> Callable[..., Path]:
    def write(*files: tuple[str, Content | None], mode: str = "w") -> Path:
        path = tmp_path / "some.tar"
        path.write_bytes(packed(files, mode))
        return path

    return write


class Result:
    """What a run of ``data encode`` said and wrote."""

    def __init__(self, status: int, out: str, err: str, folder: Path) -> None:
        self.status, self.out, self.err = status, out, err
        self.shards = sorted(path.name for path in folder.glob("*.jsonl"))
        lines = [line for name in self.shards for line in (folder / name).read_text().splitlines()]
        self.documents = [json.loads(line) for line in lines]
        self.texts = {each["picture"]: each.get("text") for each in self.documents}


@pytest.fixture
def encode(tmp_path: Path, capsys, monkeypatch, mini_tokenizer) -> Callable[..., Result]:
    monkeypatch.setattr(command, "load_tokenizer", lambda *_: mini_tokenizer)
    count = iter(range(100))

    def run(*inputs: object) -> Result:
        output = tmp_path / f"codes{next(count)}"
        status = main(["data", "encode", *map(str, inputs), "-o", str(output), "--device", "cpu"])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Result(status, out, err, output)

    return run


# --- texts beside pictures ---


@pytest.mark.parametrize(
    ("picture", "text"),
    [
        ("a.jpg", "a.txt"),
        ("a.jpg", "a.jpg.txt"),
        ("c.JPG", "c.TXT"),
        ("c.JPG", "c.JPG.TXT"),
        ("c.JPG", "c.jpg.txt"),
        ("d.png", "D.txt"),
        ("a.png", "a.caption"),
        ("my fox (1).png", "my fox (1).txt"),
        ("v1.5_fox.png", "v1.5_fox.txt"),
        (unicodedata.normalize("NFC", "müde.png"), unicodedata.normalize("NFD", "müde.txt")),
        (unicodedata.normalize("NFD", "MÜDE.png"), unicodedata.normalize("NFC", "müde.txt")),
        ("a/b/c.webp", "a/b/c.txt"),
    ],
)
def test_a_text_reaches_the_picture_of_its_name(folder, encode, archive, picture, text):
    files = {picture: None, text: "A fox."}
    for given in (folder(files), archive(*files.items())):
        result = encode(given)
        assert list(result.texts.values()) == ["A fox."]
        assert "passed over" not in result.err
        assert "with a text: 1, without: 0" in result.out


def test_names_that_differ_in_case_alone_keep_their_own_texts(folder, encode):
    names = {"a.png": None, "A.png": None, "a.txt": "small", "A.txt": "large"}
    given = folder(names)
    if len(os.listdir(given)) < 4:
        pytest.skip("this disk knows no case")
    assert encode(given).texts == {"A.png": "large", "a.png": "small"}


def test_a_text_that_may_belong_to_two_pictures_belongs_to_none(folder, encode):
    given = folder({"ab.png": None, "AB.png": None, "Ab.txt": "which?"})
    if len(os.listdir(given)) < 3:
        pytest.skip("this disk knows no case")
    result = encode(given)
    assert result.texts == {"ab.png": None, "AB.png": None}
    assert "texts that belong to no picture: 1 (" in result.err


def test_texts_and_pictures_without_a_fellow_are_counted_and_named(folder, encode, archive):
    files = {"fox.png": None, "fox.txt": "A fox.", "owl.png": None}
    files |= {f"lost{i}.txt": "Nobody's." for i in range(5)}
    files |= {"captions.json": '[{"image": "owl.png", "caption": "An owl."}]', "a.heic": "x"}
    for given in (folder(files), archive(*files.items())):
        result = encode(given)
        assert result.status == 0
        assert result.texts == {"fox.png": "A fox.", "owl.png": None}
        (line,) = [line for line in result.err.splitlines() if "belong to no picture: 5" in line]
        assert [f"lost{i}.txt" in line for i in range(5)] == [True] * 3 + [False] * 2
        (line,) = [line for line in result.err.splitlines() if "neither pictures nor" in line]
        assert "them: 2 (" in line
        assert "captions.json" in line
        assert "a.heic" in line
        assert "without a text among others that have one: 1 (" in result.err
        assert "with a text: 1, without: 1" in result.out


LISTED = ["A fox.", "A red fox."]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"caption": LISTED}, LISTED),
        ({"captions": LISTED}, LISTED),
        ({"text": LISTED, "caption": "other"}, LISTED),
        ({"text": None, "caption": "A fox."}, "A fox."),
        ({"caption": ["A fox.", " A fox. ", ""]}, "A fox."),
        ({"caption": None, "status": "success"}, None),
        ({"shapes": []}, None),
        ([], None),
    ],
)
def test_captions_in_json_are_all_kept(folder, encode, archive, content, expected):
    files = {"000.png": None, "000.json": json.dumps(content)}
    for given in (folder(files), archive(*files.items())):
        assert encode(given).texts == {"000.png": expected}


def test_half_a_character_is_named(folder, encode):
    """What is written can be learned from, so it is not left to the training to find."""
    result = encode(folder({"a.png": None, "a.json": '{"caption": "A \\ud83d"}', "b.png": None}))
    assert result.texts == {"b.png": None}
    assert "a.png is left out: caption in a.json holds half a character" in result.err


@pytest.mark.parametrize("value", [7, {"en": "A fox."}, ["A", 3], float("nan"), True])
def test_a_caption_that_is_not_text_is_named(folder, encode, archive, value):
    files = {"000.png": None, "000.json": json.dumps({"caption": value}), "1.png": None}
    for given in (folder(files), archive(*files.items())):
        result = encode(given)
        assert result.texts == {"1.png": None}
        assert "000.png is left out: caption in 000.json must be text or a list" in result.err


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\xef\xbb\xbfA fox.\r\n", "A fox."),
        ("A früh fox.".encode("utf-16"), "A früh fox."),
        ("\ufeffA fox.".encode("utf-16-be"), "A fox."),
        (b"one\r\ntwo\r\n", "one\r\ntwo"),
        (b" \n\t\r\n", None),
        (b"", None),
    ],
    ids=["a mark", "utf-16", "utf-16 big endian", "two lines", "blanks", "empty"],
)
def test_texts_are_read_as_editors_save_them(folder, encode, content, expected):
    assert encode(folder({"a.png": None, "a.txt": content})).texts == {"a.png": expected}


@pytest.mark.parametrize(
    "content",
    ["früh".encode("latin-1"), "A fox".encode("utf-16-le"), b"\xff\xfe\x00", b"x" * 2**21],
    ids=["latin", "utf-16 without a mark", "half a letter", "large"],
)
def test_texts_in_other_encodings_are_named(folder, encode, content):
    result = encode(folder({"a.png": None, "a.txt": content, "b.png": None}))
    assert result.texts == {"b.png": None}
    assert "a.png is left out: its text a.txt " in result.err
    assert "pictures that cannot be read: 1 (" in result.err


def test_two_texts_must_agree(folder, encode):
    files = {"a.png": None, "a.txt": "A fox.", "a.caption": "A cat.", "b.png": None}
    files |= {"b.txt": "An owl.", "b.png.txt": "An owl.\n", "b.json": '{"caption": "alt text"}'}
    files |= {"c.png": None, "c.txt": " \n", "c.json": '{"caption": "A cat."}'}
    result = encode(folder(files))
    assert result.texts == {"b.png": "An owl.", "c.png": "A cat."}
    assert "a.png is left out: its texts in a.txt and a.caption differ" in result.err.replace(
        "a.caption and a.txt", "a.txt and a.caption"
    )


# --- files that list texts ---


def test_metadata_of_hugging_face_is_read(folder, encode):
    lines = [
        {"file_name": "a.png", "text": LISTED},
        {"file_name": "in/b.png", "text": "B."},
        {"file_name": "in\\c.png", "caption": "C."},
        {"file_name": "d.png", "text": None},
    ]
    text = "\n\n".join(map(json.dumps, lines)) + "\n\n \n"
    files = dict.fromkeys(["a.png", "in/b.png", "in/c.png", "d.png"])
    expected = {"a.png": LISTED, "d.png": None, "in/b.png": "B.", "in/c.png": "C."}
    assert encode(folder({**files, "metadata.jsonl": text})).texts == expected


def test_metadata_may_spell_names_as_another_system_does(folder, encode, tmp_path):
    names = ["a.png", "in/b.png", unicodedata.normalize("NFD", "é.png"), "c.png", "C.png"]
    given = folder(dict.fromkeys(names))
    if len(os.listdir(given)) < 5:
        pytest.skip("this disk knows no case")
    spelled = [
        f"{given.as_posix()}/a.png",
        "IN/B.PNG",
        unicodedata.normalize("NFC", "é.png"),
        "C.png",
    ]
    lines = [json.dumps({"file_name": name, "text": f"{i}"}) for i, name in enumerate(spelled)]
    (given / "metadata.jsonl").write_text("\n".join(lines), "utf-8")
    assert encode(given).texts == dict(zip(names, ["0", "1", "2", None, "3"], strict=True))
    (given / "metadata.jsonl").write_text('{"file_name": "C.PNG", "text": "which?"}', "utf-8")
    assert "the picture C.PNG is missing" in encode(given).err


def test_a_list_beyond_all_measure_is_refused(folder, encode):
    given = folder({"a.png": None})
    with (given / "metadata.jsonl").open("wb") as file:
        file.truncate(2**40)
    assert "has 1,099,511,627,776 bytes, more than" in encode(given).err


def test_two_files_that_list_one_picture_are_refused(folder, encode):
    lines = {"metadata.jsonl": '{"file_name": "in/a.png", "text": "A"}'}
    lines["in/metadata.csv"] = "file_name,text\na.png,B\n"
    result = encode(folder({"in/a.png": None, **lines}))
    assert result.status == 1
    assert "in/a.png is listed in metadata.jsonl and in another" in result.err


def test_metadata_in_csv_is_read(folder, encode):
    text = '\ufefffile_name,text\r\na.png,"A fox, red."\r\na.png,A fox.\r\nin/b.png,\r\n'
    result = encode(folder({"a.png": None, "in/b.png": None, "metadata.csv": text}))
    assert result.texts == {"a.png": ["A fox, red.", "A fox."], "in/b.png": None}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.jsonl", '\n{"file_name"', "metadata.jsonl, line 2 is not valid JSON"),
        ("metadata.jsonl", "[1]", "line 1 must be like"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": 3}', "line 1 must be text or a list"),
        ("metadata.jsonl", '{"file_name": "../a.png", "text": "A"}', "../a.png is missing"),
        ("metadata.jsonl", '{"file_name": 3}', "line 1 must be like"),
        ("metadata.jsonl", b"\xff", "metadata.jsonl cannot be read: .* is not in UTF-8"),
        ("metadata.csv", "file_name;text\na.png;A", "it has file_name;text"),
        ("metadata.csv", "file_name,text\na.png,A fox, red", "line 2 has more fields than"),
        ("metadata.csv", 'file_name,text\na.png,"A fox', "is not CSV: unexpected end"),
    ],
)
def test_metadata_that_cannot_be_read_is_refused(folder, encode, name, content, message):
    result = encode(folder({"a.png": None, name: content}))
    assert result.status == 1
    assert not result.shards
    (line,) = result.err.splitlines()
    assert re.search(message, line), line


# --- places ---


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes there")
def test_what_is_not_a_file_is_not_opened(folder, encode):
    given = folder({"a.png": None, "b.png/c.png": None, "a.txt/note.md": "x"})
    os.mkfifo(given / "d.png")
    os.mkfifo(given / "a.caption")
    (given / "metadata.jsonl").symlink_to("/dev/zero")
    result = encode(given)
    assert result.texts == {"a.png": None, "b.png/c.png": None}
    assert "devices and pipes: 2 (" in result.err
    assert "links that lead nowhere: 1 (" in result.err


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_linked_files_and_folders_are_read_once_and_loops_end(folder, encode, tmp_path):
    given = folder({"a.png": None, "in/b.png": None})
    elsewhere = folder({"c.png": None, "c.txt": "C."}, "elsewhere")
    for name, target in {
        "linked": elsewhere,
        "again": elsewhere,
        "in/loop": given,
        "d.png": elsewhere / "c.png",
        "nowhere.png": tmp_path / "missing.png",
        "itself.png": given / "itself.png",
    }.items():
        (given / name).symlink_to(target)
    result = encode(given)
    (c,) = [name for name in result.texts if name.endswith("/c.png")]
    assert c in ("linked/c.png", "again/c.png")
    assert result.texts == {"a.png": None, "in/b.png": None, "d.png": None, c: "C."}
    assert "links that lead nowhere: 2 (" in result.err
    assert "links to folders that are read already: 2 (" in result.err


def test_what_systems_leave_beside_pictures_is_not_encoded(folder, encode, archive):
    junk = ["._a.png", ".DS_Store", "Thumbs.db", "__MACOSX/._a.png", "@eaDir/a.png/THUMB_M.png"]
    junk += [".cache/a.png", ".a.png.icloud", "desktop.ini"]
    files = {"a.png": None, "a.txt": "A.", **dict.fromkeys(junk, PNG)}
    for given in (folder(files), archive(*files.items())):
        result = encode(given)
        assert result.texts == {"a.png": "A."}
        assert "hidden files and files of the system: " in result.err
        assert "cannot be read" not in result.err


def test_a_folder_of_archives_says_how_to_give_them(folder, encode):
    given = folder({"00000.tar": packed([("a.png", None)]), "00000.parquet": b"PAR1"})
    result = encode(given)
    assert result.status == 1
    assert "what it holds: 1 of .parquet, 1 of .tar; for its archives give" in result.err
    assert str(given / "*.tar") in result.err


def test_nothing_encoded_is_an_error(folder, encode):
    result = encode(folder({"a.png": "no picture", "b.jpg": b""}))
    assert result.status == 1
    assert "error: nothing was encoded" in result.err
    assert not result.shards
    assert "pictures that cannot be read: 2 (" in result.err


def test_an_empty_shard_of_before_is_made_anew(folder, tmp_path, capsys):
    given = folder({"a.png": None})
    arguments = ["data", "encode", str(given), "-o", str(tmp_path / "codes"), "--device", "cpu"]
    assert main(arguments) == 0
    shard = tmp_path / "codes" / "000000.jsonl"
    whole = shard.read_bytes()
    shard.write_bytes(b"")
    assert main(arguments) == 0
    assert shard.read_bytes() == whole
    assert "shards written: 1, already there: 0" in capsys.readouterr().out


@pytest.mark.skipif(os.name == "nt", reason="no such rights there")
def test_a_picture_without_rights_is_named_and_other_errors_end_the_run(
    folder, encode, monkeypatch
):
    given = folder({"a.png": None, "b.png": None})
    original = picture_sources._content

    def content(path):
        if path.name == "a.png":
            raise error
        return original(path)

    monkeypatch.setattr(picture_sources, "_content", content)
    error = PermissionError(13, "Permission denied")
    result = encode(given)
    assert result.texts == {"b.png": None}
    assert "a.png is left out: it cannot be read: Permission denied" in result.err
    error = OSError(5, "Input/output error")
    result = encode(given)
    assert (result.status, result.shards) == (1, [])


def test_a_folder_of_codes_that_is_damaged_is_refused(folder, encode, tmp_path):
    (tmp_path / "codes0").mkdir()
    (tmp_path / "codes0" / "encoding.json").write_bytes(b"\xff\0")
    result = encode(folder({"a.png": None}))
    assert result.status == 1
    assert "holds the codes of other pictures" in result.err


def test_names_are_written_without_what_a_terminal_obeys(folder, encode):
    given = folder({"a.png": None, "a\x1b[2J\n.png": "no picture", "b\x1b.txt": "lost"})
    result = encode(given)
    assert "a\\x1b[2J\\n.png is left out" in result.err
    assert "\x1b" not in result.err


def test_names_may_have_characters_that_the_output_lacks(folder, tmp_path):
    """As where Windows writes to a file, in a process of its own."""
    given = folder({"雪.png": None, "früh.txt": "lost"})
    arguments = ["data", "encode", given, "-o", tmp_path / "コード", "--device", "cpu"]
    run = subprocess.run(
        [sys.executable, "-m", "seed_core.training", *map(str, arguments)],
        cwd=Path(archives.__file__).parents[3],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert b"pictures encoded: 1" in run.stdout
    assert b"fr\\xfch.txt" in run.stderr
    (document,) = (tmp_path / "コード" / "000000.jsonl").read_text("utf-8").splitlines()
    assert json.loads(document)["picture"] == "雪.png"


# --- archives ---


def test_what_occurs_twice_is_named_and_the_rest_is_read(archive, encode):
    for names in (("000.jpg", "000.jpg"), ("000.jpg", "000.JPG")):
        result = encode(
            archive(*((name, None) for name in names), ("000.txt", "A"), ("1.png", None))
        )
        assert result.status == 0
        assert list(result.texts) == ["1.png"]
        assert "pictures whose name occurs twice in an archive: 2 (" in result.err
        assert "000.jpg" in result.err
    result = encode(archive(("000.jpg", None), ("000.jpg", None)))
    assert (result.status, result.shards) == (1, [])
    assert "nothing was encoded" in result.err


def test_a_text_that_occurs_twice_must_agree(archive, encode):
    same = archive(("a.png", None), ("a.txt", "A"), ("a.txt", "A"))
    assert encode(same).texts == {"a.png": "A"}
    other = archive(("a.png", None), ("a.txt", "A"), ("a.txt", "B"), ("b.png", None))
    result = encode(other)
    assert result.texts == {"b.png": None}
    assert "a.png is left out: its texts in a.txt and copy 2 of a.txt differ" in result.err


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_files_of_a_sample_need_not_follow_one_another(archive, encode, mode):
    names = [f"in/{i}.png" for i in range(4)]
    texts = [(f"in/{i}.txt", f"Text {i}.") for i in reversed(range(4))]
    given = archive(*((name, None) for name in names), *texts, mode=mode)
    assert encode(given).texts == {f"in/{i}.png": f"Text {i}." for i in range(4)}


def test_odd_names_in_archives_are_read(archive, encode):
    names = ["./a.png", "/b.png", "../c.png", "x" * 300 + ".png", "früh \udcff.png"]
    given = archive(*((name, None) for name in names), ("./a.txt", "A."))
    result = encode(given)
    assert result.texts == {**dict.fromkeys(names), "./a.png": "A."}


def test_masks_beside_a_picture_are_named_and_dots_in_names_are_allowed(archive, encode):
    given = archive(("1.png", None), ("1.mask.png", None), ("v1.5_a.png", None))
    result = encode(given)
    assert list(result.texts) == ["1.png", "v1.5_a.png"]
    assert "further pictures of a sample: 1 (" in result.err


def test_links_in_archives_lead_to_what_they_name(tmp_path, encode):
    content = io.BytesIO(packed([("in/a.png", None), ("in/a.txt", "A.")]))
    with tarfile.open(fileobj=content, mode="a") as tar:
        links = [
            ("in/hard.png", tarfile.LNKTYPE, "in/a.png"),
            ("in/hard.txt", tarfile.LNKTYPE, "in/a.txt"),
            ("soft.png", tarfile.SYMTYPE, "in/a.png"),
            ("in/chain.png", tarfile.SYMTYPE, "../soft.png"),
            ("out.png", tarfile.SYMTYPE, "../../etc/passwd"),
            ("loop.png", tarfile.SYMTYPE, "loop.png"),
        ]
        for name, kind, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
        device = tarfile.TarInfo("null.png")
        device.type = tarfile.CHRTYPE
        tar.addfile(device)
    (tmp_path / "links.tar").write_bytes(content.getvalue())
    result = encode(tmp_path / "links.tar")
    assert result.texts == {
        "in/a.png": "A.",
        "in/hard.png": "A.",
        "soft.png": None,
        "in/chain.png": None,
    }
    assert "links to what the archive does not hold: 2 (" in result.err
    assert "devices and files with holes: 1 (" in result.err


def test_shards_of_img2dataset_are_read(tmp_path, encode):
    about = {"caption": "A fox.", "status": "success", "width": 8, "exif": "{}", "sha256": "0"}
    failed = {"caption": "An owl.", "status": "failed_to_download", "error_message": "404"}
    for number in range(2):
        files = [
            (f"{number:05d}0000.jpg", None),
            (f"{number:05d}0000.json", json.dumps(about)),
            (f"{number:05d}0000.txt", "A fox."),
            (f"{number:05d}0001.json", json.dumps(failed)),
            (f"{number:05d}0002.jpg", None),
            (f"{number:05d}0002.json", json.dumps({**about, "caption": None})),
        ]
        (tmp_path / f"{number:05d}.tar").write_bytes(packed(files))
        (tmp_path / f"{number:05d}.parquet").write_bytes(b"PAR1")
        (tmp_path / f"{number:05d}_stats.json").write_text("{}", "utf-8")
    result = encode(tmp_path / "*.tar")
    assert list(result.texts.values()) == ["A fox.", None, "A fox.", None]
    assert "neither pictures nor texts of them: 2 (" in result.err
    assert "pictures whose file of texts holds none" in result.err
    assert "or caption: 2 (" in result.err


@pytest.mark.parametrize(
    "files",
    [
        {"a.txt": " \n"},
        {"a.json": '{"prompt": "A fox."}'},
        {"metadata.jsonl": '{"file_name": "a.png", "prompt": "A fox."}'},
        {"metadata.csv": "file_name,prompt\na.png,A fox.\n"},
    ],
    ids=str,
)
def test_a_text_in_no_known_field_is_said(folder, encode, files):
    result = encode(folder({"a.png": None, "b.png": None, **files}))
    assert result.texts == {"a.png": None, "b.png": None}
    (line,) = [line for line in result.err.splitlines() if "file of texts holds none" in line]
    assert "caption: 1 (" in line
    assert "a.png)" in line


def test_a_text_beside_counts_where_a_list_has_none(folder, encode):
    files = {"metadata.jsonl": '{"file_name": "a.png", "label": 3}', "a.txt": "A fox."}
    assert encode(folder({"a.png": None, **files})).texts == {"a.png": "A fox."}


def test_folders_of_kohya_and_ai_toolkit_are_read(folder, encode):
    files = {
        "10_fox/a.png": None,
        "10_fox/a.txt": "fox, red, snow",
        "10_fox/a_mask.npz": "latents",
        "10_fox/b.webp": None,
        "10_fox/b.caption": "An owl.",
        "_latent_cache/a_0123.safetensors": "latents",
        "meta_cap.json": '{"10_fox/a": {"caption": "A fox."}}',
        "sample_prompts.txt": "a fox --w 512",
    }
    result = encode(folder(files))
    assert result.texts == {"10_fox/a.png": "fox, red, snow", "10_fox/b.webp": "An owl."}
    for name in ("a_mask.npz", "meta_cap.json", "a_0123.safetensors", "sample_prompts.txt"):
        assert name in result.err


GOOD = packed([("0.png", None), ("0.txt", "A."), ("1.png", None), ("inner.tar", b"x")])


def with_size(size: int) -> bytes:
    """An archive whose second picture claims a size."""
    info = tarfile.TarInfo("1.png")
    info.size = size
    header = info.tobuf(tarfile.GNU_FORMAT)
    return packed([("0.png", None)])[: 512 + -(-len(png()) // 512) * 512] + header + PNG


@pytest.mark.parametrize(
    ("content", "kept", "why"),
    [
        (GOOD[:3072], 2, "is damaged, and the rest of it is lost: it has no end mark"),
        (GOOD[:1700], 1, "is damaged, and the rest of it is lost"),
        (gzip.compress(GOOD)[:-20], 2, "is damaged, and the rest of it is lost: Compressed file"),
        (GOOD[:2048] + b"\xff" * 512 + GOOD[2560:], 1, "what follows byte 2,048 cannot be read"),
        (GOOD + packed([("2.png", None)]), 2, "more follows its end mark"),
        (with_size(10**13), 1, "is damaged, and the rest of it is lost: unexpected end"),
        (gzip.compress(with_size(10**13)), 1, "1.png has 10,000,000,000,000 bytes"),
        (with_size(-512), 1, "is damaged, and the rest of it is lost"),
        (b"<!DOCTYPE html>" + b" " * 600, 0, "rest of it is lost: it is a web page that"),
        (b"version https://git-lfs.github.com/spec/v1\n", 0, "lost: it is a Git LFS pointer"),
        (b"", 0, "is damaged, and the rest of it is lost: empty file"),
        (b"PK\x03\x04", 0, "is damaged, and the rest of it is lost"),
    ],
    ids=[
        *("no end mark", "cut", "cut gzip", "a bad header", "two joined", "a size beyond the end"),
        *("a size beyond gzip", "a negative size", "html", "pointer", "empty", "zip"),
    ],
)
def test_an_archive_that_ends_early_is_noticed(tmp_path, encode, content, kept, why):
    (tmp_path / "some.tar").write_bytes(content)
    result = encode(tmp_path / "some.tar")
    assert (len(result.documents), result.status) == (kept, int(not kept))
    assert why in result.err
    assert result.shards == ["000000.jsonl"][: int(kept > 0)]


def test_a_header_is_not_read_into_memory_whatever_its_size(tmp_path, encode):
    info = tarfile.TarInfo("long")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**33
    content = gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(2**20))
    (tmp_path / "some.tar.gz").write_bytes(content)
    result = encode(tmp_path / "some.tar.gz")
    assert result.status == 1
    assert "a header of 8,589,934,592 bytes" in result.err


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_pictures_that_wait_do_not_fill_the_memory(archive, encode, monkeypatch, mode):
    """A small archive may hold large files; what is large is read when its turn comes."""
    monkeypatch.setattr(archives, "_LARGEST_KEPT", 1000)
    large = PNG + bytes(2000)
    given = archive(("a.png", large), ("b.png", None), ("c.png", bytes(5000)), mode=mode)
    monkeypatch.setattr(picture_sources, "LARGEST_PICTURE", 4000 if mode == "w" else 6000)
    found = {each.name: each for each in archives.read_archive(given, PassedOver())}
    kept = {name for name, each in found.items() if isinstance(each.read.args[0], bytes)}
    assert kept == ({"b.png"} if mode == "w:gz" else set())
    assert found["a.png"].read() == large
    result = encode(given)
    assert list(result.texts) == ["a.png", "b.png"]
    if mode == "w":
        assert "c.png is left out: it has 5,000 bytes, more than 4,000" in result.err
    else:
        given.write_bytes(given.read_bytes()[:60])
        with pytest.raises(PictureError, match="its archive is damaged: Compressed file ended"):
            found["a.png"].read()


def test_one_lost_archive_of_several_leaves_no_shard(tmp_path, encode):
    (tmp_path / "0.tar").write_bytes(b"no archive")
    (tmp_path / "1.tar").write_bytes(GOOD)
    result = encode(tmp_path / "*.tar")
    assert (result.status, result.shards) == (0, ["000001.jsonl"])
    assert "shards without a picture that can be read: 1 (000000 of " in result.err


# --- what is made of it ---


def test_one_of_several_texts_is_learned_each_time(mini_llm):
    writer = DocumentWriter(mini_llm.vocab, "seed-mini")
    for kind in ("caption", "text_to_image"):
        document = {"format": kind, "text": ["a fox", "an owl"], "codes": list(range(32))}
        one = {
            text: {
                tuple(writer.write({**document, "text": text}, random.Random(i)).token_ids)
                for i in range(200)
            }
            for text in document["text"]
        }
        drawn = [tuple(writer.write(document, random.Random(i)).token_ids) for i in range(200)]
        for text in document["text"]:
            assert 50 < sum(ids in one[text] for ids in drawn) < 150
        for wrong in ([], ["a", 3], ["a", " "]):
            with pytest.raises(SeedError, match="text must be"):
                writer.write({**document, "text": wrong}, random.Random(0))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": '{"model_type": "bert"}'}, "lacks vocab.txt and tokenizer.json"),
        ({"tokenizer.json": "[1]"}, "holds no tokenizer of BERT"),
        ({"vocab.txt": "a\nb\n"}, "holds no tokenizer of BERT"),
        ({"vocab.txt": b"\xff\xfe\0"}, "holds no tokenizer of BERT"),
        ({"vocab.txt": "a", "tokenizer_config.json": "[]"}, "holds no tokenizer of BERT"),
    ],
)
def test_a_vocabulary_for_captions_is_read_or_refused(folder, files, message):
    config = {"config.json": '{"model_type": "bert"}'}
    with pytest.raises(CheckpointError, match=message):
        read_vocabulary(folder({**config, **files}))
    good = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "fox"])
    assert read_vocabulary(folder({**config, "vocab.txt": good}, "good"))(["fox"]).input_ids


def test_captions_are_checked_before_a_run_begins(folder, caplog):
    given = folder({"a.png": None, "a.txt": "one\ntwo\n", "b.png": None, "b.txt": b"fr\xfch"})
    with caplog.at_level(logging.WARNING):
        samples = pictures.PictureFolders([given], 4, has_captions=True)
    assert "pictures whose caption cannot be read: 1 (b.png: its text b.txt" in caplog.text
    assert {samples.sample(i, Streams(0))[1] for i in range(30)} == {"one", "two"}
    assert all(isinstance(samples.sample(i, Streams(0))[0], torch.Tensor) for i in range(3))
    (given / "c.png").write_bytes(PNG)
    with pytest.raises(OptionError, match="the folder .*nowhere is missing"):
        pictures.PictureFolders([given / "nowhere"], 4, has_captions=True)
    with pytest.raises(OptionError, match=r"pictures without a caption: 1 \(c.png\)"):
        pictures.PictureFolders([given], 4, has_captions=True)
    pictures.PictureFolders([given], 4, has_captions=False)
    (given / "c.png").unlink()
    (given / "a.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(PictureError, match="no picture has a caption that can be read"):
        pictures.PictureFolders([given], 4, has_captions=True)


@pytest.mark.parametrize("suffix", ["avif", "tga", "qoi", "jp2", "ppm", "PNG"])
def test_whatever_pillow_reads_is_a_picture(suffix, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (16, 16), "teal").save(folder / f"fox.{suffix}")
    passed = PassedOver()
    assert [each.name for each in picture_sources.find_pictures(folder, passed)] == [
        f"fox.{suffix}"
    ]
    assert passed.lines() == []
