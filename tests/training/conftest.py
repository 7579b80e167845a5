"""The closed world, for every test of training."""

import json
import operator
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from seed_core.models.names import bundled
from seed_core.training import loop
from seed_core.training.stages import decoder, llm, tokenizer, tower, tune
from seed_core.training.streams import Streams
from seed_core.training.world.artwork import Artwork, read_artwork, write_artwork
from seed_core.training.world.closed_world import World
from seed_core.training.world.samples import WorldSettings


@pytest.fixture(scope="session")
def artwork(data_folder: Path) -> Path:
    """The artwork of all 319 objects."""
    return data_folder / "fluent-emoji.npz"


@pytest.fixture(scope="session")
def world(artwork: Path) -> World:
    """The world of seed-mini on the CPU."""
    return World(artwork)


@pytest.fixture(scope="session")
def small_world(
    artwork: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., WorldSettings]:
    """Makes a world of some objects, each with a held-out background of its own."""

    def make(objects: tuple[str, ...]) -> WorldSettings:
        folder = tmp_path_factory.mktemp("world")
        everything = read_artwork(artwork)
        rows = [everything.names.index(name) for name in objects]
        write_artwork(Artwork(objects, everything.rgba[rows]), folder / "artwork.npz")
        description = json.loads(bundled("concepts.json").read_text("utf-8"))
        description["concepts"] = [
            {
                **{"id": i, "name": name, "source": name, "category": "thing", "synonyms": []},
                "held_out_background": list(description["backgrounds"])[i],
            }
            for i, name in enumerate(objects)
        ]
        (folder / "world.json").write_text(json.dumps(description), "utf-8")
        return WorldSettings(folder / "artwork.npz", folder / "world.json", augmented=0.2, free=0.5)

    return make


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs something and interrupts it, as Ctrl+C does, before a step of its first, second ... run."""
    # Interrupted runs save after every step or two, and a picture of the curves takes a second each time.
    monkeypatch.setattr(loop, "draw_curves", lambda rows, path: None)

    def run(work: Callable[[], object], step: int, training: int = 1) -> None:
        begin = loop._StageTrainer.training_step
        trainers: list[object] = []

        def training_step(self, *args, **kwargs):
            if self not in trainers:
                trainers.append(self)
            if len(trainers) == training and self.state.global_step == step:
                raise KeyboardInterrupt
            return begin(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(loop._StageTrainer, "training_step", training_step)
            with pytest.raises(KeyboardInterrupt):
                work()

    return run


@pytest.fixture
def assert_workers_can_make_samples(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Checks that what a stage hands to the loop survives the way into a process that was not forked.

    On Windows, where nothing is forked, samples are made in such.
    """

    def check(work: Callable[[], object]) -> None:
        handed: list[tuple[loop.Samples, loop.Collate]] = []

        def train(build, samples, collate, *_, **__):
            handed.append((samples, collate))
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            for module in (llm, tune, decoder, tower, tokenizer):
                patch.setattr(module, "train", train)
            with pytest.raises(KeyboardInterrupt):
                work()
        ((samples, collate),) = handed
        others, other_collate = pickle.loads(pickle.dumps((samples, collate)))
        ours, theirs = (
            make([source.sample(number, Streams(0)) for number in range(3)])
            for make, source in ((collate, samples), (other_collate, others))
        )
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            same = torch.equal if isinstance(value, torch.Tensor) else operator.eq
            assert same(value, theirs[name]), name

    return check
