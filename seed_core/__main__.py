"""The command line: ``python -m seed_core demo|encode|decode|chat|convert|bench|fetch``.

Parses arguments, reads and writes files, and leaves the rest to the library.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from . import (
    CodesError,
    DecodeOptions,
    GenerationOptions,
    SeedCodes,
    SeedError,
    load_decoder,
    load_llm,
    load_tokenizer,
    merge_lora,
    read_lora,
    seeded_generators,
)
from .compute.fp8 import computing_dtype
from .compute.precision import LLM_PRECISIONS, PRECISIONS
from .decoder.embeddings import require_image_embedding
from .errors import OptionError
from .fetching.downloads import DOWNLOADS
from .files.pictures import (
    check_picture_output,
    read_codes,
    read_picture,
    save_codes,
    save_pictures,
)
from .files.writer import check_output
from .llm.sampling import REPLIES
from .models.convert import SUFFIX, Conversion, convert_model, plan_conversion
from .models.lora import SEED_MINI_NIGHT
from .models.names import SEED_MINI
from .tokenizer.preprocess import FITS


def run_demo(args: argparse.Namespace) -> None:
    """Write the contact sheet."""
    from .cli.demo import make_sheet

    check_picture_output(args.output)
    path = args.output.resolve()
    make_sheet(args.device).save(path)
    say(f"wrote {path}")


def run_encode(args: argparse.Namespace) -> None:
    """Pictures to a codes file."""
    check_output(args.output)
    codes = _encode(args, args.pictures, PRECISIONS[args.precision], args.fit)
    save_codes(codes, args.output)
    say(f"wrote the codes of {len(codes)} picture(s) to {args.output}")


def run_decode(args: argparse.Namespace) -> None:
    """A codes file to pictures."""
    check_picture_output(args.output)
    options = DecodeOptions(
        args.steps, args.guidance_scale, args.noise_level, args.width, args.height
    )
    codes = read_codes(args.codes)
    if not len(codes):
        raise CodesError(f"{args.codes} holds no picture to decode")
    dtype = PRECISIONS[args.precision]
    negatives = [read_codes(args.negative)] if args.negative else []
    embedding, *away = _embed(args, [codes, *negatives])
    decoder = load_decoder(args.decoder, args.device, dtype)
    generators = seeded_generators(args.seed, len(codes))
    negative = away[0] if away else None
    pixels = decoder.decode(embedding, negative, options, generators)
    for path in save_pictures(pixels, args.output):
        say(f"wrote {path}")


def run_chat(args: argparse.Namespace) -> None:
    """A prompt, with pictures or codes, to a reply."""
    check_output(args.output)
    options = GenerationOptions(
        args.reply, args.max_new_tokens, args.temperature, args.top_p, args.top_k
    )
    dtype = LLM_PRECISIONS[args.precision]
    codes: SeedCodes | None = read_codes(args.codes) if args.codes else None
    if args.picture:
        codes = _encode(args, args.picture, computing_dtype(dtype))
    llm = load_llm(args.model, args.device, dtype)
    for path, strength in args.lora:
        merge_lora(llm.module, read_lora(path, llm.config), strength)
    generator = seeded_generators(args.seed, 1)[0]
    reply = llm.generate(args.prompt, codes, options=options, generator=generator)
    say(reply.text)
    if len(reply.codes):
        save_codes(SeedCodes(reply.codes, llm.family, llm.codebook_size), args.output)
        say(f"wrote the codes of {len(reply.codes)} picture(s) to {args.output}")


# The tokenizer ends with these functions, so that it need not fit beside the next model.


def _encode(
    args: argparse.Namespace, pictures: list[Path], dtype: torch.dtype, fit: str = FITS[0]
) -> SeedCodes:
    tokenizer = load_tokenizer(args.tokenizer, args.device, dtype)
    pixels = tokenizer.preprocess([read_picture(path) for path in pictures], fit)
    return SeedCodes(tokenizer.encode(pixels), tokenizer.family, tokenizer.codebook_size)


def _embed(args: argparse.Namespace, codes: list[SeedCodes]) -> list[torch.Tensor]:
    tokenizer = load_tokenizer(args.tokenizer, args.device, PRECISIONS[args.precision])
    require_image_embedding(tokenizer.embedding_shape, tokenizer.family)
    return [tokenizer.embed(each) for each in codes]


def run_convert(args: argparse.Namespace) -> None:
    """Write a tokenizer, SEED-LLaMA or decoder as one file in the precision you choose."""
    from tqdm import tqdm

    conversion = plan_conversion(args.source, LLM_PRECISIONS[args.precision], args.lora)
    check_output(args.output, SUFFIX, conversion.nbytes)
    say(_describe(conversion, args))
    if args.dry_run:
        return
    with tqdm(unit="tensor", disable=None) as bar:

        def on_tensor(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        digest = convert_model(conversion, args.output, on_tensor)
    say(f"wrote {args.output}\nSHA-256 {digest}")


def _describe(conversion: Conversion, args: argparse.Namespace) -> str:
    opened = conversion.opened
    return (
        f"{opened.kind} {opened.source} to {args.output}: {len(conversion.layout)} tensors, "
        f"{conversion.nbytes / 2**30:.2f} GiB in {args.precision}, with "
        f"{', '.join(opened.files)} in the header"
        + "".join(f", {path} merged at {strength}" for path, strength in args.lora)
    )


def run_bench(args: argparse.Namespace) -> None:
    """Measure speed and memory beside transformers and diffusers."""
    from .bench import BenchOptions, run_bench, save_report

    if args.json:
        check_output(args.json)
    only = tuple(args.only.split(",")) if args.only else ()
    options = BenchOptions(
        *(args.size, args.device, args.precision, only),
        *(args.repeat, args.tokens, args.steps, args.peers),
    )
    report = run_bench(options, say)
    if args.json:
        save_report(report, args.json)


def run_fetch(args: argparse.Namespace) -> None:
    """Fetch a published model into ComfyUI's models folder; no other command goes online."""
    from .fetching import fetch

    if args.name is None:
        for line in fetch.describe_all():
            say(line)
        return
    plan = fetch.make_plan(args.name, fetch.find_models_folder(args.models), args.revision)
    for line in fetch.describe(plan):
        say(line)
    fetch.check_disk(plan)
    if plan.missing and not args.yes:
        _ask_to_go_on()
    for path in fetch.fetch(plan):
        say(f"fetched {path}")


def _ask_to_go_on() -> None:
    if not sys.stdin.isatty():
        raise OptionError("nothing was fetched: there is nobody to ask; add --yes to fetch this")
    sys.stdout.write("Fetch this? [y/N] ")
    sys.stdout.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise OptionError("nothing was fetched")


def say(line: str) -> None:
    """Print a result, whatever the console's encoding can show."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(line.encode(encoding, "replace").decode(encoding) + "\n")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command."""
    parser = argparse.ArgumentParser(prog="python -m seed_core")
    parser.add_argument("--verbose", action="store_true", help="log what is read and ignored")
    commands = parser.add_subparsers(
        required=True, metavar="demo|encode|decode|chat|convert|bench|fetch"
    )

    def add(name: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        command.set_defaults(run=run)
        command.add_argument("--device", type=_device, default="cpu", help="cpu, cuda, mps")
        return command

    demo = add("demo", run_demo)
    demo.add_argument("-o", "--output", type=Path, default=Path("seed-demo.png"))

    encode = add("encode", run_encode)
    encode.add_argument("pictures", type=Path, nargs="+")
    encode.add_argument("-o", "--output", type=Path, default=Path("codes.json"))
    encode.add_argument("--fit", choices=FITS, default=FITS[0])

    decode = add("decode", run_decode)
    decode.add_argument("codes", type=Path, help="a file that encode or chat wrote")
    decode.add_argument("-o", "--output", type=Path, default=Path("decoded.png"))
    decode.add_argument("--decoder", default=SEED_MINI, help="a diffusers unCLIP folder")
    decode.add_argument("--negative", type=Path, help="codes to steer away from")
    _add_decode_options(decode)

    chat = add("chat", run_chat)
    chat.add_argument("prompt", help="<image> marks where a picture goes")
    chat.add_argument("--picture", type=Path, action="append", help="may be given several times")
    chat.add_argument("--codes", type=Path, help="a codes file in place of pictures")
    chat.add_argument("-o", "--output", type=Path, default=Path("reply.json"))
    chat.add_argument("--model", default=SEED_MINI, help="a SEED-LLaMA folder")
    _add_generation_options(chat)

    convert = commands.add_parser("convert", help=run_convert.__doc__)
    _add_convert_options(convert)

    _add_bench_options(add("bench", run_bench))

    _add_fetch_options(commands.add_parser("fetch", help=run_fetch.__doc__))

    for command in (encode, decode, chat):
        precisions = LLM_PRECISIONS if command is chat else PRECISIONS
        command.add_argument("--tokenizer", default=SEED_MINI, help="a tokenizer file or folder")
        command.add_argument("--precision", choices=precisions, default="fp32")
    for command in (chat, convert):
        command.add_argument(
            "--lora",
            type=_lora,
            action="append",
            default=[],
            metavar="PATH[:STRENGTH]",
            help=f"a peft adapter, or {SEED_MINI_NIGHT!r}; may be given several times",
        )
    for command in (decode, chat):
        command.add_argument("--seed", type=int, default=0, help="random seed")
    return parser


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"{name!r} is not usable here: {error}") from error


def _lora(text: str) -> tuple[str, float]:
    """Split a path from the strength behind it; paths on Windows have a colon of their own."""
    path, _, strength = text.rpartition(":")
    try:
        return (path, float(strength)) if path else (text, 1.0)
    except ValueError:
        return text, 1.0


def _add_decode_options(command: argparse.ArgumentParser) -> None:
    defaults = DecodeOptions()
    command.add_argument("--steps", type=int, default=defaults.num_inference_steps)
    command.add_argument(
        "--guidance-scale",
        type=float,
        default=defaults.guidance_scale,
        help="seed-mini is at its best with 2",
    )
    command.add_argument("--noise-level", type=int, default=defaults.noise_level)
    command.add_argument("--width", type=int, default=defaults.width)
    command.add_argument("--height", type=int, default=defaults.height)


def _add_generation_options(command: argparse.ArgumentParser) -> None:
    defaults = GenerationOptions()
    command.add_argument("--reply", choices=REPLIES, default=defaults.reply)
    command.add_argument("--max-new-tokens", type=int, default=defaults.max_new_tokens)
    command.add_argument("--temperature", type=float, default=defaults.temperature)
    command.add_argument("--top-p", type=float, default=defaults.top_p)
    command.add_argument("--top-k", type=int, default=defaults.top_k)


def _add_convert_options(command: argparse.ArgumentParser) -> None:
    command.description = run_convert.__doc__
    command.set_defaults(run=run_convert)
    command.add_argument("source", type=Path, help="a published file or folder")
    command.add_argument("-o", "--output", type=Path, required=True, help="NEW_FILE.safetensors")
    command.add_argument(
        "--precision", choices=LLM_PRECISIONS, default="fp16", help="fp8: language models only"
    )
    command.add_argument("--dry-run", action="store_true", help="only say what would be written")


def _add_bench_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--size", default="mini", help="mini, 300m, 8b or 14b")
    command.add_argument("--precision", choices=LLM_PRECISIONS, help="fp16 on cuda, otherwise fp32")
    command.add_argument("--only", help="some of load,encode,decode,draw,quality")
    command.add_argument("--repeat", type=int, default=3, help="measurements of each thing")
    command.add_argument("--tokens", type=int, default=128, help="new tokens of a timed reply")
    command.add_argument("--steps", type=int, default=20, help="diffusion steps of a picture")
    command.add_argument(
        "--peers", default="all", help="all, eager (none that compiles) or none: ours alone"
    )
    command.add_argument("--json", type=Path, help="also write every figure to this file")


def _add_fetch_options(command: argparse.ArgumentParser) -> None:
    command.description = run_fetch.__doc__
    command.set_defaults(run=run_fetch)
    command.add_argument("name", nargs="?", choices=DOWNLOADS, help="leave out to list them")
    command.add_argument("--models", type=Path, help="ComfyUI's models folder")
    command.add_argument("--revision", help="a commit, branch or tag in place of the pinned commit")
    command.add_argument("--yes", action="store_true", help="fetch without asking")


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


if __name__ == "__main__":
    sys.exit(main())
