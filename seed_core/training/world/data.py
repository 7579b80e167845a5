"""What ``data`` makes for the closed world: artwork, an object of one's own, and the bank of codes.

Each sub-command has a function that adds its arguments and one that runs it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from tqdm import tqdm

from ...cli.options import add_device
from ...errors import OptionError
from ...files.pictures import read_picture
from ...files.side_files import read_json
from ...files.writer import check_output
from ...models.names import SEED_MINI, bundled
from ...models.tokenizer import load_tokenizer
from ..settings import at_least_1
from .artwork import add_object, read_artwork, write_artwork, write_description
from .closed_world import World
from .code_bank import CodeBank
from .fluent_emoji import download_package, read_package


def add_artwork(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``data artwork``."""
    parser.add_argument(
        "--package",
        type=Path,
        help="the npm package @lobehub/fluent-emoji-3d 1.1.0 as .tgz file or folder; fetched from "
        "the npm registry (16 MB) if not given",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .npz file to write")


def run_artwork(args: argparse.Namespace) -> None:
    """Write the artwork of seed-mini."""
    check_output(args.output)
    if args.package is not None:
        artwork = read_package(args.package)
    else:
        with tempfile.TemporaryDirectory() as folder:
            package = Path(folder, "fluent-emoji-3d.tgz")
            download_package(package)
            artwork = read_package(package)
    write_artwork(artwork, args.output)
    sys.stdout.write(f"{len(artwork.names)} objects in {args.output}\n")


def add_own_object(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``data object``."""
    add = parser.add_argument
    add("picture", type=Path, help="a PNG of the object with transparency around it")
    add("--name", required=True, help="what it is called, singular and without article")
    add("--category", required=True, help="animal, plant, food or thing")
    add("--artwork", type=Path, required=True, help="the .npz file it is added to")
    add("--description", type=Path, help="the world it is added to; that of seed-mini if not given")
    add(
        "-o", "--output", type=Path, required=True, help="folder of the new artwork and description"
    )


def run_own_object(args: argparse.Namespace) -> None:
    """Write artwork.npz and concepts.json with one more object."""
    description = read_json(args.description or bundled("concepts.json"))
    if not args.picture.exists():
        raise OptionError(f"the picture {args.picture} is missing")
    picture = read_picture(args.picture, "RGBA")
    artwork, description = add_object(
        read_artwork(args.artwork), description, args.name, picture, args.category
    )
    args.output.mkdir(parents=True, exist_ok=True)
    write_artwork(artwork, args.output / "artwork.npz")
    write_description(description, args.output / "concepts.json")
    sys.stdout.write(f"{args.name} is object {len(description['concepts'])} in {args.output}\n")


def add_bank(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``data bank``."""
    add = parser.add_argument
    add("--artwork", type=Path, required=True, help="the .npz file that data artwork makes")
    add("--description", type=Path, help="of the world; that of seed-mini if not given")
    add("--tokenizer", default=SEED_MINI, help="seed-mini, or a tokenizer's file or folder")
    add(
        "--variants",
        type=at_least_1,
        default=16,
        help="places of each object; 16 make 258,048 pictures",
    )
    add("--seed", type=int, default=0, help="of places and looks")
    add_device(parser, "cuda" if torch.cuda.is_available() else "cpu")
    add("--batch", type=at_least_1, default=512, help="pictures encoded together")
    add("-o", "--output", type=Path, required=True, help="the .safetensors file to write")


def run_bank(args: argparse.Namespace) -> None:
    """Write the codes of the world's pictures."""
    check_output(args.output)
    world = World(args.artwork, args.description, device=args.device)
    tokenizer = load_tokenizer(args.tokenizer, args.device)
    bank = CodeBank(world, args.variants, args.seed, tokenizer)
    with tqdm(total=len(bank), unit=" pictures", disable=None) as bar:
        bank.fill(args.batch, bar.update)
    bank.save(args.output)
    sys.stdout.write(f"{len(bank)} pictures in {args.output}\n")
