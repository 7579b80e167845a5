"""What seed-mini takes alone, and beside processes that keep every core busy."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from ..compute import threads
from ..decoder.options import DecodeOptions
from ..llm.language import Reply
from ..llm.runtime import SeedLLM
from ..llm.sampling import GenerationOptions
from ..models.llm import load_llm
from ..models.names import SEED_MINI
from ..models.tokenizer import load_tokenizer
from ..models.unclip import load_decoder

OURS, HOST = WHO = ("ours", "host's threads")
HEADINGS = ("work", "threads", "alone, s", "beside {} busy processes, s", "slower")
REPEAT = 5
PROMPT = "Draw a fox on yellow"

Call = Callable[[], object]


def _reply(llm: SeedLLM, variations: int) -> list[Reply]:
    generators = [torch.Generator().manual_seed(i) for i in range(variations)]
    return llm.generate_batch(PROMPT, options=GenerationOptions("image"), generators=generators)


def _drawing() -> Call:
    llm, tokenizer = load_llm(SEED_MINI), load_tokenizer(SEED_MINI)
    decoder = load_decoder(SEED_MINI)
    return lambda: decoder.decode(tokenizer.embed(_reply(llm, 1)[0].codes))


def _replies(variations: int) -> Call:
    llm = load_llm(SEED_MINI)
    return lambda: _reply(llm, variations)


def _picture(size: int) -> Call:
    decoder, embedding = load_decoder(SEED_MINI), torch.randn(1, 256)
    options = DecodeOptions(num_inference_steps=5, width=size, height=size)
    return lambda: decoder.decode(embedding, options=options)


def _encoding() -> Call:
    tokenizer = load_tokenizer(SEED_MINI)
    pixels = torch.randn(1, 3, tokenizer.image_size, tokenizer.image_size)
    return lambda: tokenizer.encode(pixels)


# Each loads what it needs and returns what is timed.
WORK: dict[str, Callable[[], Call]] = {
    "draw": _drawing,
    "encode": _encoding,
    **{f"replies-{n}": partial(_replies, n) for n in (1, 4, 8, 16, 32)},
    **{f"picture-{n}": partial(_picture, n) for n in (128, 256, 384, 512)},
}


def serve(name: str, who: str) -> None:
    """Load, work once, and when told to, work again and again and say how long that took.

    For a process of its own: it changes the rule for threads.
    """
    if who == HOST:
        threads.SMALL = 0
    work = WORK[name]()
    work()
    _say("ready")
    sys.stdin.readline()
    for _ in range(REPEAT):
        start = time.perf_counter()
        work()
        _say(str(time.perf_counter() - start))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


@contextlib.contextmanager
def _limited(process: subprocess.Popen[str], seconds: float) -> Iterator[None]:
    """End a process that takes longer."""
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def measure(command: Sequence[str], busy: int, limit: float) -> list[float]:
    """Return the seconds of each time that a process did its work within the limit.

    Args:
        command: of a process that calls `serve`.
        busy: how many processes loop beside it once it is ready.
        limit: seconds that it may take to be ready, and again to work.
    """
    pipe = subprocess.PIPE
    child = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    others: list[subprocess.Popen[str]] = []
    try:
        with _limited(child, limit):
            is_ready = child.stdout is not None and child.stdout.readline() == "ready\n"
        if not is_ready:
            return []
        loop = [sys.executable, "-c", "while True: pass"]
        others += [subprocess.Popen(loop, text=True) for _ in range(busy)]
        with _limited(child, limit):
            return [float(line) for line in _answer(child)]
    finally:
        for process in (child, *others):
            process.kill()
            process.wait()


def _answer(child: subprocess.Popen[str]) -> Iterator[str]:
    """Tell a process to go on; yield its lines until it ends."""
    if child.stdin is None or child.stdout is None:
        raise ValueError("the process has no pipes")
    child.stdin.write("go\n")
    child.stdin.flush()
    yield from child.stdout


def cells(
    name: str, who: str, busy: int, limit: float, command: Callable[[str, str], Sequence[str]]
) -> list[str]:
    """Return a row of the table.

    Args:
        name: one of `WORK`.
        who: one of `WHO`.
        busy: how many processes keep the cores busy.
        limit: seconds that a row may take.
        command: makes the command of `measure` from name and who.
    """
    alone, beside = (measure(command(name, who), count, limit) for count in (0, busy))
    texts = [
        f"{statistics.median(s):.3f} ({min(s):.3f} to {max(s):.3f})" if s else f"over {limit:.0f}"
        for s in (alone, beside)
    ]
    slower = statistics.median(beside or [limit]) / statistics.median(alone or [limit])
    return [name, who, *texts, f"{'' if beside else 'over '}{slower:.1f} x"]
