"""Fluent Emoji 3D: the artwork of seed-mini, from an npm package.

Source: @lobehub/fluent-emoji-3d 1.1.0 (MIT), renderings of Microsoft's Fluent Emoji (MIT).
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
import urllib.request
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...errors import DownloadError, OptionError
from ...files.pictures import decode_picture
from .artwork import Artwork, cut_out

PACKAGE = "https://registry.npmjs.org/@lobehub/fluent-emoji-3d/-/fluent-emoji-3d-1.1.0.tgz"
# Hash of the package's bytes, from the registry.
INTEGRITY = "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g=="

_Picture = npt.NDArray[np.uint8]

_NAMES = Path(__file__).with_name("fluent_emoji.json")
_TIMEOUT = 60  # seconds without a byte
_LARGEST = 2**20  # bytes of a picture; the largest has about a hundredth of that


def fluent_emoji_names() -> dict[str, str]:
    """Return the picture file of each name, without its ending: code points in hex."""
    names: dict[str, str] = json.loads(_NAMES.read_text("utf-8"))
    return names


def download_package(path: Path) -> None:
    """Fetch the package, 16 MB, and write it once its hash is right.

    Raises:
        DownloadError: the connection fails, or the hash is wrong.
    """
    try:
        with urllib.request.urlopen(PACKAGE, timeout=_TIMEOUT) as answer:
            content: bytes = answer.read()
    except OSError as error:
        raise DownloadError(
            f"{PACKAGE} cannot be fetched: {error}. Elsewhere, npm pack @lobehub/fluent-emoji-3d"
            "@1.1.0 writes the same file"
        ) from error
    if (found := integrity(content)) != INTEGRITY:
        raise DownloadError(f"{PACKAGE} has the hash {found}; expected {INTEGRITY}")
    path.write_bytes(content)


def integrity(content: bytes) -> str:
    """Return the hash of a file as npm writes it."""
    return f"sha512-{base64.b64encode(hashlib.sha512(content).digest()).decode()}"


def read_package(package: Path) -> Artwork:
    """Make the artwork of all 319 objects from the ``.tgz`` file, or the folder it was unpacked to.

    Raises:
        OptionError: the package is missing, is another one, or lacks a picture.
    """
    names = fluent_emoji_names()
    wanted = {f"{file}.webp" for file in names.values()}
    found = dict(_in_folder(package, wanted) if package.is_dir() else _in_archive(package, wanted))
    if missing := sorted(wanted - found.keys()):
        raise OptionError(f"{package} is not the package: it has no assets/{missing[0]}")
    return Artwork(tuple(names), np.stack([found[f"{file}.webp"] for file in names.values()]))


def _in_folder(folder: Path, wanted: Collection[str]) -> Iterator[tuple[str, _Picture]]:
    assets = folder / ("package/assets" if (folder / "package").is_dir() else "assets")
    for name in wanted:
        if (path := assets / name).is_file():
            yield name, _cut_out(path.read_bytes())


def _in_archive(package: Path, wanted: Collection[str]) -> Iterator[tuple[str, _Picture]]:
    try:
        with tarfile.open(package) as archive:
            for member in archive:  # in order: to go back in it is to unpack it anew
                folder, _, name = member.name.rpartition("/")
                file = archive.extractfile(member)
                if folder == "package/assets" and name in wanted and file is not None:
                    yield name, _cut_out(file.read(_LARGEST))
    except (OSError, tarfile.TarError, EOFError) as error:
        raise OptionError(f"{package} cannot be read as a .tgz file: {error}") from error


def _cut_out(content: bytes) -> _Picture:
    return cut_out(decode_picture(io.BytesIO(content), "a picture of the package", "RGBA"))
