"""The training loop: a run that was stopped ends as one that was not, bit for bit."""

import json
import multiprocessing
import os
import shutil
import signal
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from seed_core.errors import OptionError, PictureError
from seed_core.training import loop
from seed_core.training.data.fields import DocumentError
from seed_core.training.loop import CHECKPOINTS, CURVES_FILE, LOG_FILE, RECIPE_FILE, Samples, train
from seed_core.training.recipe import read_recipe
from seed_core.training.schedule import Schedule
from seed_core.training.streams import Streams

STEPS = 12


@dataclass(frozen=True)
class Recipe:
    schedule: Schedule
    note: str = ""


RECIPE = Recipe(
    Schedule(
        steps=STEPS, batch_size=4, learning_rate=0.05, warm_up=3, final_part=0.1, save_every=4, log_every=2
    )
)  # fmt: skip


class Network(nn.Module):
    """Learns the sum of four numbers; dropout and a buffer make resuming harder."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.dropout = nn.Dropout(0.3)
        self.register_buffer("batches", torch.zeros(()))
        self.register_buffer("last", torch.zeros(4))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, object]:
        self.batches += 1
        self.last += torch.rand(4)
        loss = (self.layer(self.dropout(x)) - y).square().mean()
        return {"loss": loss, "terms": {"half": loss.detach() / 2, "rows": len(x)}}


class Sums(Samples):
    """Remembers which numbers were asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def sample(self, number: int, streams: Streams) -> tuple[torch.Tensor, torch.Tensor]:
        self.asked.append(number)
        x = torch.randn(4, generator=streams.tensors_of("x", number))
        return x, x.sum()[None]


def collate(samples) -> dict[str, torch.Tensor]:
    return {"x": torch.stack([x for x, _ in samples]), "y": torch.stack([y for _, y in samples])}


def state(network: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in network.state_dict().items()}


def rows(folder: Path) -> list[dict[str, float]]:
    return json.loads((folder / LOG_FILE).read_text("utf-8"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, dict[str, bytes], list[int]]:
    """A run without a stop: its folder, weights, and the samples it read."""
    folder, samples = tmp_path_factory.mktemp("whole"), Sums()
    network = train(Network, samples, collate, RECIPE, folder)
    return folder, state(network), samples.asked


@pytest.fixture(autouse=True)
def no_curves(whole, monkeypatch):
    """Spares the other runs the time that their pictures take."""
    monkeypatch.setattr(loop, "draw_curves", lambda rows, path: None)


def test_a_run_learns_and_logs(whole):
    folder, _, asked = whole
    assert asked == list(range(STEPS * 4))
    log = rows(folder)
    assert [row["step"] for row in log] == [2, 4, 6, 8, 10, 12]
    assert log[-1]["loss"] < log[0]["loss"]
    for row in log:
        assert row["half"] == pytest.approx(row["loss"] / 2, rel=1e-3)
        assert row["rows"] == 4
    rates = [row["learning_rate"] for row in log]
    assert max(rates) == pytest.approx(0.05, rel=0.05)
    assert rates[-1] < 0.01


def test_a_run_leaves_its_files(whole):
    folder, *_ = whole
    assert (folder / CURVES_FILE).read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (folder / CHECKPOINTS).glob("checkpoint-*")) == [
        "checkpoint-12",
        "checkpoint-8",
    ]
    assert read_recipe(Recipe, folder / RECIPE_FILE) == RECIPE


def test_a_run_that_breaks_off_closes_its_files(tmp_path, interrupt):
    before = threading.enumerate()
    interrupt(lambda: train(Network, Sums(), collate, RECIPE, tmp_path), 5)
    assert threading.enumerate() == before, "TensorBoard has a thread for each open file"


def test_a_run_can_be_watched_in_tensorboard(whole):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, *_ = whole
    (events,) = folder.rglob("events.out.tfevents.*")
    watched = EventAccumulator(str(events)).Reload()
    for name in ("train/loss", "train/half", "train/learning_rate"):
        assert [each.step for each in watched.Scalars(name)] == [2, 4, 6, 8, 10, 12], name


@pytest.mark.parametrize("step", [2, 4, 6, 11])
def test_a_run_that_was_interrupted_ends_the_same(whole, tmp_path, interrupt, step):
    folder, expected, _ = whole
    interrupt(lambda: train(Network, Sums(), collate, RECIPE, tmp_path), step)
    samples = Sums()
    assert state(train(Network, samples, collate, RECIPE, tmp_path)) == expected
    assert rows(tmp_path) == rows(folder)
    saved = step // RECIPE.schedule.save_every * RECIPE.schedule.save_every
    assert samples.asked == list(range(saved * 4, STEPS * 4)), "it goes on where it was saved"


@pytest.mark.parametrize("step", [3, 4, 11])
def test_a_run_that_is_terminated_saves_and_ends_the_same(whole, tmp_path, monkeypatch, step):
    folder, expected, _ = whole
    begin = loop._StageTrainer.training_step

    def terminated(self, *args, **kwargs):
        if self.state.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return begin(self, *args, **kwargs)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(loop._StageTrainer, "training_step", terminated)
        with pytest.raises(KeyboardInterrupt):  # in the last step too: a stage may have more to do
            train(Network, Sums(), collate, RECIPE, tmp_path)
    assert signal.getsignal(signal.SIGTERM) == before
    samples = Sums()
    assert state(train(Network, samples, collate, RECIPE, tmp_path)) == expected
    assert rows(tmp_path) == rows(folder)
    whole_rows = RECIPE.schedule.log_every
    saved = -(-(step + 1) // whole_rows) * whole_rows
    assert samples.asked == list(range(saved * 4, STEPS * 4)), "it saved when its row was whole"


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no signals to several processes")
def test_a_run_whose_processes_are_all_terminated_saves_too(tmp_path, monkeypatch):
    schedule = replace(RECIPE.schedule, workers=2, steps=24, log_every=12, save_every=12)
    recipe = replace(RECIPE, schedule=schedule)
    begin = loop._StageTrainer.training_step

    def terminated(self, *args, **kwargs):
        if self.state.global_step == 2:
            workers = multiprocessing.active_children()
            assert len(workers) == 2
            for process in [*(worker.pid for worker in workers), os.getpid()]:
                os.kill(process, signal.SIGTERM)
        return begin(self, *args, **kwargs)

    monkeypatch.setattr(loop._StageTrainer, "training_step", terminated)
    with pytest.raises(KeyboardInterrupt):
        train(Network, Sums(), collate, recipe, tmp_path)
    assert [path.name for path in (tmp_path / CHECKPOINTS).glob("*-*")] == ["checkpoint-12"]
    assert not multiprocessing.active_children()


def test_a_network_hears_of_each_step_once(tmp_path):
    class Counting(Network):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("steps", torch.zeros(()))

        def step_done(self) -> None:
            self.steps += 1

    schedule = replace(RECIPE.schedule, accumulate=2)
    network = train(Counting, Sums(), collate, replace(RECIPE, schedule=schedule), tmp_path)
    assert network.steps == STEPS
    assert network.batches == 2 * STEPS


def test_a_run_may_be_interrupted_again_and_again(whole, tmp_path, interrupt):
    folder, expected, _ = whole
    for step in (1, 5, 7, 9, 10):
        interrupt(lambda: train(Network, Sums(), collate, RECIPE, tmp_path), step)
    assert state(train(Network, Sums(), collate, RECIPE, tmp_path)) == expected
    assert rows(tmp_path) == rows(folder)


def test_a_checkpoint_that_was_not_finished_is_passed_over(whole, tmp_path, caplog, interrupt):
    folder, expected, _ = whole
    interrupt(lambda: train(Network, Sums(), collate, RECIPE, tmp_path), step=9)
    (tmp_path / CHECKPOINTS / "checkpoint-8" / "trainer_state.json").write_text(
        '{"epoch": 0', "utf-8"
    )
    assert state(train(Network, Sums(), collate, RECIPE, tmp_path)) == expected
    assert rows(tmp_path) == rows(folder)
    assert "checkpoint-8 is unfinished and is skipped" in caplog.text


def test_a_finished_run_is_left_as_it_is(whole, tmp_path):
    folder, expected, _ = whole
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    samples = Sums()
    assert state(train(Network, samples, collate, RECIPE, again)) == expected
    assert rows(again) == rows(folder)
    assert samples.asked == []


def test_accumulated_batches_read_the_same_samples(whole, tmp_path):
    folder, *_ = whole
    recipe = replace(RECIPE, schedule=replace(RECIPE.schedule, accumulate=2))
    samples = Sums()
    train(Network, samples, collate, recipe, tmp_path)
    assert samples.asked == list(range(STEPS * 4))
    assert {row["rows"] for row in rows(tmp_path)} == {2}
    assert rows(tmp_path)[-1]["loss"] < rows(tmp_path)[0]["loss"]


class Words(Samples):
    """As many ones as its length, which is left to chance."""

    def sample(self, number: int, streams: Streams) -> list[int]:
        return [number] * streams.of("length", number).randint(1, 50)


def pad(samples) -> dict[str, torch.Tensor]:
    width = max(map(len, samples))
    return {"x": torch.tensor([[*sample, *[-1] * (width - len(sample))] for sample in samples])}


class Reader(nn.Module):
    """Notes the samples of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.read: list[list[list[int]]] = []

    def forward(self, x: torch.Tensor) -> dict[str, object]:
        self.read.append([[n for n in row if n >= 0] for row in x.tolist()])
        return {"loss": self.weight * x.clamp(min=0).float().mean()}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_step_shares_its_samples_out_by_length(tmp_path, workers):
    schedule = replace(RECIPE.schedule, batch_size=24, accumulate=4, workers=workers)
    trained = train(Reader, Words(), pad, replace(RECIPE, schedule=schedule), tmp_path, length=len)
    assert len(trained.read) == STEPS * 4
    for step in range(STEPS):
        batches = trained.read[4 * step : 4 * step + 4]
        assert [len(batch) for batch in batches] == [6] * 4
        together = sorted((row[0], len(row)) for batch in batches for row in batch)
        wanted = [Words().sample(number, Streams(0)) for number in range(24 * step, 24 * step + 24)]
        assert together == [(row[0], len(row)) for row in wanted], "what comes in this step stays"
        lengths = [len(row) for batch in batches for row in batch]
        assert lengths == sorted(lengths, reverse=True)


def test_a_run_by_length_that_was_interrupted_ends_the_same(tmp_path, interrupt):
    schedule = replace(RECIPE.schedule, batch_size=24, accumulate=4)
    recipe = replace(RECIPE, schedule=schedule)

    def run(name: str) -> nn.Module:
        return train(Reader, Words(), pad, recipe, tmp_path / name, length=len)

    whole = run("whole")
    interrupt(lambda: run("halves"), step=6)
    halves = run("halves")
    assert halves.read == whole.read[4 * 4 :], "it goes on where it was saved"
    assert state(halves) == state(whole)
    assert rows(tmp_path / "halves") == rows(tmp_path / "whole")


def test_other_seeds_are_other_runs(whole, tmp_path):
    recipe = replace(RECIPE, schedule=replace(RECIPE.schedule, seed=1))
    _, expected, _ = whole
    assert state(train(Network, Sums(), collate, recipe, tmp_path)) != expected


def test_a_folder_of_another_recipe_is_refused(whole):
    folder, *_ = whole
    before = (folder / RECIPE_FILE).read_text("utf-8")
    with pytest.raises(OptionError, match="holds a run of another recipe.*choose another folder"):
        train(Network, Sums(), collate, replace(RECIPE, note="changed"), folder)
    assert (folder / RECIPE_FILE).read_text("utf-8") == before


def test_a_batch_that_cannot_be_shared_out_is_refused(tmp_path):
    recipe = replace(RECIPE, schedule=replace(RECIPE.schedule, accumulate=3))
    with pytest.raises(OptionError, match=r"schedule\.batch_size 4 must be a multiple of 3"):
        train(Network, Sums(), collate, recipe, tmp_path)
    good = replace(RECIPE, schedule=replace(RECIPE.schedule, steps=1, accumulate=2))
    train(Network, Sums(), collate, good, tmp_path)  # the refused recipe has not claimed the folder


class Broken(Sums):
    """Has no sample 9, as a file of documents may have a bad line."""

    def sample(self, number: int, streams: Streams) -> tuple[torch.Tensor, torch.Tensor]:
        if number == 9:
            raise self.error
        return super().sample(number, streams)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "error",
    [
        DocumentError("texts.jsonl, line 9: this is no JSON"),
        PictureError("two pictures are damaged:\na.png: it ends early\nb.png: it is empty"),
        FileNotFoundError(2, "No such file or directory", "a.png"),
    ],
)
def test_an_error_of_a_sample_says_the_same_wherever_samples_are_made(tmp_path, workers, error):
    recipe = replace(RECIPE, schedule=replace(RECIPE.schedule, workers=workers))
    samples = Broken()
    samples.error = error
    with pytest.raises(type(error)) as caught:
        train(Network, samples, collate, recipe, tmp_path)
    assert str(caught.value) == str(error)
    for process in multiprocessing.active_children():  # whoever still holds the error
        process.join(20)
        assert not process.is_alive()


class Killed(Sums):
    """Ends its process at sample 9, as a system does that runs out of memory."""

    def sample(self, number: int, streams: Streams) -> tuple[torch.Tensor, torch.Tensor]:
        if number == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().sample(number, streams)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals that end a process")
def test_a_process_that_the_system_ends_is_told_with_what_to_do(tmp_path):
    recipe = replace(RECIPE, schedule=replace(RECIPE.schedule, workers=2))
    with pytest.raises(
        OptionError, match=r"has ended \(DataLoader worker .*; lower schedule\.workers"
    ):
        train(Network, Killed(), collate, recipe, tmp_path)


def test_too_little_memory_is_an_error_that_says_what_to_do(tmp_path):
    class Large(Network):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, object]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")

    with pytest.raises(OptionError, match="with 4 samples at once; raise schedule.accumulate"):
        train(Large, Sums(), collate, RECIPE, tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("steps", 0), ("workers", -1), ("warm_up", -1), ("weight_decay", -0.1), ("clip", -1.0)],
        *[("seed", -1), ("seed", 2**32), ("beta1", 1.0), ("beta2", -0.1), ("final_part", 1.5)],
        *[("epsilon", 0.0), ("learning_rate", float("nan"))],
    ],
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(OptionError, match=rf"schedule\.{name}"):
        replace(RECIPE.schedule, **{name: value})


def test_only_matrices_decay() -> None:
    """A temperature or a scale is pulled to nothing otherwise, whatever its name."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.temperature = nn.Parameter(torch.ones(()))
            self.gain = nn.Parameter(torch.ones(2))

    trainer = object.__new__(loop._StageTrainer)  # a whole one would seed the random generators
    with torch.device("meta"):
        network = Scaled()
    assert trainer.get_decay_parameter_names(network) == ["layer.weight"]
