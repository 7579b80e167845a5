"""Whether classifier-free guidance over a picture's codes makes seed-mini draw and edit better.

    OMP_NUM_THREADS=1 python benchmarks/guidance.py [--without words] [--samples 144] [--scales 1.5 2 3 5]

Inside a picture the logits become u + scale * (c - u): c follow the prompt, u a prompt without what
it asks for. Outside of pictures nothing changes, and 1 is no guidance. There are three such prompts:

    words      the conversation without its words; its pictures stay
    pictures   the conversation without its words and pictures
    all        nothing but the begin of the text

The questions are those that ``evaluate`` asks on the split ``validation``, the same at each scale.
Each is painted from the same noise at each scale, so the codes alone make a difference. After a
share with its 95 % interval stands how many answers guidance set right, how many it spoiled, and
the chance of so uneven a change, or a more uneven one, if it did nothing (sign test).
"""

import argparse
import math
import random
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from seed_core import NUM_CODES, DecodeOptions, seeded_generators
from seed_core.llm.cache import KVCache, attended_length
from seed_core.llm.generation import generate_tokens
from seed_core.llm.runtime import SeedLLM
from seed_core.models.llm import load_llm
from seed_core.models.tokenizer import load_tokenizer
from seed_core.models.unclip import load_decoder
from seed_core.training.evaluation.measure import (
    GREEDY,
    SAMPLED,
    as_large_as_the_world,
    is_one_picture,
)
from seed_core.training.evaluation.metrics import fraction
from seed_core.training.world import tasks
from seed_core.training.world.closed_world import World
from seed_core.training.world.judge import Judge

TASKS = {
    "draw, temperature 0": (tasks.text_to_image, GREEDY),
    "draw, temperature 1": (tasks.text_to_image_varied, SAMPLED),
    "another background": (tasks.edit_background, GREEDY),
    "another object": (tasks.edit_object, GREEDY),
    "another size": (tasks.edit_size, GREEDY),
    "two pictures combined": (tasks.two_pictures_combined, GREEDY),
}

DRAWINGS = tuple(name for name in TASKS if name.startswith("draw"))

# The judge saw the same in 8 steps as in the 20 of ``evaluate``, in 96 of 96 pictures.
DECODING = DecodeOptions(guidance_scale=2, num_inference_steps=8)


class GuidedNetwork(torch.nn.Module):
    """Stands for a network in the decode loop, and computes a second row beside one reply."""

    def __init__(self, network, prompt, scale, begin):
        super().__init__()
        self.network = network
        self.config = network.config
        self._prompt = torch.tensor([prompt])
        self._scale = scale
        self._begin = begin  # the marker that opens a picture
        self._left = 0  # codes to come
        self._cache = None
        self._length = len(prompt)

    def prefill(self, token_ids, cache):
        """Read both prompts; the first token is never a code."""
        length = self._length + cache.length - token_ids.shape[1]
        self._cache = KVCache(self.config, 1, length, torch.device("cpu"), cache.pairs.dtype)
        self.network.prefill(self._prompt, self._cache)
        return self.network.prefill(token_ids, cache)

    def decode(self, token_ids, cache, position, length):
        """Go on by one token in both rows."""
        logits = self.network.decode(token_ids, cache, position, length)
        place = torch.tensor([self._length])
        self._length += 1
        other = self.network.decode(token_ids, self._cache, place, attended_length(self._length))
        self._left = NUM_CODES if int(token_ids) == self._begin else self._left - 1
        return other + self._scale * (logits - other) if self._left > 0 else logits


class GuidedLLM(SeedLLM):
    """A language model that is guided away from what it says without the words."""

    scale = 1.0
    without = "words"

    def _request(self, asked, options, generators):
        request = super()._request(asked, options, generators)
        self._other = [self.vocab.bos]
        if self.without != "all":
            turns = [replace(turn, parts=self._kept(turn.parts)) for turn in asked.turns]
            pieces = self.template.render(replace(asked, turns=tuple(turns)))
            self._other = self.vocab.encode(pieces, before_image=True)
        return request

    def _kept(self, parts):
        is_kept = self.without == "words"
        return tuple(part for part in parts if is_kept and not isinstance(part, str))

    def _continue(self, request, on_step):
        network = self.module
        if self.scale != 1:
            network = GuidedNetwork(network, self._other, self.scale, request.tokens.begin)
        return generate_tokens(network, request, self.device, self.dtype)


class Bench:
    """The models, and the scores of pictures that were painted before."""

    def __init__(self, artwork, judge):
        self.world = World(artwork)
        self.judge = Judge(self.world, judge)
        self.tokenizer = load_tokenizer("seed-mini")
        self.decoder = load_decoder("seed-mini")
        llm = load_llm("seed-mini")
        self.llm = GuidedLLM(
            *(llm.module, llm.vocab, llm.template, llm.end_ids, llm.device, llm.dtype)
        )
        self._scores = {}

    def cases(self, name, samples):
        """Return the questions of a task."""
        chance = random.Random(f"validation {name}")
        scenes = self.world.held_out(samples, chance, "validation")
        return [TASKS[name][0](self.world, scene, chance) for scene in scenes]

    def plan(self, case, options, numbers):
        """Return a generation with random numbers for each of the numbers."""
        ((prompt, scenes),) = case.turns
        codes = None
        if scenes:
            pictures = self.world.render(scenes)
            codes = self.tokenizer.encode(self.tokenizer.preprocess(pictures))
        generators = [generator for i in numbers for generator in seeded_generators(i, 1)]
        return self.llm.plan(prompt, codes, options=options, generators=generators)

    def score(self, name, number, case, scale):
        """Return what is right about the picture that a question is answered by."""
        self.llm.scale = scale
        (reply,) = self.llm.answer(self.plan(case, TASKS[name][1], [number]))
        if not is_one_picture(reply):
            return {"concept+bg": 0.0, "size": 0.0}
        key = name, number, tuple(reply.codes[0].tolist())
        if key not in self._scores:
            embedding = self.tokenizer.embed(reply.codes)
            noise = seeded_generators(number, 1)
            picture = self.decoder.decode(embedding, options=DECODING, generator=noise)
            (self._scores[key],) = self.judge.score(as_large_as_the_world(picture), [case.scene])
        return self._scores[key]

    def seconds(self, scale, rows, cases):
        """Return the median processor time of a reply, or of some in one batch."""
        self.llm.scale = scale
        taken = []
        for case in cases:
            plan = self.plan(case, GREEDY, range(rows))
            start = time.process_time()
            self.llm.answer(plan)
            taken.append(time.process_time() - start)
        return statistics.median(taken)


def chance_of(better, worse):
    """Return the probability of a change at least so uneven, if either is as likely (sign test)."""
    n, most = better + worse, max(better, worse)
    tail = sum(math.comb(n, k) for k in range(most, n + 1)) / 2**n
    return min(1.0, 2 * tail)


def cell(right, before):
    """Return a share with its interval, and how it differs from the answers without guidance."""
    metric = fraction(sum(right) / len(right), len(right))
    low, high = metric.bounds
    text = f"{metric.value:.1%} ({low:.1%} to {high:.1%})".replace("%", " %")
    if right is before:
        return text
    better = sum(now > then for now, then in zip(right, before, strict=True))
    worse = sum(now < then for now, then in zip(right, before, strict=True))
    return f"{text}, +{better} -{worse}, p {chance_of(better, worse):.2g}"


def print_row(name, rows, scales):
    """Print the answers of each scale, lists of 1 and 0, as a line of the table."""
    cells = [cell(rows[scale], rows[1]) for scale in scales]
    print(f"| {name} | {len(rows[1])} | {' | '.join(cells)} |", flush=True)


def joined(all_rows, scales):
    return {scale: [right for rows in all_rows for right in rows[scale]] for scale in scales}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--without", choices=("words", "pictures", "all"), default="words")
    add("--scales", type=float, nargs="+", default=(1.5, 2, 3, 5))
    add("--tasks", nargs="+", choices=TASKS, default=tuple(TASKS), metavar="TASK")
    add("--samples", type=int, default=144, help="questions a task")
    add("--artwork", type=Path, default=Path("tests/data/fluent-emoji.npz"))
    add("--judge", type=Path, default=Path("tests/data"), help="folder of the classifier")
    options = parser.parse_args()
    scales = (1, *options.scales)
    bench = Bench(options.artwork, options.judge)
    bench.llm.without = options.without
    print(f"| right | n | {' | '.join(f'{scale:g}' for scale in scales)} |")
    print("|---" * (len(scales) + 2) + "|")
    groups = {"drawings": [], "edits": []}
    for name in options.tasks:
        cases = list(enumerate(bench.cases(name, options.samples)))
        scores = {scale: [bench.score(name, *case, scale) for case in cases] for scale in scales}
        what = {"object and background": "concept+bg"}
        if name == "another size":
            what["size"] = "size"
        for words, metric in what.items():
            rows = {scale: [score[metric] for score in scores[scale]] for scale in scales}
            print_row(f"{name}: {words}", rows, scales)
            if metric == "concept+bg":
                groups["drawings" if name in DRAWINGS else "edits"].append(rows)
    for name, all_rows in groups.items():
        if len(all_rows) > 1:
            print_row(f"all {name}: object and background", joined(all_rows, scales), scales)
    cases = bench.cases("another size", 24)
    print("\nprocessor time of a reply, ms, median of 24 edits:")
    for words, scale, rows in (("1", 1, 1), ("1, two rows", 1, 2), ("2, two passes", 2, 1)):
        print(f"  {words}: {bench.seconds(scale, rows, cases) * 1000:.1f}")


if __name__ == "__main__":
    main()
