"""The command encode."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..compute.precision import PRECISIONS
from . import codes, options


def add_to(commands: options.Commands) -> argparse.ArgumentParser:
    """Add the command."""
    command = options.add_command(
        commands,
        "encode",
        run,
        """
        python -m seed_core encode fox.png -o fox.safetensors
        python -m seed_core encode a.jpg b.jpg -o album.safetensors --device cuda --precision fp16
        """,
    )
    command.add_argument("pictures", type=Path, nargs="+", help="picture files, in any format")
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("codes.json"),
        metavar="FILE",
        help="one file for all; .safetensors, as the nodes of ComfyUI write it, .json, or .txt "
        "to read and edit (default: %(default)s)",
    )
    options.add_tokenizer(command, PRECISIONS)
    options.add_device(command)
    return command


def run(args: argparse.Namespace) -> None:
    """Turn pictures into codes."""
    codes.check_codes_output(args.output)
    tokenizer = codes.tokenizer_of(args, PRECISIONS[args.precision])
    codes.write_codes(codes.encode(args, args.pictures, tokenizer), args.output)
