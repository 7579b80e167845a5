"""The closed world, for every test of training."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from seed_core.checkpoints import bundled
from seed_core.training import pictures
from seed_core.training.artwork import Artwork, read_artwork, write_artwork
from seed_core.training.world import World


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
) -> Callable[..., pictures.WorldSettings]:
    """Makes a world of some objects, each with a held-out background of its own."""

    def make(objects: tuple[str, ...]) -> pictures.WorldSettings:
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
        return pictures.WorldSettings(
            folder / "artwork.npz", folder / "world.json", augmented=0.2, free=0.5
        )

    return make


@pytest.fixture(scope="module")
def datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what datasets caches out of the home folder."""
    import datasets  # which takes seconds, and few tests need it

    usual = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    yield
    datasets.config.HF_DATASETS_CACHE = usual
