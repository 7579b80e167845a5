"""The training loop of every stage, on transformers' Trainer.

A stage brings a network whose ``forward`` takes a batch and returns its loss, and samples by
number, which get their random numbers here. Sample n is the same in every run and on every number
of processes, so an interrupted run goes on exactly with the next number. ``torchrun`` or
``accelerate launch`` starts several processes, FSDP2 included.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer, TrainerCallback, set_seed
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..errors import OptionError, SeedError, first_line
from .claims import claim
from .curves import draw_curves
from .processes import is_first_process, wants_shards
from .recipe import to_yaml
from .schedule import Schedule, training_arguments
from .stopping import Begin, sample_processes, stop_at_sigterm
from .streams import Streams

log = logging.getLogger(__name__)

RECIPE_FILE = "recipe.yaml"
CHECKPOINTS = "checkpoints"
CURVES_FILE = "curves.png"
LOG_FILE = "log.json"

# How torch names a process that makes samples: in an error of that process, before its traceback;
# and first of all in the error that one has ended.
_WORKER = "DataLoader worker"

Collate = Callable[[Sequence[Any]], dict[str, Any]]
Length = Callable[[Any], int]


class Samples(Protocol):
    """Samples by number, as many as anyone asks for."""

    def sample(self, number: int, streams: Streams) -> Any:
        """Return one sample for the stage's collate function.

        It depends on its number and on the streams alone; whatever is random comes from these.
        """


class _Numbered(Dataset[Any]):
    """The samples of a run."""

    def __init__(self, samples: Samples, streams: Streams, count: int) -> None:
        self._samples = samples
        self._streams = streams
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Any:
        return self._samples.sample(number, self._streams)


class _StageTrainer(Trainer):
    """A Trainer that reads samples in order and logs the terms of a loss.

    With a ``length``, it sorts the samples of a step before it puts them into batches.
    """

    def __init__(
        self,
        collate: Collate,
        length: Length | None,
        begin: Callable[[Begin | None, int], None],  # see `sample_processes`
        **kwargs: Any,
    ) -> None:
        # What is sorted here comes as it is from the processes that make samples.
        made: Any = collate if length is None else list
        super().__init__(data_collator=made, **kwargs)
        self._terms: dict[str, list[float]] = {}
        self._collate = collate
        self._length = length
        self._begin = begin

    def train(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().train(*args, **kwargs)
        finally:  # Trainer closes it at the end alone; a run that breaks off would leave it open
            callbacks: list[Any] = self.callback_handler.callbacks
            for callback in callbacks:
                if isinstance(callback, TensorBoardCallback):
                    callback.on_train_end(self.args, self.state, self.control)  # type: ignore[no-untyped-call]

    def get_train_dataloader(self) -> Any:
        loader: Any = super().get_train_dataloader()
        # Accelerate wraps torch's loader, which is the one that starts processes.
        inner = loader.base_dataloader
        inner.worker_init_fn = partial(self._begin, inner.worker_init_fn)
        return loader

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        if self._length is not None:
            together = [*chain.from_iterable(islice(epoch_iterator, num_batches))]
            # The longest come first, so a card that is too small shows it at once.
            rows = iter(sorted(together, key=self._length, reverse=True))
            size = self.args.train_batch_size
            batches = (list(islice(rows, size)) for _ in range(0, len(together), size))
            epoch_iterator = map(self._collate, batches)
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        if state.distributed_type == DistributedType.MULTI_CPU and wants_shards():
            # Accelerate shards on cards alone. Torch can on processors, with gloo, and so a sharded
            # run can be tried without any card.
            state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
            if state.mixed_precision != "no":
                state.fsdp_plugin.set_mixed_precision(state.mixed_precision)
            state.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.is_fsdp_enabled = True

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        # Trainer knows norms and biases by their names; scales and temperatures have other names.
        names = set(super().get_decay_parameter_names(model))
        return [name for name, p in model.named_parameters() if name in names and p.ndim > 1]

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]  # it has a length

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        kwargs["return_outputs"] = True
        loss, outputs = super().compute_loss(model, inputs, *args, **kwargs)
        for name, value in (outputs.get("terms") or {}).items():
            self._terms.setdefault(name, []).append(float(value))
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if self._terms:  # the same in every process
            means = [sum(values) / len(values) for values in self._terms.values()]
            of_all = self.accelerator.reduce(
                torch.tensor(means, device=self.args.device), reduction="mean"
            )
            logs |= dict(zip(self._terms, of_all.tolist(), strict=True))
            self._terms.clear()
        super().log(logs, *args, **kwargs)


class _Curves(TrainerCallback):
    """Writes the log and its picture whenever a checkpoint is written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            rows = [row for row in state.log_history if "loss" in row]
            (self._folder / LOG_FILE).write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
            draw_curves(rows, self._folder / CURVES_FILE)


class _StepsDone(TrainerCallback):
    """Tells a network that has ``step_done`` of each step of the optimizer."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if hasattr(kwargs["model"], "step_done"):
            kwargs["model"].step_done()


def train(
    build: Callable[[], nn.Module],
    samples: Samples,
    collate: Collate,
    recipe: Any,
    folder: Path,
    length: Length | None = None,
) -> nn.Module:
    """Train a network, or go on with an earlier run in the same folder.

    SIGTERM ends it with a checkpoint and a KeyboardInterrupt, where one process trains.

    Args:
        build: makes the network; its random weights come from the recipe's seed. ``forward`` takes
            what ``collate`` returns. It gives a mapping with ``loss``, and with ``terms`` to log.
            Its ``step_done``, if it has one, is called after each step of the optimizer.
        samples: what it learns from.
        collate: makes a batch of samples.
        recipe: of the stage, with a ``schedule``; it is written into the folder.
        folder: receives checkpoints, log and curves.
        length: of a sample that a batch pads to its longest. A step still learns from the same
            samples, but with ``accumulate`` those of like length share a batch.

    Returns:
        The trained network. In a sharded run only the first process has it, see `is_first_process`.

    Raises:
        OptionError: the folder holds a run of another recipe, or the card lacks memory or a number
            format.
        SeedError: a sample cannot be made.
    """
    schedule: Schedule = recipe.schedule
    with _seeded(schedule.seed), stop_at_sigterm() as stop, sample_processes() as begin:
        arguments = training_arguments(schedule, folder / CHECKPOINTS)
        _claim(folder, recipe)
        try:
            trainer = _StageTrainer(
                collate,
                length,
                begin,
                model=build(),
                args=arguments,
                train_dataset=_Numbered(samples, Streams(schedule.seed), schedule.samples),
                callbacks=[_Curves(folder), _StepsDone(), stop],
            )
            trainer.train(resume_from_checkpoint=_last_checkpoint(folder / CHECKPOINTS))
        except torch.OutOfMemoryError as error:
            raise OptionError(
                "the card's memory is too small for this network with "
                f"{arguments.train_batch_size} samples at once; raise schedule.accumulate, or train "
                "shorter samples or less of the network"
            ) from error
        except (SeedError, OSError, RuntimeError, EOFError) as error:
            if (explained := _of_worker(error, schedule.workers)) is None:
                raise
            raise explained from error
        return _whole(trainer, build)


def _of_worker(error: Exception, workers: int) -> Exception | None:
    """Say what went wrong in a process that makes samples; None for an error of anything else."""
    is_from_there = _WORKER in str(error).partition("\n")[0]
    if isinstance(error, (SeedError, OSError)) and is_from_there:
        return _without_traceback(error)
    # A sample that is on its way from a process that ends breaks off.
    is_broken = isinstance(error, (EOFError, ConnectionError)) and not is_from_there
    if not workers or not (is_broken or str(error).startswith(_WORKER)):
        return None
    reason = first_line(error).strip(" .")
    return OptionError(
        f"a process that makes samples has ended ({reason}), most often for lack of memory; lower "
        "schedule.workers, where 0 makes samples without processes"
    )


def _without_traceback(error: SeedError | OSError) -> SeedError | OSError:
    """Return an error of a process that makes samples as it was raised there."""
    kind = type(error)
    name = (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
    return kind(str(error).rpartition(f"\n{name}: ")[2].rstrip())


def _last_checkpoint(folder: Path) -> str | None:
    """Return the last complete checkpoint; a run may have been killed while it wrote one."""
    found = sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=_step_of)
    for checkpoint in reversed(found):
        try:  # weights, optimizer and schedule are written before it
            json.loads((checkpoint / TRAINER_STATE_NAME).read_bytes())
        except (OSError, ValueError):
            log.warning("%s is unfinished and is skipped", checkpoint)
        else:
            return str(checkpoint)
    return None


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed everything random; the caller's generators come back afterwards."""
    python, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        set_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)


def _whole(trainer: Trainer, build: Callable[[], nn.Module]) -> nn.Module:
    """Return the trained network in one piece; the processes of a sharded run each have a shard."""
    accelerator = trainer.accelerator
    network: nn.Module = accelerator.unwrap_model(trainer.model)
    if accelerator.distributed_type != DistributedType.FSDP:
        return network
    state, network = accelerator.get_state_dict(trainer.model), build()
    if is_first_process():
        network.load_state_dict(state)
    return network


def _claim(folder: Path, recipe: Any) -> None:
    """Write the recipe into a new folder; the folder of an earlier run must have the same one."""
    (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    path = folder / RECIPE_FILE
    if not claim(path, to_yaml(recipe)):
        raise OptionError(
            f"{folder} holds a run of another recipe; choose another folder, or take the settings "
            f"of {path} to go on with that run"
        )
