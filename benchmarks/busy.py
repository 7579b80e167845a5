"""What seed-mini takes beside other programs that keep the processor busy.

    python benchmarks/busy.py [--busy 2] [--limit 60] [--work draw,replies-8]

Each row is run in processes of its own: with our rule for threads, and with the threads as the host
set them, which is the peer; alone, and beside so many processes that do nothing but loop. A process
loads and does the work once, which may take the limit, in seconds. From then on it is timed, until it
has done the work five times or the limit is over again. Nothing is downloaded.
"""

import argparse
import contextlib
import statistics
import subprocess
import sys
import threading
import time

import torch

from seed_core import load_decoder, load_llm, load_tokenizer
from seed_core.bench.meter import device_name
from seed_core.compute import threads
from seed_core.decoder.options import DecodeOptions
from seed_core.llm.sampling import GenerationOptions

REPEAT = 5
PROMPT = "Draw a fox on yellow"
WHO = ("ours", "host's threads")


def reply(llm, variations):
    generators = [torch.Generator().manual_seed(i) for i in range(variations)]
    return llm.generate_batch(PROMPT, options=GenerationOptions("image"), generators=generators)


def drawing():
    llm, tokenizer = load_llm("seed-mini"), load_tokenizer("seed-mini")
    decoder = load_decoder("seed-mini")
    return lambda: decoder.decode(tokenizer.embed(reply(llm, 1)[0].codes))


def replies(variations):
    llm = load_llm("seed-mini")
    return lambda: reply(llm, variations)


def picture(size):
    decoder, embedding = load_decoder("seed-mini"), torch.randn(1, 256)
    options = DecodeOptions(num_inference_steps=5, width=size, height=size)
    return lambda: decoder.decode(embedding, options=options)


def encoding():
    tokenizer = load_tokenizer("seed-mini")
    pixels = torch.randn(1, 3, tokenizer.image_size, tokenizer.image_size)
    return lambda: tokenizer.encode(pixels)


WORK = {
    "draw": drawing,
    "encode": encoding,
    **{f"replies-{n}": lambda n=n: replies(n) for n in (1, 4, 8, 16, 32)},
    **{f"picture-{n}": lambda n=n: picture(n) for n in (128, 256, 384, 512)},
}


def serve(name, who):
    """Load, work once, and when told to, work again and again and say how long that took."""
    if who != WHO[0]:
        threads.SMALL = 0
    work = WORK[name]()
    work()
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(REPEAT):
        start = time.perf_counter()
        work()
        print(time.perf_counter() - start, flush=True)


@contextlib.contextmanager
def limited(process, seconds):
    """End a process that takes longer."""
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def measure(name, who, busy, limit):
    """Return the seconds of each time the work was done within the limit."""
    command = [sys.executable, __file__, "--serve", who, "--work", name]
    pipe = subprocess.PIPE
    child = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    others = []
    try:
        with limited(child, limit):
            is_ready = child.stdout.readline() == "ready\n"
        if not is_ready:
            return []
        others += [
            subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)
        ]
        with limited(child, limit):
            child.stdin.write("go\n")
            child.stdin.flush()
            return [float(line) for line in child.stdout]
    finally:
        for process in [child, *others]:
            process.kill()
            process.wait()


def cells(name, who, busy, limit):
    alone, beside = (measure(name, who, count, limit) for count in (0, busy))
    texts = [
        f"{statistics.median(s):.3f} ({min(s):.3f} to {max(s):.3f})" if s else f"over {limit:.0f}"
        for s in (alone, beside)
    ]
    slower = statistics.median(beside or [limit]) / statistics.median(alone or [limit])
    return [name, who, *texts, f"{'' if beside else 'over '}{slower:.1f} x"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busy", type=int, default=2, help="processes that keep the cores busy")
    parser.add_argument("--limit", type=float, default=60, help="seconds that a row may take")
    parser.add_argument("--work", default="draw", help=f"some of {','.join(WORK)}")
    parser.add_argument("--serve", choices=WHO, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.work, options.serve)
        return
    print(f"seed-mini, fp32 on {device_name(torch.device('cpu'))}; torch {torch.__version__}\n")
    print(f"| work | threads | alone, s | beside {options.busy} busy processes, s | slower |")
    print("|---|---|---|---|---|")
    for name in options.work.split(","):
        for who in WHO:
            print(f"| {' | '.join(cells(name, who, options.busy, options.limit))} |", flush=True)


if __name__ == "__main__":
    main()
