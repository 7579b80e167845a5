"""A server file, a server that answers as an engine does, and the language model they make."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from seed_core.serving.runtime import ServedLLM, load_served_llm

ENGINE = Path(__file__).parents[2] / "engine_double.py"


@pytest.fixture(scope="session")
def engine_module(load_helper) -> ModuleType:
    return load_helper(ENGINE)


@pytest.fixture(autouse=True)
def nothing_goes_on_in_the_background() -> Iterator[None]:
    """Law for every test: what was stopped, or has failed, ends by itself."""
    yield
    working = [thread for thread in threading.enumerate() if thread.name == "attended"]
    for thread in working:
        thread.join(30)
    assert not any(thread.is_alive() for thread in working)


@pytest.fixture
def engine(engine_module, mini_llm) -> Iterator[object]:
    with engine_module.Engine(mini_llm) as engine:
        yield engine


@pytest.fixture
def write_file(tmp_path) -> Callable[..., Path]:
    """Writes a server file; a field that is None is left out."""

    def write(**fields) -> Path:
        content = {"address": "http://127.0.0.1:1", "model": "seed-mini", "vocabulary": "seed-mini"}
        content = {name: x for name, x in {**content, **fields}.items() if x is not None}
        path = tmp_path / "studio.server.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return write


@pytest.fixture
def serve(write_file) -> Callable[..., ServedLLM]:
    """The language model that an engine serves, which a busy computer may let wait."""

    def load(engine, **fields) -> ServedLLM:
        usual = {"address": f"http://127.0.0.1:{engine.port}", "connect_seconds": 60}
        return load_served_llm(write_file(**{**usual, **fields}))

    return load
