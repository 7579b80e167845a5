"""The command line: ``python -m seed_core.training data|tower|tokenizer|decoder|llm|tune|evaluate``.

Parses arguments and hands each stage its recipe.
"""

from __future__ import annotations

import argparse
import importlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import OptionError, SeedError

STAGES = {
    "tower": "train the vision tower with its heads",
    "tokenizer": "train the causal Q-Former, or the codebook and the de-tokenizer",
    "decoder": "train the autoencoder and the diffusion model that paints",
    "llm": "pretrain or instruction-tune a language model on pictures and text",
    "tune": "train a LoRA adapter on a SEED-LLaMA",
}
"""Modules of `stages` that read a recipe and write a folder; they have ``RECIPE`` and ``run``."""

COMMANDS = {
    "data": ("data.command", "get artwork, or turn pictures into codes"),
    "evaluate": ("evaluation.command", "measure a seed-mini on its closed world"),
}
"""Modules with arguments of their own; they have ``add_arguments`` and ``run``."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command; only the modules of COMMANDS are imported for it."""
    parser = argparse.ArgumentParser(prog="python -m seed_core.training")
    commands = parser.add_subparsers(required=True, metavar="|".join([*STAGES, *COMMANDS]))
    for name, text in STAGES.items():
        command = commands.add_parser(name, help=text, description=f"{text}.")
        command.add_argument("recipe", help="a YAML file, or the name of a bundled recipe")
        command.add_argument("-o", "--output", type=Path, required=True, help="folder of the run")
        command.add_argument(
            "--set",
            dest="changes",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="change one setting of the recipe, such as schedule.steps=100",
        )
        command.set_defaults(run=_stage(name))
    for name, (place, text) in COMMANDS.items():
        module = _module(place)
        command = commands.add_parser(name, help=text, description=f"{text}.")
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def _stage(name: str) -> Callable[[argparse.Namespace], None]:
    def run(args: argparse.Namespace) -> None:
        from .recipe import find_recipe, read_recipe

        stage = _module(f"stages.{name}")
        stage.run(read_recipe(stage.RECIPE, find_recipe(args.recipe), args.changes), args.output)

    return run


def _module(name: str) -> Any:
    try:
        return importlib.import_module(f".{name}", __package__)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("seed_core"):
            raise
        raise OptionError(
            f'training needs {error.name}, which is not installed: pip install -e ".[train]"'
        ) from error


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status; an error is one sentence and 1."""
    try:
        args = build_parser().parse_args(arguments)
        return args.run(args) or 0
    except KeyboardInterrupt:
        sys.stderr.write(
            "stopped; a training goes on from its last checkpoint by the same command\n"
        )
        return 130
    except (SeedError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file on Windows lacks most characters
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(main())
