"""The closed world of seed-mini: which objects, backgrounds and sizes it has, and which scenes.

A scene shows one object on one plain background. Each object has one background on which training
never shows it. Models are measured on these held-out pairs, at random places and in every size. The
pairs come in two halves that share none: ``validation``, to choose a model by, and ``test``, for
the model that was chosen. Of every sixteen objects in the order of the description, the first eight
belong to validation and the other eight to test. Eight in a row have eight different held-out
backgrounds, so each half has all backgrounds and, about evenly, all categories.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import OptionError
from ...files.side_files import read_json
from ...models.names import bundled
from .artwork import held_out_background, read_artwork
from .rendering import Renderer
from .scenes import Colour, Look, Scene, any_colour, random_look, tint

# Largest shift of a held-out scene, as a fraction of the free margin. The twelve shipped samples
# that are off centre lie within 0.4, and 0.4 gives the published PSNR. The 0.6 of the description
# belongs to training; with it the PSNR is about a decibel lower.
JITTER = 0.4

# The halves of the held-out pairs, and both together. results.json is of test.
SPLITS = ("validation", "test", "all")

# Largest distance of a background from the colour it is called by, in levels of RGB. Of the eight
# colours, orange and yellow are nearest to each other, 62 apart.
CLEAR = 64.0

_HALF = 8  # objects in a row that belong to one half
_STEPS = 33  # points along a gradient that are compared with the named colours
_ROUNDING = 2.0  # levels by which 8 bits may move a colour to another name
_TRIES = 100


class World:
    """The objects, colours and sizes of a description, with pictures of its scenes.

    Args:
        artwork: a file that `artwork.write_artwork` wrote.
        description: a file like seed-mini's ``concepts.json``, the default.
        everything: also have the rest of the artwork, as concepts without a category. The vision
            tower learns these; each has a held-out background too.
        device: where pictures are made.

    Raises:
        OptionError: the artwork lacks an object, or the description lacks a field.
        CheckpointError: the description cannot be read.
    """

    concepts: list[dict[str, Any]]  # name, category, source, synonyms, held_out_background
    backgrounds: dict[str, list[int]]  # RGB in 0..255 by name
    sizes: dict[str, int]  # sides of the scaled objects in pixels, by name
    jitter: float  # largest shift of a training scene, as a fraction of the free margin

    def __init__(
        self,
        artwork: Path,
        description: Path | None = None,
        everything: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        path = description or bundled("concepts.json")
        world = read_json(path)
        try:
            self.concepts = world["concepts"]
            self.backgrounds = world["backgrounds"]
            self.sizes = world["sizes"]
            self.jitter = world["position_jitter"]
        except KeyError as error:
            raise OptionError(f"{path} describes no world: it lacks {error}") from error
        self.device = torch.device(device)
        pictures = read_artwork(artwork)
        self.sources = pictures.names  # of all pictures of the artwork
        if everything:
            self._add_the_rest(pictures.names)
        places = {name: i for i, name in enumerate(pictures.names)}
        if missing := [c["source"] for c in self.concepts if c["source"] not in places]:
            raise OptionError(f"{artwork} has no picture of {', '.join(missing)}")
        rgba = pictures.rgba[[places[c["source"]] for c in self.concepts]]
        self.digest = hashlib.sha256(rgba.tobytes()).hexdigest()  # of the pictures of its objects
        self._renderer = Renderer(rgba, self.backgrounds, self.sizes, self.device)
        self._named = np.array(list(self.backgrounds.values()), dtype=np.float64)

    def _add_the_rest(self, names: Sequence[str]) -> None:
        known = {concept["source"] for concept in self.concepts}
        for name in names:
            if name not in known:
                self.concepts.append(
                    {
                        **{"id": len(self.concepts), "name": name, "source": name},
                        **{"category": None, "synonyms": []},
                        "held_out_background": held_out_background(
                            len(self.concepts), list(self.backgrounds)
                        ),
                    }
                )

    def name(self, scene: Scene) -> str:
        """Return what the object is called."""
        return str(self.concepts[scene.concept]["name"])

    # ---- which scenes there are ----

    def is_held_out(self, scene: Scene) -> bool:
        """Tell whether any point of the background looks like the object's held-out one.

        A colour looks like the named background that is nearest to it in RGB. So free colours,
        gradients and changed colours are judged by what the picture shows.
        """
        never = self.concepts[scene.concept]["held_out_background"]
        return never in {scene.background} | self._looks_like(scene)[0]

    def is_named(self, scene: Scene) -> bool:
        """Tell whether all of the background looks like its named colour and lies near it."""
        names, distance = self._looks_like(scene)
        return names == {scene.background} and distance <= CLEAR

    def nearest_background(self, colour: Colour) -> str:
        """Return the name of the background nearest to a colour, RGB in 0..255."""
        distances = self._distances(np.array([colour]))
        return list(self.backgrounds)[int(distances.argmin())]

    def _distances(self, colours: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.asarray(np.linalg.norm(colours[:, None] - self._named, axis=2))

    def _looks_like(self, scene: Scene) -> tuple[set[str], float]:
        """Return the named colours nearest to points of a background, and the largest distance."""
        first, last = scene.look.ends(self.backgrounds[scene.background])
        along = np.linspace(0, 1, _STEPS if first != last else 1)[:, None]
        colours = np.array(first) + along * (np.array(last) - np.array(first))
        matrix, shift = tint(scene.look)
        distances = self._distances(np.clip(colours / 255 @ matrix.T + shift, 0, 1) * 255)
        nearest = distances.min(1, keepdims=True)
        seen = (distances < nearest + _ROUNDING).any(0)
        names = {name for name, is_seen in zip(self.backgrounds, seen, strict=True) if is_seen}
        return names, float(nearest.max())

    def draw(
        self,
        chance: random.Random,
        augmented: float = 0.0,
        free: float = 0.0,
        concept: int | None = None,
    ) -> Scene:
        """Return a random scene of the training split, never a held-out pair.

        Args:
            chance: the source of randomness.
            augmented: probability of a random look.
            free: probability of any colours in one, see `augment`.
            concept: number of the object; None leaves it to chance.
        """
        if concept is None:
            concept = chance.randrange(len(self.concepts))
        never = self.concepts[concept]["held_out_background"]
        background = chance.choice([name for name in self.backgrounds if name != never])
        offset = (
            chance.uniform(-self.jitter, self.jitter),
            chance.uniform(-self.jitter, self.jitter),
        )
        scene = Scene(concept, background, chance.choice(list(self.sizes)), offset)
        if chance.random() >= augmented:
            return scene
        return self.augment(scene, chance, chance.random() < free)

    def augment(self, scene: Scene, chance: random.Random, is_free: bool = False) -> Scene:
        """Return a scene with a random look; a scene of the training split stays in that split.

        Args:
            scene: a plain scene.
            chance: the source of randomness.
            is_free: give it a background of any colours, with the name nearest to the first one.
                Otherwise the background still looks like its name.
        """
        for _ in range(_TRIES):
            if is_free:
                colour = any_colour(chance)
                look = replace(random_look(chance, any_colour(chance)), colour=colour)
                changed = replace(scene, background=self.nearest_background(colour), look=look)
                if not self.is_held_out(changed):
                    return changed
            else:
                red, green, blue = self.backgrounds[scene.background]
                changed = replace(scene, look=random_look(chance, (red, green, blue)))
                if self.is_named(changed):  # and no more held out than it was
                    return changed
        return replace(scene, look=Look(mirrored=chance.random() < 0.5))

    def held_out(self, count: int, chance: random.Random, split: str = "validation") -> list[Scene]:
        """Spread held-out scenes over the objects of a split and all sizes, each at a random place.

        Args:
            count: how many scenes.
            chance: the source of randomness.
            split: one of `SPLITS`.

        Raises:
            OptionError: the split is unknown.
        """
        numbers = self._split(split)
        scenes: list[Scene] = []
        for round_ in range(-(-count // len(numbers))):
            left = min(len(numbers), count - len(scenes))
            for i in range(left):
                concept = numbers[i * len(numbers) // left]
                size = list(self.sizes)[(i + round_) % len(self.sizes)]
                offset = (chance.uniform(-JITTER, JITTER), chance.uniform(-JITTER, JITTER))
                background = self.concepts[concept]["held_out_background"]
                scenes.append(Scene(concept, background, size, offset))
        return scenes

    def _split(self, split: str) -> list[int]:
        if split not in SPLITS:
            raise OptionError(f"the split must be one of {', '.join(SPLITS)}; got {split!r}")
        numbers = range(len(self.concepts))
        if split == "all":
            return list(numbers)
        return [i for i in numbers if i // _HALF % 2 == SPLITS.index(split)]

    # ---- their pictures ----

    def render(self, scenes: Sequence[Scene]) -> torch.Tensor:
        """Draw scenes on the world's device; see `Renderer.render`."""
        return self._renderer.render(scenes)

    def cover(self, scenes: Sequence[Scene]) -> torch.Tensor:
        """Return how much of each pixel the objects cover; see `Renderer.cover`."""
        return self._renderer.cover(scenes)
