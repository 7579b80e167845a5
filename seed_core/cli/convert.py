"""The command convert."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..compute.precision import LLM_PRECISIONS
from ..files.writer import check_output
from ..models.convert import SUFFIX, Conversion, convert_model, plan_conversion
from ..models.plain_folder import check_plain_folder, write_plain_folder
from . import options
from .console import progress_bar, say


def add_to(commands: options.Commands) -> argparse.ArgumentParser:
    """Add the command."""
    command = options.add_command(
        commands,
        "convert",
        run,
        """
        python -m seed_core convert seed-llama-8b-sft -o seed-llama-8b-fp8.safetensors \\
            --precision fp8
        python -m seed_core convert seed-llama-8b-sft -o served/seed-llama-8b --to folder \\
            --precision bf16
        """,
    )
    command.add_argument("source", type=Path, help="a published file or folder")
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="NEW_FILE.safetensors",
        help="must not exist yet; an interrupted conversion goes on where it stopped",
    )
    command.add_argument(
        "--to",
        choices=("file", "folder"),
        default="file",
        help="file: one file with everything in it, for this program. folder: a language model for "
        "engines such as vLLM, with the vocabulary beside its weights (default: %(default)s)",
    )
    command.add_argument(
        "--precision",
        choices=LLM_PRECISIONS,
        default="fp16",
        help="number format of the new file (default: %(default)s); fp8: language models only",
    )
    options.add_lora(command)
    command.add_argument("--dry-run", action="store_true", help="only say what would be written")
    return command


def run(args: argparse.Namespace) -> None:
    """Write a tokenizer, SEED-LLaMA or decoder as one file in the precision you choose."""
    conversion = plan_conversion(args.source, LLM_PRECISIONS[args.precision], args.lora)
    is_folder = args.to == "folder"
    if is_folder:
        check_plain_folder(conversion, args.output)
    else:
        check_output(args.output, SUFFIX, conversion.nbytes)
    say(_describe(conversion, args))
    if args.dry_run:
        return
    with progress_bar("tensor") as on_tensor:
        write = write_plain_folder if is_folder else convert_model
        digest = write(conversion, args.output, on_tensor)
    say(f"wrote {args.output}\nSHA-256 {digest}")


def _describe(conversion: Conversion, args: argparse.Namespace) -> str:
    opened = conversion.opened
    return (
        f"{opened.kind} {opened.source} to {args.output}: {len(conversion.layout)} tensors, "
        f"{conversion.nbytes / 2**30:.2f} GiB in {args.precision}, with "
        f"{', '.join(opened.files)} {'in the header' if args.to == 'file' else 'beside them'}"
        + "".join(f", {path} merged at {strength}" for path, strength in args.lora)
    )
