"""The command ``data``: artwork, and pictures into codes, ready to train with.

Each sub-command has a function that adds its arguments and one that runs it; `_COMMANDS` lists
them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from ...cli.options import add_device
from ...compute.precision import PRECISIONS
from ...errors import in_one_line
from ...models.names import SEED_MINI
from ...models.tokenizer import load_tokenizer
from ..settings import at_least_1
from ..world import data as world_data
from .encoding import KINDS, Encoder, claim_folder, find_shards
from .metadata import METADATA_FILES
from .passed_over import PassedOver


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands."""
    commands = parser.add_subparsers(required=True, metavar="|".join(_COMMANDS))
    for name, each in _COMMANDS.items():
        command = commands.add_parser(name, help=each.text, description=f"{each.text}.")
        each.add_arguments(command)
        command.set_defaults(run_data=each.run)


def run(args: argparse.Namespace) -> None:
    """Run the sub-command that was chosen."""
    args.run_data(args)


def _add_encode(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "pictures",
        nargs="+",
        help="folders of pictures, each text in a .txt, .caption or .json beside its picture or in "
        f"a {' or '.join(METADATA_FILES)} (file_name, text); or webdataset archives: .tar files, or "
        "a pattern",
    )
    add("-o", "--output", type=Path, required=True, help="folder of the shards, JSON lines")
    add("--tokenizer", default=SEED_MINI, help="seed-mini, or a tokenizer's file or folder")
    add_device(parser, "cuda" if torch.cuda.is_available() else "cpu")
    add("--precision", choices=tuple(PRECISIONS), default="fp32")
    add(
        "--format",
        choices=KINDS,
        default=KINDS[0],
        help="of pictures with a text: captions to pretrain with, or requests for the picture to "
        "tune a model that answers; those without a text are alone",
    )
    add("--batch", type=at_least_1, default=64, help="pictures encoded together")
    add(
        "--shard-size",
        type=at_least_1,
        default=10000,
        help="pictures of a folder in one shard; an archive is one shard whatever its size",
    )
    add("--workers", type=at_least_1, default=4, help="threads that read pictures")
    add(
        "--part",
        type=_part,
        default=(0, 1),
        metavar="1/4",
        help="make only every 4th shard from the first on; other processes make 2/4 and so on",
    )


def _part(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not number.isdecimal() or not count.isdecimal() or not 1 <= int(number) <= int(count):
        raise argparse.ArgumentTypeError(f"must be 1/4, 2/4, 3/4, 4/4 or the like; got {text!r}")
    return int(number) - 1, int(count)


def _run_encode(args: argparse.Namespace) -> None:
    passed = PassedOver()
    shards = find_shards(args.pictures, args.shard_size, passed)
    claim_folder(args.output, shards, str(args.tokenizer), args.precision, args.format)
    tokenizer = load_tokenizer(args.tokenizer, args.device, PRECISIONS[args.precision])
    first, step = args.part
    with tqdm(unit=" pictures", disable=None) as bar:
        encoder = Encoder(
            tokenizer, args.format, args.batch, args.workers, passed, _warn, bar.update
        )
        for shard in shards[first::step]:
            encoder.encode(shard, args.output)
    for line in encoder.passed_over():
        _warn(f"passed over: {line}")
    encoder.check_result()
    sys.stdout.write(f"{encoder.summary()} in {in_one_line(args.output)}\n")


def _warn(line: str) -> None:
    tqdm.write(f"warning: {line}", file=sys.stderr)


@dataclass(frozen=True)
class _Command:
    text: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


_COMMANDS = {
    "encode": _Command("turn pictures into codes, with their texts", _add_encode, _run_encode),
    "artwork": _Command(
        "make the artwork of seed-mini's world", world_data.add_artwork, world_data.run_artwork
    ),
    "object": _Command(
        "add a picture of your own to the world",
        world_data.add_own_object,
        world_data.run_own_object,
    ),
    "bank": _Command(
        "turn the world's pictures into codes", world_data.add_bank, world_data.run_bank
    ),
}
