"""A growing conversation about the closed world: its turns, and the picture that ``it`` means."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import OptionError
from .closed_world import World
from .code_bank import CodeBank, Picture
from .prompts import ask_for
from .scenes import Scene
from .sentences import nouns, with_article
from .unknown import made_up_word

Part = str | list[int]

_SYNONYM = 0.15

_MARKED = 0.06  # pictures that stand in the question, not before it

_NEW_PICTURE = 0.2  # later turns that bring a picture of their own


@dataclass(frozen=True)
class Setting:
    """What all conversations of a source share."""

    world: World
    bank: CodeBank
    augmented: float
    mirrored: float
    focus: list[int]
    focus_part: float
    drawings: int
    unknown: list[str]
    barred: frozenset[str]


class Dialogue:
    """One conversation, with the choices that its turns make."""

    def __init__(self, setting: Setting, chance: random.Random) -> None:
        self._setting = setting
        self.world = setting.world
        self.chance = chance
        self.picture: Picture | None = None
        self.turns: list[dict[str, Any]] = []
        self.tasks: list[str] = []
        self.is_focused = chance.random() < setting.focus_part

    # ---- what there is ----

    def any_concept(self) -> int:
        """Return an object to talk about."""
        if self.is_focused:
            return self.chance.choice(self._setting.focus)
        return self.chance.randrange(len(self.world.concepts))

    def other_concept(self, than: int, background: str | None = None) -> int:
        """Return another object, one that may stand on the background."""
        focus = self._setting.focus if self.is_focused and than not in self._setting.focus else []
        for pool in (focus, range(len(self.world.concepts))):
            if fitting := [c for c in pool if c != than and self.may_stand(c, background)]:
                return self.chance.choice(fitting)
        raise OptionError(f"the world has no second object that may stand on {background}")

    def may_stand(self, concept: int, background: str | None) -> bool:
        """Tell whether training may show an object on a background."""
        return bool(self.world.concepts[concept]["held_out_background"] != background)

    def other_background(self, concept: int, than: str | None = None) -> str:
        """Return another background that an object may stand on."""
        never = self.world.concepts[concept]["held_out_background"]
        return self.chance.choice([b for b in self.world.backgrounds if b not in (never, than)])

    def any_picture(self, drawn: bool = False, of_all: bool = False) -> Picture:
        """Return a picture of the training split.

        Args:
            drawn: for the model to draw; then it is plain. Otherwise the user shows it.
            of_all: choose from all objects, whatever the conversation is about.
        """
        every = len(self.world.concepts)
        concept = self.chance.randrange(every) if of_all else self.any_concept()
        count = self._setting.drawings if drawn else self._setting.bank.variants
        return Picture(
            concept,
            self.other_background(concept),
            self.chance.choice(list(self.world.sizes)),
            self.chance.randrange(count),
            is_mirrored=not drawn and self.chance.random() < self._setting.mirrored,
            is_augmented=not drawn and self.chance.random() < self._setting.augmented,
        )

    def show(self) -> tuple[Picture, list[Picture]]:
        """Return a picture to talk about, and the pictures that the user has to show for it."""
        if self.picture is not None and self.chance.random() >= _NEW_PICTURE:
            return self.picture, []
        picture = self.any_picture()
        return picture, [picture]

    def scene(self, picture: Picture) -> Scene:
        """Return what a picture shows, for its words."""
        return Scene(picture.concept, picture.background, picture.size)

    def noun(self, concept: int) -> str:
        """Return the name of an object, or one of its synonyms."""
        described = self.world.concepts[concept]
        if self.chance.random() < _SYNONYM:
            return str(self.chance.choice(nouns(described)))
        return str(described["name"])

    def unknown(self) -> str:
        """Return an unknown thing, with its article."""
        roll = self.chance.random()
        if roll < 0.15:
            thing = made_up_word(self.chance, self._setting.barred)
        else:
            thing = self.chance.choice(self._setting.unknown)
        return thing if roll > 0.97 else with_article(thing, thing)

    # ---- what is said ----

    def say(self, question: str, shown: Sequence[Picture], answer: str | Picture) -> None:
        """Add a turn of the user, with pictures, and one of the model: a sentence, or a drawing."""
        bank, chance = self._setting.bank, self.chance
        asked: list[Part] = [*map(bank.codes, shown), ask_for(question, chance)]
        if len(shown) == 1 and question[-1] != "?" and chance.random() < _MARKED:
            asked = [f"{question.rstrip('.')}: ", asked[0]]
        said = answer if isinstance(answer, str) else bank.codes(answer)
        if isinstance(answer, Picture):
            self.picture = answer
        elif shown:
            self.picture = shown[0] if len(shown) == 1 else None
        self.turns.append({"role": "user", "parts": asked})
        self.turns.append({"role": "assistant", "parts": [said]})
