"""A hub whose answers come in small pieces, and a library that does not wait for long."""

import pytest

from seed_core.fetching import connection


@pytest.fixture
def hub(hub, monkeypatch):
    monkeypatch.setattr(connection, "_CHUNK", 1000)
    monkeypatch.setattr(connection, "_PAUSE", 0.001)
    return hub
