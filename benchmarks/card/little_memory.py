"""A part of `on_a_card.py`: replies with nearly no memory left on the card.

    python -m card.little_memory --size 300m --device cuda --findings FILE

What it looks at is in `seed_core.bench.card.little_memory`.
"""

import argparse
from pathlib import Path

import torch

from seed_core.bench.card.findings import Findings
from seed_core.bench.card.little_memory import look
from seed_core.bench.subject import MINI, Subject

TOKENS = 300  # into a second stretch of the cache, and so a second graph
FEW_TOKENS = 24


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", default="300m")
    parser.add_argument("--device", type=torch.device, default="cuda")
    parser.add_argument("--findings", type=Path, required=True)
    args = parser.parse_args()
    device = torch.empty(0, device=args.device).device  # with its number
    precision = torch.float32 if device.type == "cpu" else torch.bfloat16
    tokens = FEW_TOKENS if args.size == MINI else TOKENS
    look(Subject(args.size, device, precision), Findings(args.findings), tokens)


if __name__ == "__main__":
    main()
