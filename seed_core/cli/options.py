"""Options that several commands have, each described once."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import torch

from .. import DecodeOptions, GenerationOptions
from ..command import started_as
from ..llm.sampling import REPLIES
from ..models.lora import SEED_MINI_NIGHT
from ..models.names import SEED_MINI
from ..tokenizer.preprocess import FITS

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], None], examples: str
) -> argparse.ArgumentParser:
    """Add a command, described by the docstring of what it runs."""
    examples = examples.replace("python -m seed_core", started_as())
    command = commands.add_parser(
        name,
        help=run.__doc__,
        description=run.__doc__,
        epilog="examples:\n" + textwrap.indent(textwrap.dedent(examples).strip("\n"), "  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    return command


def add_device(command: argparse.ArgumentParser, default: str = "cpu") -> None:
    """Add where a command computes."""
    command.add_argument(
        "--device", type=_device, default=default, help=f"cpu, cuda or mps; by default {default}"
    )


def add_tokenizer(command: argparse.ArgumentParser, precisions: Iterable[str]) -> None:
    """Add the tokenizer, and the precision it shares with the command's other models."""
    command.add_argument(
        "--tokenizer", default=SEED_MINI, help="a tokenizer file or folder (default: %(default)s)"
    )
    command.add_argument(
        "--fit",
        choices=FITS,
        default=FITS[0],
        help="how a picture becomes square (default: %(default)s, as the models were trained)",
    )
    command.add_argument(
        "--precision",
        choices=precisions,
        default="fp32",
        help="number format of the weights (default: %(default)s); fp16 halves the memory",
    )


def add_decoder(command: argparse.ArgumentParser) -> None:
    """Add the decoder and how it paints; `decode_options` reads them."""
    defaults = DecodeOptions()
    group = command.add_argument_group("painting")
    group.add_argument(
        "--decoder",
        default=SEED_MINI,
        help="an unCLIP folder of diffusers, or a converted file (default: %(default)s)",
    )
    helps = {
        "steps": "diffusion steps; more take longer (default: %(default)s)",
        "guidance_scale": "how strongly the codes are followed (default: the decoder's own, 2 for "
        "seed-mini and 10 for SD 2.1 unCLIP); 1 or less switches guidance off",
        "noise_level": "0..999; more strays further from the codes (default: %(default)s)",
    }
    side = "in pixels, a multiple of 8; 0, the default, is the decoder's own"
    _add_numbers(group, defaults, {**helps, "width": side, "height": side})


def decode_options(args: argparse.Namespace) -> DecodeOptions:
    """Return how to paint.

    Raises:
        OptionError: a value is out of its range.
    """
    return DecodeOptions(args.steps, args.guidance_scale, args.noise_level, args.width, args.height)


def add_generation(command: argparse.ArgumentParser) -> None:
    """Add how a reply is made; `generation_options` reads it."""
    defaults = GenerationOptions()
    group = command.add_argument_group("the reply")
    group.add_argument(
        "--reply",
        choices=REPLIES,
        default=defaults.reply,
        help="image: begin with a picture; text: only words; auto, the default: as the model likes",
    )
    helps = {
        "max_new_tokens": "longest reply; a picture takes 34 (default: %(default)s)",
        "temperature": "0 always gives the same reply and is best for questions; more is wilder "
        "(default: %(default)s)",
        "top_p": "choose among the likeliest words that together reach this (default: %(default)s)",
        "top_k": "choose among this many words; 0 for all (default: %(default)s)",
    }
    _add_numbers(group, defaults, helps)


def generation_options(args: argparse.Namespace) -> GenerationOptions:
    """Return how to reply.

    Raises:
        OptionError: a value is out of its range.
    """
    return GenerationOptions(
        args.reply, args.max_new_tokens, args.temperature, args.top_p, args.top_k
    )


def add_seed(command: argparse.ArgumentParser) -> None:
    """Add the random seed."""
    command.add_argument(
        "--seed",
        type=int,
        default=0,
        help="random seed; another one gives another result (default: %(default)s)",
    )


def add_lora(command: argparse.ArgumentParser) -> None:
    """Add LoRA adapters; they arrive as pairs of a path and a strength."""
    command.add_argument(
        "--lora",
        type=_lora,
        action="append",
        default=[],
        metavar="PATH[:STRENGTH]",
        help=f"a peft adapter, or {SEED_MINI_NIGHT!r}; may be given several times",
    )


def _add_numbers(
    group: argparse._ArgumentGroup,
    defaults: DecodeOptions | GenerationOptions,
    helps: Mapping[str, str],  # by the name of a field, or "steps"
) -> None:
    """Add an option for each field, whose default tells its type; None is a number to be found."""
    for name, help_text in helps.items():
        default = getattr(defaults, "num_inference_steps" if name == "steps" else name)
        kind = float if default is None else type(default)
        option = f"--{name.replace('_', '-')}"
        group.add_argument(option, type=kind, default=default, help=help_text)


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"{name!r} is not usable here: {error}") from error


def _lora(text: str) -> tuple[str, float]:
    path, _, strength = text.rpartition(":")
    try:
        return (path, float(strength)) if path else (text, 1.0)
    except ValueError:
        return text, 1.0  # the colon belongs to a path of Windows
