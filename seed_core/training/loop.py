"""The training loop of every stage, on transformers' Trainer.

A stage hands over a network whose ``forward`` takes a batch and returns its loss, and samples that are
known by their number. That is all that exact resumption needs: sample n is the same in every run and
on every number of processes, so a run goes on with the next number. Several processes come from
``torchrun`` or ``accelerate launch``, with FSDP2 where that says so. Knows nothing of pictures or text.
"""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..errors import OptionError, SeedError
from .claims import claim
from .curves import draw_curves
from .recipe import to_yaml
from .settings import check_parts

log = logging.getLogger(__name__)

RECIPE_FILE = "recipe.yaml"
CHECKPOINTS = "checkpoints"
CURVES_FILE = "curves.png"
LOG_FILE = "log.json"

_AT_LEAST = {
    1: ("steps", "batch_size", "accumulate", "save_every", "log_every"),
    0: ("warm_up", "weight_decay", "clip", "workers", "seed"),
}
_LARGEST_SEED = 2**32 - 1  # of numpy's generator
_FROM_WORKER = "DataLoader worker"
"""Torch says so of an error in a process that makes samples, and adds its traceback."""

Collate = Callable[[Sequence[Any]], dict[str, Any]]


@dataclass(frozen=True)
class Schedule:
    """How long a stage trains, and how fast.

    Attributes:
        steps: optimizer steps.
        batch_size: samples of one step, over all processes and accumulated batches.
        learning_rate: its peak. It rises over the first steps and falls as a cosine.
        final_part: what the learning rate falls to, as a part of the peak.
        warm_up: steps until the peak.
        weight_decay: of matrices; biases and norms have none.
        clip: largest norm of the gradient; 0 for none.
        accumulate: batches that a step is made of, so that each fits the memory.
        checkpoint_activations: compute activations again rather than keep them.
        precision: of the computation; weights and optimizer stay float32.
        save_every: steps between two checkpoints.
        log_every: steps between two rows of the log.
        workers: processes that make samples.
        seed: of everything random.
    """

    steps: int
    batch_size: int
    learning_rate: float
    final_part: float = 0.0
    warm_up: int = 0
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    clip: float = 1.0
    accumulate: int = 1
    checkpoint_activations: bool = False
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    save_every: int = 500
    log_every: int = 10
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for least, names in _AT_LEAST.items():
            for name in names:
                if not getattr(self, name) >= least:
                    raise OptionError(
                        f"schedule.{name} must be at least {least}; got {getattr(self, name)}"
                    )
        for name in ("learning_rate", "epsilon"):
            if not getattr(self, name) > 0:
                raise OptionError(f"schedule.{name} must be over 0; got {getattr(self, name)}")
        check_parts(self, "final_part", "beta1", "beta2", group="schedule.")
        if 1 in (self.beta1, self.beta2):
            raise OptionError("schedule.beta1 and beta2 must be less than 1; got 1")
        if self.seed > _LARGEST_SEED:
            raise OptionError(f"schedule.seed must be at most {_LARGEST_SEED}; got {self.seed}")
        if self.save_every % self.log_every:  # a row's mean would begin where the run went on
            raise OptionError(
                f"schedule.save_every {self.save_every} must be a multiple of log_every "
                f"{self.log_every}, so that a run that goes on has the same log"
            )


class Samples(Dataset[Any]):
    """Samples by number, as many as anyone asks for.

    Subclasses implement `sample`, which must give the same for the same number, whatever was asked
    for before: draw from ``random.Random(f"{seed} {number}")`` or the like.
    """

    count = 0

    def sample(self, number: int) -> Any:
        """Return one sample, as the stage's collate function takes it."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Any:
        return self.sample(number)


class _StageTrainer(Trainer):
    """A Trainer that reads samples in order and logs the parts of a loss."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._terms: dict[str, list[float]] = {}

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        if state.distributed_type == DistributedType.MULTI_CPU and _wants_shards():
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


def train(
    build: Callable[[], nn.Module],
    samples: Samples,
    collate: Collate,
    recipe: Any,
    folder: Path,
) -> nn.Module:
    """Train a network, or go on where a run into the same folder stopped.

    Args:
        build: makes the network; its random weights come from the recipe's seed. ``forward`` takes
            what ``collate`` returns and gives a mapping with ``loss``, and with ``terms`` where
            parts of it are to be logged.
        samples: what it learns from.
        collate: makes a batch of samples.
        recipe: the whole recipe of the stage, with a ``schedule``; it is written into the folder.
        folder: where checkpoints, log and curves go.

    Returns:
        The network, trained to the end of the schedule. Of several processes the first has it in
        any case, see `is_first_process`; of a sharded run no other.

    Raises:
        OptionError: the folder holds a run of another recipe, the card has too little memory or
            lacks a number format.
        SeedError: whatever making a sample raises.
    """
    schedule: Schedule = recipe.schedule
    with _seeded(schedule.seed):
        arguments = _arguments(schedule, folder)
        _claim(folder, recipe)
        per_step = arguments.train_batch_size * arguments.world_size * schedule.accumulate
        samples.count = schedule.steps * per_step
        try:
            trainer = _StageTrainer(
                model=build(),
                args=arguments,
                train_dataset=samples,
                data_collator=collate,
                callbacks=[_Curves(folder)],
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
    """Return the last checkpoint that is whole; a run may have been killed while it wrote one."""
    found = sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=_step_of)
    for checkpoint in reversed(found):
        try:  # weights, optimizer and schedule are written before it
            json.loads((checkpoint / TRAINER_STATE_NAME).read_bytes())
        except (OSError, ValueError):
            log.warning("%s is unfinished and is passed over", checkpoint)
        else:
            return str(checkpoint)
    return None


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed everything random for a while; the caller's generators stay as they were."""
    python, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        set_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)


def is_first_process() -> bool:
    """Tell whether this process is the one of several that writes results."""
    is_first: bool = PartialState().is_main_process
    return is_first


def _whole(trainer: Trainer, build: Callable[[], nn.Module]) -> nn.Module:
    """Return the trained network in one piece, which no process of a sharded run has."""
    accelerator = trainer.accelerator
    network: nn.Module = accelerator.unwrap_model(trainer.model)
    if accelerator.distributed_type != DistributedType.FSDP:
        return network
    state, network = accelerator.get_state_dict(trainer.model), build()
    if is_first_process():
        network.load_state_dict(state)
    return network


def check_whole() -> None:
    """Refuse FSDP, for stages that do not share out their weights.

    Raises:
        OptionError: the launcher asked for it.
    """
    if _wants_shards():
        raise OptionError(
            "this stage does not share out its weights; start it without FSDP, with torchrun for "
            "several cards"
        )


def _wants_shards() -> bool:
    """Tell whether the launcher asked for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def _claim(folder: Path, recipe: Any) -> None:
    """Write the recipe into a new folder; in one of an earlier run it must be the same."""
    (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    path = folder / RECIPE_FILE
    if not claim(path, to_yaml(recipe)):
        raise OptionError(
            f"{folder} holds a run of another recipe; choose another folder, or take the settings "
            f"of {path} to go on with that run"
        )


def _arguments(schedule: Schedule, folder: Path) -> TrainingArguments:
    use_cpu = not torch.cuda.is_available()
    if schedule.precision == "bf16" and not (use_cpu or torch.cuda.is_bf16_supported(False)):
        raise OptionError(
            "this card does not compute in bf16; set schedule.precision to fp16, or to fp32"
        )
    probe = TrainingArguments(output_dir=str(folder / CHECKPOINTS), report_to=[], use_cpu=use_cpu)
    parts = probe.world_size * schedule.accumulate
    if schedule.batch_size % parts:
        raise OptionError(
            f"schedule.batch_size {schedule.batch_size} must be a multiple of {parts}, the "
            "processes times accumulate"
        )
    less_memory: dict[str, Any] = (
        {"gradient_checkpointing": True} if schedule.checkpoint_activations else {}
    )
    arguments = TrainingArguments(
        output_dir=str(folder / CHECKPOINTS),
        max_steps=schedule.steps,
        per_device_train_batch_size=schedule.batch_size // parts,
        gradient_accumulation_steps=schedule.accumulate,
        learning_rate=schedule.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": schedule.final_part},
        warmup_steps=schedule.warm_up,
        weight_decay=schedule.weight_decay,
        adam_beta1=schedule.beta1,
        adam_beta2=schedule.beta2,
        adam_epsilon=schedule.epsilon,
        max_grad_norm=schedule.clip,
        bf16=schedule.precision == "bf16",
        fp16=schedule.precision == "fp16",
        save_steps=schedule.save_every,
        save_total_limit=2,
        logging_steps=schedule.log_every,
        dataloader_num_workers=schedule.workers,
        remove_unused_columns=False,
        use_cpu=use_cpu,
        seed=schedule.seed,
        report_to=["tensorboard"],
        **less_memory,
    )
    if arguments.n_gpu > 1:
        # Trainer would split each batch over all cards by threads, which batches of scenes do not
        # allow; several cards take several processes.
        arguments._n_gpu = 1
    return arguments
