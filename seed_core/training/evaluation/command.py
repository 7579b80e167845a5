"""The command ``evaluate``: a seed-mini through `seed_core`, measured on its closed world."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ...cli.options import add_device
from ...files.writer import check_output
from ..world.closed_world import SPLITS, World
from ..world.judge import Judge
from .comparison import (
    RULE,
    Metrics,
    Row,
    compare,
    count,
    header,
    missing,
    other_metrics,
    published_metrics,
)
from .measure import OF_TEACHER, SAMPLES, TASKS, Evaluation, tasks_of
from .metrics import Metric, to_fields

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
        help="validation to choose by, test for the model that was chosen, as results.json; all is both",
    )
    add("--samples", type=int, default=SAMPLES, help=f"questions a task, {SAMPLES} if not given")
    add("--teacher", type=Path, help=f"the run of the tower, for {' and '.join(OF_TEACHER)}")
    add("--tasks", nargs="+", choices=TASKS, metavar="TASK", help=f"some of {', '.join(TASKS)}")
    add(
        "--beside",
        type=Path,
        help="a JSON file of another run on the same split, to set beside in place of results.json; "
        "then no metric may be lower, or missing here, where it counts as equal if 0 lies in the "
        "95 %% interval of the difference",
    )
    add("--json", type=Path, help="write the metrics to this file")
    add_device(parser, "cuda" if torch.cuda.is_available() else "cpu")


def run(args: argparse.Namespace) -> int:
    """Measure, print the table, and write the metrics if that is asked for.

    Returns:
        The exit status: 1 if a metric is too low or the files are too large.
    """
    if args.json is not None:
        check_output(args.json)
    tasks = args.tasks or tasks_of(bool(args.teacher))
    is_run = args.beside is not None
    others = other_metrics(args.beside, args.split, tasks) if is_run else published_metrics()
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
    for name in tasks:
        evaluation.check_task(name)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # pictures are spread over the cores instead
    try:
        metrics, rows = _measure_all(evaluation, tasks, others, is_run)
    finally:
        torch.set_num_threads(threads)
    if is_run:
        rows += _printed([] if args.tasks else missing(others, tasks))
        sys.stdout.write(f"{count(rows)}; {RULE}\n")
    sizes = f"{evaluation.size / MEBIBYTE:.2f} MiB of at most {LARGEST / MEBIBYTE:.0f}"
    sys.stdout.write(f"files: {sizes}{'' if is_small else '  TOO LARGE'}\n")
    if args.json is not None:
        about: dict[str, Any] = {
            "model": str(args.model or "seed-mini"),
            "split": args.split,
            "bytes": evaluation.size,
            "metrics": {task: to_fields(measured) for task, measured in metrics.items()},
        }
        args.json.write_text(json.dumps(about, indent=1) + "\n", "utf-8")
    return 0 if is_small and all(row.holds for row in rows) else 1


def _measure_all(
    evaluation: Evaluation, tasks: Sequence[str], others: Metrics, is_run: bool
) -> tuple[dict[str, dict[str, Metric]], list[Row]]:
    """Return metrics by task, and what they are beside the others."""
    sys.stdout.write(f"{header(is_run)}\n")
    metrics, rows = dict[str, dict[str, Metric]](), list[Row]()
    for task in tasks:
        with tqdm(desc=task, unit=" replies", leave=False, disable=None) as bar:
            metrics[task] = evaluation.measure(task, bar.update)
        rows += _printed(compare(task, metrics[task], others, is_run, evaluation.split))
    return metrics, rows


def _printed(rows: list[Row]) -> list[Row]:
    sys.stdout.write("".join(f"{row}\n" for row in rows))
    sys.stdout.flush()
    return rows
