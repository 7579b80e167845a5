"""Fetching models, from a server of this machine that answers as the Hub does."""

import hashlib
import json
import os
import re
import shutil
import threading
from types import SimpleNamespace

import pytest

from seed_core.__main__ import main
from seed_core.fetching.downloads import DOWNLOADS, Download, HubSource, WebSource
from seed_core.fetching.fetch import fetch
from seed_core.fetching.plan import UNFINISHED, File, make_plan
from seed_core.files.writer import sha256_of

COMMIT = "a" * 40
WEIGHTS = bytes(range(256)) * 400
TOWER = b"tower" * 20_000
NAME = "seed-tokenizer-2"


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def hub(hub, monkeypatch):
    """The server, with one download that has a source of each kind on it."""
    hub.files = {"seed_quantizer.pt": WEIGHTS, "README.md": b"not needed", "a.ckpt": b"neither"}
    hub.web = {"eva_vit_g.pth": TOWER}
    sources = (
        HubSource("owner/model", ("seed_quantizer.pt",), 1.0, "apache-2.0", COMMIT),
        WebSource(f"{hub.url}/eva_vit_g.pth", ("eva_vit_g.pth",), len(TOWER), sha256(TOWER), "bsd"),
    )
    monkeypatch.setitem(DOWNLOADS, NAME, Download("seed_tokenizer", sources, {}))
    return hub


@pytest.fixture
def models(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def run(models, *options):
    return main(["fetch", NAME, "--models", str(models), "--yes", *options])


def change_own_source(monkeypatch, **changes):
    own, *others = DOWNLOADS[NAME].sources
    changed = HubSource(**{**vars(own), **changes})
    monkeypatch.setitem(DOWNLOADS, NAME, Download("seed_tokenizer", (changed, *others), {}))


# --- what it does ---


def test_a_model_arrives_in_its_folder_and_nothing_else_does(hub, models):
    assert run(models) == 0
    folder = models / "seed_tokenizer"
    assert (folder / "seed_quantizer.pt").read_bytes() == WEIGHTS
    assert (folder / "eva_vit_g.pth").read_bytes() == TOWER
    assert {path.name for path in folder.iterdir()} == {
        "seed_quantizer.pt",
        "eva_vit_g.pth",
        f"{NAME}.fetched.json",
    }


def test_it_shows_files_sizes_licences_commits_and_the_folder_before_it_begins(
    hub, models, capsys, monkeypatch
):
    """With nobody to ask it ends there."""
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: False))
    assert main(["fetch", NAME, "--models", str(models)]) == 1
    captured = capsys.readouterr()
    for shown in (
        str(models / "seed_tokenizer"),
        "seed_quantizer.pt, 102.40 kB",
        "eva_vit_g.pth, 100.00 kB",
        "to fetch: 202.40 kB; free on that disk: ",
        f"commit {COMMIT}\n",
        "licence: apache-2.0",
        "licence: bsd",
    ):
        assert shown in captured.out
    assert "--yes" in captured.err
    assert list(models.iterdir()) == []
    assert not any("eva" in path or "/resolve/" in path for path, _ in hub.asked)


@pytest.mark.parametrize(("answer", "status"), [("y\n", 0), ("n\n", 1), ("\n", 1)])
def test_it_begins_only_after_a_yes(hub, models, monkeypatch, answer, status):
    asked = SimpleNamespace(isatty=lambda: True, readline=lambda: answer)
    monkeypatch.setattr("sys.stdin", asked)
    assert main(["fetch", NAME, "--models", str(models)]) == status
    assert (models / "seed_tokenizer" / "seed_quantizer.pt").exists() == (status == 0)


@pytest.mark.parametrize("name", ["seed_quantizer.pt", "eva_vit_g.pth"])
def test_what_was_interrupted_goes_on_where_it_stopped(hub, models, capsys, name):
    content = {"seed_quantizer.pt": WEIGHTS, "eva_vit_g.pth": TOWER}[name]
    if name == "eva_vit_g.pth":
        folder = models / "seed_tokenizer"
        folder.mkdir()
        (folder / "seed_quantizer.pt").write_bytes(WEIGHTS)
    hub.cut_after = 70_000  # of the first file
    assert run(models) == 1
    assert not (models / "seed_tokenizer" / name).exists()
    assert "answer 503" in capsys.readouterr().err
    hub.refusal = None
    hub.asked.clear()
    assert run(models) == 0
    assert "to fetch: " in capsys.readouterr().out
    assert [begin for path, begin in hub.asked if path.endswith(name)] == ["bytes=70000-"]
    assert (models / "seed_tokenizer" / name).read_bytes() == content


def test_an_unfinished_file_that_is_too_long_starts_anew(hub, models):
    """Older versions of the library append the whole file when a server cannot go on in one."""
    folder = models / "seed_tokenizer"
    begun = File("eva_vit_g.pth", len(TOWER), sha256(TOWER), "", None).unfinished(folder)
    begun.parent.mkdir(parents=True)
    begun.write_bytes(TOWER + b"more")
    assert run(models) == 0
    assert (folder / "eva_vit_g.pth").read_bytes() == TOWER
    assert not (folder / UNFINISHED).exists()


def put(models, name, content):
    path = models / "seed_tokenizer" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_file_that_is_there_is_kept(hub, models, capsys):
    put(models, "seed_quantizer.pt", WEIGHTS)
    assert run(models) == 0
    out = capsys.readouterr().out
    assert "seed_quantizer.pt, 102.40 kB, is there already" in out
    assert "to fetch: 100.00 kB" in out
    assert not any(path.endswith("seed_quantizer.pt") for path, _ in hub.asked)


@pytest.mark.parametrize("name", ["seed_quantizer.pt", "config.json"])
def test_another_file_of_the_same_size_is_named_before_anything_is_fetched(
    hub, models, monkeypatch, capsys, name
):
    hub.files["config.json"] = b'{"size": 1}'
    change_own_source(monkeypatch, files=("seed_quantizer.pt", "config.json"))
    mine = put(models, name, hub.files[name][::-1])
    assert run(models) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert f"{mine} is another file than https://huggingface.co/owner/model publishes" in error
    assert mine.read_bytes() == hub.files[name][::-1]
    assert [path.name for path in mine.parent.iterdir()] == [name]
    assert not any("/resolve/" in path for path, _ in hub.asked)


def test_what_is_there_is_hashed_once_and_again_when_it_has_changed(hub, models, monkeypatch):
    hashed = []

    def count(path, on_chunk):
        hashed.append(path.name)
        return sha256_of(path, on_chunk)

    mine = put(models, "seed_quantizer.pt", WEIGHTS)
    assert run(models) == 0
    monkeypatch.setattr("seed_core.fetching.plan.sha256_of", count)
    assert run(models) == 0  # neither what was put there nor what was fetched
    assert hashed == []
    os.utime(mine, ns=(1, 1))
    assert run(models) == 0
    assert hashed == ["seed_quantizer.pt"]
    mine.write_bytes(WEIGHTS[::-1])
    assert run(models) == 1


def test_a_file_of_another_size_is_in_the_way_and_left_alone(hub, models, capsys):
    mine = models / "seed_tokenizer" / "eva_vit_g.pth"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    assert run(models) == 1
    error = capsys.readouterr().err
    assert str(mine) in error
    assert "4 bytes and the published file 100000" in error
    assert mine.read_bytes() == b"mine"
    assert list(mine.parent.iterdir()) == [mine]


def test_where_each_file_is_from_is_recorded_beside_it(hub, models):
    assert run(models) == 0
    record = json.loads((models / "seed_tokenizer" / f"{NAME}.fetched.json").read_text("utf-8"))
    weights, tower = record["seed_quantizer.pt"], record["eva_vit_g.pth"]
    assert weights["commit"] == COMMIT
    assert weights["url"] == f"{hub.url}/owner/model/resolve/{COMMIT}/seed_quantizer.pt"
    assert weights["sha256"] == sha256(WEIGHTS)
    assert weights["licence"] == "apache-2.0"
    assert tower["url"] == f"{hub.url}/eva_vit_g.pth"
    assert tower["commit"] is None


def test_patterns_choose_files_and_keep_their_folders(hub, models, monkeypatch):
    hub.files |= {"unet/config.json": b"{}", "unet/model.bin": b"1", "unet/model.ckpt": b"2"}
    change_own_source(monkeypatch, files=("unet/*.json", "unet/*.bin"))
    assert run(models) == 0
    folder = models / "seed_tokenizer" / "unet"
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.bin"}


# --- revisions ---


def test_a_whole_commit_is_what_the_hub_is_asked_for(hub, models):
    assert run(models) == 0
    assert hub.asked[0][0] == f"/api/models/owner/model/revision/{COMMIT}"


def test_the_first_digits_of_a_commit_pin_it_too(hub, models, monkeypatch, capsys):
    change_own_source(monkeypatch, commit="aaaaaaa")
    assert run(models) == 0
    hub.commit = "b" * 40
    assert run(models) == 1
    error = capsys.readouterr().err
    assert f"--revision {hub.commit}" in error
    assert "aaaaaaa" in error


def test_without_a_pin_todays_commit_is_taken_and_shown_as_such(hub, models, monkeypatch, capsys):
    change_own_source(monkeypatch, commit=None)
    hub.commit = "c" * 40
    assert run(models) == 0
    assert f"commit {hub.commit}, which this pack does not pin" in capsys.readouterr().out
    assert any(f"/resolve/{hub.commit}/" in path for path, _ in hub.asked)


def test_revision_is_taken_in_place_of_the_pin(hub, models, capsys):
    hub.commit = "d" * 40
    hub.repositories["owner/model"].branches.add("later")
    assert run(models, "--revision", "later") == 0
    assert hub.asked[0][0] == "/api/models/owner/model/revision/later"
    assert f"commit {hub.commit}, which this pack does not pin" in capsys.readouterr().out


# --- what can go wrong ---


def explains(error, models):
    """One line that says where the page is, which files are needed, and into which folder."""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "By hand: download seed_quantizer.pt from https://huggingface.co/owner/model" in error
    assert str(models / "seed_tokenizer") in error


def test_without_a_connection_the_way_by_hand_is_shown(hub, models, monkeypatch, capsys):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert run(models) == 1
    error = capsys.readouterr().err
    explains(error, models)
    assert "no connection to https://huggingface.co/owner/model" in error


@pytest.mark.parametrize(
    ("refusal", "named"),
    [
        ((401, {"X-Error-Code": "GatedRepo"}), "accept"),
        ((403, {"X-Error-Code": "GatedRepo"}), "hf auth login"),
        ((401, {}), "closed, or no longer there"),
        ((404, {"X-Error-Code": "RepoNotFound"}), "answer 404"),
        ((404, {"X-Error-Code": "RevisionNotFound"}), "revision"),
        ((500, {}), "run it again later"),
    ],
)
def test_a_refusal_says_which_and_shows_the_way_by_hand(hub, models, capsys, refusal, named):
    hub.refusal = refusal
    assert run(models) == 1
    error = capsys.readouterr().err
    explains(error, models)
    assert named in error


def test_a_file_that_the_repository_lacks_is_named(hub, models, capsys):
    del hub.files["seed_quantizer.pt"]
    assert run(models) == 1
    error = capsys.readouterr().err
    explains(error, models)
    assert "has no seed_quantizer.pt" in error


def test_too_little_room_is_said_before_anything_is_fetched(hub, models, monkeypatch, capsys):
    usage = shutil.disk_usage(models)._replace(free=200_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    assert run(models) == 1
    error = capsys.readouterr().err
    assert "still needs 202.40 kB" in error
    assert "200.00 kB free" in error
    assert list(models.iterdir()) == []


def test_an_unfinished_file_counts_as_room_it_already_has(hub, models, monkeypatch):
    hub.cut_after = 70_000  # of the first file
    assert run(models) == 1
    hub.refusal = None
    usage = shutil.disk_usage(models)._replace(free=140_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    assert run(models) == 0


def test_a_disk_that_fills_up_is_no_broken_connection(hub, models, monkeypatch, capsys):
    import errno

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("seed_core.fetching.transfer._Stoppable.write", full)
    assert run(models) == 1
    error = capsys.readouterr().err
    assert "is full" in error
    assert "connection" not in error


def gone(name):
    return FileNotFoundError(2, "No such file or directory", name)


@pytest.mark.parametrize(
    ("setting", "value", "error"),
    [
        ("HTTPS_PROXY", "foo://x", ValueError("Unknown scheme for proxy URL 'foo://x'")),
        ("ALL_PROXY", "socks5://x", ImportError("Using SOCKS proxy, but 'socksio' is missing")),
        ("SSL_CERT_FILE", "/gone", gone("/gone")),
        ("REQUESTS_CA_BUNDLE", "/gone", OSError("Could not find a TLS CA bundle: /gone")),
        ("HF_TOKEN", "\u00fc", UnicodeEncodeError("ascii", "\u00fc", 0, 1, "not in range")),
        ("HF_ENDPOINT", "http://[", ValueError("Invalid IPv6 URL")),
    ],
)
def test_settings_of_the_terminal_that_break_a_connection_are_named(
    hub, models, monkeypatch, capsys, setting, value, error
):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("seed_core.fetching.transfer.open_answer", fail)
    monkeypatch.setenv(setting, value)
    assert run(models) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert setting in line
    assert line.startswith("error: ")


def test_a_terminal_that_forbids_downloads_is_obeyed(hub, models, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert run(models) == 1
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err
    assert hub.asked == []


def test_a_folder_that_may_not_be_written_to_is_named(hub, models, monkeypatch, capsys):
    def refuse(self, *_, **__):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    assert run(models) == 1
    error = capsys.readouterr().err
    assert "cannot be used: Permission denied" in error
    assert "extra_model_paths.yaml" in error


def test_into_names_the_folder_of_the_kind_itself(hub, models):
    assert main(["fetch", NAME, "--into", str(models), "--yes"]) == 0
    assert (models / "eva_vit_g.pth").read_bytes() == TOWER


def test_stopping_it_is_no_crash(hub, models, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("seed_core.fetching.transfer.open_answer", stop)
    assert run(models) == 1
    assert "goes on where this one ended" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["seed_quantizer.pt", "eva_vit_g.pth"])
def test_a_file_of_another_content_never_takes_its_place(hub, models, capsys, name):
    """As long as the published one, but other bytes; the next attempt starts with none of them."""
    good = hub.files.get(name, hub.web.get(name))
    hub.sent[name] = good[::-1]
    assert run(models) == 1
    error = capsys.readouterr().err
    assert f"{name} arrived damaged" in error
    assert not (models / "seed_tokenizer" / name).exists()
    del hub.sent[name]
    assert run(models) == 0
    assert (models / "seed_tokenizer" / name).read_bytes() == good


# --- the list ---


def test_the_list_needs_no_connection_and_names_every_model(capsys, monkeypatch):
    monkeypatch.setattr("socket.socket", None)
    assert main(["fetch"]) == 0
    out = capsys.readouterr().out
    for name, download in DOWNLOADS.items():
        assert f"{name}: " in out
        assert all(source.page in out and source.licence in out for source in download.sources)
    assert "https://huggingface.co/sd2-community/stable-diffusion-2-1-unclip" in out
    assert "unofficial mirror" in out


def test_pins_are_commits_or_the_beginnings_of_some():
    sources = [source for download in DOWNLOADS.values() for source in download.sources]
    commits = [
        source.commit for source in sources if isinstance(source, HubSource) and source.commit
    ]
    assert commits
    assert all(re.fullmatch(r"[0-9a-f]{7}|[0-9a-f]{40}", commit) for commit in commits)
    hashes = [source.sha256 for source in sources if isinstance(source, WebSource)]
    assert hashes
    assert all(re.fullmatch(r"[0-9a-f]{64}", each) for each in hashes)


class StopError(Exception):
    pass


def test_a_copy_of_what_somebody_else_published_first_has_to_be_the_same(
    hub, models, monkeypatch, capsys
):
    change_own_source(monkeypatch, known={"seed_quantizer.pt": sha256(WEIGHTS)})
    assert run(models) == 0
    shutil.rmtree(models / "seed_tokenizer")
    change_own_source(monkeypatch, known={"seed_quantizer.pt": sha256(TOWER)})
    assert run(models) == 1
    assert "another seed_quantizer.pt than the one that was published" in capsys.readouterr().err
    assert not (models / "seed_tokenizer").exists()


def test_what_an_earlier_run_has_fetched_is_counted_as_here(hub, models):
    hub.cut_after = 70_000
    assert run(models) == 1
    hub.refusal, told = None, []
    plan = make_plan(NAME, models / "seed_tokenizer")
    there = plan.size - plan.needed
    list(fetch(plan, lambda *count: told.append(count)))
    assert there >= 70_000
    assert told[-1] == (plan.size, plan.size - there)


def test_who_stops_does_not_wait_for_a_silent_server(hub, models):
    """And what it sends afterwards is not written: the next run has its own."""
    plan = make_plan(NAME, models / "seed_tokenizer")
    hub.silence = threading.Event()

    def stop(*_):
        raise StopError

    with pytest.raises(StopError):  # it would wait for ever
        list(fetch(plan, stop))
    begun = [path for path in models.rglob("*") if path.is_file()]
    before = {path: path.stat().st_size for path in begun}
    hub.silence.set()
    assert run(models) == 0
    assert (models / "seed_tokenizer" / "seed_quantizer.pt").read_bytes() == WEIGHTS
    assert sum(before.values()) < len(WEIGHTS)
