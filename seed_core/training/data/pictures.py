"""Pictures of folders as samples, by number, each with a random crop of its own."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from ...errors import OptionError, PictureError
from ...tokenizer.preprocess import preprocess
from ..loop import Samples
from ..streams import Streams
from .passed_over import PassedOver
from .picture_sources import PictureFile, find_pictures

log = logging.getLogger(__name__)


_CROP_TRIES = 10
_PICTURE_TRIES = 100
"""Pictures that are opened until one is whole."""


class PictureFolders(Samples):
    """Pictures of folders, with captions if they are wanted.

    Every epoch has another order. Each sample is cropped and mirrored at random, as in the
    reference. Another picture takes the place of a damaged one, and a warning names the file.

    Raises:
        OptionError: a folder holds no picture, no folder is given, or a caption is missing.
        PictureError: no caption can be read.
    """

    def __init__(self, folders: Sequence[Path], image_size: int, has_captions: bool) -> None:
        passed = PassedOver()
        self._files = [file for folder in folders for file in find_pictures(folder, passed)]
        if not self._files:
            raise OptionError("pictures must list a folder at least")
        if has_captions:
            self._files = _captioned(self._files, passed)
        for line in passed.lines():
            log.warning("passed over: %s", line)
        self._image_size = image_size
        self._has_captions = has_captions
        self._damaged: set[int] = set()  # folders may have files of the same name

    def sample(self, number: int, streams: Streams) -> tuple[torch.Tensor, str]:
        """Return pixels ``[3, S, S]`` and a caption, which is empty if none is wanted.

        Raises:
            OptionError: the caption is missing.
            PictureError: too many pictures in a row are damaged.
        """
        chance = streams.of("crop", number)
        file = self._files[streams.in_rounds("picture", number, len(self._files))]
        for _ in range(_PICTURE_TRIES):
            try:
                return self._read(file, chance)
            except PictureError as error:
                self._report(file, error)
                file = chance.choice(self._files)
        raise PictureError(f"{_PICTURE_TRIES} pictures in a row are damaged; see the warnings")

    def _read(self, file: PictureFile, chance: random.Random) -> tuple[torch.Tensor, str]:
        caption = chance.choice(_captions(file)) if self._has_captions else ""
        picture = random_crop(file.open(), chance)
        return preprocess([picture], self._image_size, interpolation="bicubic")[0], caption

    def _report(self, file: PictureFile, error: PictureError) -> None:
        if id(file) not in self._damaged:
            self._damaged.add(id(file))
            log.warning("%s is passed over: %s", file.name, error)


def _captioned(files: Sequence[PictureFile], passed: PassedOver) -> list[PictureFile]:
    """Return the pictures whose captions can be read; none may be missing."""
    kept, missing = [], PassedOver()
    for file in files:
        try:
            if _lines(file):
                kept.append(file)
            else:
                missing.add("pictures without a caption", file.name)
        except PictureError as error:
            passed.add("pictures whose caption cannot be read", f"{file.name}: {error}")
    if lines := missing.lines():
        raise OptionError(f"this stage learns from captions; {lines[0]}")
    if not kept:
        raise PictureError(f"no picture has a caption that can be read: {passed.lines()[-1]}")
    return kept


def _captions(file: PictureFile) -> list[str]:
    if captions := _lines(file):
        return captions
    raise OptionError(f"{file.name} has no caption, and this stage learns from captions")


def _lines(file: PictureFile) -> list[str]:
    """Return the captions of a picture; each line is one."""
    lines = [line.strip() for text in file.read_texts() for line in text.splitlines()]
    return [line for line in lines if line]


def random_crop(picture: Image.Image, chance: random.Random) -> Image.Image:
    """Crop a picture to 0.5..1 of its area and 3:4 to 4:3, and mirror half of the crops.

    A picture that is too long for such a crop stays whole.
    """
    area = picture.width * picture.height
    for _ in range(_CROP_TRIES):
        kept = area * chance.uniform(0.5, 1)
        ratio = (4 / 3) ** chance.uniform(-1, 1)
        width, height = round((kept * ratio) ** 0.5), round((kept / ratio) ** 0.5)
        if 0 < width <= picture.width and 0 < height <= picture.height:
            left = chance.randint(0, picture.width - width)
            top = chance.randint(0, picture.height - height)
            picture = picture.crop((left, top, left + width, top + height))
            break
    if chance.random() < 0.5:
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return picture
