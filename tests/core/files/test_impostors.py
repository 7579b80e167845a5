"""Files that are not the pictures their names promise are called by what they are."""

import struct

import pytest

from seed_core.files.impostors import HEAD, begins_as_picture, what_it_is
from seed_core.files.pictures import _formats

LONG = b" and so on" * HEAD


@pytest.fixture(autouse=True)
def all_formats():
    """What Pillow knows does not hang on which test was first."""
    _formats()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "this file is empty"),
        (bytes(HEAD), "only zeros"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
        (b"/annex/objects/SHA256E-s9--0.png", "a git-annex pointer"),
        (b"<!doctype HTML><p>", "a web page"),
        (b"  \r\n<html>", "a web page"),
        (b"\xef\xbb\xbf<!DOCTYPE html>", "a web page"),
        (b'<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0">', "a web page"),
        (b'<?xml version="1.0"?><!-- made by hand -->\n<svg xmlns="">', "an SVG drawing"),
        (b"<svg>", "an SVG drawing"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "an answer of a server"),
        (b"Not Found", 'a text, not a picture; it begins with "Not Found'),
        (("fehlt: " + "ü" * 99).encode(), 'a text, not a picture; it begins with "fehlt: üüü'),
        (b"%PDF-1.4", "a PDF document"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "a PostScript drawing"),
        (b"\xc5\xd0\xd3\xc6", "a PostScript drawing"),
        (b"\xd7\xcd\xc6\x9a", "a Windows metafile"),
        (b"\0\0\0\x18ftypheix", "a HEIC photo"),
        (b"\0\0\0\x18ftypmif1", "a HEIC photo"),
        (b"\0\0\0\x18ftypcrx ", "raw photo"),
        (b"FUJIFILMCCD-RAW 0201", "raw photo"),
        (b"\0\0\0\x18ftypisom", "a video"),
        (b"\0\0\0\x14ftypqt  ", "a video"),
        (b"\x1a\x45\xdf\xa3", "a video"),
        (b"RIFF\1\2\3\4AVI LIST", "a video"),
        (b"\xff\x0a\x7f", "a JPEG XL picture"),
        (b"v/1\x01\2\0\0\0", "high dynamic range"),
        (b"#?RADIANCE\n", "high dynamic range"),
        (b"SIMPLE  =                    T", "a FITS picture"),
        (b"PK\3\4", "an archive"),
        (b"\x1f\x8b\x08", "an archive"),
        (b"\x89PNG\r\n\x1a\n", "begins as PNG pictures do"),
        (b"\xff\xd8\xff\xe0", "begins as JPEG pictures do"),
        (b"II*\0\x08\0\0\0", "begins as TIFF pictures do"),
        (struct.pack("<Q", 300) + b'{"codes":', "no picture format"),
        (b"\xff\xfe<\0h\0t\0m\0l\0", "no picture format"),
    ],
)
def test_a_file_is_called_by_what_it_is(content, words):
    assert words in what_it_is(content)
    if content.strip(b"\0"):
        assert words in what_it_is((content + LONG)[:HEAD])


def test_an_avif_is_no_video():
    """An old Pillow does not know it."""
    words = "begins as AVIF pictures do" if "AVIF" in _formats() else "no picture format"
    assert words in what_it_is(b"\0\0\0\x20ftypavif")


def test_the_words_of_a_text_are_shown_in_one_line_that_no_console_obeys():
    assert what_it_is("früh\n am\tMorgen".encode()).endswith('it begins with "früh am Morgen"')
    assert "no picture format" in what_it_is(b"\x1b[31mred")


@pytest.mark.parametrize(
    "head",
    [
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xdb",
        b"GIF89a",
        b"RIFF\0\0\0\0WEBP",
        b"II*\0",
        b"BM" + bytes(8),
    ],
)
def test_pictures_are_known_by_their_heads(head):
    assert begins_as_picture(head)


@pytest.mark.parametrize(
    "head",
    [b"", b'{"codes": []}', b"# seed-mini\n1 2 3", b"<img><img_00001>", b"[[1, 2]]", b"1 2 3"]
    + [struct.pack("<Q", size) + b'{"' for size in (64, 304, 0x10000, 0x4D42)],
)
def test_files_of_codes_begin_as_no_picture_does(head):
    """Of safetensors files the first bytes are the length of the header."""
    assert not begins_as_picture(head)
