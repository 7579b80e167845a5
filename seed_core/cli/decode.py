"""The command decode."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ..compute.precision import PRECISIONS
from ..errors import CodesError
from ..files.pictures import check_picture_output
from . import codes, options


def add_to(commands: options.Commands) -> argparse.ArgumentParser:
    """Add the command."""
    command = options.add_command(
        commands,
        "decode",
        run,
        """
        python -m seed_core decode fox.safetensors -o fox.png
        python -m seed_core decode photo.jpg -o again.png
        """,
    )
    command.add_argument(
        "codes",
        type=Path,
        nargs="+",
        help="files of codes, as encode, chat or SEED Save Codes write them; or pictures, which are "
        "encoded first",
    )
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("decoded.png"),
        metavar="PICTURE",
        help="the ending is the format; several pictures get numbers (default: %(default)s)",
    )
    command.add_argument(
        "--negative", type=Path, metavar="FILE", help="codes, or a picture, to steer away from"
    )
    options.add_decoder(command)
    options.add_tokenizer(command, PRECISIONS)
    options.add_seed(command)
    options.add_device(command)
    return command


def run(args: argparse.Namespace) -> None:
    """Paint pictures from codes."""
    check_picture_output(args.output)
    options.decode_options(args)  # refused before a model is loaded
    dtype = PRECISIONS[args.precision]
    embedding, negative = _embed(args, dtype)
    codes.paint(args, embedding, negative, dtype, args.output)


def _embed(
    args: argparse.Namespace, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the embeddings; the tokenizer ends here, and need not fit beside the decoder."""
    tokenizer = codes.tokenizer_of(args, dtype)
    wanted = codes.read_codes(args, args.codes, tokenizer)
    if not len(wanted):
        raise CodesError(f"{', '.join(map(str, args.codes))} holds no picture to decode")
    if not args.negative:
        return codes.embed(wanted, tokenizer()), None
    unwanted = codes.read_codes(args, [args.negative], tokenizer)
    return codes.embed(wanted, tokenizer()), codes.embed(unwanted, tokenizer())
