"""The closed world of seed-mini and its judge, for every test that asks and judges it."""

from pathlib import Path

import pytest

from seed_core.training.world.closed_world import World
from seed_core.training.world.judge import Judge


@pytest.fixture(scope="session")
def world(data_folder: Path) -> World:
    return World(data_folder / "fluent-emoji.npz")


@pytest.fixture(scope="session")
def judge(world: World, data_folder: Path) -> Judge:
    return Judge(world, data_folder)
