"""The command bench."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..compute.precision import LLM_PRECISIONS
from ..files.writer import check_output
from . import options
from .console import say


def add_to(commands: options.Commands) -> argparse.ArgumentParser:
    """Add the command."""
    command = options.add_command(
        commands,
        "bench",
        run,
        """
        python -m seed_core bench
        python -m seed_core bench --size 8b --device cuda --only encode,draw
        """,
    )
    command.add_argument(
        "--size", default="mini", help="mini, the default; or 300m, 8b or 14b of random numbers"
    )
    command.add_argument(
        "--precision", choices=LLM_PRECISIONS, help="default: fp16 on cuda, otherwise fp32"
    )
    command.add_argument(
        "--only",
        metavar="SECTIONS",
        help="some of load,encode,decode,draw,quality; default: all that the size has",
    )
    numbers = (
        ("--repeat", 3, "measurements of each thing"),
        ("--tokens", 128, "new tokens of a timed reply"),
        ("--steps", 20, "diffusion steps of a picture"),
    )
    for name, default, what in numbers:
        command.add_argument(name, type=int, default=default, help=f"{what} (default: {default})")
    command.add_argument(
        "--peers",
        default="all",
        help="whom to measure beside us: all, the default; eager, without those that compile; or none",
    )
    command.add_argument(
        "--json", type=Path, metavar="FILE", help="also write every figure to this file"
    )
    options.add_device(command)
    return command


def run(args: argparse.Namespace) -> None:
    """Measure speed and memory beside transformers and diffusers."""
    from ..bench import BenchOptions, run_bench, save_report

    if args.json:
        check_output(args.json)
    only = tuple(args.only.split(",")) if args.only else ()
    measured = BenchOptions(
        *(args.size, args.device, args.precision, only),
        *(args.repeat, args.tokens, args.steps, args.peers),
    )
    report = run_bench(measured, say)
    if args.json:
        save_report(report, args.json)
