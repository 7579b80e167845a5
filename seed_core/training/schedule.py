"""The schedule of a run: how long a stage trains, how fast, and what Trainer is told of that."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainingArguments

from ..errors import OptionError
from .settings import check_at_least, check_fractions

_AT_LEAST = {
    1: ("steps", "batch_size", "accumulate", "save_every", "log_every"),
    0: ("warm_up", "weight_decay", "clip", "workers", "seed"),
}
_LARGEST_SEED = 2**32 - 1  # of numpy's generator


@dataclass(frozen=True)
class Schedule:
    """How long a stage trains, and how fast."""

    steps: int  # of the optimizer
    batch_size: int  # samples of a step, over all processes and accumulated batches
    learning_rate: float  # the peak: it rises over the warm-up, then falls as a cosine
    final_part: float = 0.0  # fraction of the peak that it falls to
    warm_up: int = 0  # steps until the peak
    weight_decay: float = 0.05  # of matrices; biases and norms have none
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    clip: float = 1.0  # largest norm of the gradient; 0 for no limit
    # Batches of a step, so that each fits into the memory. Language models put documents of like
    # length into one, which spares padding and so also time.
    accumulate: int = 1
    checkpoint_activations: bool = False  # compute activations again rather than keep them
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # weights and optimizer stay float32
    save_every: int = 500  # steps
    log_every: int = 10  # steps
    workers: int = 0  # processes that make samples
    seed: int = 0  # of everything random

    def __post_init__(self) -> None:
        for least, names in _AT_LEAST.items():
            check_at_least(least, self, *names, group="schedule.")
        for name in ("learning_rate", "epsilon"):
            if not 0 < getattr(self, name) < math.inf:
                raise OptionError(f"schedule.{name} must be over 0; got {getattr(self, name)}")
        check_fractions(self, "final_part", "beta1", "beta2", group="schedule.")
        if 1 in (self.beta1, self.beta2):
            raise OptionError("schedule.beta1 and beta2 must be less than 1; got 1")
        if self.seed > _LARGEST_SEED:
            raise OptionError(f"schedule.seed must be at most {_LARGEST_SEED}; got {self.seed}")
        if self.save_every % self.log_every:  # a row's mean would begin where the run went on
            raise OptionError(
                f"schedule.save_every {self.save_every} must be a multiple of log_every "
                f"{self.log_every}, so that a run that goes on has the same log"
            )

    @property
    def samples(self) -> int:
        """How many samples a run reads."""
        return self.steps * self.batch_size


def training_arguments(schedule: Schedule, checkpoints: Path) -> TrainingArguments:
    """Return Trainer's settings for a run.

    Raises:
        OptionError: the card lacks the number format, or the processes cannot share a batch evenly.
    """
    use_cpu = not torch.cuda.is_available()
    if schedule.precision == "bf16" and not (use_cpu or torch.cuda.is_bf16_supported(False)):
        raise OptionError(
            "this card does not compute in bf16; set schedule.precision to fp16, or to fp32"
        )
    probe = TrainingArguments(output_dir=str(checkpoints), report_to=[], use_cpu=use_cpu)
    shares = probe.world_size * schedule.accumulate
    if schedule.batch_size % shares:
        raise OptionError(
            f"schedule.batch_size {schedule.batch_size} must be a multiple of {shares}, the "
            "processes times accumulate"
        )
    less_memory: dict[str, Any] = (
        {"gradient_checkpointing": True} if schedule.checkpoint_activations else {}
    )
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=schedule.steps,
        per_device_train_batch_size=schedule.batch_size // shares,
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
