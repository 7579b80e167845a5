"""Files that are not the pictures their names promise, known by how they begin."""

from __future__ import annotations

import codecs
import re

from PIL import Image

from .foreign import in_place_of_a_file

HEAD = 1024
"""Bytes from the beginning of a file by which its kind is told."""

_EXPORT = "export it as PNG or JPEG"
_KINDS = (  # how files begin, letters in any case; what they are, and what to do
    (rb"<svg|<\?xml.*<svg|<!doctype svg", f"an SVG drawing; {_EXPORT}"),
    (rb"%PDF", f"a PDF document; {_EXPORT}"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", f"a PostScript drawing; {_EXPORT}"),
    (rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF", f"a Windows metafile; {_EXPORT}"),
    (rb"....ftyp(hei|hev|mif|msf)", f"a HEIC photo, which Pillow cannot read; {_EXPORT}"),
    (rb"....ftypcrx|IIR[OS]|IIU\0|FUJIFILMCCD-RAW", f"a camera's raw photo; {_EXPORT}"),
    (rb"....(ftyp(?!avi)|moov)|\x1aE\xdf\xa3|RIFF....AVI ", f"a video; take a frame of it and {_EXPORT}"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", f"a JPEG XL picture, which Pillow cannot read; {_EXPORT}"),
    (rb"v/1\x01|#\?RADIANCE|#\?RGBE", f"a picture of high dynamic range; {_EXPORT}"),
    (rb"SIMPLE  =", f"a FITS picture, which does not say what white is; {_EXPORT}"),
    (rb"PK\x03\x04|PK\x05\x06|\x1f\x8b|7z\xbc\xaf|Rar!", "an archive; unpack it first"),
)  # fmt: skip
_PICTURES = rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|II\*\0|MM\0\*|BM....\0{4}|....ftyp"


def begins_as_picture(head: bytes) -> bool:
    """Return whether a file begins as the picture formats do that people use most."""
    return re.match(_PICTURES, head, re.DOTALL) is not None


def what_it_is(head: bytes) -> str:
    """Return what a file is that no picture could be read from, and what to do about it.

    Args:
        head: its first `HEAD` bytes.
    """
    if not head:
        return "this file is empty"
    if not head.strip(b"\0"):
        return "this file holds only zeros, as an unfinished download does; download it again"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if what := in_place_of_a_file(head):
        return f"this is {what}"
    for pattern, words in _KINDS:
        if any(re.match(pattern, start, re.DOTALL | re.IGNORECASE) for start in (head, text)):
            return f"this is {words}"
    if formats := _formats_that_begin_so(head):
        return (
            f"it begins as {formats[0]} pictures do, but is damaged or of a kind that Pillow "
            "cannot read; get it again, or save it as PNG or JPEG"
        )
    if words := _words(text):
        return f'this is a text, not a picture; it begins with "{words}"'
    return "this is in no picture format that can be read here; save it as PNG or JPEG"


def _formats_that_begin_so(head: bytes) -> list[str]:
    head = head[:16].ljust(16, b"\0")  # so many are looked at
    return [name for name, (_, accept) in Image.OPEN.items() if accept and accept(head)]


def _words(text: bytes) -> str:
    """Return the beginning of a text in one line, or nothing if it is not a text."""
    try:  # the last letter may be cut
        words = codecs.getincrementaldecoder("utf-8")().decode(text[:60])
    except UnicodeDecodeError:
        return ""
    line = " ".join(words.split())
    return line if line.isprintable() else ""
