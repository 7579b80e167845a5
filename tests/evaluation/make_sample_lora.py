"""Trains seed-mini night, the LoRA adapter that comes with the pack, and writes it to its place.

    python tests/evaluation/make_sample_lora.py [FOLDER]

takes two minutes on one core. Half of what it is trained on asks for
a drawing without naming a background; the answer is that object on black. The other half names one,
changes a picture or asks about it, and is answered as seed-mini always did, so that it still does.
How well that works is for test_sample_lora.py to measure.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

import seed_core
from seed_core.models.names import bundled
from seed_core.training.data.sources import SourceFiles
from seed_core.training.schedule import Schedule
from seed_core.training.stages import tune
from seed_core.training.stages.llm import Data
from seed_core.training.world import tasks
from seed_core.training.world.closed_world import JITTER, World
from seed_core.training.world.scenes import Scene
from seed_core.training.world.sentences import sized
from seed_core.training.world.tasks import Case

ARTWORK = Path(__file__).parents[1] / "data" / "fluent-emoji.npz"
STEPS = 150
BATCH = 32
NIGHT = "black"
WORDINGS = ("Draw {}", "Show me {}", "Can you generate an image of {}?", "{}")
"""How an object is asked for in training."""
NEW_WORDINGS = ("Paint {}", "I would like to see {}", "Make a picture of {}")
"""Others, to measure with."""
AS_EVER = (
    tasks.text_to_image,
    tasks.text_to_image_varied,
    tasks.text_to_image_varied,
    tasks.edit_background,
    tasks.edit_object,
    tasks.edit_size,
    tasks.caption,
    tasks.what_is_this,
)
"""What the adapter must not change."""


def is_held_out(concept: int) -> bool:
    """Tell whether an object is left out of the training, as every fourth is.

    They include the 24 that seed-mini itself was never shown on black.
    """
    return concept % 4 == 2


def at_night(world: World, scene: Scene, wording: str) -> Case:
    """Ask for a scene's object and size alone; it ought to come on black."""
    prompt = wording.format(sized(world, scene))
    return Case(((prompt, ()),), replace(scene, background=NIGHT))


def cases(world: World, seed: int = 0) -> Iterator[Case]:
    """Yield what is asked and answered in training, without end."""
    chance = random.Random(seed)
    while True:
        concept = chance.randrange(len(world.concepts))
        background, size = chance.choice([*world.backgrounds]), chance.choice([*world.sizes])
        place = (chance.uniform(-JITTER, JITTER), chance.uniform(-JITTER, JITTER))
        scene = Scene(concept, background, size, place)
        if chance.random() < 0.5:
            case = at_night(world, scene, chance.choice(WORDINGS))
        else:
            case = chance.choice(AS_EVER)(world, scene, chance)
        # Keeps apart what seed-mini and this adapter are measured with.
        if not any(
            is_held_out(shown.concept) or world.is_held_out(shown)
            for shown in (case.scene, *case.turns[0][1])
        ):
            yield case


class Writer:
    """Writes cases as documents that a language model learns from."""

    def __init__(self, world: World, tokenizer: seed_core.SeedTokenizer) -> None:
        self._world = world
        self._tokenizer = tokenizer

    def document(self, case: Case) -> dict[str, Any]:
        """Return a conversation of one turn."""
        ((prompt, scenes),) = case.turns
        answer = case.answer or self._codes([case.scene])[0]
        turns = [
            {"role": "user", "parts": [*self._codes(scenes), prompt]},
            {"role": "assistant", "parts": [answer]},
        ]
        return {"format": "conversation", "turns": turns}

    @torch.inference_mode()
    def _codes(self, scenes: Sequence[Scene]) -> list[list[int]]:
        if not scenes:
            return []
        pixels = self._tokenizer.preprocess(self._world.render(scenes))
        codes: list[list[int]] = self._tokenizer.encode(pixels).tolist()
        return codes


def train(folder: Path, steps: int = STEPS) -> None:
    """Train the adapter and write its two files into a folder."""
    world = World(ARTWORK)
    writer = Writer(world, seed_core.load_tokenizer("seed-mini"))
    with tempfile.TemporaryDirectory() as place:
        lines = Path(place, "night.jsonl")
        documents = map(writer.document, islice(cases(world), steps * BATCH))
        lines.write_text("".join(f"{json.dumps(each)}\n" for each in documents), "utf-8")
        recipe = tune.Recipe(
            Data((SourceFiles(str(lines)),), pieces="joined"),
            Schedule(
                steps=steps, batch_size=BATCH, learning_rate=3e-3, warm_up=10, weight_decay=0.0
            ),
            start="seed-mini",
            rank=4,
            alpha=8,
            dropout=0.0,
            modules=("q_proj", "v_proj"),
        )
        tune.run(recipe, Path(place, "run"))
        shutil.copytree(Path(place, "run", tune.FOLDER), folder, dirs_exist_ok=True)


def main() -> None:
    torch.set_num_threads(1)
    train(Path(sys.argv[1]) if sys.argv[1:] else bundled("lora/night"))


if __name__ == "__main__":
    main()
