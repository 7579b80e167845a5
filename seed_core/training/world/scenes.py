"""Scenes of the closed world: an object, its place, its background, and the look of the picture."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Colour = tuple[float, float, float]
"""RGB in 0..255."""


@dataclass(frozen=True)
class Look:
    """How a rendering differs from the plain one."""

    mirrored: bool = False  # flipped left to right
    blur: float = 0.0  # standard deviation of a gaussian, in pixels
    colour: Colour | None = None  # replaces that of the named background
    gradient: Colour | None = None  # the background changes to this colour
    direction: float = 0.0  # in which the gradient runs, in degrees clockwise from the right
    hue: float = 0.0  # rotates all colours about the grey axis, in degrees
    contrast: float = 1.0  # factor on the distance of all colours from middle grey
    brightness: float = 1.0  # factor on all colours, after the contrast

    @property
    def is_tinted(self) -> bool:
        """Whether the colours of the whole picture are changed."""
        return (self.hue, self.contrast, self.brightness) != (0.0, 1.0, 1.0)

    def ends(self, named: Sequence[float]) -> tuple[Colour, Colour]:
        """Return the colours in which the background begins and ends; usually both are ``named``."""
        red, green, blue = named
        first = self.colour or (red, green, blue)
        return first, self.gradient or first


@dataclass(frozen=True)
class Scene:
    """What a picture shows."""

    concept: int  # number of the object in the description
    background: str  # name of the colour; the nearest one where the look has a colour of its own
    size: str  # small, medium or big
    offset: tuple[float, float] = (0.0, 0.0)  # to the right and down; 1 is the edge
    look: Look = Look()


def any_colour(chance: random.Random) -> Colour:
    """Draw a colour."""
    return (chance.uniform(0, 255), chance.uniform(0, 255), chance.uniform(0, 255))


def _near(colour: Colour, chance: random.Random, distance: float) -> Colour:
    red, green, blue = (
        min(255.0, max(0.0, c + chance.uniform(-distance, distance))) for c in colour
    )
    return (red, green, blue)


def random_look(chance: random.Random, colour: Colour) -> Look:
    """Draw a look with a background of about this colour; each change is drawn independently."""
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


def tint(look: Look) -> tuple[np.ndarray[Any, Any], float]:
    """Return the matrix ``[3, 3]`` and the shift that a look applies to a colour in 0..1."""
    angle = math.radians(look.hue)
    about_grey = np.array([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    rotation = np.eye(3) * math.cos(angle) + about_grey * math.sin(angle)
    rotation += (1 - math.cos(angle)) / 3
    factor = look.contrast * look.brightness
    return rotation * factor, look.brightness * (1 - look.contrast) / 2
