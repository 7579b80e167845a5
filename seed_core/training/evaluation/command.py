"""The command ``evaluate``: a seed-mini through `seed_core`, measured on its closed world."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ...files.writer import check_output
from ..world.closed_world import SPLITS, World
from ..world.judge import Judge
from .comparison import HEADER, compare, published_metrics
from .measure import OF_TEACHER, SAMPLES, TASKS, Evaluation

MEBIBYTE = 2**20

LARGEST = 24 * MEBIBYTE
"""Bytes that all files of a seed-mini may have together."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `run` reads."""
    add = parser.add_argument
    add("--artwork", type=Path, required=True, help="the .npz file that data artwork makes")
    add("--description", type=Path, help="of the world; that of seed-mini if not given")
    add(
        "--judge",
        type=Path,
        required=True,
        help="folder with classifier.json and classifier.safetensors, the judge of drawings",
    )
    add("--model", type=Path, help="folder with tokenizer, llm and decoder; else seed-mini itself")
    add("--lora", help="an adapter for the language model")
    add(
        "--split",
        choices=SPLITS,
        default="validation",
        help="validation to choose by, test for the model that was chosen, all as published",
    )
    add("--samples", type=int, default=SAMPLES, help=f"questions a task, {SAMPLES} if not given")
    add("--teacher", type=Path, help=f"the run of the tower, for {' and '.join(OF_TEACHER)}")
    add("--tasks", nargs="+", choices=TASKS, metavar="TASK", help=f"some of {', '.join(TASKS)}")
    add(
        "--beside",
        type=Path,
        help="a JSON file of another run on the same split, to set beside in place of results.json; "
        "then nothing may lie below",
    )
    add("--json", type=Path, help="write the metrics to this file")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def run(args: argparse.Namespace) -> int:
    """Measure, print the table, and write the metrics if that is asked for.

    Returns:
        The exit status: 1 if a metric is too low or the files are too large.
    """
    if args.json is not None:
        check_output(args.json)
    published = published_metrics(args.beside, args.split)
    world = World(args.artwork, args.description)
    evaluation = Evaluation(
        world,
        Judge(world, args.judge),
        args.samples,
        args.split,
        args.model,
        args.lora,
        args.device,
        args.teacher,
    )
    is_small = evaluation.size <= LARGEST
    for name in args.tasks or ():
        evaluation.check_task(name)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # pictures are spread over the cores instead
    try:
        metrics, holds = _measure_all(
            evaluation, args.tasks or evaluation.tasks, published, args.beside is not None
        )
    finally:
        torch.set_num_threads(threads)
    sizes = f"{evaluation.size / MEBIBYTE:.2f} MiB of at most {LARGEST / MEBIBYTE:.0f}"
    sys.stdout.write(f"files: {sizes}{'' if is_small else '  TOO LARGE'}\n")
    if args.json is not None:
        about: dict[str, Any] = {
            "model": str(args.model or "seed-mini"),
            "split": args.split,
            "bytes": evaluation.size,
            "metrics": metrics,
        }
        args.json.write_text(json.dumps(about, indent=1) + "\n", "utf-8")
    return 0 if holds and is_small else 1


def _measure_all(
    evaluation: Evaluation,
    tasks: Sequence[str],
    published: Mapping[str, Mapping[str, float]],
    is_strict: bool,
) -> tuple[dict[str, dict[str, float]], bool]:
    """Return metrics by task, and whether none is too low."""
    sys.stdout.write(f"{HEADER}\n")
    metrics, holds = {}, True
    for task in tasks:
        with tqdm(desc=task, unit=" replies", leave=False, disable=None) as bar:
            metrics[task] = evaluation.measure(task, bar.update)
        rows = compare(task, metrics[task], published, is_strict)
        holds = holds and all(row.holds for row in rows)
        sys.stdout.write("".join(f"{row}\n" for row in rows))
        sys.stdout.flush()
    return metrics, holds
