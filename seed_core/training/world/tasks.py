"""The tasks that seed-mini is measured on: what is asked about a scene, and the right reply.

The scene is a held-out pair; whatever else a question shows belongs to the training split.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .closed_world import World
from .scenes import Look, Scene
from .sentences import PLURAL, capital, caption_of, describe, naming, short, with_article

Turn = tuple[str, tuple[Scene, ...]]
"""What the user says, and the pictures that come before it."""


@dataclass(frozen=True)
class Case:
    """One conversation, and its right last reply: a sentence or, if that is empty, a picture."""

    turns: tuple[Turn, ...]
    scene: Scene
    answer: str = ""


Task = Callable[[World, Scene, random.Random], Case]


def other(scene: Scene, world: World, chance: random.Random, what: str) -> Scene:
    """Change the object, background or size of a held-out scene to a pair of the training split."""
    kinds: dict[str, Sequence[Any]] = {
        "concept": [
            i
            for i, concept in enumerate(world.concepts)
            if concept["held_out_background"] != scene.background
        ],
        "background": list(world.backgrounds),
        "size": list(world.sizes),
    }
    changed = chance.choice([kind for kind in kinds[what] if kind != getattr(scene, what)])
    return replace(scene, **{what: changed})


def caption(world: World, scene: Scene, chance: random.Random) -> Case:
    """Have a picture described."""
    return Case((("Describe this picture.", (scene,)),), scene, caption_of(world, scene))


def what_is_this(world: World, scene: Scene, chance: random.Random) -> Case:
    """Ask for the object."""
    return Case((("What is this?", (scene,)),), scene, capital(naming(world, scene)))


def what_is_this_mirrored(world: World, scene: Scene, chance: random.Random) -> Case:
    """Ask for the object of a picture that is flipped left to right."""
    return what_is_this(world, replace(scene, look=Look(mirrored=True)), chance)


def what_is_this_changed(world: World, scene: Scene, chance: random.Random) -> Case:
    """Ask for the object of a picture that is mirrored, blurred, shaded or tinted by chance."""
    return what_is_this(world, world.augment(scene, chance), chance)


def background_color(world: World, scene: Scene, chance: random.Random) -> Case:
    """Ask for the background."""
    answer = f"The background is {scene.background}."
    return Case((("What color is the background?", (scene,)),), scene, answer)


def size_question(world: World, scene: Scene, chance: random.Random) -> Case:
    """Ask for the size."""
    return Case((("How big is it?", (scene,)),), scene, f"It is {scene.size}.")


def yes_no(world: World, scene: Scene, chance: random.Random) -> Case:
    """Ask for what is there and for what is not, by chance."""
    asked = scene if chance.random() < 0.5 else other(scene, world, chance, "concept")
    verb = "Are these" if world.name(asked) in PLURAL else "Is this"
    question = f"{verb} {with_article(world.name(asked), world.name(asked))}?"
    answer = "Yes" if asked is scene else "No"
    return Case(((question, (scene,)),), scene, f"{answer}, {naming(world, scene)}")


def text_to_image(world: World, scene: Scene, chance: random.Random) -> Case:
    """Ask for a drawing."""
    return Case(((f"Draw {describe(world, scene)}", ()),), scene)


def text_to_image_varied(world: World, scene: Scene, chance: random.Random) -> Case:
    """Ask for a drawing in one of four ways."""
    words = describe(world, scene)
    wordings = (
        f"Draw {words}",
        f"Can you generate an image of {words}?",
        short(words),
        f"Show me {words}",
    )
    return Case(((chance.choice(wordings), ()),), scene)


def edit_background(world: World, scene: Scene, chance: random.Random) -> Case:
    """Ask for another background."""
    source = other(scene, world, chance, "background")
    return Case(((f"Make the background {scene.background}", (source,)),), scene)


def edit_object(world: World, scene: Scene, chance: random.Random) -> Case:
    """Ask for another object."""
    source = other(scene, world, chance, "concept")
    name = world.name(scene)
    return Case(((f"Turn it into {with_article(name, name)}", (source,)),), scene)


def edit_size(world: World, scene: Scene, chance: random.Random) -> Case:
    """Ask for another size; what is shown is a held-out pair too."""
    source = other(scene, world, chance, "size")
    return Case(((f"Make it {scene.size}", (source,)),), scene)


def dialogue_second_turn_image(world: World, scene: Scene, chance: random.Random) -> Case:
    """Ask for a drawing, then for another background."""
    first = describe(world, other(scene, world, chance, "background"))
    return Case(((f"Draw {first}", ()), (f"Make the background {scene.background}", ())), scene)


def dialogue_third_turn_answer(world: World, scene: Scene, chance: random.Random) -> Case:
    """Ask for a drawing, for another background, and what it is."""
    turns = dialogue_second_turn_image(world, scene, chance).turns
    return Case((*turns, ("What is this?", ())), scene, capital(naming(world, scene)))


def two_pictures_combined(world: World, scene: Scene, chance: random.Random) -> Case:
    """Ask for the object of one picture on the background of another."""
    first = other(scene, world, chance, "background")
    second = other(scene, world, chance, "concept")
    question = "Put the first object on the background of the second picture"
    return Case(((question, (first, second)),), scene)


ANSWERS: dict[str, Task] = {
    "caption": caption,
    "what_is_this": what_is_this,
    "what_is_this_mirrored": what_is_this_mirrored,
    "what_is_this_changed": what_is_this_changed,
    "background_color": background_color,
    "size_question": size_question,
    "yes_no": yes_no,
    "dialogue_third_turn_answer": dialogue_third_turn_answer,
}
"""Tasks that are answered by a sentence."""

PICTURES: dict[str, Task] = {
    "text_to_image_greedy": text_to_image,
    "text_to_image_sampled_T1_p0.5_varied_words": text_to_image_varied,
    "edit_background": edit_background,
    "edit_object": edit_object,
    "edit_size": edit_size,
    "dialogue_second_turn_image": dialogue_second_turn_image,
    "two_pictures_combined": two_pictures_combined,
}
"""Tasks that are answered by a picture."""
