"""Artwork: cut-out pictures of objects by name, in one ``.npz`` file.

Reads and writes that file. Knows nothing of backgrounds, sizes or models.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import OptionError

SIDE = 120
"""Pixels along a side of a picture."""


@dataclass(frozen=True)
class Artwork:
    """Pictures with transparency.

    Attributes:
        names: what each shows, such as ``hot dog``; no name twice.
        rgba: uint8 ``[N, 120, 120, 4]``, alpha last and not premultiplied.
    """

    names: tuple[str, ...]
    rgba: npt.NDArray[np.uint8]

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
        OptionError: no such file, or none of this form.
    """
    try:
        with np.load(path) as arrays:
            return Artwork(tuple(map(str, arrays["names"])), arrays["rgba"])
    except FileNotFoundError as error:
        raise OptionError(
            f"there is no artwork {path}; make it with: python -m seed_core.training data artwork"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise OptionError(f"{path} is no artwork file: {error}") from error


def write_artwork(artwork: Artwork, path: Path) -> None:
    """Write artwork as a compressed ``.npz`` with ``names`` and ``rgba``."""
    with path.open("wb") as file:
        np.savez_compressed(file, names=np.array(artwork.names), rgba=artwork.rgba)
