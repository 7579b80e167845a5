"""Pictures with their texts, from folders and from webdataset archives, one at a time."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_expander

from ...errors import OptionError, PictureError
from ...files.pictures import decode_picture

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz")

# Texts of the pictures in its folder and below, in the form of `datasets`: file_name and text.
METADATA_FILE = "metadata.jsonl"

_TEXT_FIELDS = ("text", "caption")


@dataclass(frozen=True)
class PictureFile:
    """A picture that has not been opened yet."""

    name: str  # its path in the folder or archive, with slashes
    read: Callable[[], bytes]  # returns the bytes of the file
    read_text: Callable[[], str]  # returns its text, or an empty string

    def open(self) -> Image.Image:
        """Return the picture as `decode_picture` does.

        Raises:
            PictureError: no picture can be read from the file.
            OSError: the file cannot be read.
        """
        return decode_picture(io.BytesIO(self.read()), self.name)


def find_pictures(folder: Path, warn: Callable[[str], None]) -> list[PictureFile]:
    """Return the pictures in a folder and its subfolders, by name.

    Args:
        folder: where they are.
        warn: receives a line about files that are neither pictures nor texts.

    Raises:
        OptionError: the folder has no picture, a picture has two texts, or a METADATA_FILE is
            damaged.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    texts: dict[Path, str] = {}
    for path in files:
        if path.name == METADATA_FILE:
            texts |= _read_metadata(path)
    pictures = [path for path in files if path.suffix.lower() in PICTURE_SUFFIXES]
    if not pictures:
        raise OptionError(
            f"{folder} holds no picture; pictures end in {', '.join(PICTURE_SUFFIXES)}"
        )
    known = (*PICTURE_SUFFIXES, ".txt")
    others = [path for path in files if path.suffix.lower() not in known]
    if others := [path for path in others if path.name != METADATA_FILE]:
        kinds = ", ".join(sorted({path.suffix.lower() or path.name for path in others}))
        warn(f"{folder}: {len(others)} other files are left alone ({kinds})")
    if both := [path for path in pictures if path in texts and path.with_suffix(".txt").is_file()]:
        raise OptionError(
            f"{both[0]} has a text in a .txt beside it and another in a {METADATA_FILE}; keep one"
        )
    return [
        PictureFile(
            path.relative_to(folder).as_posix(),
            path.read_bytes,
            partial(_read_text, path, texts.get(path)),
        )
        for path in pictures
    ]


def _read_text(picture: Path, text: str | None) -> str:
    """Return a picture's text: the given one, or that of the file beside it."""
    if text is not None:
        return text
    beside = picture.with_suffix(".txt")
    return _decoded(beside.read_bytes(), beside.name) if beside.is_file() else ""


def _decoded(text: bytes, name: str) -> str:
    try:
        return text.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise PictureError(f"its text {name} is not in UTF-8: {error}") from error


def _read_metadata(path: Path) -> dict[Path, str]:
    """Return the texts by the full path of the picture."""
    texts: dict[Path, str] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
            picture = path.parent / record["file_name"]
            text = _text_of(record)
        except (ValueError, TypeError, KeyError) as error:
            raise OptionError(
                f'{where} must be like {{"file_name": "a.png", "text": "A fox."}}: {error!r}'
            ) from error
        if not picture.is_file():
            raise OptionError(f"{where}: the picture {picture} is missing")
        if picture in texts:
            raise OptionError(f"{where}: {picture.name} is there twice")
        texts[picture] = text
    return texts


def _text_of(record: Mapping[str, Any]) -> str:
    for name in _TEXT_FIELDS:
        if isinstance(text := record.get(name), str):
            return text.strip()
    return ""


def read_archive(archive: Path, warn: Callable[[str], None]) -> Iterator[PictureFile]:
    """Yield the pictures of a webdataset archive in order.

    Files with the same name up to the first dot belong together: a picture, and a .txt, or a .json
    with ``text`` or ``caption``.

    Args:
        archive: a tar file.
        warn: receives a line about files without a picture, and about a damaged end.
    """
    with archive.open("rb") as stream:
        source = {"url": str(archive), "stream": stream}
        try:
            for files in group_by_keys(tar_file_expander([source])):
                picture = _picture_of(files)
                if picture is None:
                    names = ", ".join(name for name in files if not name.startswith("__"))
                    warn(f"{archive}: {files['__key__']} ({names}) has no picture")
                else:
                    yield picture
        except (tarfile.TarError, EOFError, ValueError) as error:
            warn(f"{archive} is damaged, and the rest of it is lost: {error.args[0]}")


def _picture_of(files: Mapping[str, Any]) -> PictureFile | None:
    key = files["__key__"]
    suffix = next((suffix for suffix in PICTURE_SUFFIXES if suffix[1:] in files), None)
    if suffix is None:
        return None

    def read_text() -> str:
        if "txt" in files:
            return _decoded(files["txt"], f"{key}.txt")
        if "json" not in files:
            return ""
        try:
            record = json.loads(files["json"])
            return _text_of(record)
        except (ValueError, AttributeError) as error:
            raise PictureError(f"{key}.json must hold a JSON object: {error}") from error

    return PictureFile(f"{key}{suffix}", lambda: files[suffix[1:]], read_text)
