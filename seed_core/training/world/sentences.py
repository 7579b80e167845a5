"""The sentences of the closed world: what is said of a scene, and what things are called."""

from __future__ import annotations

from typing import Any

from .closed_world import World
from .scenes import Scene

# Nouns without an article, whether the world has them or not. This is the one place that knows: the
# lists of `unknown` and the artwork hold bare nouns.
PLURAL = frozenset(
    [
        *("bagpipes", "binoculars", "blueberries", "books", "cherries", "flowers", "french fries"),
        *("fries", "glasses", "grapes", "jeans", "lentils", "maracas", "noodles", "pajamas"),
        *("pancakes", "peanuts", "pliers", "scissors", "shorts", "socks", "sunglasses", "tweezers"),
    ]
)
UNCOUNTABLE = frozenset(
    [
        *("armor", "asparagus", "bacon", "bamboo", "barley", "bowling", "bread", "broccoli"),
        *("butter", "celery", "cereal", "chalk", "cheese", "coffee", "coral", "corn", "fire"),
        *("flour", "fog", "garlic", "ginger", "glue", "grass", "ham", "ivy", "jam", "jasmine"),
        *("ketchup", "lavender", "lemonade", "lightning", "macaroni", "marmalade", "mayonnaise"),
        *("milk", "moss", "mustard", "oil", "popcorn", "porridge", "rain", "ravioli", "salt"),
        *("seaweed", "shampoo", "soap", "spaghetti", "spinach", "sugar", "sushi", "syrup"),
        *("toast", "tofu", "vinegar", "water", "wheat", "yarn"),
    ]
)

DECLINED = "Sorry, I have not learned to draw that."
"""The answer to a request for an unknown object."""


def with_article(words: str, noun: str) -> str:
    """Put a or an before words that end in ``noun``, if the noun takes an article."""
    if noun in PLURAL or noun in UNCOUNTABLE:
        return words
    sounds_like_a_vowel = words[0] in "aeio" or words.startswith(("umb", "hourglass"))
    return f"{'an' if sounds_like_a_vowel else 'a'} {words}"


def sized(world: World, scene: Scene, noun: str | None = None) -> str:
    """Say which object a scene shows and its size; medium has no word. A noun replaces its name."""
    noun = noun or world.name(scene)
    return with_article(noun if scene.size == "medium" else f"{scene.size} {noun}", noun)


def describe(world: World, scene: Scene, noun: str | None = None) -> str:
    """Say what a scene shows, with its background; see `sized`."""
    return f"{sized(world, scene, noun)} on {with_article(scene.background, '')} background"


def caption_of(world: World, scene: Scene) -> str:
    """Say what a scene shows as a sentence."""
    return capital(describe(world, scene)) + "."


def capital(sentence: str) -> str:
    """Return a sentence that begins with a capital letter."""
    return sentence[0].upper() + sentence[1:]


def naming(world: World, scene: Scene) -> str:
    """Name the object, as the end of a sentence."""
    name = world.name(scene)
    return f"{pronoun(world, scene)} {with_article(name, name)}."


def pronoun(world: World, scene: Scene) -> str:
    """Return ``it is`` or ``they are``."""
    return "they are" if world.name(scene) in PLURAL else "it is"


def short(words: str) -> str:
    """Leave ``a ... background`` out of a description."""
    return words.removesuffix(" background").replace(" on an ", " on ").replace(" on a ", " on ")


def nouns(concept: dict[str, Any]) -> list[str]:
    """Return all words for an object: its name three times, each synonym once."""
    return [*[concept["name"]] * 3, *concept["synonyms"]]
