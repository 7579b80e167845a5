"""Conversations about the closed world for seed-mini's language model, in endless number.

A document has one to three turns: drawings, descriptions, questions, edits, two pictures, small
talk, and requests for unknown things. Pictures are codes from a `CodeBank`, so held-out pairs never
occur. A drawing is answered by its codes alone, everything else by one sentence.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import OptionError
from ...models.names import SEED_MINI
from ...models.tokenizer import load_tokenizer
from ..settings import check_fractions
from ..streams import Streams
from .closed_world import World
from .code_bank import CodeBank
from .dialogue import Dialogue, Setting
from .turns import FIRST_ONLY, TASKS
from .unknown import barred_words, unknown_objects

_TURNS = {1: 60, 2: 27, 3: 13}  # how many turns a conversation has, by weight


class MiniConversations:
    """Documents by number.

    Args:
        world: what they are about.
        bank: codes of its pictures.
        augmented: fraction of the shown pictures that have a random look.
        focus: names of objects that some of the conversations are about.
        focus_part: fraction of these; the other conversations are about all objects.
        drawings: variants that drawings use, the first ones; by default all.
        others: objects to decline besides those in ``unknown``, such as the rest of the artwork.
        mirrored: fraction of the shown pictures that are mirrored.
        mixed: largest fraction of a shown picture's codes that other pictures have at their places.

    Raises:
        OptionError: an object is unknown.
    """

    def __init__(
        self,
        world: World,
        bank: CodeBank,
        augmented: float = 0.25,
        focus: Sequence[str] = (),
        focus_part: float = 0.5,
        drawings: int | None = None,
        others: Sequence[str] = (),
        mirrored: float = 0.15,
        mixed: float = 0.0,
    ) -> None:
        numbers = {concept["name"]: i for i, concept in enumerate(world.concepts)}
        if unknown := [name for name in focus if name not in numbers]:
            raise OptionError(
                f"the world has no object {', '.join(unknown)}; focus must name its objects"
            )
        self._setting = Setting(
            world=world,
            bank=bank,
            augmented=augmented,
            mirrored=mirrored,
            focus=[numbers[name] for name in focus],
            focus_part=focus_part if focus else 0.0,
            drawings=min(drawings or bank.variants, bank.variants),
            unknown=unknown_objects(world, others),
            barred=barred_words(world),
        )
        self._mixed = mixed

    def document(self, number: int, streams: Streams) -> dict[str, Any]:
        """Return one conversation; ``tasks`` names its turns."""
        chance = streams.of("conversation", number)
        dialogue = Dialogue(self._setting, chance)
        (count,) = chance.choices(list(_TURNS), list(_TURNS.values()))
        for turn in range(count):
            names = [name for name in TASKS if not (turn and name in FIRST_ONLY)]
            (name,) = chance.choices(names, [TASKS[name][0] for name in names])
            TASKS[name][1](dialogue)
            dialogue.tasks.append(name)
        if self._mixed:
            self._mix(dialogue, streams.of("codes of other pictures", number))
        return {"format": "conversation", "turns": dialogue.turns, "tasks": dialogue.tasks}

    def _mix(self, dialogue: Dialogue, chance: random.Random) -> None:
        """Replace some codes of the pictures that the user shows by codes of others at their places.

        For each picture the fraction is drawn evenly. A pair of object and background that training
        leaves out then shows up in parts, so its absence is not learned by heart.
        """
        others = Dialogue(self._setting, chance)
        for turn in dialogue.turns:
            if turn["role"] == "user":
                turn["parts"] = [
                    part if isinstance(part, str) else self._with_others(part, others)
                    for part in turn["parts"]
                ]

    def _with_others(self, codes: Sequence[int], others: Dialogue) -> list[int]:
        bank, chance = self._setting.bank, others.chance
        rate = chance.uniform(0, self._mixed)
        return [
            bank.codes(others.any_picture(of_all=True))[place] if chance.random() < rate else code
            for place, code in enumerate(codes)
        ]


@dataclass(frozen=True)
class ConversationSettings:
    """Which conversations a language model learns from."""

    artwork: Path  # cut-out pictures, made by data artwork
    description: Path | None = None  # of the world; by default seed-mini's concepts.json
    bank: Path | None = None  # codes, made by data bank; by default made on demand, for short runs
    # Of these codes, seed-mini or a folder; by default any bank is taken, and codes on demand are
    # seed-mini's.
    tokenizer: str | None = None
    variants: int = 8  # places of each object without a bank
    augmented: float = 0.25  # fraction of the shown pictures that have a random look
    mirrored: float = 0.15  # fraction of the shown pictures that are mirrored
    # Largest fraction of a shown picture's codes that other pictures have at their places, so that
    # what is seen does not hang on single codes, nor on pairs that training leaves out.
    mixed: float = 0.0
    focus: tuple[str, ...] = ()  # objects that some of the conversations are about
    focus_part: float = 0.5  # fraction of these conversations
    drawings: int | None = None  # variants that drawings use; by default all
    weight: float = 1.0  # how often a document is a conversation, relative to other sources
    max_length: int = 512  # tokens that a conversation is cut to

    def __post_init__(self) -> None:
        check_fractions(self, "augmented", "mirrored", "mixed", "focus_part")
        if self.drawings is not None and self.drawings < 1:
            raise OptionError(f"drawings must be at least 1; got {self.drawings}")

    def open(self, seed: int) -> MiniConversations:
        """Return the conversations.

        Args:
            seed: of the places of objects in codes that are made on demand.

        Raises:
            OptionError: artwork, a bank or an object is missing.
            CheckpointError: the tokenizer cannot be loaded.
        """
        world = World(self.artwork, self.description)
        if self.bank is None:
            bank = CodeBank(world, self.variants, seed, load_tokenizer(self.tokenizer or SEED_MINI))
        else:
            tokenizer = None if self.tokenizer is None else load_tokenizer(self.tokenizer)
            bank = CodeBank.load(self.bank, world, tokenizer)
        return MiniConversations(
            world,
            bank,
            self.augmented,
            self.focus,
            self.focus_part,
            self.drawings,
            others=world.sources,
            mirrored=self.mirrored,
            mixed=self.mixed,
        )
