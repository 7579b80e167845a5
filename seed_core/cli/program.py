"""The program: all commands, and how an error ends one."""

from __future__ import annotations

import argparse
import logging
import sys

from ..command import started_as
from ..errors import SeedError
from . import bench, chat, convert, decode, demo, encode, fetch

COMMANDS = (demo, encode, decode, chat, convert, bench, fetch)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command."""
    parser = argparse.ArgumentParser(
        prog=started_as(),
        description="Pictures as 32 codes, a language model that reads and draws them, and a decoder "
        "that paints them. Everything starts with the bundled model, seed-mini.",
        epilog=f"{started_as()} COMMAND --help shows the options and examples of a command.",
    )
    parser.add_argument("--verbose", action="store_true", help="log what is read and ignored")
    commands = parser.add_subparsers(
        required=True, metavar="demo|encode|decode|chat|convert|bench|fetch"
    )
    for module in COMMANDS:
        command = module.add_to(commands)
        # Suppressed, or it would take back what was said before the command.
        command.add_argument(
            "--verbose",
            action="store_true",
            default=argparse.SUPPRESS,
            help="log what is read and ignored",
        )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command; an error is one sentence on standard error and exit status 1."""
    args = build_parser().parse_args(arguments)
    if args.verbose:
        logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    try:
        args.run(args)
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return 130
    except (SeedError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0
