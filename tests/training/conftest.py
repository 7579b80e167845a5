"""The closed world, for every test of training."""

from pathlib import Path

import pytest

from seed_core.training.world import World


@pytest.fixture(scope="session")
def artwork(data_folder: Path) -> Path:
    """The artwork of all 319 objects."""
    return data_folder / "fluent-emoji.npz"


@pytest.fixture(scope="session")
def world(artwork: Path) -> World:
    """The world of seed-mini on the CPU."""
    return World(artwork)
