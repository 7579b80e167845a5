"""The processes of a run: where they compute, which one writes, and whether they share weights."""

from __future__ import annotations

import os

import torch
from accelerate import PartialState

from ..errors import OptionError


def compute_device() -> torch.device:
    """Return the device that the loop computes on, the same kind in every process."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def is_first_process() -> bool:
    """Tell whether this process writes the results."""
    is_first: bool = PartialState().is_main_process
    return is_first


def share() -> tuple[int, int]:
    """Return the number of this process and of all, also before they know each other."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def check_whole() -> None:
    """Refuse FSDP, for stages that do not share out their weights.

    Raises:
        OptionError: the launcher asked for FSDP.
    """
    if wants_shards():
        raise OptionError(
            "this stage does not share out its weights; start it without FSDP, with torchrun for "
            "several cards"
        )


def wants_shards() -> bool:
    """Tell whether the launcher asked for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
