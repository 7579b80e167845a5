"""The codes of the closed world's pictures, made once, for a language model to learn from.

A picture is named by what it shows and by the variant of its place. A variant puts all objects in
about the same place, so a picture and its edited version differ only in the edit. Held-out pairs
are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ...codes.value import NUM_CODES
from ...errors import OptionError
from ...tokenizer.runtime import SeedTokenizer
from ..digests import digest
from ..streams import Streams
from .closed_world import World
from .rendering import SIDE, normalize
from .scenes import Look, Scene

_MISSING = -1
_WAYS = tuple(product((False, True), repeat=2))  # mirrored, augmented
# Largest distance of an object from its variant's place, as a fraction of the largest shift.
_WANDERING = 0.1
_TENSOR = "codes"
_OTHERS = {"objects": "another world", "artwork": "other artwork", "tokenizer": "another tokenizer"}


@dataclass(frozen=True)
class Picture:
    """A picture of the training split."""

    concept: int  # number of the object
    background: str  # name of its colour
    size: str  # its name
    variant: int  # number of the place
    is_mirrored: bool = False  # left to right; the object stays in its place
    is_augmented: bool = False  # with a random look, always the same


class CodeBank:
    """Codes by picture.

    Args:
        world: shows the pictures.
        variants: places of each object on each background in each size; the first is the middle.
        seed: of places and looks.
        tokenizer: makes missing codes on demand. Without it, all codes must be there.
    """

    def __init__(
        self,
        world: World,
        variants: int,
        seed: int = 0,
        tokenizer: SeedTokenizer | None = None,
    ) -> None:
        if variants < 1:
            raise OptionError(f"a code bank needs at least 1 variant; got {variants}")
        if tokenizer is not None and tokenizer.image_size != SIDE:
            raise OptionError(
                f"the world's pictures have {SIDE} pixels a side; this tokenizer takes "
                f"{tokenizer.image_size}"
            )
        self._world = world
        self._streams = Streams(seed).within("bank")
        self._tokenizer = tokenizer
        self.variants = variants
        self._backgrounds = {name: i for i, name in enumerate(world.backgrounds)}
        self._sizes = {name: i for i, name in enumerate(world.sizes)}
        shape = (len(world.concepts), len(self._backgrounds), len(self._sizes), variants)
        self._codes = torch.full((*shape, len(_WAYS), NUM_CODES), _MISSING, dtype=torch.int16)

    def scene(self, picture: Picture) -> Scene:
        """Return the scene of a picture.

        Raises:
            OptionError: the pair is held out.
        """
        self._check(picture)
        across, down = self._place(picture.concept, picture.variant)
        scene = Scene(picture.concept, picture.background, picture.size, (across, down))
        look = Look()
        if picture.is_augmented:
            chance = self._streams.of("look", *self._index(picture))
            look = self._world.augment(scene, chance).look
        # The whole rendering is flipped, so the object starts from the other side.
        offset = (-across, down) if picture.is_mirrored else (across, down)
        return replace(scene, offset=offset, look=replace(look, mirrored=picture.is_mirrored))

    def _place(self, concept: int, variant: int) -> tuple[float, float]:
        if variant == 0:
            return 0.0, 0.0
        jitter = self._world.jitter
        most = jitter * (1 - _WANDERING)
        chance = self._streams.of("place", variant)
        across, down = chance.uniform(-most, most), chance.uniform(-most, most)
        most = jitter * _WANDERING
        chance = self._streams.of("wandering", variant, concept)
        return across + chance.uniform(-most, most), down + chance.uniform(-most, most)

    def codes(self, picture: Picture) -> list[int]:
        """Return the 32 codes of a picture.

        Raises:
            OptionError: the pair is held out, or the codes are missing and no tokenizer can make
                them.
        """
        self._check(picture)
        row = self._codes[self._index(picture)]
        if row[0] == _MISSING:
            self._encode([picture])
        codes: list[int] = row.tolist()
        return codes

    def _check(self, picture: Picture) -> None:
        concept = self._world.concepts[picture.concept]
        if picture.background == concept["held_out_background"]:
            raise OptionError(
                f"a {concept['name']} on {picture.background} is held out, so training has no "
                "codes of it"
            )

    def _index(self, picture: Picture) -> tuple[int, ...]:
        return (
            picture.concept,
            self._backgrounds[picture.background],
            self._sizes[picture.size],
            picture.variant,
            _WAYS.index((picture.is_mirrored, picture.is_augmented)),
        )

    def fill(
        self, batch_size: int = 512, on_pictures: Callable[[int], object] | None = None
    ) -> None:
        """Make all missing codes; ``on_pictures`` gets the number of pictures after each batch."""
        missing = (p for p in self.pictures() if self._codes[self._index(p)][0] == _MISSING)
        while batch := list(islice(missing, batch_size)):
            self._encode(batch)
            if on_pictures is not None:
                on_pictures(len(batch))

    def pictures(self) -> Iterator[Picture]:
        """Yield all pictures of the bank."""
        for concept, description in enumerate(self._world.concepts):
            backgrounds = [
                name for name in self._backgrounds if name != description["held_out_background"]
            ]
            for background, size, variant, way in product(
                backgrounds, self._sizes, range(self.variants), _WAYS
            ):
                yield Picture(concept, background, size, variant, *way)

    def __len__(self) -> int:
        return sum(1 for _ in self.pictures())

    @torch.inference_mode()
    def _encode(self, pictures: Sequence[Picture]) -> None:
        tokenizer = self._tokenizer
        if tokenizer is None:
            raise OptionError(
                f"the code bank has no codes of {pictures[0]}; make it anew, or give a tokenizer"
            )
        renderings = self._world.render([self.scene(picture) for picture in pictures])
        pixels = normalize(renderings).to(device=tokenizer.device, dtype=tokenizer.dtype)
        codes, _ = tokenizer.module.encode(pixels)
        index = torch.tensor([self._index(picture) for picture in pictures]).unbind(1)
        self._codes[index] = codes.to("cpu", torch.int16)

    def save(self, path: Path) -> None:
        """Write the bank as safetensors."""
        about = {"variants": str(self.variants), "seed": str(self._streams.seed), **self._origin()}
        save_file({_TENSOR: self._codes}, path, about)

    def _origin(self) -> dict[str, str]:
        """Return what the codes depend on: world, artwork and tokenizer."""
        origin = {
            "objects": ",".join(concept["name"] for concept in self._world.concepts),
            "artwork": self._world.digest,
        }
        if self._tokenizer is not None:
            origin["tokenizer"] = digest(self._tokenizer.module)
        return origin

    @classmethod
    def load(cls, path: Path, world: World, tokenizer: SeedTokenizer | None = None) -> CodeBank:
        """Read a bank that `save` wrote.

        Args:
            path: of the file.
            world: the bank must be of this one.
            tokenizer: it must have made the bank, and makes missing codes; None takes any bank.

        Raises:
            OptionError: the file is missing or another kind of file, or the bank is of another
                world, artwork or tokenizer.
        """
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
                codes = file.get_tensor(_TENSOR)
            variants, seed = int(about["variants"]), int(about["seed"])
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise OptionError(f"{path} must be a code bank of data bank: {error}") from error
        bank = cls(world, variants, seed, tokenizer)
        for name, value in bank._origin().items():
            if about.get(name) != value:
                raise OptionError(
                    f"{path} is a code bank of {_OTHERS[name]}; make it anew with data bank"
                )
        if codes.shape != bank._codes.shape:
            raise OptionError(f"{path} is the code bank of another world")
        bank._codes = codes
        return bank
