"""Artwork: cut-out pictures of objects by name, in one ``.npz`` file."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...errors import OptionError, PictureError

# Pixels along a side of a picture.
SIDE = 120

# Alpha up to which a pixel counts as empty: soft shadows fade out below it.
_VISIBLE = 8


@dataclass(frozen=True)
class Artwork:
    """Pictures with transparency."""

    names: tuple[str, ...]  # of the objects, each once, such as hot dog
    rgba: npt.NDArray[np.uint8]  # uint8 [N, 120, 120, 4], alpha last and not premultiplied

    def __post_init__(self) -> None:
        if self.rgba.shape != (len(self.names), SIDE, SIDE, 4) or self.rgba.dtype != np.uint8:
            raise OptionError(
                f"artwork of {len(self.names)} objects needs uint8 pictures "
                f"[{len(self.names)}, {SIDE}, {SIDE}, 4]; got {self.rgba.dtype} "
                f"{list(self.rgba.shape)}"
            )
        if len(set(self.names)) < len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise OptionError(f"the artwork has two pictures of {twice}")


def read_artwork(path: Path) -> Artwork:
    """Read what `write_artwork` wrote.

    Raises:
        OptionError: the file is missing, or holds something else.
    """
    try:
        with np.load(path) as arrays:
            return Artwork(tuple(map(str, arrays["names"])), arrays["rgba"])
    except FileNotFoundError as error:
        raise OptionError(
            f"the artwork {path} is missing; make it with: python -m seed_core.training data artwork"
        ) from error
    except OptionError as error:
        raise OptionError(f"{path}: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise OptionError(f"{path} must be an artwork file of data artwork: {error}") from error


def write_artwork(artwork: Artwork, path: Path) -> None:
    """Write artwork as a compressed ``.npz`` with ``names`` and ``rgba``."""
    with path.open("wb") as file:
        np.savez_compressed(file, names=np.array(artwork.names), rgba=artwork.rgba)


def cut_out(picture: Image.Image) -> npt.NDArray[np.uint8]:
    """Return the visible part of a picture, centred in a square and scaled to uint8 ``[120, 120, 4]``.

    Raises:
        PictureError: nothing is visible, or nothing is transparent.
    """
    rgba = picture.convert("RGBA")
    alpha = rgba.getchannel("A")
    box = alpha.point(lambda value: 255 * (value > _VISIBLE)).getbbox()
    if box is None:
        raise PictureError("the picture shows nothing: all of it is transparent")
    if alpha.getextrema()[0] == 255:
        raise PictureError(
            "the picture has no transparency; cut the object out and save it as PNG with an alpha "
            "channel"
        )
    rgba = rgba.crop(box)
    side = max(rgba.size)
    square = Image.new("RGBA", (side, side))
    square.paste(rgba, ((side - rgba.width) // 2, (side - rgba.height) // 2))
    return np.asarray(square.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def add_object(
    artwork: Artwork, description: dict[str, Any], name: str, picture: Image.Image, category: str
) -> tuple[Artwork, dict[str, Any]]:
    """Add an object of one's own to artwork and to a description of a world, as the last one.

    Args:
        artwork: not changed.
        description: as in ``concepts.json``; not changed.
        name: what the object is called, singular and without article.
        picture: shows the object, with transparency around it.
        category: ``animal``, ``plant``, ``food`` or ``thing``.

    Raises:
        OptionError: the name is taken, or the category is unknown.
        PictureError: the object cannot be cut out.
    """
    concepts = description["concepts"]
    taken = {*artwork.names, *(n for c in concepts for n in (c["name"], *c["synonyms"]))}
    if not name.strip() or name in taken:
        raise OptionError(f"the new object needs a name of its own; {name!r} is taken or empty")
    categories = list(dict.fromkeys(concept["category"] for concept in concepts))
    if category not in categories:
        raise OptionError(f"the category must be one of {', '.join(categories)}; got {category!r}")
    backgrounds = list(description["backgrounds"])
    concept = {
        "id": len(concepts),
        "name": name,
        "category": category,
        "source": name,
        "synonyms": [],
        "held_out_background": held_out_background(len(concepts), backgrounds),
    }
    rgba = np.concatenate([artwork.rgba, cut_out(picture)[None]])
    return Artwork((*artwork.names, name), rgba), {**description, "concepts": [*concepts, concept]}


def held_out_background(concept: int, backgrounds: list[str]) -> str:
    """Return the background on which training never shows an object, by its number."""
    return backgrounds[(5 * concept + 3) % len(backgrounds)]


def write_description(description: dict[str, Any], path: Path) -> None:
    """Write a description for `World`."""
    path.write_text(json.dumps(description, indent=1, ensure_ascii=False) + "\n", "utf-8")
