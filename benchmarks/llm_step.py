"""A step of the language model's stage on seed-mini's conversations: one batch, or several by length.

    python benchmarks/llm_step.py [RECIPE] [--batch N] [--accumulate A ...] [--device cpu]

The network and the settings are the recipe's. Codes are random, which changes no length, so neither
a bank nor a tokenizer is needed. All rows are run in one process, one after the other and again. On
a processor, the time is the one that the processor spent on them.
"""

import argparse
import dataclasses
import os
import random
import tempfile
from functools import partial
from pathlib import Path

import torch
from lora_step import FIRST, Clock, in_turn
from transformers import LlamaForCausalLM

from seed_core.bench.meter import device_name
from seed_core.bench.table import OURS, Figure, Table
from seed_core.models.llm import load_llm
from seed_core.training import loop
from seed_core.training.data import documents, examples, sources
from seed_core.training.recipe import find_recipe, read_recipe
from seed_core.training.stages import llm
from seed_core.training.world.closed_world import World
from seed_core.training.world.conversations import MiniConversations


class RandomCodes:
    """Stands for a bank."""

    variants = 16

    def codes(self, picture):
        """Return 32 codes, the same for the same picture."""
        return random.Random(repr(picture)).choices(range(512), k=32)


def collated(sizes, samples):
    """Return a batch, and note how many positions it has and how many hold tokens."""
    batch = examples.collate(samples)
    sizes.append((batch["labels"].numel(), sum(map(len, samples))))
    return batch


def step(args, recipe, samples, vocab, accumulate, sizes):
    """Run the stage without its data and its result."""
    schedule = dataclasses.replace(
        recipe.schedule,
        steps=args.steps + FIRST + 1,
        batch_size=args.batch or recipe.schedule.batch_size,
        accumulate=accumulate,
        warm_up=1,
        workers=0,
    )
    clock = Clock(torch.device(args.device), accumulate, alone=False)
    plan = dataclasses.replace(recipe, schedule=schedule)
    with tempfile.TemporaryDirectory() as folder:
        loop.train(
            lambda: clock.watch(LlamaForCausalLM(recipe.sizes.config(vocab))),
            samples,
            partial(collated, sizes),
            plan,
            Path(folder),
            length=len,
        )
    return clock.seconds(), None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", nargs="?", default="mini-llm")
    parser.add_argument("--batch", type=int, help="documents of a step; by default the recipe's")
    parser.add_argument("--accumulate", type=int, nargs="+", help="by default the recipe's, and 1")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="a card, if there is one")
    parser.add_argument("--steps", type=int, default=3, help="that are timed in a round")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the Trainer takes a card that it sees
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    recipe = read_recipe(llm.RECIPE, find_recipe(args.recipe))
    vocab = load_llm("seed-mini").vocab
    told = MiniConversations(World(recipe.data.world.artwork), RandomCodes())
    source = sources.Source(told, max_length=recipe.data.world.max_length)
    writer = documents.DocumentWriter(vocab, "seed-mini", recipe.data.pieces)
    samples = sources.Documents([source], writer, recipe.data.wrong_codes)
    runs, sizes = {}, {}
    for number in args.accumulate or (recipe.schedule.accumulate, 1):
        who = f"{number} batches by length" if number > 1 else "one batch a step"
        who = who if runs else OURS
        sizes[who] = []
        runs[who] = partial(step, args, recipe, samples, vocab, number, sizes[who])
    batch = args.batch or recipe.schedule.batch_size
    print(f"{args.recipe}, {batch} documents a step, {device_name(torch.device(args.device))}\n")
    table = Table(print)
    for who, seconds in in_turn(runs, args.rounds).items():
        table.add("step", who, Figure.of(seconds, "s"))
    for who, found in sizes.items():
        positions, tokens = map(sum, zip(*found, strict=True))
        table.add(
            "positions that hold no token", who, Figure.of([100 - 100 * tokens / positions], "%")
        )
    table.flush()


if __name__ == "__main__":
    main()
