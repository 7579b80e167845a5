"""The command fetch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..compute.precision import LLM_PRECISIONS
from ..errors import OptionError
from ..fetching.downloads import DOWNLOADS
from ..fetching.failures import OnBytes
from ..fetching.plan import Plan
from ..files.writer import check_output
from ..models.convert import check_precision
from . import options
from .console import say


def add_to(commands: options.Commands) -> argparse.ArgumentParser:
    """Add the command."""
    command = options.add_command(
        commands,
        "fetch",
        run,
        """
        python -m seed_core fetch
        python -m seed_core fetch seed-tokenizer-2
        python -m seed_core fetch seed-llama-8b-sft --precision fp8
        """,
    )
    command.add_argument(
        "name", nargs="?", choices=DOWNLOADS, help="the model; leave it out to list them all"
    )
    place = command.add_mutually_exclusive_group()
    place.add_argument(
        "--models",
        type=Path,
        metavar="FOLDER",
        help="ComfyUI's models folder; default: that of the ComfyUI around this pack, or what its "
        "extra_model_paths.yaml names",
    )
    place.add_argument(
        "--into",
        type=Path,
        metavar="FOLDER",
        help="in place of --models, the folder for this kind of model, such as models/seed_llm",
    )
    command.add_argument(
        "--precision",
        choices=("bf16", "fp16", "fp8"),
        help="convert it while it comes, to one file: the disk then needs room for that and one of "
        "the published files. fp8: language models only. Default: as it is published",
    )
    command.add_argument("--revision", help="a commit, branch or tag in place of the pinned commit")
    command.add_argument("--yes", action="store_true", help="fetch without asking")
    return command


def run(args: argparse.Namespace) -> None:
    """Fetch a published model into ComfyUI's models folder; no other command downloads."""
    from ..fetching import converted, describe, fetch, places, plan

    if args.name is None:
        for line in describe.describe_all():
            say(line)
        return
    download = DOWNLOADS[args.name]
    if args.precision is not None:
        check_precision(download.kind, LLM_PRECISIONS[args.precision])
    folder = places.find_folder(download.folder, args.models, args.into)
    wanted = plan.make_plan(args.name, folder, args.revision)
    for line in describe.describe(wanted):
        say(line)
    if args.precision is None:
        fetch.check_disk(wanted)
        if wanted.missing and not args.yes:
            _ask_to_go_on()
        with _progress(wanted) as on_bytes:
            for path in fetch.fetch(wanted, on_bytes):
                say(f"fetched {path}")
        return
    output = converted.output_of(wanted, args.precision)
    check_output(output, nbytes=0)
    size = download.gigabytes[args.precision]
    say(f"converted to {args.precision} while it comes, into {output}: about {size} GB in the end")
    if not args.yes:
        _ask_to_go_on()
    with _progress(wanted) as on_bytes:
        dtype = LLM_PRECISIONS[args.precision]
        digest = converted.fetch_converted(wanted, dtype, output, on_bytes)
    say(f"wrote {output}\nSHA-256 {digest}")


@contextmanager
def _progress(plan: Plan) -> Iterator[OnBytes]:
    """Give what fills a bar; only a terminal shows it."""
    from huggingface_hub import utils

    hub: Any = utils  # its types leave out what its documentation names
    with hub.tqdm(total=plan.size, unit="B", unit_scale=True, disable=None) as bar:
        yield lambda here, fetched: bar.update(here - bar.n)


def _ask_to_go_on() -> None:
    if not sys.stdin.isatty():
        raise OptionError("nothing was fetched: there is nobody to ask; add --yes to fetch this")
    sys.stdout.write("Fetch this? [y/N] ")
    sys.stdout.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise OptionError("nothing was fetched")
