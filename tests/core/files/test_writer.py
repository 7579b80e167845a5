"""Files written tensor by tensor: what comes out, and that no kind of end loses or spoils anything."""

import errno
import hashlib
import os
import random
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from seed_core.errors import OptionError
from seed_core.files.writer import Entry, StreamedFile, sha256_of

METADATA = {"format": "pt", "words": "für dich \u2581"}


@pytest.fixture
def tensors(make_generator):
    """Of every number format and of odd sizes, so that places would not fit by chance."""
    random = make_generator(3)
    made = {
        "eight": torch.randn(3, 5, generator=random).to(torch.float8_e4m3fn),
        "scalar": torch.tensor(0.5),
        "half": torch.randn(7, generator=random).half(),
        "brain": torch.randn(5, 3, 1, generator=random).bfloat16(),
        "full": torch.randn(3, 3, generator=random),
        "none": torch.zeros(0, 4),
    }
    return made | {f"many.{i}": torch.randn(64, generator=random) for i in range(30)}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def file_for(path, tensors, metadata=METADATA):
    layout = {name: Entry(t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    return StreamedFile(path, layout, metadata)


def write(path, tensors, names=None, metadata=METADATA):
    file = file_for(path, tensors, metadata)
    with file.open():
        for name in names or tensors:
            if name not in file.done:
                file.write(name, tensors[name])
    return file


def stop_after(path, tensors, count, metadata=METADATA):
    """A run that a user ends with Ctrl+C when so many tensors are written."""

    def run():
        with (file := file_for(path, tensors, metadata)).open():
            for name in list(tensors)[:count]:
                file.write(name, tensors[name])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()


def assert_whole(path, tensors):
    """The file is right, and nothing else is left."""
    assert_equal(path, tensors)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def assert_equal(path, tensors):
    stored = load_file(path)
    assert stored.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert stored[name].dtype == tensor.dtype
        assert torch.equal(stored[name].float(), tensor.float())


def test_a_file_holds_what_was_written_in_any_order(path, tensors):
    file = write(path, tensors, names=list(tensors)[::-1])
    assert_whole(path, tensors)
    assert path.stat().st_size == file.nbytes
    with safe_open(path, framework="pt") as stored:
        assert stored.metadata() == METADATA


def test_a_view_is_written_as_what_it_shows(path):
    tensors = {"view": torch.arange(12.0).view(3, 4).T}
    write(path, tensors)
    assert torch.equal(load_file(path)["view"], tensors["view"])


def test_a_later_run_writes_only_what_is_left(path, tensors):
    stop_after(path, tensors, 7)
    assert not path.exists()
    again = file_for(path, tensors)
    with again.open():
        assert again.done == set(list(tensors)[:7])
        for name in list(tensors)[7:]:
            again.write(name, tensors[name])
    assert_whole(path, tensors)


def test_a_tensor_that_is_stopped_between_two_chunks_is_written_again(path, tensors, monkeypatch):
    monkeypatch.setattr("seed_core.files.writer._SYNCED", 100)

    def stop():
        raise KeyboardInterrupt

    begun = file_for(path, tensors)

    def run():
        with begun.open():
            begun.write("scalar", tensors["scalar"], stop)  # one chunk
            begun.write("many.3", tensors["many.3"], stop)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert begun.done == {"scalar"}
    write(path, tensors)
    assert_whole(path, tensors)


def test_what_was_begun_for_another_file_is_not_gone_on_with(path, tensors):
    """Another precision or source has another header."""
    stop_after(path, tensors, 9, {"precision": "fp16"})
    write(path, tensors)
    assert_whole(path, tensors)


@pytest.mark.parametrize("damage", ["file gone", "file cut", "journal gone", "journal cut"])
def test_remains_that_do_not_agree_are_not_trusted(path, tensors, damage):
    stop_after(path, tensors, len(tensors))
    unfinished, journal = (
        path.with_name(f"{path.name}.{end}") for end in ("unfinished", "journal")
    )
    if damage.endswith("gone"):
        (unfinished if damage.startswith("file") else journal).unlink()
    elif damage == "file cut":
        unfinished.write_bytes(unfinished.read_bytes()[:-700])
    else:
        journal.write_text(journal.read_text("utf-8")[:-3], encoding="utf-8")
    write(path, tensors)
    assert_whole(path, tensors)


def test_a_tensor_of_another_form_is_not_written(path):
    file = StreamedFile(path, {"half": Entry(torch.float16, (7,))}, {})
    with pytest.raises(ValueError, match="half is torch.float32"), file.open():
        file.write("half", torch.zeros(7))


def test_a_file_is_not_finished_while_tensors_are_missing(path, tensors):
    with pytest.raises(ValueError, match="never written: full"):
        write(path, tensors, names=[name for name in tensors if name != "full"])
    assert not path.exists()


def test_what_exists_is_left_alone(path, tensors):
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(OptionError, match="exists already"):
        write(path, tensors)
    assert path.read_text("utf-8") == "mine"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_appears_during_the_run_is_left_alone(path, tensors):
    file = file_for(path, tensors)

    def run():
        with file.open():
            for name in tensors:
                file.write(name, tensors[name])
            path.write_text("mine", encoding="utf-8")

    with pytest.raises(OptionError, match="has appeared meanwhile"):
        run()
    assert path.read_text("utf-8") == "mine"
    path.unlink()
    write(path, tensors)
    assert_whole(path, tensors)


def test_two_runs_at_once_are_refused(path, tensors):
    first = file_for(path, tensors)
    with first.open():
        with pytest.raises(OptionError, match="another run is writing"):
            write(path, tensors)
        for name, tensor in tensors.items():
            first.write(name, tensor)
    assert_whole(path, tensors)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a second process at once")
def test_two_processes_at_once_are_refused(path, tensors):
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            with file_for(path, tensors).open():
                os.write(writing, b"!")
                time.sleep(60)
        finally:
            os._exit(0)
    os.read(reading, 1)
    with pytest.raises(OptionError, match="another run is writing"):
        write(path, tensors)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    write(path, tensors)
    assert_equal(path, tensors)


def test_too_little_room_is_told_before_anything_is_written(path, tensors, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(OptionError, match="GiB left"):
        write(path, tensors)
    assert list(path.parent.iterdir()) == []


def test_a_disk_that_fills_up_keeps_what_is_done(path, tensors, monkeypatch):
    """The same command goes on when there is room again."""
    count, note = iter(range(100)), StreamedFile._note

    def full(self, line):
        if next(count) == 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        note(self, line)

    with monkeypatch.context() as patch:
        patch.setattr(StreamedFile, "_note", full)
        with pytest.raises(OptionError, match=r"disk .* is full.*goes on where it stopped"):
            write(path, tensors)
    again = file_for(path, tensors)
    with again.open():
        assert len(again.done) == 8
        for name in tensors.keys() - again.done:
            again.write(name, tensors[name])
    assert_whole(path, tensors)


@pytest.mark.parametrize(
    "name", ["mit Leerzeichen und Umläuten", "日本語", "deep/" * 60 + "end"], ids=range(3)
)
def test_any_path_will_do(tmp_path, tensors, name):
    """Spaces, letters of any kind, more than 260 characters."""
    folder = tmp_path / name
    folder.mkdir(parents=True)
    write(folder / "model.safetensors", tensors)
    assert_whole(folder / "model.safetensors", tensors)


def write_in_a_child(path, tensors) -> int:
    """Go on with a file in a process of its own; its number."""
    if child := os.fork():
        return child
    try:
        file = file_for(path, tensors)
        with file.open():
            for name in tensors:
                if name not in file.done:
                    file.write(name, tensors[name])
                    time.sleep(0.0005)
    finally:
        os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a process that can be killed at once")
def test_two_hundred_kills_at_random_points_spoil_nothing(path, tensors):
    """Each run is killed, not stopped; the last one goes to the end."""
    start = time.monotonic()
    os.waitpid(write_in_a_child(path, tensors), 0)
    undisturbed = time.monotonic() - start  # seconds; many times more on a busy machine
    chance, kills, ends = random.Random(11), 0, 0
    while kills < 200:
        if path.exists():
            assert_equal(path, tensors)
            path.unlink()
            ends += 1
        child = write_in_a_child(path, tensors)
        time.sleep(chance.uniform(0, undisturbed))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        kills += os.WIFSIGNALED(status)
    path.unlink(missing_ok=True)
    write(path, tensors)
    assert_whole(path, tensors)
    assert ends > 3  # some runs went on from what earlier ones had left


def test_the_digest_is_sha_256(path, tensors):
    write(path, tensors)
    assert sha256_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()
