"""Pictures with their texts, from folders, one at a time."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from PIL import Image

from ...errors import OptionError, PictureError
from ...files.pictures import decode_picture, picture_suffixes
from .metadata import METADATA_FILES, read_metadata
from .passed_over import HIDDEN, OTHER_FILES, UNMATCHED_TEXTS, PassedOver
from .texts import LARGEST_TEXT, TEXT_SUFFIXES, agreed, pair, texts_in

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz")

LARGEST_PICTURE = 2**29  # bytes of its file; each worker reads one

# Beside pictures, macOS, Windows and network drives keep files of their own, thumbnails included.
_OF_THE_SYSTEM = (
    *("__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "system volume information"),
)
_FILES_OF_THE_SYSTEM = ("thumbs.db", "ehthumbs.db", "desktop.ini")


@dataclass(frozen=True)
class PictureFile:
    """A picture that has not been opened yet."""

    name: str  # its path in the folder or archive, with slashes
    read: Callable[[], bytes]  # returns the bytes of the file
    read_texts: Callable[[], list[str]]  # returns its texts, which all say what it shows
    has_text_file: bool = False  # which may hold no text

    def open(self) -> Image.Image:
        """Return the picture as `decode_picture` does.

        Raises:
            PictureError: no picture can be read from the file.
            OSError: the file cannot be read.
        """
        return decode_picture(io.BytesIO(self.read()), self.name)


def is_hidden(name: str) -> bool:
    """Return whether a path with slashes leads to what file managers do not show."""
    *folders, file = name.lower().split("/")
    return (
        any(_is_dotted(part) or part in _OF_THE_SYSTEM for part in folders)
        or _is_dotted(file)
        or file in (*_OF_THE_SYSTEM, *_FILES_OF_THE_SYSTEM)
    )


def _is_dotted(part: str) -> bool:
    return part.startswith(".") and part not in (".", "..")


def suffix_of(name: str) -> str:
    """Return the ending of a path with slashes, in lower case."""
    return PurePosixPath(name).suffix.lower()


def kind_of_unmatched(text: str) -> str:
    """Return what a text counts as that belongs to no picture; a .json may be about anything."""
    return OTHER_FILES if suffix_of(text) == ".json" else UNMATCHED_TEXTS


def find_pictures(folder: Path, passed: PassedOver) -> list[PictureFile]:
    """Return the pictures in a folder, its subfolders and the folders they link to, by name.

    Args:
        folder: where they are.
        passed: counts what is neither a picture nor the text of one.

    Raises:
        OptionError: the folder is missing or has no picture, a picture has two texts, or a file of
            METADATA_FILES is damaged.
    """
    if not folder.is_dir():
        raise OptionError(f"the folder {folder} is missing")
    names = _files(folder, passed)
    pictures = [name for name in names if suffix_of(name) in picture_suffixes()]
    if not pictures:
        raise OptionError(_no_picture(folder, names))
    listed = _listed(folder, names, pictures)
    texts = [name for name in names if suffix_of(name) in TEXT_SUFFIXES]
    paired, unmatched = pair(pictures, texts)
    for name in unmatched:
        passed.add(kind_of_unmatched(name), f"{folder / name}")
    known = {*pictures, *texts}
    for name in names:
        if name not in known and PurePosixPath(name).name.lower() not in METADATA_FILES:
            passed.add(OTHER_FILES, f"{folder / name}")
    found = []
    for name in pictures:
        beside = paired.get(name, [])
        read_texts = partial(_texts, folder, beside)
        if told := listed.get(name):
            _check_single(folder, name, beside)
            read_texts = partial(list, told)
        has_text_file = bool(beside) or name in listed
        found.append(PictureFile(name, partial(_content, folder / name), read_texts, has_text_file))
    return found


def _check_single(folder: Path, picture: str, beside: Sequence[str]) -> None:
    """Refuse texts beside a picture that a file of METADATA_FILES lists."""
    if own := [text for text in beside if suffix_of(text) != ".json"]:
        raise OptionError(
            f"{folder / picture} has a text in {own[0]} beside it and another in a "
            f"{' or '.join(METADATA_FILES)}; keep one"
        )


def _no_picture(folder: Path, names: Sequence[str]) -> str:
    what = f"{folder} holds no picture; pictures end in .png, .jpg, .webp, .avif, .tif and the like"
    endings = Counter(suffix_of(name) or "no ending" for name in names).most_common(3)
    if endings:
        what += f"; what it holds: {', '.join(f'{count} of {ending}' for ending, count in endings)}"
    if any(name.lower().endswith(ARCHIVE_SUFFIXES) for name in names):
        what += f"; for its archives give {folder / '*.tar'}"
    return what


def _listed(folder: Path, names: Sequence[str], pictures: Sequence[str]) -> dict[str, list[str]]:
    """Return the texts that files of METADATA_FILES give to pictures."""
    listed: dict[str, list[str]] = {}
    for name in names:
        if PurePosixPath(name).name.lower() in METADATA_FILES:
            found = read_metadata(folder, name, pictures)
            if twice := [picture for picture in found if picture in listed]:
                raise OptionError(
                    f"{folder / twice[0]} is listed in {name} and in another file of its kind; keep "
                    "one"
                )
            listed |= found
    return listed


def check_size(size: int) -> None:
    """Raise a `PictureError` for a file that is too large to be read."""
    if size > LARGEST_PICTURE:
        raise PictureError(f"it has {size:,} bytes, more than {LARGEST_PICTURE:,}")


def _content(path: Path) -> bytes:
    check_size(path.stat().st_size)
    return path.read_bytes()


def _texts(folder: Path, names: Sequence[str]) -> list[str]:
    found = {}
    for name in names:
        with (folder / name).open("rb") as file:
            found[name] = texts_in(file.read(LARGEST_TEXT + 1), name)
    return agreed(found)


def _files(folder: Path, passed: PassedOver) -> list[str]:
    """Return the files below a folder, each real folder once, in order."""
    seen: set[tuple[int, int]] = set()
    found: list[Path] = []
    now, links = [folder], list[Path]()
    while now or links:
        # Real folders come first: they keep their names whatever links to them.
        place = now.pop() if now else links.pop()
        try:
            about = place.stat()
            entries = sorted(os.scandir(place), key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            passed.add("folders that cannot be read", f"{place}: {error.strerror}")
            continue
        if (key := (about.st_dev, about.st_ino)) in seen:
            passed.add("links to folders that are read already", f"{place}")
            continue
        seen.add(key)
        for entry in entries:
            path, is_link = place / entry.name, entry.is_symlink()
            if is_hidden(entry.name):
                passed.add(HIDDEN, f"{path}")
            elif os.path.isdir(path) if is_link else entry.is_dir():
                (links if is_link else now).append(path)
            elif os.path.isfile(path) if is_link else entry.is_file():
                found.append(path)
            else:
                kind = "links that lead nowhere" if is_link else "devices and pipes"
                passed.add(kind, f"{path}")
    return [path.relative_to(folder).as_posix() for path in sorted(found)]
