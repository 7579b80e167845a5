"""Pictures to learn from, by number: renderings of the closed world, or folders of pictures.

A sample of the world is a scene; it is rendered where the network computes, a batch at a time.
Knows nothing of networks.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ...codes.value import NUM_CODES
from ...errors import OptionError, PictureError
from ...tokenizer.eva_vit import VisionConfig
from ...tokenizer.preprocess import CLIP_MEAN, CLIP_STD, preprocess
from ..loop import Samples
from ..settings import check_parts
from ..world.scenes import SIDE, Look, Scene, World
from .picture_sources import PictureFile, find_pictures

log = logging.getLogger(__name__)

NOT_NAMED = -100
"""Label of a background that has no name; cross-entropy passes over it."""

_CROP_TRIES = 10
_PICTURE_TRIES = 100
"""Pictures that are opened until one is whole."""


@dataclass(frozen=True)
class WorldSettings:
    """Which renderings a stage sees.

    Attributes:
        artwork: cut-out pictures of objects, as ``data artwork`` makes them.
        description: of the world, as seed-mini's ``concepts.json``, which it is if not given.
        everything: all objects of the artwork, not only those of the description.
        augmented: part of the renderings that are mirrored, blurred, shaded or tinted.
        free: part of those that have a background of any colours.
    """

    artwork: Path
    description: Path | None = None
    everything: bool = False
    augmented: float = 0.0
    free: float = 0.0

    def __post_init__(self) -> None:
        check_parts(self, "augmented", "free", group="world.")

    def open(self, vision: VisionConfig, device: torch.device | str = "cpu") -> World:
        """Return the world, for a tower that sees its pictures as they are.

        Raises:
            OptionError: a tower for pictures of another size; and see `World`.
        """
        if vision.image_size != SIDE:
            raise OptionError(
                f"the world's pictures have {SIDE} pixels a side; this vision tower takes "
                f"{vision.image_size}"
            )
        return World(self.artwork, self.description, self.everything, device)


@dataclass(frozen=True)
class WorldSample:
    """A scene, and what is to be learned of it.

    Attributes:
        background: number of its name, or `NOT_NAMED`.
        num_codes: codes that it is to be decoded from; all 32, or only the first.
    """

    scene: Scene
    background: int
    num_codes: int = NUM_CODES


class WorldPictures(Samples):
    """Scenes of the training split.

    Args:
        settings: which renderings.
        world: they are of.
        seed: of all of them.
        shortened: part of the samples of the first half that are decoded from their first codes.
    """

    def __init__(
        self, settings: WorldSettings, world: World, seed: int, shortened: float = 0.0
    ) -> None:
        self._settings = settings
        self._world = world
        self._backgrounds = {name: i for i, name in enumerate(world.backgrounds)}
        self._seed = seed
        self._shortened = shortened

    def sample(self, number: int) -> WorldSample:
        """Return one scene with its labels."""
        chance = random.Random(f"{self._seed} {number}")
        scene = self._world.draw(chance, self._settings.augmented, self._settings.free)
        is_named = scene.look == Look() or self._world.is_named(scene)
        background = self._backgrounds[scene.background] if is_named else NOT_NAMED
        is_short = chance.random() < self._shortened and number < self.count // 2
        num_codes = chance.randrange(1, NUM_CODES) if is_short else NUM_CODES
        return WorldSample(scene, background, num_codes)


def collate_scenes(samples: Sequence[WorldSample]) -> dict[str, Any]:
    """Return a batch: ``scenes``, and int64 ``[B]`` ``backgrounds`` and ``num_codes``."""
    return {
        "scenes": [sample.scene for sample in samples],
        "backgrounds": torch.tensor([sample.background for sample in samples]),
        "num_codes": torch.tensor([sample.num_codes for sample in samples]),
    }


def normalize(pictures: torch.Tensor) -> torch.Tensor:
    """Return pixels for a tower of 8-bit pictures ``[B, 3, S, S]`` in 0..1, as `preprocess` does."""
    mean, std = (pictures.new_tensor(numbers).view(3, 1, 1) for numbers in (CLIP_MEAN, CLIP_STD))
    return (pictures - mean) / std


class PictureFolders(Samples):
    """Pictures of folders, with captions where they are wanted.

    In place of a damaged picture another one is shown, and a warning names it.

    Every epoch has another order, and every sample a crop of its own, of half to all of the
    picture's area and mirrored half of the time, as in the reference.

    Args:
        folders: as `picture_sources.find_pictures` reads them; each line of a text is a caption.
        image_size: side of the crops, in pixels.
        seed: of orders and crops.
        has_captions: whether captions are wanted.

    Raises:
        OptionError: no picture there.
    """

    def __init__(
        self, folders: Sequence[Path], image_size: int, seed: int, has_captions: bool
    ) -> None:
        self._files = [file for folder in folders for file in find_pictures(folder, log.warning)]
        if not self._files:
            raise OptionError("pictures must list a folder at least")
        self._image_size = image_size
        self._seed = seed
        self._has_captions = has_captions
        self._damaged: set[int] = set()  # folders may have files of the same name
        self._epoch = -1
        self._order: list[int] = []

    def sample(self, number: int) -> tuple[torch.Tensor, str]:
        """Return pixels ``[3, S, S]`` and a caption, empty where none is wanted.

        Raises:
            OptionError: no caption where one is wanted.
            PictureError: many damaged pictures in a row.
        """
        chance = random.Random(f"{self._seed} {number}")
        file = self._file(number)
        for _ in range(_PICTURE_TRIES):
            try:
                return self._read(file, chance)
            except PictureError as error:
                self._report(file, error)
                file = chance.choice(self._files)
        raise PictureError(f"{_PICTURE_TRIES} pictures in a row are damaged; see the warnings")

    def _read(self, file: PictureFile, chance: random.Random) -> tuple[torch.Tensor, str]:
        caption = chance.choice(_captions(file)) if self._has_captions else ""
        picture = random_crop(file.open().convert("RGB"), chance)
        return preprocess([picture], self._image_size, interpolation="bicubic")[0], caption

    def _report(self, file: PictureFile, error: PictureError) -> None:
        if id(file) not in self._damaged:
            self._damaged.add(id(file))
            log.warning("%s is passed over: %s", file.name, error)

    def _file(self, number: int) -> PictureFile:
        epoch, place = divmod(number, len(self._files))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, list(range(len(self._files)))
            random.Random(f"{self._seed} epoch {epoch}").shuffle(self._order)
        return self._files[self._order[place]]


def _captions(file: PictureFile) -> list[str]:
    if captions := [line.strip() for line in file.read_text().splitlines() if line.strip()]:
        return captions
    raise OptionError(f"{file.name} has no caption, and this stage learns from captions")


def random_crop(picture: Image.Image, chance: random.Random) -> Image.Image:
    """Return a part of a picture, 0.5..1 of its area and 3:4 to 4:3, mirrored half of the time.

    Of a picture too long for that it is all.
    """
    area = picture.width * picture.height
    for _ in range(_CROP_TRIES):
        part = area * chance.uniform(0.5, 1)
        ratio = (4 / 3) ** chance.uniform(-1, 1)
        width, height = round((part * ratio) ** 0.5), round((part / ratio) ** 0.5)
        if 0 < width <= picture.width and 0 < height <= picture.height:
            left = chance.randint(0, picture.width - width)
            top = chance.randint(0, picture.height - height)
            picture = picture.crop((left, top, left + width, top + height))
            break
    if chance.random() < 0.5:
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return picture
