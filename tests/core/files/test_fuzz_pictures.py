"""Any bytes behind a picture's head: read, or refused by a `PictureError`, in bounded memory.

What it once failed on lies in tests/data/fuzz/pictures, and is tried again as an ordinary test.
"""

import functools
import io
import random
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from seed_core.__main__ import main
from seed_core.errors import PictureError
from seed_core.files import pictures
from seed_core.tokenizer.preprocess import preprocess

CORPUS = Path(__file__).parents[2] / "data" / "fuzz" / "pictures"
CASES = 100_000
ALWAYS = 5_000
MEMORY = 2 * 2**30  # bytes that one case may take at its peak


def memory(line: str) -> int:
    """Bytes of memory of this process, of a line of Linux's status; elsewhere 0."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    (found,) = [each for each in status.splitlines() if each.startswith(line)]
    return int(found.split()[1]) * 1024


def forget_peak() -> None:
    with suppress(OSError):  # Linux only
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


# --- whole pictures ---

SIDE = 24
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F")


OPTIONS = [
    *({"compression": name} for name in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg", "group4")),
    *(
        {"progressive": True},
        {"transparency": 3},
        {"interlace": 1},
        {"lossless": True},
        {"bits": 4},
    ),
]


@functools.cache
def whole_pictures() -> list[bytes]:
    """One of every mode in every format that Pillow writes, and some with more in them."""
    Image.init()
    y, x = np.mgrid[:SIDE, :SIDE]
    picture = Image.fromarray(np.stack([x * 10, y * 10, (x ^ y) * 8], axis=-1).astype(np.uint8))
    exif = Image.Exif()
    exif[274], exif[271] = 6, "a camera"
    exif.get_ifd(0x8769)[0x9286] = "a comment"
    several = {"save_all": True, "append_images": [picture.rotate(90), picture.resize((9, 30))]}
    made = [
        _written(picture, mode, form, **options)
        for form in sorted(set(Image.SAVE) - {"PDF"})  # which no two times is the same
        for mode in MODES
        for options in ({}, {"exif": exif})
    ]
    made += [
        _written(picture, "RGB", form, **several)
        for form in ("GIF", "PNG", "WEBP", "TIFF", "MPO", "AVIF")
    ]
    made += [
        _written(picture, mode, form, **options)
        for form in ("TIFF", "PNG", "JPEG", "WEBP", "GIF")
        for mode in MODES
        for options in OPTIONS
    ]
    return list(dict.fromkeys(content for content in made if content))


def _written(picture, mode, form, **options):
    file = io.BytesIO()
    try:
        kind = "L" if mode in ("I;16", "I", "F") else "RGB"
        picture.convert(kind).convert(mode).save(file, form, **options)
    except Exception:  # noqa: BLE001 - that format has no such pictures
        return None
    return file.getvalue()


# How files begin that Pillow reads and cannot write.
HEADS = [
    *(b"8BPS\0\1\0\0\0\0\0\0\0\3\0\0\0\x18\0\0\0\x18\0\x08\0\3", b"SIMPLE  =                    T"),
    *(b'/* XPM */\nstatic char *a[] = {\n"24 24 2 1",\n', b"\x89HDF\r\n\x1a\n", b"GRIB\0\0\0\1"),
    *(
        b"BUFR\0\0\0\3",
        b"\0\0\0\0\x11\xaf" + bytes(10),
        b"\0\0\0\0\x12\xaf\1\0\x18\0\x18\0\x08\0\3\0",
    ),
    *(
        b"\0\0\2\0\1\0\x18\x18\0\0\1\0\x20\0",
        b"FTEX\0\0\0\0",
        b"BLP1\1\0\0\0",
        b"BLP2\1\0\0\0\1\x08",
    ),
    *(b"DDS \x7c\0\0\0\7\x10\x0a\0", b"\0\0\0\x1c\0\0\0\1\0\0\0\x18\0\0\0\x18\0\0\0\4", b"PCD_IPI"),
    *(
        b"\x80\xe8\0\0\0\0\0\0",
        b"\x0a\5\1\x08",
        b"\xb1\x68\xde\x3a",
        b"\x1c\x01",
        b"P7 332\n#a\n24 24 255\n",
    ),
    *(
        b"\x59\xa6\x6a\x95\0\0\0\x18\0\0\0\x18\0\0\0\x18",
        b"\1\xda\1\1\0\3\0\x18\0\x18\0\3",
        b"qoif",
    ),
    *(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", b"\0\0\1\xb3", b"%!PS-Adobe", b"\xd7\xcd\xc6\x9a\0\0"),
    *(
        b"Pf\n24 24\n-1.0\n",
        b"PF\n24 24\n1\n",
        b"P1\n24 24\n",
        b"P3 24 24 999\n",
        b"P6 9999999 9 255\n",
    ),
    *(
        b"P7\nWIDTH 24\nHEIGHT 24\nDEPTH 4\nMAXVAL 255\nTUPLTYPE RGB_ALPHA\nENDHDR\n",
        b"BM",
        b"RIFF",
    ),
    *(b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51", b"\0\0\0\x20ftypavif", b"\xff\xd8\xff\xe1"),
    *(
        b"GIF89a\xff\xff\xff\xff\xf7\0\0",
        b"\x89PNG\r\n\x1a\n",
        b"II*\0\x08\0\0\0",
        b"MM\0*\0\0\0\x08",
    ),
    *(
        b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0",
        b"icns\0\0\1\0ic07",
        b"DanM\x18\0\x18\0",
        b"Image type: 1",
    ),
]
NUMBERS = [0, 1, 2, 7, 255, 256, 65535, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 13000, 9458]


# --- damage ---


def damaged(chance: random.Random, wholes: list[bytes]) -> bytes:
    kind = chance.random()
    if kind < 0.1:
        return chance.choice(HEADS) + chance.randbytes(chance.choice([0, 3, 40, 400]))
    whole = chance.choice(wholes)
    if kind < 0.2:
        return whole[: chance.choice([4, 8, 16, 40, 100])] + chance.randbytes(chance.randrange(200))
    if kind < 0.3:
        at = chance.randrange(len(whole))
        return whole[:at] + chance.choice(wholes)[at:]
    if kind < 0.55 and whole.startswith(b"\x89PNG"):
        return with_damaged_chunk(chance, whole)
    made = bytearray(whole)
    for _ in range(chance.choice([1, 1, 1, 2, 5, 20])):
        damage(chance, made)
    return bytes(made)


def damage(chance: random.Random, made: bytearray) -> None:
    """Most often near the beginning, where sizes and kinds stand."""
    span = chance.choice([32, 120, len(made) + 1, len(made) + 1])
    at, kind = chance.randrange(min(span, len(made) + 1)), chance.randrange(6)
    if kind == 0:
        made[at : at + 1] = bytes([chance.randrange(256)])
    elif kind == 1:
        del made[at : at + chance.choice([1, 2, 8, 100])]
    elif kind == 2:
        made[at:at] = made[at : at + chance.choice([1, 8, 64])]
    elif kind == 3:
        form = chance.choice(["<I", ">I"])
        made[at : at + 4] = struct.pack(form, chance.choice(NUMBERS))
    elif kind == 4:
        form = chance.choice(["<H", ">H"])
        made[at : at + 2] = struct.pack(form, chance.choice(NUMBERS) & 0xFFFF)
    elif chance.random() < 0.3:
        del made[at:]


def with_damaged_chunk(chance: random.Random, whole: bytes) -> bytes:
    """A PNG with damage that its checksums do not tell of."""
    chunks, at = [], 8
    while at + 12 <= len(whole):
        (size,) = struct.unpack(">I", whole[at : at + 4])
        chunks.append((whole[at + 4 : at + 8], bytearray(whole[at + 8 : at + 8 + size])))
        at += 12 + size
    for _ in range(chance.choice([1, 1, 2])):
        number = chance.randrange(len(chunks))
        name, data = chunks[number]
        kind = chance.random()
        if kind < 0.6 and data:
            damage(chance, data)
        elif kind < 0.8:
            names = [
                b"tRNS",
                b"PLTE",
                b"eXIf",
                b"acTL",
                b"fcTL",
                b"fdAT",
                b"zTXt",
                b"iTXt",
                b"gAMA",
            ]
            names += [b"IHDR", b"IDAT", b"IEND", b"sRGB", b"pHYs", b"iCCP", b"cHRM", name]
            random_data = chance.randbytes(chance.choice([0, 1, 2, 4, 8, 26, 60]))
            chunks.insert(number, (chance.choice(names), bytearray(random_data)))
        elif len(chunks) > 1:
            del chunks[number]
    made = whole[:8]
    for name, data in chunks:
        made += struct.pack(">I", len(data)) + name + data
        made += struct.pack(">I", zlib.crc32(name + bytes(data)))
    return made


# --- what has to hold ---


def check_message(message: str) -> None:
    assert message
    assert message.isprintable()


def read(content: bytes) -> None:
    """Read a picture; what refuses it says so in one line."""
    try:
        picture = pictures.decode_picture(io.BytesIO(content), "a picture")
        pixels = preprocess([picture], 16)
    except PictureError as error:
        check_message(str(error))
        raise
    assert picture.mode == "RGB"
    assert min(picture.size) > 0
    assert bool(pixels.isfinite().all())


def read_or_refuse(fuzz: ModuleType, cases: int, folder: Path) -> None:
    wholes = whole_pictures()
    forget_peak()
    before = memory("VmRSS")

    def run(content: bytes) -> None:
        try:
            read(content)
        finally:
            assert memory("VmHWM") - before < MEMORY, "too much memory"

    target = fuzz.Target(cases, lambda chance: damaged(chance, wholes), run)
    refused = fuzz.read_or_refuse("pictures", target, cases, folder, CORPUS)
    assert 0.2 * cases < refused < 0.9 * cases


# Writing them needs formats that Pillow will give up one day.
pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:PIL")


@pytest.fixture(scope="module")
def fuzz(load_helper: Callable[[Path], ModuleType]) -> ModuleType:
    return load_helper(Path(__file__).with_name("test_fuzz.py"))


@pytest.fixture(autouse=True)
def without_words(monkeypatch):
    """Thousands of lines about damaged EXIF data are of no use."""
    monkeypatch.setattr(pictures.log, "disabled", True)


def test_whole_pictures_are_read(fuzz):
    wholes = whole_pictures()
    assert len(wholes) > 150
    refused = [content for content in wholes if fuzz.is_refused(read, content)]
    assert len(refused) < 40  # numbers of 32 bits, and drawings of other programs


def test_damaged_pictures_are_read_or_refused(fuzz, tmp_path):
    read_or_refuse(fuzz, ALWAYS, tmp_path)


@pytest.mark.slow
def test_a_hundred_thousand_damaged_pictures_are_read_or_refused(fuzz, tmp_path):
    read_or_refuse(fuzz, CASES, tmp_path)


def test_damage_ends_no_command_in_a_traceback(tmp_path, capfd):
    chance, wholes = random.Random("commands"), whole_pictures()
    file, output = tmp_path / "picture.png", str(tmp_path / "codes.json")
    capfd.readouterr()
    for _ in range(50):
        file.write_bytes(damaged(chance, wholes))
        status = main(["encode", str(file), "-o", output])
        out, err = capfd.readouterr()
        if status == 0:
            assert out == f"wrote the codes of 1 picture to {output}\n"
        else:
            assert status == 1
            last = err.splitlines()[-1]  # libtiff has words of its own before it
            assert last.startswith(f"error: {file} cannot be read as a picture: ")
        assert "Traceback" not in err
        assert "Warning" not in err


@pytest.mark.parametrize("file", sorted(CORPUS.glob("*")), ids=lambda file: file.name)
def test_what_failed_once_is_read_or_refused(fuzz, file):
    fuzz.is_refused(read, file.read_bytes())
