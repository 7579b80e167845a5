"""The command chat."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .. import (
    LanguageModel,
    SeedCodes,
    ServedLLM,
    load_llm,
    load_served_llm,
    merge_lora,
    read_lora,
    seeded_generators,
)
from ..compute.fp8 import FP8, computing_dtype
from ..compute.precision import LLM_PRECISIONS
from ..decoder.embeddings import require_image_embedding
from ..errors import CodesError, OptionError
from ..files.pictures import check_picture_output, is_picture_name
from ..models.names import SEED_MINI
from ..models.unclip import open_decoder
from . import codes, options
from .console import say

_DEFAULT_OUTPUT = Path("reply.json")


def add_to(commands: options.Commands) -> argparse.ArgumentParser:
    """Add the command."""
    command = options.add_command(
        commands,
        "chat",
        run,
        """
        python -m seed_core chat "What is this?" --image fox.png
        python -m seed_core chat "a panda on blue" -o panda.png -o panda.safetensors
        python -m seed_core chat "Make it bigger" --image fox.png -o big.png
        python -m seed_core chat "a fox" -o fox.png --server studio.server.json
        """,
    )
    command.add_argument("prompt", help="what to say; <image> marks where a picture goes")
    command.add_argument(
        *("--image", "--picture", "--codes"),
        dest="given",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a picture, or a file of codes, to talk about; may be given several times",
    )
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        action="append",
        metavar="FILE",
        help="for what the reply draws: a picture such as .png, or codes as .safetensors, .json or "
        f".txt; may be given several times (default: {_DEFAULT_OUTPUT})",
    )
    thinks = command.add_mutually_exclusive_group()
    thinks.add_argument(
        "--model",
        default=SEED_MINI,
        help="a SEED-LLaMA folder or converted file (default: %(default)s)",
    )
    thinks.add_argument(
        "--server",
        type=Path,
        metavar="FILE",
        help="a .server.json file: the language model runs on the server that it names",
    )
    options.add_lora(command)
    options.add_generation(command)
    options.add_decoder(command)
    options.add_tokenizer(command, LLM_PRECISIONS)
    options.add_seed(command)
    options.add_device(command)
    return command


def run(args: argparse.Namespace) -> None:
    """Say something, with pictures or without, and get words and pictures back."""
    outputs = args.output or [_DEFAULT_OUTPUT]
    pictures = [path for path in outputs if is_picture_name(path)]
    files = [path for path in outputs if path not in pictures]
    for path in pictures:
        check_picture_output(path)
    for path in files:
        codes.check_codes_output(path)
    options.decode_options(args)  # refused before a model is loaded
    served = None if args.server is None else _served(args)
    drawn = _reply(args, served, _given(args), bool(pictures))
    if not len(drawn):
        if args.output:
            sys.stderr.write("nothing was written: the reply is only words; try --reply image\n")
        return
    for path in files:
        codes.write_codes(drawn, path)
    for path in pictures:
        _paint(args, drawn, path)


# Each model ends with the function that loads it, and need not fit beside the next.


def _given(args: argparse.Namespace) -> SeedCodes | None:
    tokenizer = codes.tokenizer_of(args, computing_dtype(LLM_PRECISIONS[args.precision]))
    return codes.read_codes(args, args.given, tokenizer) if args.given else None


def _reply(
    args: argparse.Namespace, served: ServedLLM | None, given: SeedCodes | None, is_painted: bool
) -> SeedCodes:
    """Print the reply, and return the codes of its pictures."""
    how = options.generation_options(args)
    llm = served or _llm(args)
    if is_painted:
        _check_painting(args, llm)
    generator = seeded_generators(args.seed, 1)[0]
    reply = llm.generate(args.prompt, given, options=how, generator=generator)
    say(reply.text)
    return SeedCodes(reply.codes, llm.family, llm.codebook_size)


def _served(args: argparse.Namespace) -> ServedLLM:
    """Open the model on a server, which is asked later: here only what its file says is checked."""
    if args.lora:
        raise OptionError(
            "--lora changes a model on this computer; a server offers an adapter under a name of "
            "its own: write that as model into the server file"
        )
    if LLM_PRECISIONS[args.precision] == FP8:
        raise OptionError(
            "--precision fp8 is for a language model on this computer; an engine is told as it starts"
        )
    served = load_served_llm(args.server)
    served.server.key()
    return served


def _llm(args: argparse.Namespace) -> LanguageModel:
    llm = load_llm(args.model, args.device, LLM_PRECISIONS[args.precision])
    for path, strength in args.lora:
        merge_lora(llm.module, read_lora(path, llm.config), strength)
    return llm


def _check_painting(args: argparse.Namespace, llm: LanguageModel) -> None:
    """Check, before minutes of replying, that its pictures can be read and painted."""
    config = codes.tokenizer_config(args.tokenizer)
    if (config.family, config.codebook_size) != (llm.family, llm.codebook_size):
        raise CodesError(
            f"{args.server or args.model} draws {llm.family} codes, and the tokenizer {args.tokenizer} reads "
            f"{config.family} codes: name the {llm.family} tokenizer with --tokenizer and its "
            "decoder with --decoder, or write the codes to a file such as reply.safetensors"
        )
    require_image_embedding(config.embedding_shape, config.family)
    open_decoder(args.decoder)


def _paint(args: argparse.Namespace, drawn: SeedCodes, output: Path) -> None:
    dtype = computing_dtype(LLM_PRECISIONS[args.precision])
    embedding = codes.embed(drawn, codes.tokenizer_of(args, dtype)())
    codes.paint(args, embedding, None, dtype, output)
