"""What seed-mini takes beside other programs that keep the processor busy.

    python benchmarks/busy.py [--busy 2] [--limit 60] [--work draw,replies-8]

Each row runs in processes of its own: with our rule for threads, and with the threads as the host
set them, which is the peer; alone, and beside so many processes that do nothing but loop. A process
loads and does the work once, which may take the limit, in seconds. From then on it is timed, until
it has done the work five times or the limit is over again. Nothing is downloaded.
"""

import argparse
import sys

import torch

from seed_core.bench.busy import HEADINGS, WHO, WORK, cells, serve
from seed_core.bench.meter import device_name


def command(name, who):
    return [sys.executable, __file__, "--serve", who, "--work", name]


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
    print(f"| {' | '.join(HEADINGS)} |".format(options.busy))
    print("|---" * len(HEADINGS) + "|")
    for name in options.work.split(","):
        for who in WHO:
            row = cells(name, who, options.busy, options.limit, command)
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
