"""The turns of a conversation: each function here adds a question and its answer to a dialogue."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from . import prompts
from .code_bank import Picture
from .dialogue import Dialogue
from .sentences import (
    DECLINED,
    PLURAL,
    capital,
    caption_of,
    describe,
    naming,
    pronoun,
    short,
    with_article,
)

_SIZE_WORDS = {
    "small": ("small", "small", "small", "small", "little", "tiny"),
    "big": ("big", "big", "big", "big", "large", "huge"),
}

_ORDINALS = ("first", "second")


def _draw(dialogue: Dialogue) -> None:
    chance, picture = dialogue.chance, dialogue.any_picture(drawn=True)
    noun = dialogue.noun(picture.concept)
    words = _description(dialogue, picture, noun)
    dialogue.say(_request(chance, words, noun), [], picture)


def _request(chance: random.Random, words: str, noun: str) -> str:
    """Ask for a drawing of a noun in words that may begin with its background."""
    wording = chance.choice(prompts.DRAW)
    if noun in PLURAL and not words.startswith(("a ", "an ")):
        wording = wording.replace("What does", "What do")
    return wording.format(words)


def _description(dialogue: Dialogue, picture: Picture, noun: str) -> str:
    """Say what to draw, more freely than pictures are described."""
    chance, scene = dialogue.chance, dialogue.scene(picture)
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


def _draw_unknown(dialogue: Dialogue) -> None:
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
    dialogue.say(_request(chance, thing, noun), [], DECLINED)


def _caption(dialogue: Dialogue) -> None:
    picture, shown = dialogue.show()
    answer = caption_of(dialogue.world, dialogue.scene(picture))
    dialogue.say(dialogue.chance.choice(prompts.DESCRIBE), shown, answer)


def _what(dialogue: Dialogue) -> None:
    picture, shown = dialogue.show()
    answer = capital(naming(dialogue.world, dialogue.scene(picture)))
    dialogue.say(dialogue.chance.choice(prompts.WHAT), shown, answer)


def _background(dialogue: Dialogue) -> None:
    picture, shown = dialogue.show()
    answer = f"The background is {picture.background}."
    dialogue.say(dialogue.chance.choice(prompts.BACKGROUND), shown, answer)


def _size(dialogue: Dialogue) -> None:
    picture, shown = dialogue.show()
    dialogue.say(dialogue.chance.choice(prompts.SIZE), shown, f"It is {picture.size}.")


def _is_it(dialogue: Dialogue) -> None:
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
    if thing in PLURAL:
        wordings = ("Are these {}?", "Are these {}?", "Are they {}?")
    question = chance.choice(wordings).format(thing)
    answer = "Yes" if asked == picture.concept else "No"
    dialogue.say(question, shown, f"{answer}, {naming(world, dialogue.scene(picture))}")


def _is_so(dialogue: Dialogue, attribute: str, values: Sequence[str], forms: Sequence[str]) -> None:
    """Ask whether the picture's background, or its size, is the one that is named."""
    chance = dialogue.chance
    picture, shown = dialogue.show()
    right = getattr(picture, attribute)
    is_right = chance.random() < 0.5
    others = [value for value in values if value != right]
    asked = right if is_right else chance.choice(others)
    answer = f"{'Yes' if is_right else 'No'}, it is {right}."
    dialogue.say(chance.choice(forms).format(asked), shown, answer)


def _is_background(dialogue: Dialogue) -> None:
    _is_so(dialogue, "background", list(dialogue.world.backgrounds), prompts.IS_BACKGROUND)


def _is_size(dialogue: Dialogue) -> None:
    _is_so(dialogue, "size", list(dialogue.world.sizes), prompts.IS_SIZE)


def _category(dialogue: Dialogue) -> None:
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


def _eat(dialogue: Dialogue) -> None:
    picture, shown = dialogue.show()
    own = dialogue.world.concepts[picture.concept]["category"]
    they_are = pronoun(dialogue.world, dialogue.scene(picture))
    dialogue.say(dialogue.chance.choice(prompts.EAT), shown, _is_one(they_are, own, "food"))


def _a_category(name: str) -> str:
    return name if name == "food" else with_article(name, name)


def _is_one(they_are: str, own: str, asked: str) -> str:
    answer = f"Yes, {they_are}" if own == asked else f"No, {they_are} not"
    return f"{answer} {_a_category(asked)}."


def _edit_background(dialogue: Dialogue) -> None:
    picture, shown = dialogue.show()
    new = dialogue.other_background(picture.concept, picture.background)
    question = dialogue.chance.choice(prompts.TO_BACKGROUND)
    question = question.replace("{a}", with_article(new, "")).format(new)
    dialogue.say(question, shown, _edited(picture, background=new))


def _edit_object(dialogue: Dialogue) -> None:
    picture, shown = dialogue.show()
    concept = dialogue.other_concept(picture.concept, picture.background)
    noun = dialogue.noun(concept)
    question = _to_object(dialogue, picture, with_article(noun, noun))
    dialogue.say(question, shown, _edited(picture, concept=concept))


def _edit_unknown(dialogue: Dialogue) -> None:
    picture, shown = dialogue.show()
    dialogue.say(_to_object(dialogue, picture, dialogue.unknown()), shown, DECLINED)


def _to_object(dialogue: Dialogue, picture: Picture, new: str) -> str:
    old = dialogue.noun(picture.concept)
    wording = dialogue.chance.choice(prompts.TO_OBJECT)
    return wording.format(a=new, old=old, an_old=with_article(old, old))


def _edit_size(dialogue: Dialogue) -> None:
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


def _edit_both(dialogue: Dialogue) -> None:
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


def _combine(dialogue: Dialogue) -> None:
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


def _ask_of_two(dialogue: Dialogue) -> None:
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


def _talk(dialogue: Dialogue) -> None:
    wordings, answer = dialogue.chance.choice(prompts.TALK)
    dialogue.say(dialogue.chance.choice(wordings), [], answer)


TASKS: dict[str, tuple[float, Callable[[Dialogue], None]]] = {
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
