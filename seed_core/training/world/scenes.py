"""The closed world of seed-mini: one object on one plain background, rendered.

Every object has one background that it is never shown on in training. Those held-out pairs, at random
places and in every size, are what a model is measured on. They come in two halves that share no pair:
``validation``, to choose by, and ``test``, for the model that was chosen. Of every sixteen concepts
in the order of the description, the first eight are validation and the last eight are test; eight in
a row have eight different held-out backgrounds, so each half has all backgrounds and, about evenly,
all categories.

Pictures are rendered as those seed-mini was trained on, measured on its shipped samples: the object
is scaled with alpha premultiplied (bicubic, antialiased), moved by a fraction of a pixel (bilinear),
laid over the background and rounded to 8 bits. A `Look` makes them differ. Knows nothing of words
and models.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ...errors import OptionError
from ...files.side_files import read_json
from ...models.names import bundled
from .artwork import held_out_background, read_artwork

SIDE = 128
"""Pixels along a side of a rendering."""

JITTER = 0.4
"""Largest shift of a held-out scene as a part of the free margin. The twelve shipped samples that are
off centre lie within 0.4, and 0.4 gives the published PSNR; the 0.6 of the description, which is that
of training, gives about a decibel less.
"""

SPLITS = ("validation", "test", "all")
"""The halves of the held-out pairs, and both together as results.json has them."""

CLEAR = 64.0
"""Largest distance of a background from the colour it is called by, in levels of RGB; the nearest two
of the eight colours, orange and yellow, are 62 apart."""

_HALF = 8  # concepts in a row that belong to one half
_STEPS = 33  # points along a gradient that are compared with the named colours
_ROUNDING = 2.0  # levels by which 8 bits may move a colour to another name
_TRIES = 100

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Look:
    """How a rendering differs from the plain one.

    Attributes:
        mirrored: flipped left to right.
        blur: standard deviation of a gaussian, in pixels; 0 for none.
        colour: of the background in place of the named one, RGB in 0..255.
        gradient: the colour that the background ends in, RGB in 0..255; None if it has one colour.
        direction: where it ends, in degrees clockwise from the right.
        hue: turn of all colours about the grey axis, in degrees.
        contrast: factor on the distance of all colours from middle grey.
        brightness: factor on all colours, after that.
    """

    mirrored: bool = False
    blur: float = 0.0
    colour: Colour | None = None
    gradient: Colour | None = None
    direction: float = 0.0
    hue: float = 0.0
    contrast: float = 1.0
    brightness: float = 1.0

    @property
    def is_tinted(self) -> bool:
        """Whether the colours of the whole picture are changed."""
        return (self.hue, self.contrast, self.brightness) != (0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Scene:
    """What a picture shows.

    Attributes:
        concept: number of the object in the description.
        background: name of the colour; with a free one, the name nearest to it.
        size: ``small``, ``medium`` or ``big``.
        offset: horizontal and vertical place, -1..1 of the margin left free by the object.
        look: how its rendering differs from the plain one.
    """

    concept: int
    background: str
    size: str
    offset: tuple[float, float] = (0.0, 0.0)
    look: Look = Look()


class World:
    """The objects, colours and sizes of a description, and their pictures.

    Attributes:
        concepts: each with ``name``, ``category``, ``source`` (its name in the artwork), ``synonyms``
            and ``held_out_background``.
        backgrounds: RGB in 0..255 by name.
        sizes: sides of the scaled artwork in pixels, by name.
        sources: names of all pictures of the artwork.
        jitter: largest shift of a training scene, as a part of the free margin.
        digest: of the pictures of its objects; others have another one.

    Args:
        artwork: a file as `artwork.read_artwork` takes it.
        description: a file like the ``concepts.json`` of seed-mini, which it is if not given.
        everything: add the rest of the artwork as concepts without category, as the vision tower
            learns them; they too have a held-out background.
        device: where pictures are made.

    Raises:
        OptionError: artwork that lacks an object, or a description that lacks a part.
        CheckpointError: a description that cannot be read.
    """

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
            self.concepts: list[dict[str, Any]] = world["concepts"]
            self.backgrounds: dict[str, list[int]] = world["backgrounds"]
            self.sizes: dict[str, int] = world["sizes"]
            self.jitter: float = world["position_jitter"]
        except KeyError as error:
            raise OptionError(f"{path} describes no world: it lacks {error}") from error
        self.device = torch.device(device)
        pictures = read_artwork(artwork)
        self.sources = pictures.names
        if everything:
            self._add_the_rest(pictures.names)
        places = {name: i for i, name in enumerate(pictures.names)}
        if missing := [c["source"] for c in self.concepts if c["source"] not in places]:
            raise OptionError(f"{artwork} has no picture of {', '.join(missing)}")
        self._rgba = pictures.rgba[[places[c["source"]] for c in self.concepts]]
        self.digest = hashlib.sha256(self._rgba.tobytes()).hexdigest()
        self._scaled: dict[str, torch.Tensor] = {}
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

        A colour looks like the one of the named backgrounds that is nearest to it in RGB; so free
        colours, gradients and changed colours are judged by what is on the picture.
        """
        never = self.concepts[scene.concept]["held_out_background"]
        return never in {scene.background} | self._looks_like(scene)[0]

    def is_named(self, scene: Scene) -> bool:
        """Tell whether the whole background may be called by its name.

        That is whether all of it looks like that named colour and lies near it.
        """
        names, distance = self._looks_like(scene)
        return names == {scene.background} and distance <= CLEAR

    def nearest_background(self, colour: Colour) -> str:
        """Return the name of the background nearest to a colour, RGB in 0..255."""
        distances = self._distances(np.array([colour]))
        return list(self.backgrounds)[int(distances.argmin())]

    def _distances(self, colours: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.asarray(np.linalg.norm(colours[:, None] - self._named, axis=2))

    def _looks_like(self, scene: Scene) -> tuple[set[str], float]:
        """Return the named colours that points of a background are nearest to, and how far they lie.

        The distance is the largest.
        """
        first, last = self._ends(scene)
        along = np.linspace(0, 1, _STEPS if first != last else 1)[:, None]
        colours = np.array(first) + along * (np.array(last) - np.array(first))
        matrix, shift = _tint(scene.look)
        distances = self._distances(np.clip(colours / 255 @ matrix.T + shift, 0, 1) * 255)
        nearest = distances.min(1, keepdims=True)
        seen = (distances < nearest + _ROUNDING).any(0)
        names = {name for name, is_seen in zip(self.backgrounds, seen, strict=True) if is_seen}
        return names, float(nearest.max())

    def _ends(self, scene: Scene) -> tuple[Colour, Colour]:
        red, green, blue = self.backgrounds[scene.background]
        first = scene.look.colour or (red, green, blue)
        return first, scene.look.gradient or first

    def draw(self, chance: random.Random, augmented: float = 0.0, free: float = 0.0) -> Scene:
        """Return a random scene of the training split, never a held-out pair.

        Args:
            chance: where randomness comes from.
            augmented: probability of a random look.
            free: probability that such a look has a background of any colour; otherwise the
                background may be called by its name.
        """
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
        """Return a scene with a random look; one of the training split stays in it.

        Args:
            scene: a plain scene.
            chance: where randomness comes from.
            is_free: give it a background of any colours, called by the name nearest to the first;
                otherwise the background may be called by the name it has.
        """
        for _ in range(_TRIES):
            if is_free:
                colour = _any_colour(chance)
                look = replace(_random_look(chance, _any_colour(chance)), colour=colour)
                changed = replace(scene, background=self.nearest_background(colour), look=look)
                if not self.is_held_out(changed):
                    return changed
            else:
                red, green, blue = self.backgrounds[scene.background]
                changed = replace(scene, look=_random_look(chance, (red, green, blue)))
                if self.is_named(changed):  # and no more held out than it was
                    return changed
        return replace(scene, look=Look(mirrored=chance.random() < 0.5))

    def held_out(self, count: int, chance: random.Random, split: str = "validation") -> list[Scene]:
        """Spread held-out scenes over the objects of a split and all sizes, each at a random place.

        Args:
            count: how many.
            chance: where randomness comes from.
            split: ``validation``, ``test`` or ``all``.

        Raises:
            OptionError: another split.
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
            raise OptionError(f"there is no split {split}; known: {', '.join(SPLITS)}")
        numbers = range(len(self.concepts))
        if split == "all":
            return list(numbers)
        return [i for i in numbers if i // _HALF % 2 == SPLITS.index(split)]

    # ---- their pictures ----

    def render(self, scenes: Sequence[Scene]) -> torch.Tensor:
        """Draw scenes, float32 ``[B, 3, 128, 128]`` in 0..1 with 8-bit steps, on the world's device.

        A plain picture does not depend on those it is drawn with; a changed one may by a level.
        """
        with torch.autocast(self.device.type, enabled=False):  # 8-bit steps need more than 16 bits
            return self._render(scenes)

    def _render(self, scenes: Sequence[Scene]) -> torch.Tensor:
        pictures = torch.empty(len(scenes), 3, SIDE, SIDE, device=self.device)
        for size in self.sizes:
            rows = [i for i, scene in enumerate(scenes) if scene.size == size]
            if rows:
                pictures[rows] = self._compose([scenes[i] for i in rows], size)
        looks = [scene.look for scene in scenes]
        if rows := [i for i, look in enumerate(looks) if look.is_tinted]:
            pictures[rows] = _tinted(pictures[rows], [looks[i] for i in rows])
        if rows := [i for i, look in enumerate(looks) if look.blur]:
            pictures[rows] = _blurred(pictures[rows], [looks[i].blur for i in rows])
        if rows := [i for i, look in enumerate(looks) if look.mirrored]:
            pictures[rows] = pictures[rows].flip(3)
        return pictures.clamp(0, 1).mul(255).round() / 255

    def cover(self, scenes: Sequence[Scene]) -> torch.Tensor:
        """Return how much of each pixel the objects cover, float32 ``[B, 1, 128, 128]`` in 0..1.

        Where a picture is blurred, that is as it was before.
        """
        with torch.autocast(self.device.type, enabled=False):
            covers = torch.empty(len(scenes), 1, SIDE, SIDE, device=self.device)
            for size in self.sizes:
                rows = [i for i, scene in enumerate(scenes) if scene.size == size]
                if rows:
                    covers[rows] = self._placed([scenes[i] for i in rows], size)[:, 3:]
            if rows := [i for i, scene in enumerate(scenes) if scene.look.mirrored]:
                covers[rows] = covers[rows].flip(3)
            return covers

    def _compose(self, scenes: Sequence[Scene], size: str) -> torch.Tensor:
        """Lay objects of one size over their backgrounds."""
        art = self._placed(scenes, size)
        return art[:, :3] + self._background(scenes) * (1 - art[:, 3:])

    def _placed(self, scenes: Sequence[Scene], size: str) -> torch.Tensor:
        """Return objects of one size where they stand, premultiplied ``[B, 4, 128, 128]`` in 0..1."""
        pixels = self.sizes[size]
        margin = (SIDE - pixels) // 2
        art = self._scaled_artwork(size)[[scene.concept for scene in scenes]]
        art = nn.functional.pad(art, (margin,) * 4)
        shift = -torch.tensor([scene.offset for scene in scenes], device=self.device)
        grid = nn.functional.affine_grid(
            torch.eye(2, 3, device=self.device)[None], [1, 4, SIDE, SIDE], align_corners=False
        )
        grid = grid + (shift * margin / (SIDE / 2))[:, None, None]
        return nn.functional.grid_sample(art, grid, align_corners=False)

    def _scaled_artwork(self, size: str) -> torch.Tensor:
        """Return all objects premultiplied ``[N, 4, P, P]`` in 0..1; made once."""
        if size not in self._scaled:
            art = torch.from_numpy(self._rgba).to(self.device).permute(0, 3, 1, 2) / 255
            art = torch.cat([art[:, :3] * art[:, 3:], art[:, 3:]], dim=1)
            pixels = self.sizes[size]
            art = nn.functional.interpolate(art, (pixels, pixels), mode="bicubic", antialias=True)
            self._scaled[size] = art.clamp(0, 1)
        return self._scaled[size]

    def _background(self, scenes: Sequence[Scene]) -> torch.Tensor:
        """Return ``[B, 3, 1, 1]`` if no scene has a gradient, otherwise ``[B, 3, 128, 128]``."""
        first, last = zip(*map(self._ends, scenes), strict=True)
        start = torch.tensor(first, device=self.device).view(-1, 3, 1, 1) / 255
        if first == last:
            return start
        end = torch.tensor(last, device=self.device).view(-1, 3, 1, 1) / 255
        degrees = torch.tensor([scene.look.direction for scene in scenes], device=self.device)
        right, down = degrees.deg2rad().cos(), degrees.deg2rad().sin()
        places = (torch.arange(SIDE, device=self.device) + 0.5) / SIDE * 2 - 1
        along = right.view(-1, 1, 1, 1) * places + down.view(-1, 1, 1, 1) * places[:, None]
        along = along / (right.abs() + down.abs()).view(-1, 1, 1, 1)  # -1..1 from corner to corner
        return start + (along + 1) / 2 * (end - start)


def _any_colour(chance: random.Random) -> Colour:
    return (chance.uniform(0, 255), chance.uniform(0, 255), chance.uniform(0, 255))


def _near(colour: Colour, chance: random.Random, distance: float) -> Colour:
    red, green, blue = (
        min(255.0, max(0.0, c + chance.uniform(-distance, distance))) for c in colour
    )
    return (red, green, blue)


def _random_look(chance: random.Random, colour: Colour) -> Look:
    """Return a look whose background is about of a colour: each part of it by itself, by chance."""
    first = _near(colour, chance, 24) if chance.random() < 0.4 else None
    last = _near(colour, chance, 60) if chance.random() < 0.3 else None
    is_tinted = chance.random() < 0.5
    return Look(
        mirrored=chance.random() < 0.5,
        blur=chance.uniform(0.4, 1.5) if chance.random() < 0.3 else 0.0,
        colour=first,
        gradient=last,
        direction=chance.uniform(0, 360),
        hue=chance.uniform(-12, 12) if is_tinted else 0.0,
        contrast=chance.uniform(0.85, 1.15) if is_tinted else 1.0,
        brightness=chance.uniform(0.9, 1.1) if is_tinted else 1.0,
    )


def _tint(look: Look) -> tuple[np.ndarray[Any, Any], float]:
    """Return the matrix and the shift by which a look changes a colour in 0..1."""
    angle = math.radians(look.hue)
    about_grey = np.array([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    rotation = np.eye(3) * math.cos(angle) + about_grey * math.sin(angle)
    rotation += (1 - math.cos(angle)) / 3
    factor = look.contrast * look.brightness
    return rotation * factor, look.brightness * (1 - look.contrast) / 2


def _tinted(pictures: torch.Tensor, looks: Sequence[Look]) -> torch.Tensor:
    matrices, shifts = zip(*map(_tint, looks), strict=True)
    matrix = torch.tensor(np.stack(matrices), dtype=torch.float32, device=pictures.device)
    shift = torch.tensor(shifts, dtype=torch.float32, device=pictures.device)
    mixed = torch.einsum("bij,bjhw->bihw", matrix, pictures)
    return (mixed + shift.view(-1, 1, 1, 1)).clamp(0, 1)


def _blurred(pictures: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    """Blur each picture by its own gaussian; the edge is continued outwards."""
    radius = math.ceil(3 * max(sigmas))
    steps = torch.arange(-radius, radius + 1, device=pictures.device)
    kernels = torch.exp(-0.5 * (steps / torch.tensor(sigmas, device=pictures.device)[:, None]) ** 2)
    kernels = kernels / kernels.sum(1, keepdim=True)
    kernels = kernels.repeat_interleave(3, 0)[:, None]  # one for each channel of each picture
    planes = nn.functional.pad(pictures, (radius,) * 4, mode="replicate").flatten(0, 1)[None]
    planes = nn.functional.conv2d(planes, kernels[:, :, :, None], groups=len(kernels))
    planes = nn.functional.conv2d(planes, kernels[:, :, None], groups=len(kernels))
    return planes[0].view_as(pictures)
