"""A step of our tuning stage beside peft's plain example: its time and its peak of memory.

    python benchmarks/lora_step.py [--size 8b|300m|mini] [--device cuda] [--json FILE]

Both train LoRA of the same rank on the same modules of the same network, on the same token ids, and
take the same optimizer. Weights are random, nothing is downloaded. Ours is what the recipe
llama-8b-lora runs, with its clipping and its log; peft's is the loop of its quick tour:
get_peft_model, a forward pass, backward, a step of AdamW. ``--in-full`` adds the trained embeddings
and norms of the recipe, which the quick tour does not have, as one more row.

With ``--shortest``, documents have unlike lengths. Ours then shares those of a step out to
``--accumulate`` batches by length; peft's example pads all of a step to the longest. ``--in-turn``
runs all rows in one process, one after the other and again. On a processor it tells the time that
the processor spent on them, which others on the same machine do not lengthen; memory is not measured.
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
    """Random token ids, all of which count, in documents whose lengths are spread evenly."""

    def __init__(self, vocab_size, shortest, longest):
        self.vocab_size, self.shortest, self.longest = vocab_size, shortest, longest

    def sample(self, number, streams):
        """Return one sample."""
        chance = streams.of("tokens", number)
        length = chance.randint(self.shortest, self.longest)
        token_ids = chance.choices(range(3, self.vocab_size), k=length)
        return examples.Example(token_ids, list(token_ids))


class Clock:
    """Times steps, from where the first forward pass of one begins to where that of the next does."""

    def __init__(self, device, passes=1, alone=True):
        self.device, self.passes, self.marks = device, passes, []
        self.now = time.perf_counter if alone or device.type == "cuda" else time.process_time

    def watch(self, model):
        """Return a model whose passes are timed from now on."""
        model.register_forward_pre_hook(lambda *_: self.mark())
        return model

    def mark(self):
        """Note the time."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.marks.append(self.now())

    def seconds(self):
        """Return how long each step took that is timed."""
        begun = self.marks[:: self.passes]
        return [after - before for before, after in zip(begun, begun[1:], strict=False)][FIRST:]


def recipe(args, subject, in_full=(), accumulate=1):
    precision = "fp32" if subject.dtype == torch.float32 else "bf16"
    schedule = Schedule(
        steps=args.steps + FIRST + 1,
        batch_size=args.batch,
        accumulate=accumulate,
        learning_rate=1e-4,
        epsilon=1e-5,
        checkpoint_activations=args.checkpoint,
        precision=precision,
        save_every=1000,
    )
    return tune.Recipe(
        llm.Data(), schedule, "random", trained_in_full=in_full, base_precision=precision
    )


def ours(args, subject, in_full=(), accumulate=1):
    """Run the tuning stage without its files of data and its result."""
    plan = recipe(args, subject, in_full, accumulate)
    clock = Clock(subject.device, accumulate, not args.in_turn)
    with tempfile.TemporaryDirectory() as folder, Peak(subject.device) as peak:
        loop.train(
            lambda: clock.watch(tune.with_adapter(network(subject), plan)),
            Lessons(subject.config.vocab_size, args.shortest or args.tokens, args.tokens),
            examples.collate,
            plan,
            Path(folder),
            length=len,
        )
    return clock.seconds(), peak.most


def plain(args, subject):
    """Do what peft's quick tour does, with the same numbers."""
    plan, clock = recipe(args, subject), Clock(subject.device, alone=not args.in_turn)
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
        samples = Lessons(subject.config.vocab_size, args.shortest or args.tokens, args.tokens)
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


def in_turn(runs, rounds):
    """Return the seconds of all steps of each run; all runs are made in each round."""
    found = {who: [] for who in runs}
    for _ in range(rounds):
        for who, run in runs.items():
            found[who] += run()[0]
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, default="8b")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="a card, if there is one")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--shortest", type=int, help="tokens of a document; by default --tokens")
    parser.add_argument("--accumulate", type=int, default=1, help="batches of a step of ours")
    parser.add_argument("--in-turn", type=int, help="rounds in one process, without memory")
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
    runs = {OURS: partial(ours, args, subject, accumulate=args.accumulate)}
    if args.accumulate > 1:
        runs["ours, one batch a step"] = partial(ours, args, subject)
    runs["peft's example"] = partial(plain, args, subject)
    if args.in_full:
        runs["ours, all that is tuned"] = partial(ours, args, subject, ("embeddings", "norms"))
    table = Table(print)
    if args.in_turn:
        for who, seconds in in_turn(runs, args.in_turn).items():
            table.add("LoRA step", who, Figure.of(seconds, "s"))
    else:
        found = {who: alone(run) for who, run in runs.items()}
        for who, (seconds, _) in found.items():
            table.add("LoRA step", who, Figure.of(seconds, "s"))
        for who, (_, most) in found.items():
            table.add("peak of memory", who, Figure.of([most / GIB], "GiB"))
    table.flush()
    if args.json:
        args.json.write_text(json.dumps(table.to_json(), indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
