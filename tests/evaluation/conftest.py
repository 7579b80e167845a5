"""The closed world of seed-mini, for every test that asks and judges it."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def mini_world() -> Iterator[ModuleType]:
    """The module beside this one, under the name by which the scripts here import it; its dataclasses
    look themselves up in sys.modules."""
    name = "mini_world"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[name]
