"""Connections: where they lead, what they carry, how they go on, and that they can be stopped."""

import threading
from email.utils import formatdate
from types import SimpleNamespace

import pytest
import torch

from seed_core.errors import DownloadError
from seed_core.fetching import connection, converted, failures, outline
from seed_core.fetching.connection import persist
from seed_core.fetching.converted import fetch_converted
from seed_core.fetching.downloads import DOWNLOADS, Download, HubSource
from seed_core.fetching.fetch import fetch
from seed_core.fetching.plan import make_plan
from seed_core.waiting import each_attended

NAME = "seed-tokenizer-2"
FILE = "seed_quantizer.pt"
CONTENT = bytes(range(256)) * 400


@pytest.fixture
def hub(hub, monkeypatch):
    hub.files = {FILE: CONTENT, "config.json": b"{}"}
    source = HubSource("owner/model", (FILE, "config.json"), 1.0, "apache-2.0", None)
    monkeypatch.setitem(DOWNLOADS, NAME, Download("seed_tokenizer", (source,), {}))
    return hub


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "models"


def arrive(folder, *listeners):
    list(fetch(make_plan(NAME, folder), *listeners))
    return (folder / FILE).read_bytes()


# --- where they lead ---


@pytest.mark.parametrize("place", ["elsewhere", "here", None])
def test_a_file_is_followed_to_where_its_bytes_are_and_goes_on_there(
    hub, hub_module, folder, place
):
    hub.redirects = place
    hub.faults = [hub_module.Fault(path=FILE, times=3, cut=20_000)]
    assert arrive(folder) == CONTENT
    parts = [begin for name, begin, _ in hub.served if name == FILE]
    assert parts == [0, 20_000, 40_000, 60_000]


def test_a_token_is_told_to_the_hub_and_not_to_the_server_it_points_to(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert arrive(folder) == CONTENT
    told = {path for _, path, headers in hub.requests if "hf_secret" in str(headers)}
    others = {path for _, path, _ in hub.requests} - told
    assert {path.split("/")[1] for path in others} == {"large"}
    assert any("/resolve/" in path for path in told)
    assert any("/api/" in path for path in told)


def test_a_file_at_an_address_of_its_own_is_asked_for_without_a_token(hub, folder, monkeypatch):
    from seed_core.fetching.downloads import WebSource
    from seed_core.fetching.plan import File
    from seed_core.fetching.transfer import get_file

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.web["eva.pth"] = CONTENT
    source = WebSource(f"{hub.url}/eva.pth", ("eva.pth",), len(CONTENT), "", "bsd")
    file = File("eva.pth", len(CONTENT), None, source.page, None)
    get_file(source, file, folder / "eva.pth", failures.Listener())
    assert (folder / "eva.pth").read_bytes() == CONTENT
    assert "hf_secret" not in str(hub.requests)


# --- how they go on ---


def test_no_byte_is_loaded_twice_but_for_the_last_block(hub, hub_module, folder):
    cuts = 15
    hub.faults = [hub_module.Fault(path=FILE, times=cuts, cut=5_432)]
    assert arrive(folder) == CONTENT
    loaded = sum(count for name, _, count in hub.served if name == FILE)
    assert loaded <= len(CONTENT) + cuts * connection._CHUNK


def test_a_server_without_parts_begins_anew_and_the_count_with_it(hub, hub_module, folder):
    hub.sends_parts = False
    hub.faults = [hub_module.Fault(path=FILE, times=1, cut=30_000)]
    counts = []
    assert arrive(folder, lambda *count: counts.append(count)) == CONTENT
    assert counts[-1] == (len(CONTENT) + 2, len(CONTENT) + 2)


def test_a_server_that_always_breaks_off_and_has_no_parts_is_given_up(hub, hub_module, folder):
    """It would begin anew for ever."""
    hub.sends_parts = False
    hub.faults = [hub_module.Fault(path=FILE, cut=30_000)]
    with pytest.raises(DownloadError, match="no connection"):
        arrive(folder)
    assert len([name for name, *_ in hub.served if name == FILE]) == connection._ATTEMPTS


def refusal(status, **headers):
    """An error of the Hub, whatever the version of its library."""
    from huggingface_hub import errors

    error = errors.HfHubHTTPError.__new__(errors.HfHubHTTPError)
    error.response = SimpleNamespace(status_code=status, headers=headers)
    return error


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("7", 7),
        (" 7 ", 7),
        (formatdate(0, usegmt=True), 0),
        ("soon", None),
        ("", None),
        ("-1", None),
    ],
)
def test_a_wait_is_told_in_seconds_or_as_a_time(told, seconds):
    assert failures.asked_to_wait(refusal(503, **{"Retry-After": told})) == seconds


def test_a_server_is_left_alone_as_long_as_it_asks(monkeypatch):
    waited = []
    stopped = threading.Event()
    monkeypatch.setattr(stopped, "wait", waited.append)
    answers = iter(
        [refusal(429, **{"Retry-After": "9"}), refusal(503, **{"Retry-After": "8"}), None]
    )

    def attempt():
        if error := next(answers):
            raise error
        return "here"

    assert persist(attempt, stopped) == "here"
    assert waited == [9, 8]


# --- that they can be stopped ---


class StopError(Exception):
    pass


def stopping(condition):
    """A listener that stops when something is so."""

    def tell(*_):
        if condition():
            raise StopError

    return tell


def test_nobody_waits_for_an_attempt_that_comes_after_a_stop():
    stopped = threading.Event()
    stopped.set()
    attempts = []

    def attempt():
        attempts.append(1)
        raise refusal(429, **{"Retry-After": "100"})

    with pytest.raises(InterruptedError):
        persist(attempt, stopped)
    assert attempts == [1]


@pytest.fixture
def silence(hub, hub_module):
    """What a server waits for that is asked for something; here, for ever."""
    event = threading.Event()

    def after(path):
        hub.faults = [hub_module.Fault(path=path, silence=event)]
        return stopping(lambda: any(path in asked for asked, _ in hub.asked))

    yield after
    event.set()


def test_a_silent_list_is_not_waited_for(folder, silence):
    with pytest.raises(StopError):
        make_plan(NAME, folder, on_bytes=silence("/api/"))


def test_a_silent_file_is_not_waited_for(folder, silence):
    plan = make_plan(NAME, folder)
    with pytest.raises(StopError):
        list(fetch(plan, silence(FILE)))


def test_a_silent_outline_is_not_waited_for(tmp_path, silence, monkeypatch):
    monkeypatch.setattr(converted, "_SMALL", 20_000)
    monkeypatch.setattr(outline, "_BLOCK", 4096)
    plan = make_plan(NAME, tmp_path)
    with pytest.raises(StopError):
        fetch_converted(plan, torch.float16, tmp_path / "new.safetensors", silence(FILE))


def test_a_tensor_that_takes_for_ever_is_not_waited_for():
    """However long it is read or converted: what computes it is left alone."""
    computed = threading.Event()

    def tensors():
        yield "first"
        computed.wait()
        yield "second"

    is_first = iter([True])
    listener = failures.Listener(stopping(lambda: not next(is_first, False)))
    coming = each_attended(tensors(), listener)
    assert next(coming) == "first"
    with pytest.raises(StopError):
        next(coming)
    computed.set()


def test_what_is_there_is_not_hashed_to_its_end_by_who_stops(hub, folder, tmp_path):
    large = tmp_path / "large.pt"
    with large.open("wb") as stream:
        stream.truncate(100 * 2**20)
    hub.files[FILE] = large
    folder.mkdir()
    (folder / FILE).symlink_to(large)
    calls = []
    with pytest.raises(StopError):
        arrive(folder, stopping(lambda: calls.append(1) or len(calls) == 2))
    assert [path.name for path in folder.iterdir()] == [FILE]
