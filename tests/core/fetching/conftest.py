"""A server of this machine that answers as the Hub does."""

from pathlib import Path

import pytest

from seed_core.fetching import connection

HUB = Path(__file__).resolve().parents[2] / "hub.py"


@pytest.fixture(scope="session")
def hub_module(load_helper):
    """The module of the server, with what can be wrong with it."""
    return load_helper(HUB)


@pytest.fixture
def hub(hub_module, monkeypatch):
    """A server that huggingface_hub asks in place of the Hub."""
    from huggingface_hub import constants, file_download

    with hub_module.Hub() as server:
        address = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        for module in (constants, file_download):  # the latter holds a copy before 1.0
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", address, raising=False)
        monkeypatch.setattr(connection, "_CHUNK", 1000)
        monkeypatch.setattr(connection, "_PAUSE", 0.001)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server
