"""Conversations about the closed world, without end, for seed-mini's language model to learn.

A document is known by its number, and has one to three turns: drawing, describing, questions, edits,
two pictures, small talk, and requests for what the model does not know. Pictures are codes from a
`CodeBank`, so no document shows or asks for a held-out pair. A drawing is answered by its bare codes,
everything else by one sentence. Knows no tokens (see ``documents``).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import OptionError
from ...models.names import SEED_MINI
from ...models.tokenizer import load_tokenizer
from ..settings import check_parts
from . import prompts
from .code_bank import CodeBank, Picture
from .prompts import ask_for
from .scenes import Scene, World
from .sentences import (
    DECLINED,
    PLURAL,
    capital,
    caption_of,
    describe,
    naming,
    nouns,
    pronoun,
    short,
    with_article,
)
from .unknown import barred_words, made_up_word, unknown_objects

Part = str | list[int]

_TURNS = {1: 60, 2: 27, 3: 13}  # how many turns a conversation has, by weight
_SYNONYM = 0.15
_MARKED = 0.06  # pictures that stand in the question, not before it
_NEW_PICTURE = 0.2  # later turns that bring a picture of their own
_MIRRORED = 0.15
_SIZE_WORDS = {
    "small": ("small", "small", "small", "small", "little", "tiny"),
    "big": ("big", "big", "big", "big", "large", "huge"),
}
_ORDINALS = ("first", "second")


class MiniConversations:
    """Documents by number; a number has the same one in every run.

    Args:
        world: what they are about.
        bank: codes of its pictures.
        seed: of everything random.
        augmented: part of the pictures people show that have a random look.
        focus: names of objects that a part of the conversations is about.
        focus_part: how many of them; the others are about all objects.
        drawings: how many variants drawings are answered with, the first ones; all if not given.
        others: objects to decline beside the list in ``unknown``, such as the rest of the artwork.

    Raises:
        OptionError: an unknown object.
    """

    def __init__(
        self,
        world: World,
        bank: CodeBank,
        seed: int = 0,
        augmented: float = 0.25,
        focus: Sequence[str] = (),
        focus_part: float = 0.5,
        drawings: int | None = None,
        others: Sequence[str] = (),
    ) -> None:
        numbers = {concept["name"]: i for i, concept in enumerate(world.concepts)}
        if unknown := [name for name in focus if name not in numbers]:
            raise OptionError(f"there is no object {', '.join(unknown)} to converse about")
        self._seed = seed
        self._setting = _Setting(
            world=world,
            bank=bank,
            augmented=augmented,
            focus=[numbers[name] for name in focus],
            focus_part=focus_part if focus else 0.0,
            drawings=min(drawings or bank.variants, bank.variants),
            unknown=unknown_objects(world, others),
            barred=barred_words(world),
        )

    def document(self, number: int) -> dict[str, Any]:
        """Return one conversation, see ``documents``; ``tasks`` says what its turns are."""
        chance = random.Random(f"{self._seed} {number}")
        dialogue = _Dialogue(self._setting, chance)
        (count,) = chance.choices(list(_TURNS), list(_TURNS.values()))
        for turn in range(count):
            names = [name for name in TASKS if not (turn and name in FIRST_ONLY)]
            (name,) = chance.choices(names, [TASKS[name][0] for name in names])
            TASKS[name][1](dialogue)
            dialogue.tasks.append(name)
        return {"format": "conversation", "turns": dialogue.turns, "tasks": dialogue.tasks}


@dataclass(frozen=True)
class ConversationSettings:
    """Which conversations a language model learns from, as a recipe says it.

    Attributes:
        artwork: cut-out pictures of objects, as ``data artwork`` makes them.
        description: of the world, as seed-mini's ``concepts.json``, which it is if not given.
        bank: codes of its pictures, as ``data bank`` makes them; if not given, they are made when
            they are needed, which is for short runs.
        tokenizer: makes those codes, or made those of the bank: ``seed-mini``, or a folder. If not
            given, a bank of any is taken, and without a bank it is seed-mini's.
        variants: places of each object, where there is no bank.
        augmented: part of the pictures people show that have a random look.
        focus: names of objects that a part of the conversations is about.
        focus_part: how many of them.
        drawings: how many variants drawings are answered with; all if not given.
        weight: how often a document is a conversation, beside the weights of other sources.
        max_length: tokens that a conversation is cut to.
    """

    artwork: Path
    description: Path | None = None
    bank: Path | None = None
    tokenizer: str | None = None
    variants: int = 8
    augmented: float = 0.25
    focus: tuple[str, ...] = ()
    focus_part: float = 0.5
    drawings: int | None = None
    weight: float = 1.0
    max_length: int = 512

    def __post_init__(self) -> None:
        check_parts(self, "augmented", "focus_part")
        if self.drawings is not None and self.drawings < 1:
            raise OptionError(f"drawings must be at least 1; got {self.drawings}")

    def open(self, seed: int) -> MiniConversations:
        """Return the conversations.

        Raises:
            OptionError: artwork, a bank or an object that is not there.
            CheckpointError: a tokenizer that cannot be loaded.
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
            seed,
            self.augmented,
            self.focus,
            self.focus_part,
            self.drawings,
            others=world.sources,
        )


@dataclass(frozen=True)
class _Setting:
    world: World
    bank: CodeBank
    augmented: float
    focus: list[int]
    focus_part: float
    drawings: int
    unknown: list[str]
    barred: frozenset[str]


class _Dialogue:
    """A conversation as it grows: what was said, and the picture that ``it`` means."""

    def __init__(self, setting: _Setting, chance: random.Random) -> None:
        self._setting = setting
        self.world = setting.world
        self.chance = chance
        self.picture: Picture | None = None
        self.turns: list[dict[str, Any]] = []
        self.tasks: list[str] = []
        self.is_focused = chance.random() < setting.focus_part

    # ---- what there is ----

    def any_concept(self) -> int:
        """Return an object that a conversation may be about."""
        if self.is_focused:
            return self.chance.choice(self._setting.focus)
        return self.chance.randrange(len(self.world.concepts))

    def other_concept(self, than: int, background: str | None = None) -> int:
        """Return another object, one that may stand on a background."""
        focus = self._setting.focus if self.is_focused and than not in self._setting.focus else []
        for pool in (focus, range(len(self.world.concepts))):
            if fitting := [c for c in pool if c != than and self.may_stand(c, background)]:
                return self.chance.choice(fitting)
        raise OptionError(f"the world has no second object that may stand on {background}")

    def may_stand(self, concept: int, background: str | None) -> bool:
        """Tell whether an object on a background is no held-out pair."""
        return bool(self.world.concepts[concept]["held_out_background"] != background)

    def other_background(self, concept: int, than: str | None = None) -> str:
        """Return a background that an object may stand on, another than the one given."""
        never = self.world.concepts[concept]["held_out_background"]
        return self.chance.choice([b for b in self.world.backgrounds if b not in (never, than)])

    def any_picture(self, drawn: bool = False, of_all: bool = False) -> Picture:
        """Return a picture of the training split.

        Args:
            drawn: one to draw, which is always plain, rather than one that somebody shows.
            of_all: of any object, whatever the conversation is about.
        """
        every = len(self.world.concepts)
        concept = self.chance.randrange(every) if of_all else self.any_concept()
        count = self._setting.drawings if drawn else self._setting.bank.variants
        return Picture(
            concept,
            self.other_background(concept),
            self.chance.choice(list(self.world.sizes)),
            self.chance.randrange(count),
            is_mirrored=not drawn and self.chance.random() < _MIRRORED,
            is_augmented=not drawn and self.chance.random() < self._setting.augmented,
        )

    def show(self) -> tuple[Picture, list[Picture]]:
        """Return the picture to speak of, and the pictures the user has to show for that."""
        if self.picture is not None and self.chance.random() >= _NEW_PICTURE:
            return self.picture, []
        picture = self.any_picture()
        return picture, [picture]

    def scene(self, picture: Picture) -> Scene:
        """Return a scene for its words."""
        return Scene(picture.concept, picture.background, picture.size)

    def noun(self, concept: int) -> str:
        """Return the name of an object, or one of its synonyms."""
        described = self.world.concepts[concept]
        if self.chance.random() < _SYNONYM:
            return str(self.chance.choice(nouns(described)))
        return str(described["name"])

    def unknown(self) -> str:
        """Return a thing that is not known, with its article."""
        roll = self.chance.random()
        if roll < 0.15:
            thing = made_up_word(self.chance, self._setting.barred)
        else:
            thing = self.chance.choice(self._setting.unknown)
        return thing if roll > 0.97 else with_article(thing, thing)

    # ---- what is said ----

    def say(self, question: str, shown: Sequence[Picture], answer: str | Picture) -> None:
        """Add a turn of the user and one of the model.

        Args:
            question: as ``prompts`` has it.
            shown: pictures that come with it.
            answer: a sentence, or a picture to draw.
        """
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


# ---- tasks ----


def _draw(dialogue: _Dialogue) -> None:
    chance, picture = dialogue.chance, dialogue.any_picture(drawn=True)
    words = _description(dialogue, picture)
    dialogue.say(chance.choice(prompts.DRAW).format(words), [], picture)


def _description(dialogue: _Dialogue, picture: Picture) -> str:
    """Say what to draw, more freely than pictures are described."""
    chance, scene = dialogue.chance, dialogue.scene(picture)
    noun = dialogue.noun(picture.concept)
    roll = chance.random()
    if roll < 0.5:
        return describe(dialogue.world, scene, noun)
    if roll < 0.7:
        return short(describe(dialogue.world, scene, noun))
    size = chance.choice(_SIZE_WORDS.get(picture.size, ("",)))
    object_ = with_article(f"{size} {noun}".lstrip(), noun)
    if roll < 0.8:
        return object_
    background = with_article(f"{scene.background} background", "background")
    return chance.choice(
        (
            f"{object_} on {background}",
            f"{object_} with {background}",
            f"{object_} in front of {background}",
            f"{object_}, {scene.background} background",
            f"{background} with {object_}",
        )
    )


def _draw_unknown(dialogue: _Dialogue) -> None:
    chance, thing = dialogue.chance, dialogue.unknown()
    article, space, noun = (
        thing.partition(" ") if thing.startswith(("a ", "an ")) else ("", "", thing)
    )
    if article and chance.random() < 0.3:
        size = chance.choice(("small", "big", "little", "large"))
        thing = f"a {size}{space}{noun}"
    if chance.random() < 0.4:
        background = chance.choice(list(dialogue.world.backgrounds))
        place = with_article(f"{background} background", "background")
        thing = f"{thing} on {chance.choice((background, place, place))}"
    dialogue.say(chance.choice(prompts.DRAW).format(thing), [], DECLINED)


def _caption(dialogue: _Dialogue) -> None:
    picture, shown = dialogue.show()
    answer = caption_of(dialogue.world, dialogue.scene(picture))
    dialogue.say(dialogue.chance.choice(prompts.DESCRIBE), shown, answer)


def _what(dialogue: _Dialogue) -> None:
    picture, shown = dialogue.show()
    answer = capital(naming(dialogue.world, dialogue.scene(picture)))
    dialogue.say(dialogue.chance.choice(prompts.WHAT), shown, answer)


def _background(dialogue: _Dialogue) -> None:
    picture, shown = dialogue.show()
    answer = f"The background is {picture.background}."
    dialogue.say(dialogue.chance.choice(prompts.BACKGROUND), shown, answer)


def _size(dialogue: _Dialogue) -> None:
    picture, shown = dialogue.show()
    dialogue.say(dialogue.chance.choice(prompts.SIZE), shown, f"It is {picture.size}.")


def _is_it(dialogue: _Dialogue) -> None:
    """Ask whether it is the object, another one, or a thing that is not known."""
    chance, world = dialogue.chance, dialogue.world
    picture, shown = dialogue.show()
    roll = chance.random()
    asked = picture.concept if roll < 0.5 else dialogue.other_concept(picture.concept)
    noun = dialogue.noun(asked)
    thing = with_article(noun, noun)
    wordings: Sequence[str] = prompts.IS_IT
    if roll > 0.95:
        thing = dialogue.unknown()
    elif noun in PLURAL:
        wordings = ("Are these {}?", "Are these {}?", "Are they {}?")
    question = chance.choice(wordings).format(thing)
    answer = "Yes" if asked == picture.concept else "No"
    dialogue.say(question, shown, f"{answer}, {naming(world, dialogue.scene(picture))}")


def _is_background(dialogue: _Dialogue) -> None:
    chance = dialogue.chance
    picture, shown = dialogue.show()
    is_right = chance.random() < 0.5
    others = [name for name in dialogue.world.backgrounds if name != picture.background]
    asked = picture.background if is_right else chance.choice(others)
    answer = f"{'Yes' if is_right else 'No'}, it is {picture.background}."
    dialogue.say(chance.choice(prompts.IS_BACKGROUND).format(asked), shown, answer)


def _is_size(dialogue: _Dialogue) -> None:
    chance = dialogue.chance
    picture, shown = dialogue.show()
    is_right = chance.random() < 0.5
    others = [name for name in dialogue.world.sizes if name != picture.size]
    asked = picture.size if is_right else chance.choice(others)
    answer = f"{'Yes' if is_right else 'No'}, it is {picture.size}."
    dialogue.say(chance.choice(prompts.IS_SIZE).format(asked), shown, answer)


def _category(dialogue: _Dialogue) -> None:
    """Ask for the category, or whether it is one."""
    chance, world = dialogue.chance, dialogue.world
    picture, shown = dialogue.show()
    own = world.concepts[picture.concept]["category"]
    they_are = pronoun(world, dialogue.scene(picture))
    if chance.random() < 0.25:
        answer = capital(f"{they_are} {_a_category(own)}.")
        dialogue.say(chance.choice(prompts.KIND), shown, answer)
        return
    others = list(dict.fromkeys(concept["category"] for concept in world.concepts))
    asked = (
        own if chance.random() < 0.5 else chance.choice([name for name in others if name != own])
    )
    questions = prompts.IS_CATEGORY if they_are == "it is" else ("Are these {}?", "Are they {}?")
    question = chance.choice(questions).format(_a_category(asked))
    dialogue.say(question, shown, _is_one(they_are, own, asked))


def _eat(dialogue: _Dialogue) -> None:
    picture, shown = dialogue.show()
    own = dialogue.world.concepts[picture.concept]["category"]
    they_are = pronoun(dialogue.world, dialogue.scene(picture))
    dialogue.say(dialogue.chance.choice(prompts.EAT), shown, _is_one(they_are, own, "food"))


def _a_category(name: str) -> str:
    return name if name == "food" else with_article(name, name)


def _is_one(they_are: str, own: str, asked: str) -> str:
    answer = f"Yes, {they_are}" if own == asked else f"No, {they_are} not"
    return f"{answer} {_a_category(asked)}."


def _edit_background(dialogue: _Dialogue) -> None:
    picture, shown = dialogue.show()
    new = dialogue.other_background(picture.concept, picture.background)
    question = dialogue.chance.choice(prompts.TO_BACKGROUND)
    question = question.replace("{a}", with_article(new, "")).format(new)
    dialogue.say(question, shown, _edited(picture, background=new))


def _edit_object(dialogue: _Dialogue) -> None:
    picture, shown = dialogue.show()
    concept = dialogue.other_concept(picture.concept, picture.background)
    noun = dialogue.noun(concept)
    question = _to_object(dialogue, picture, with_article(noun, noun))
    dialogue.say(question, shown, _edited(picture, concept=concept))


def _edit_unknown(dialogue: _Dialogue) -> None:
    picture, shown = dialogue.show()
    dialogue.say(_to_object(dialogue, picture, dialogue.unknown()), shown, DECLINED)


def _to_object(dialogue: _Dialogue, picture: Picture, new: str) -> str:
    old = dialogue.noun(picture.concept)
    wording = dialogue.chance.choice(prompts.TO_OBJECT)
    return wording.format(a=new, old=old, an_old=with_article(old, old))


def _edit_size(dialogue: _Dialogue) -> None:
    """Ask for a size, or for a bigger or a smaller one, which is the next."""
    chance, sizes = dialogue.chance, list(dialogue.world.sizes)
    picture, shown = dialogue.show()
    place = sizes.index(picture.size)
    roll = chance.random()
    if roll < 0.2 and place + 1 < len(sizes):
        new, wording = sizes[place + 1], chance.choice(prompts.BIGGER)
    elif roll > 0.8 and place > 0:
        new, wording = sizes[place - 1], chance.choice(prompts.SMALLER)
    else:
        new = chance.choice([size for size in sizes if size != picture.size])
        wording = chance.choice(prompts.TO_SIZE)
    word = chance.choice(_SIZE_WORDS.get(new, (new, new, "medium sized")))
    question = wording.format(word, name=dialogue.noun(picture.concept))
    dialogue.say(question, shown, _edited(picture, size=new))


def _edit_both(dialogue: _Dialogue) -> None:
    chance = dialogue.chance
    picture, shown = dialogue.show()
    background = dialogue.other_background(picture.concept, picture.background)
    size = chance.choice([size for size in dialogue.world.sizes if size != picture.size])
    question = chance.choice(prompts.TO_SIZE_AND_BACKGROUND).format(
        size=size,
        background=background,
        a_background=with_article(background, ""),
        name=dialogue.noun(picture.concept),
    )
    dialogue.say(question, shown, _edited(picture, size=size, background=background))


def _edited(picture: Picture, **changes: Any) -> Picture:
    """Return a picture with something changed; a random look does not come along."""
    return replace(picture, is_augmented=False, **changes)


def _combine(dialogue: _Dialogue) -> None:
    """Ask for the object of one picture on the background of the other."""
    chance = dialogue.chance
    from_second = chance.random() < 0.2
    object_ = dialogue.any_picture()
    other = dialogue.any_picture(of_all=True)
    while not dialogue.may_stand(object_.concept, other.background):
        other = dialogue.any_picture(of_all=True)
    shown = [other, object_] if from_second else [object_, other]
    question = chance.choice(prompts.COMBINE_SECOND if from_second else prompts.COMBINE)
    dialogue.say(question, shown, _edited(object_, background=other.background))


def _ask_of_two(dialogue: _Dialogue) -> None:
    chance, world = dialogue.chance, dialogue.world
    shown = [dialogue.any_picture(), dialogue.any_picture(of_all=True)]
    chance.shuffle(shown)
    which = chance.randrange(2)
    scene = dialogue.scene(shown[which])
    roll = chance.random()
    if roll < 0.6:
        wordings: Sequence[str] = prompts.WHICH_PICTURE
        answer = capital(naming(world, scene))
    elif roll < 0.8:
        wordings, answer = prompts.WHICH_DESCRIBE, caption_of(world, scene)
    else:
        wordings, answer = prompts.WHICH_BACKGROUND, f"The background is {scene.background}."
    dialogue.say(chance.choice(wordings).format(_ORDINALS[which]), shown, answer)


def _talk(dialogue: _Dialogue) -> None:
    wordings, answer = dialogue.chance.choice(prompts.TALK)
    dialogue.say(dialogue.chance.choice(wordings), [], answer)


TASKS: dict[str, tuple[float, Callable[[_Dialogue], None]]] = {
    "draw": (24, _draw),
    "draw_unknown": (9, _draw_unknown),
    "caption": (9, _caption),
    "what": (8, _what),
    "background": (4, _background),
    "size": (3, _size),
    "is_it": (8, _is_it),
    "is_background": (2, _is_background),
    "is_size": (2, _is_size),
    "category": (3, _category),
    "eat": (1.5, _eat),
    "edit_background": (10, _edit_background),
    "edit_object": (9, _edit_object),
    "edit_unknown": (2, _edit_unknown),
    "edit_size": (10, _edit_size),
    "edit_both": (3, _edit_both),
    "combine": (10, _combine),
    "ask_of_two": (5, _ask_of_two),
    "talk": (4, _talk),
}
"""Each task's weight, and what adds it to a dialogue."""

FIRST_ONLY = frozenset(["combine", "ask_of_two"])
"""Tasks that only begin a conversation: two pictures and what came before would be too long."""
