"""Scenes of the training split as samples, by number: to read, and to paint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ...codes.value import NUM_CODES
from ...errors import OptionError
from ..loop import Samples
from ..settings import check_fractions
from ..streams import Streams
from .closed_world import World
from .rendering import SIDE
from .scenes import Look, Scene

# Label of a background without a name; cross-entropy skips it.
NOT_NAMED = -100

_TOGETHER = 64  # scenes of a batch that is measured


@dataclass(frozen=True)
class WorldSettings:
    """Which renderings a stage sees."""

    artwork: Path  # cut-out pictures, made by data artwork
    description: Path | None = None  # of the world; by default seed-mini's concepts.json
    everything: bool = False  # show all objects of the artwork
    augmented: float = 0.0  # fraction that are mirrored, blurred, shaded or tinted
    free: float = 0.0  # fraction of these with a background of any colours

    def __post_init__(self) -> None:
        check_fractions(self, "augmented", "free", group="world.")

    def open(self, device: torch.device | str = "cpu") -> World:
        """Return the world; for its errors see `World`."""
        return World(self.artwork, self.description, self.everything, device)


def check_image_size(reader: str, image_size: int) -> None:
    """Refuse a network that takes pictures of another size than the world's.

    Raises:
        OptionError: it takes another size.
    """
    if image_size != SIDE:
        raise OptionError(
            f"the world's pictures have {SIDE} pixels a side; {reader} takes {image_size}"
        )


@dataclass(frozen=True)
class WorldSample:
    """A scene to read, with its labels."""

    scene: Scene
    background: int  # number of its name, or NOT_NAMED
    num_codes: int = NUM_CODES  # it is restored from these first codes


class WorldPictures(Samples):
    """Scenes to read.

    Args:
        settings: which renderings.
        world: shows them.
        shortened: fraction of the first samples that are restored from their first codes.
        until: number of the sample that ends these.
    """

    def __init__(
        self, settings: WorldSettings, world: World, shortened: float = 0.0, until: int = 0
    ) -> None:
        self._settings = settings
        self._world = world
        self._backgrounds = {name: i for i, name in enumerate(world.backgrounds)}
        self._shortened = shortened
        self._until = until

    def sample(self, number: int, streams: Streams) -> WorldSample:
        """Return one scene with its labels."""
        chance = streams.of("scene", number)
        scene = self._world.draw(chance, self._settings.augmented, self._settings.free)
        is_named = scene.look == Look() or self._world.is_named(scene)
        background = self._backgrounds[scene.background] if is_named else NOT_NAMED
        is_short = chance.random() < self._shortened and number < self._until
        num_codes = chance.randrange(1, NUM_CODES) if is_short else NUM_CODES
        return WorldSample(scene, background, num_codes)


def collate_scenes(samples: Sequence[WorldSample]) -> dict[str, Any]:
    """Return a batch: ``scenes``, and int64 ``[B]`` ``backgrounds`` and ``num_codes``."""
    return {
        "scenes": [sample.scene for sample in samples],
        "backgrounds": torch.tensor([sample.background for sample in samples]),
        "num_codes": torch.tensor([sample.num_codes for sample in samples]),
    }


class SceneSamples(Samples):
    """Scenes to paint, some objects more often than others.

    Args:
        settings: which renderings.
        world: shows them; it has the whole artwork where objects are favoured.
        favour: names of the objects to show more often.
        favour_part: fraction of the scenes that show one of these.

    Raises:
        OptionError: the artwork lacks a favoured object.
    """

    def __init__(
        self,
        settings: WorldSettings,
        world: World,
        favour: Sequence[str] = (),
        favour_part: float = 0.0,
    ) -> None:
        self._settings = settings
        self._world = world
        self._favour_part = favour_part
        names = [str(concept["name"]) for concept in world.concepts]
        if unknown := [name for name in favour if name not in names]:
            raise OptionError(f"{settings.artwork} has no picture of {', '.join(unknown)}")
        self._favoured = [names.index(name) for name in favour]
        self._usual = [
            i
            for i, concept in enumerate(world.concepts)
            # Objects that only the artwork has are without a category.
            if settings.everything or concept["category"] is not None
        ]

    def sample(self, number: int, streams: Streams) -> Scene:
        """Return one scene."""
        chance = streams.of("scene", number)
        is_favoured = chance.random() < self._favour_part
        concept = chance.choice(self._favoured if is_favoured else self._usual)
        return self._world.draw(chance, self._settings.augmented, self._settings.free, concept)

    def batches(self, count: int, streams: Streams) -> Iterator[list[Scene]]:
        """Yield the scenes of the first ``count`` samples, up to 64 at a time."""
        scenes = (self.sample(number, streams) for number in range(count))
        while some := list(islice(scenes, _TOGETHER)):
            yield some


def collate_plain_scenes(scenes: Sequence[Scene]) -> dict[str, Any]:
    """Return a batch of scenes."""
    return {"scenes": list(scenes)}
