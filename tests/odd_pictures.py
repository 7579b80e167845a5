"""Files that are handed over as pictures: what people have, whole, damaged and in disguise."""

import functools
import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def saved(picture: Image.Image, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def fox(width: int = 96, height: int = 64) -> Image.Image:
    """A sample picture as a wide one, which no turn leaves alike."""
    samples = Path(__file__).parents[1] / "seed_core" / "weights" / "seed-mini" / "samples"
    with Image.open(samples / "fox_on_yellow.png") as picture:
        return picture.convert("RGB").resize((width, height))


def noise(width: int = 96, height: int = 96) -> Image.Image:
    """What no format can make small, so that a PNG of it has several chunks."""
    levels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, bits: int, colour: int, *chunks: bytes) -> bytes:
    """A PNG of any size that claims to be whole."""
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    text = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(chunks)
    return text + chunk(b"IEND", b"")


def black(width: int, height: int) -> bytes:
    """A PNG of one bit a pixel: a small file, however large it is."""
    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return png(width, height, 1, 0, chunk(b"IDAT", data))


def broken_second_chunk() -> bytes:
    """A PNG whose second IDAT chunk has a name that no chunk can have."""
    whole = zlib.compress(bytes(33 * 32), 0)
    first, second = chunk(b"IDAT", whole[:500]), chunk(b"IDAT", whole[500:])
    return png(32, 32, 8, 0, first, second[:4] + b"\x80D\x01T" + second[8:])


def big_letters() -> bytes:
    """A PNG with a megabyte of text, packed into a thousandth."""
    return png(1, 1, 8, 0, chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * (2 << 20))))


def preview() -> bytes:
    """The TIFF of a raw photo: it says of its picture that it is only a small one of another."""
    exif = Image.Exif()
    exif[254] = 1
    return saved(fox(), "TIFF", exif=exif)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 34567\n"


@functools.cache
def refused() -> dict[str, tuple[bytes, str]]:
    """Contents of files that show no picture, with words that the refusal must have."""
    whole, jpeg = saved(noise()), saved(noise(), "JPEG")
    return {
        "empty": (b"", "is empty"),
        "zeros": (bytes(5000), "only zeros"),
        "broken chunk": (broken_second_chunk(), "damaged or not whole"),
        "cut png": (whole[:3000], "damaged or not whole"),
        "cut jpeg": (jpeg[:3000], "damaged or not whole"),
        "cut webp": (saved(noise(), "WEBP")[:3000], "damaged or"),
        "cut gif": (saved(noise(), "GIF")[:3000], "damaged or not whole"),
        "cut tiff": (saved(noise(), "TIFF")[:3000], "damaged or"),
        "cut in its head": (whole[:20], "damaged or not whole"),
        "cut in its mark": (whole[:8], "begins as PNG pictures do, but is damaged"),
        "one byte": (b"\x89", "no picture format"),
        "bomb": (black(30000, 30000), "more than 178,956,970 pixels"),
        "no pixels": (png(0, 0, 8, 2, chunk(b"IDAT", zlib.compress(b""))), "damaged or"),
        "much text": (big_letters(), "damaged or not whole"),
        "git lfs": (LFS, "a Git LFS pointer.*`git lfs pull`"),
        "web page": (b"\n<!DOCTYPE html>\n<html><title>404</title></html>", "a web page"),
        "page without type": (b"\xef\xbb\xbf<HTML lang=en><body>Sign in</body>", "a web page"),
        "svg": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG"),
        "json": (b'{"error": "Rate limit exceeded"}', 'a text, .* "{"error": "Rate limit exce'),
        "words": ("früh am Morgen".encode(), 'a text, .* "früh am Morgen"'),
        "heic": (b"\0\0\0\x24ftypheic" + bytes(50), "a HEIC photo"),
        "raw of Canon": (b"\0\0\0\x18ftypcrx " + bytes(50), "raw photo"),
        "raw of Nikon": (preview(), "only a preview, as raw photos do"),
        "video": (b"\0\0\0\x18ftypmp42" + bytes(50), "a video"),
        "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "a PDF"),
        "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        "zip": (b"PK\x03\x04" + bytes(40), "an archive"),
        "jpeg xl": (b"\xff\x0a" + bytes(range(40)), "JPEG XL"),
        "32 bits": (saved(Image.new("F", (8, 8), 0.5), "TIFF"), "do not say what white is"),
        "noise": (bytes(range(255, 0, -1)) * 9, "no picture format"),
        "weights": (struct.pack("<Q", 2) + b"{}", "no picture format"),
    }
