"""A step of our tuning stage beside peft's plain example: its time and its peak of memory.

    python benchmarks/lora_step.py [--size 8b|300m|mini] [--device cuda] [--json FILE]

Both train LoRA of the same rank on the same modules of the same network, on the same token ids, and
take the same optimizer. Weights are random, nothing is downloaded. Ours is what the recipe
llama-8b-lora runs, with its clipping and its log; peft's is the loop of its quick tour:
get_peft_model, a forward pass, backward, a step of AdamW. ``--in-full`` adds the trained embeddings
and norms of the recipe, which the quick tour does not have, as one more row.
"""

import argparse
import dataclasses
import gc
import json
import multiprocessing
import os
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import psutil
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from seed_core.bench.meter import device_name
from seed_core.bench.subject import Subject
from seed_core.bench.table import OURS, Figure, Table
from seed_core.training import loop
from seed_core.training.data import examples
from seed_core.training.schedule import Schedule
from seed_core.training.stages import llm, tune
from seed_core.training.streams import Streams

GIB = 2**30
SIZES = ("mini", "300m", "8b")
FIRST = 2  # steps that are not timed; nor is the last, whose end nothing marks


class Peak:
    """The most memory that a block takes: of the card, or what this process grows by on a CPU."""

    def __init__(self, device):
        self.device = device

    def __enter__(self):
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            return self
        self.before = self.most = psutil.Process().memory_info().rss
        self.is_over = threading.Event()
        self.watch = threading.Thread(target=self.look)
        self.watch.start()
        return self

    def look(self):
        """Read the size of the process again and again."""
        process = psutil.Process()
        while not self.is_over.wait(0.005):
            self.most = max(self.most, process.memory_info().rss)

    def __exit__(self, *_):
        if self.device.type == "cuda":
            self.most = torch.cuda.max_memory_allocated()
            return
        self.is_over.set()
        self.watch.join()
        self.most -= self.before


def network(subject):
    """Return transformers' network with random weights."""
    sizes = LlamaConfig(**dataclasses.asdict(subject.config))
    before = torch.get_default_dtype()
    torch.set_default_dtype(subject.dtype)
    with torch.device(subject.device), torch.random.fork_rng():
        model = LlamaForCausalLM(sizes)
    torch.set_default_dtype(before)
    return model


class Lessons(loop.Samples):
    """Random token ids, all of which count."""

    def __init__(self, vocab_size, length):
        self.vocab_size, self.length = vocab_size, length

    def sample(self, number, streams):
        """Return one sample."""
        token_ids = streams.of("tokens", number).choices(range(3, self.vocab_size), k=self.length)
        return examples.Example(token_ids, list(token_ids))


class Clock:
    """Times steps, from where one forward pass begins to where the next does."""

    def __init__(self, device):
        self.device, self.marks = device, []

    def watch(self, model):
        """Return a model whose passes are timed from now on."""
        model.register_forward_pre_hook(lambda *_: self.mark())
        return model

    def mark(self):
        """Note the time."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.marks.append(time.perf_counter())

    def seconds(self):
        """Return how long the steps took that are timed."""
        times = [after - before for before, after in zip(self.marks, self.marks[1:], strict=False)]
        return Figure.of(times[FIRST:], "s")


def recipe(args, subject, in_full):
    precision = "fp32" if subject.dtype == torch.float32 else "bf16"
    schedule = Schedule(
        steps=args.steps + FIRST + 1,
        batch_size=args.batch,
        learning_rate=1e-4,
        epsilon=1e-5,
        checkpoint_activations=args.checkpoint,
        precision=precision,
        save_every=1000,
    )
    return tune.Recipe(
        llm.Data(), schedule, "random", trained_in_full=in_full, base_precision=precision
    )


def ours(args, subject, in_full=()):
    """Run the tuning stage without its files of data and its result."""
    plan, clock = recipe(args, subject, in_full), Clock(subject.device)
    with tempfile.TemporaryDirectory() as folder, Peak(subject.device) as peak:
        loop.train(
            lambda: clock.watch(tune.with_adapter(network(subject), plan)),
            Lessons(subject.config.vocab_size, args.tokens),
            examples.collate,
            plan,
            Path(folder),
        )
    return clock.seconds(), peak.most


def plain(args, subject):
    """Do what peft's quick tour does, with the same numbers."""
    plan, clock = recipe(args, subject, ()), Clock(subject.device)
    with Peak(subject.device) as peak:
        config = LoraConfig(
            r=plan.rank,
            lora_alpha=plan.alpha,
            lora_dropout=plan.dropout,
            target_modules=[*plan.modules],
            task_type="CAUSAL_LM",
        )
        model = clock.watch(get_peft_model(network(subject), config))
        if args.checkpoint:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        trained = [x for x in model.parameters() if x.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4, eps=1e-5)
        samples = Lessons(subject.config.vocab_size, args.tokens)
        model.train()
        for step in range(args.steps + FIRST + 1):
            numbers = range(step * args.batch, (step + 1) * args.batch)
            batch = examples.collate([samples.sample(number, Streams(0)) for number in numbers])
            batch = {name: x.to(subject.device) for name, x in batch.items()}
            half = subject.dtype != torch.float32
            with torch.autocast(subject.device.type, torch.bfloat16, enabled=half):
                loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return clock.seconds(), peak.most


def alone(run):
    """Run in a process of its own, where nothing is left from the one before."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(run).result()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, default="8b")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="a card, if there is one")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--steps", type=int, default=10, help="that are timed")
    parser.add_argument("--no-checkpoint", dest="checkpoint", action="store_false")
    parser.add_argument("--in-full", action="store_true", help="also with embeddings and norms")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the Trainer takes a card that it sees
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    subject = Subject(args.size, device, torch.float32 if args.size == "mini" else torch.bfloat16)
    print(f"{args.size}, batch {args.batch} x {args.tokens} tokens, {device_name(device)}\n")
    runs = {OURS: partial(ours, args, subject), "peft's example": partial(plain, args, subject)}
    if args.in_full:
        runs["ours, all that is tuned"] = partial(ours, args, subject, ("embeddings", "norms"))
    found = {who: alone(run) for who, run in runs.items()}
    table = Table(print)
    for who, (seconds, _) in found.items():
        table.add("LoRA step", who, seconds)
    for who, (_, most) in found.items():
        table.add("peak of memory", who, Figure.of([most / GIB], "GiB"))
    table.flush()
    if args.json:
        args.json.write_text(json.dumps(table.to_json(), indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
