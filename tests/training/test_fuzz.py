"""Training data with random damage: each case is read, or its loss is said; nothing else happens.

In the manner of tests/core/files/test_fuzz.py, whose damage it does.
"""

import bz2
import gzip
import json
import random
import tarfile
import unicodedata
from pathlib import Path

import pytest

from seed_core.errors import PictureError
from seed_core.training.data.archives import read_archive
from seed_core.training.data.documents import DocumentWriter
from seed_core.training.data.passed_over import PassedOver
from seed_core.training.data.picture_sources import find_pictures
from seed_core.training.data.sources import Documents, SourceFiles
from seed_core.training.data.texts import pair, texts_in
from seed_core.training.streams import Streams


@pytest.fixture(scope="module")
def fuzz(load_helper):
    return load_helper(Path(__file__).parents[1] / "core" / "files" / "test_fuzz.py")


def refuse_what_was_lost(passed):
    if lines := passed.lines():
        raise PictureError("; ".join(lines))


# --- archives ---

NAMES = [
    *("000.png", "000.PNG", "001.jpg", "001.txt", "001.JSON", "a/b/2.webp", "../3.png", "/4.gif"),
    *(
        "000.mask.png",
        "v1.5.png",
        "x" * 250 + ".png",
        "dir/",
        "",
        ".",
        "..",
        "a/../000.png",
        "._0.png",
    ),
    *("früh.png", "\udcff.txt", "__meta__.json", "inner.tar", "a\0b.png", "5", ".png", "6.png.txt"),
]
SIZES = [0, 1, -1, -512, 511, 512, 513, 2**20, 2**31, 2**33, 2**40, 2**62, -(2**62)]
TYPES = [*(bytes([i]) for i in b"01234567SLKxgVDNAMX"), b"\0"]
CONTENTS = [
    b"A fox.",
    b'{"caption": ["a", "b"]}',
    b'{"text": 3}',
    b"\xff\xfe",
    b"",
    b"{",
    b"x" * 700,
]
PAX = [
    *({"path": "7.png"}, {"size": "99999999999"}, {"size": "-5"}, {"GNU.sparse.major": "1"}),
    *(
        {"GNU.sparse.map": "0,1,2"},
        {"GNU.sparse.size": "x"},
        {"path": "\0"},
        {"linkpath": "000.png"},
    ),
    *({"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}, {"hdrcharset": "BINARY"}, {"mtime": "x"}),
]


def member(chance, name):
    info = tarfile.TarInfo(name)
    content = chance.choice(CONTENTS)
    info.size = len(content)
    kind = chance.random()
    if kind < 0.15:
        info.size = chance.choice(SIZES)
    elif kind < 0.3:
        info.type = chance.choice(TYPES)
        info.linkname = chance.choice(NAMES)
    elif kind < 0.4:
        info.pax_headers = chance.choice(PAX)
    form = chance.choice([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
    try:
        header = info.tobuf(form, "utf-8", "surrogateescape")
    except ValueError:  # this format has no place for such a number
        info.size = 0
        header = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    return header + content + bytes(-len(content) % 512)


def archive_target(fuzz, folder):
    file = folder / "some.tar"

    def make(chance):
        names = [chance.choice(NAMES) for _ in range(chance.randint(0, 6))]
        content = b"".join(member(chance, name) for name in names)
        content += bytes(chance.choice([1024, 1024, 1024, 512, 0, 10240]))
        if chance.random() < 0.3:
            content = fuzz.damage_bytes(chance, content)
        kind = chance.random()
        if kind < 0.2:
            content = (gzip.compress if kind < 0.15 else bz2.compress)(content)
            if chance.random() < 0.3:
                content = fuzz.damage_bytes(chance, content)
        return content

    def run(content):
        file.write_bytes(content)
        passed, found = PassedOver(), 0
        for picture in read_archive(file, passed):
            found += 1
            for read in (picture.read, picture.read_texts):
                try:
                    read()
                except PictureError as error:
                    passed.add("refused", str(error))
        refuse_what_was_lost(passed)
        with tarfile.open(file) as tar:
            expected = [each for each in tar.getmembers() if not each.isdir()]
        texts = [each for each in expected if each.name.lower().endswith((".txt", ".json"))]
        assert found == len(expected) - len(texts)

    return fuzz.Target(50_000, make, run)


# --- lines ---

PICTURE = list(range(32))
DOCUMENTS = [
    {"format": "caption", "codes": PICTURE, "text": ["A fox.", "An owl."], "family": "seed-mini"},
    {"format": "text_to_image", "codes": PICTURE, "text": "A fox.", "response": "Here."},
    {"format": "interleaved", "parts": ["A fox", PICTURE, "and an owl"]},
    {"format": "video", "frames": [PICTURE, PICTURE], "text": "A film."},
    {"format": "edit", "source": PICTURE, "instruction": "Night", "target": PICTURE},
    {"format": "two_images", "pictures": [PICTURE] * 2, "question": "Same?", "answer": "Yes."},
    {"format": "story", "pieces": [["Once", PICTURE]], "question": "Then?"},
    {"format": "text", "text": "A fox."},
    {
        "format": "conversation",
        "turns": [{"role": "user", "parts": "A"}, {"role": "assistant", "parts": ["B", PICTURE]}],
    },
]


def lines_target(fuzz, folder, vocab):
    file = folder / "some.jsonl"
    writers = [DocumentWriter(vocab, "seed-mini", pieces) for pieces in ("separate", "joined")]

    def make(chance):
        lines = [json.dumps(chance.choice(DOCUMENTS)).encode() for _ in range(chance.randint(1, 4))]
        if chance.random() < 0.7:
            at = chance.randrange(len(lines))
            lines[at] = fuzz.damage_json(chance, lines[at])
        for _ in range(chance.randrange(3)):
            lines.insert(
                chance.randrange(len(lines) + 1), chance.choice([b"", b" \t", b"\r", b"\0"])
            )
        content = chance.choice([b"\n", b"\n", b"\r\n"]).join(lines)
        return content + chance.choice([b"", b"\n", b"\n\n \n"])

    def run(content):
        """What the check accepts can be learned from, whatever chance decides."""
        file.write_bytes(content)
        source = SourceFiles(str(file), swapped=0.5).open()
        samples = Documents([source], writers[len(content) % 2])
        samples.check(Streams(0))
        for number in range(2 * len(source.documents)):
            assert samples.sample(number, Streams(0)).teaches

    return fuzz.Target(30_000, make, run)


# --- texts ---


def texts_target(fuzz, vocab):
    writer = DocumentWriter(vocab, "seed-mini")
    forms = ["A fox.\nTwo.", '{"caption": ["a", "b"], "text": null}', '{"caption": "A fox."}']
    names = ["a.txt", "a.JSON", "a.caption"]

    def make(chance):
        text = chance.choice(forms)
        if text[0] == "{" and chance.random() < 0.6:
            return fuzz.damage_json(chance, text.encode())
        made = fuzz.damage_text(chance, text)
        if chance.random() < 0.2:
            made = made.decode("utf-8", "replace").encode(
                chance.choice(["utf-16", "utf-16-le", "latin-1"]), "replace"
            )
        return made

    def run(content):
        for text in texts_in(content, names[len(content) % 3]):
            assert text.strip() == text != ""
            writer.write({"format": "caption", "text": text, "codes": PICTURE}, random.Random(0))

    return fuzz.Target(15_000, make, run)


def metadata_target(fuzz, folder):
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(b"")
    jsonl = b'{"file_name": "a.png", "text": "A fox."}\n{"file_name": "b.png", "text": ["B"]}\n'
    table = b'file_name,text\na.png,"A fox, red."\nb.png,B\n'

    def make(chance):
        if chance.random() < 0.4:
            return fuzz.damage_bytes(chance, table)
        first, second = jsonl.splitlines()
        return fuzz.damage_json(chance, first) + b"\n" + second

    def run(content):
        for name in ("metadata.csv", "metadata.jsonl"):
            (folder / name).unlink(missing_ok=True)
        kind = "csv" if content[:4] == table[:4] else "jsonl"
        (folder / f"metadata.{kind}").write_bytes(content)
        passed = PassedOver()
        for picture in find_pictures(folder, passed):
            picture.read_texts()
        refuse_what_was_lost(passed)

    return fuzz.Target(5_000, make, run)


TARGETS = ("archive", "lines", "texts", "metadata")


@pytest.fixture(scope="module")
def targets(fuzz, tmp_path_factory, mini_llm):
    def folder():
        return tmp_path_factory.mktemp("fuzz")

    made = {
        "archive": archive_target(fuzz, folder()),
        "lines": lines_target(fuzz, folder(), mini_llm.vocab),
        "texts": texts_target(fuzz, mini_llm.vocab),
        "metadata": metadata_target(fuzz, folder()),
    }
    assert tuple(made) == TARGETS  # so that none is left out
    return made


CORPUS = Path(__file__).parents[1] / "data" / "fuzz" / "training"


@pytest.mark.parametrize("file", sorted(CORPUS.iterdir()), ids=lambda file: file.name)
def test_what_failed_once_is_read_or_said(fuzz, targets, file):
    fuzz.is_refused(targets[file.name.rpartition("-")[0]].run, file.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_damage_is_read_or_said(fuzz, targets, name, tmp_path):
    fuzz.read_or_refuse(name, targets[name], targets[name].cases // fuzz.ALWAYS, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_damage_of_a_hundred_thousand_kinds_is_read_or_said(fuzz, targets, name, tmp_path):
    fuzz.read_or_refuse(name, targets[name], targets[name].cases, tmp_path)


def test_every_text_belongs_to_a_picture_or_to_none():
    chance = random.Random(0)
    letters = ["a", "A", "b", ".", "é", unicodedata.normalize("NFD", "é"), "ß", "ss", "/"]
    for _ in range(2000):

        def some(endings, chance=chance):
            names = ("".join(chance.choices(letters, k=chance.randint(1, 3))) for _ in range(6))
            return sorted({name + chance.choice(endings) for name in names})

        pictures, texts = (
            some([".png", ".PNG", ".jpg"]),
            some([".txt", ".png.txt", ".TXT", ".json"]),
        )
        found, unmatched = pair(pictures, texts)
        assert set(found) <= set(pictures)
        assert sorted({*unmatched, *(text for some in found.values() for text in some)}) == texts
        assert not {*unmatched} & {text for some in found.values() for text in some}
