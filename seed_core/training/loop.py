"""The training loop of every stage, on transformers' Trainer.

A stage brings a network whose ``forward`` takes a batch and returns its loss, and samples by
number. Sample n is the same in every run and on every number of processes, so an interrupted run
goes on exactly with the next number. ``torchrun`` or ``accelerate launch`` starts several
processes, FSDP2 included.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer, TrainerCallback, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..errors import OptionError, SeedError
from .claims import claim
from .curves import draw_curves
from .processes import is_first_process, wants_shards
from .recipe import to_yaml
from .schedule import Schedule, training_arguments
from .stopping import stop_at_sigterm

log = logging.getLogger(__name__)

RECIPE_FILE = "recipe.yaml"
CHECKPOINTS = "checkpoints"
CURVES_FILE = "curves.png"
LOG_FILE = "log.json"

# How torch begins an error of a process that makes samples; its traceback follows.
_FROM_WORKER = "DataLoader worker"

Collate = Callable[[Sequence[Any]], dict[str, Any]]


class Samples(Dataset[Any]):
    """Samples by number, as many as anyone asks for.

    `sample` must not depend on earlier calls: draw from ``random.Random(f"{seed} {number}")`` or
    the like.
    """

    count = 0

    def sample(self, number: int) -> Any:
        """Return one sample for the stage's collate function."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Any:
        return self.sample(number)


class _StageTrainer(Trainer):
    """A Trainer that reads samples in order and logs the terms of a loss."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._terms: dict[str, list[float]] = {}

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
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]  # Samples, sized

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

    Returns:
        The trained network. In a sharded run only the first process has it, see `is_first_process`.

    Raises:
        OptionError: the folder holds a run of another recipe, or the card lacks memory or a number
            format.
        SeedError: a sample cannot be made.
    """
    schedule: Schedule = recipe.schedule
    with _seeded(schedule.seed), stop_at_sigterm() as stop:
        arguments = training_arguments(schedule, folder / CHECKPOINTS)
        _claim(folder, recipe)
        per_step = arguments.train_batch_size * arguments.world_size * schedule.accumulate
        samples.count = schedule.steps * per_step
        try:
            trainer = _StageTrainer(
                model=build(),
                args=arguments,
                train_dataset=samples,
                data_collator=collate,
                callbacks=[_Curves(folder), _StepsDone(), stop],
            )
            trainer.train(resume_from_checkpoint=_last_checkpoint(folder / CHECKPOINTS))
        except (SeedError, OSError) as error:
            if _FROM_WORKER not in str(error).partition("\n")[0]:
                raise
            raise _without_traceback(error) from error
        except torch.OutOfMemoryError as error:
            raise OptionError(
                "the card's memory is too small for this network with "
                f"{arguments.train_batch_size} samples at once; raise schedule.accumulate, or train "
                "shorter samples or less of the network"
            ) from error
        return _whole(trainer, build)


def _without_traceback(error: SeedError | OSError) -> SeedError | OSError:
    """Return an error of a process that makes samples as it was raised there."""
    last = str(error).rstrip().rpartition("\n")[2]
    return type(error)(last.partition(": ")[2])


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
