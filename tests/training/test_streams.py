"""What is left to chance comes as often as it should, also together with anything else."""

import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from seed_core.training.data import sources
from seed_core.training.data.documents import DocumentWriter
from seed_core.training.data.examples import Example
from seed_core.training.data.json_lines import JsonLines
from seed_core.training.data.mixture import Mixture
from seed_core.training.data.pictures import PictureFolders
from seed_core.training.data.sources import Documents, Source
from seed_core.training.streams import Streams
from seed_core.training.world import dialogue
from seed_core.training.world.closed_world import World
from seed_core.training.world.conversations import MiniConversations
from seed_core.training.world.noised import Chances, NoisedSamples
from seed_core.training.world.samples import SceneSamples, WorldPictures, WorldSettings
from seed_core.training.world.scenes import Look

MANY = 80 * 256  # whole blocks of a mixture
DRAWING = {"format": "picture", "codes": list(range(32))}


def assert_chi_square(statistic: float, freedom: int) -> None:
    """Fail where chance alone reaches a value of chi-square once in 30,000 times (Wilson, Hilferty)."""
    spread = 2 / (9 * freedom)
    assert statistic < freedom * (1 - spread + 4 * math.sqrt(spread)) ** 3


def assert_independent(pairs: Iterable[tuple[object, object]]) -> None:
    """Fail if what two draws say depends on one another."""
    counts = Counter(pairs)
    rows, columns = ({key: i for i, key in enumerate({p[k] for p in counts})} for k in (0, 1))
    table = np.zeros((len(rows), len(columns)))
    for (row, column), count in counts.items():
        table[rows[row], columns[column]] = count
    assert min(table.shape) > 1
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    assert expected.min() > 5
    assert_chi_square(
        ((table - expected) ** 2 / expected).sum(), (table.shape[0] - 1) * (table.shape[1] - 1)
    )


def assert_as_often(counts: Counter, weights: dict) -> None:
    """Fail if things come more or less often than they weigh."""
    assert counts.keys() <= weights.keys()
    total, of = sum(counts.values()), sum(weights.values())
    expected = {name: total * weight / of for name, weight in weights.items()}
    statistic = sum((counts[name] - e) ** 2 / e for name, e in expected.items())
    assert_chi_square(statistic, len(weights) - 1)


class Bank:
    """A bank that needs no codes, and remembers the pictures that they were asked for."""

    variants = 4

    def __init__(self):
        self.pictures = []

    def codes(self, picture):
        self.pictures.append(picture)
        return [0] * 32


class Counted:
    """As many documents as one likes, of which it remembers the numbers that were asked for."""

    def __init__(self, document=DRAWING) -> None:
        self.document_, self.asked = document, []

    def document(self, number, streams):
        self.asked.append(number)
        return self.document_


class Watched:
    """Remembers the last document of a source."""

    def __init__(self, documents) -> None:
        self.documents, self.last = documents, None

    def document(self, number, streams):
        self.last = self.documents.document(number, streams)
        return self.last


class Short(DocumentWriter):
    """Writes four codes for any document, since words take long to become tokens."""

    def write(self, document, chance, most_pictures=None, swapped=0.0):
        codes = [self.vocab.bos, *[self.vocab.first_code] * 4]
        return Example(codes, list(codes))


@pytest.fixture(scope="module")
def writer(mini_llm) -> DocumentWriter:
    return DocumentWriter(mini_llm.vocab, "seed-mini", "joined")


@pytest.fixture(scope="module")
def short(mini_llm) -> DocumentWriter:
    return Short(mini_llm.vocab, "seed-mini", "joined")


class Noted(random.Random):
    """A stream that tells the last number that was drawn evenly from a range, as a part of it."""

    def uniform(self, low, high):
        self.part = self.random()
        return low + (high - low) * self.part


class Conversation(NamedTuple):
    """What was left to chance in one draw of a mixture."""

    turns: int
    task: str  # of the first turn
    background: str  # of the first picture
    is_focused: bool
    rate: int  # of wrong codes, in tenths of the most
    is_wrong: bool  # the first code
    before: bool  # whether the number before is of the other source


@pytest.fixture(scope="module")
def moods() -> Iterator[list[bool]]:
    """Whether the conversations that are held are about the objects in focus."""
    found, begin = [], dialogue.Dialogue.__init__

    def noted(self, *args):
        begin(self, *args)
        found.append(self.is_focused)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dialogue.Dialogue, "__init__", noted)
        yield found


@pytest.fixture(scope="module")
def drawn(world, short, moods) -> list[Conversation]:
    """The conversations of a mixture with something else."""
    bank, other, rates = Bank(), Counted(), []
    told = Watched(MiniConversations(world, bank, focus=["fox"], focus_part=0.5))
    samples = Documents([Source(other), Source(told, 3.0)], short, wrong_codes=0.35)
    found, before = [], False
    spoil = sources.with_wrong_codes

    def noted(example, most, vocab, chance):
        stream = Noted()
        stream.setstate(chance.getstate())
        changed = spoil(example, most, vocab, stream)
        rates.append(stream.part)
        return changed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "with_wrong_codes", noted)
        for number in range(MANY):
            bank.pictures.clear()
            told.last = None
            codes = samples.sample(number, Streams(0)).token_ids[1:]
            if told.last:
                conversation = Conversation(
                    turns=len(told.last["turns"]) // 2,
                    task=told.last["tasks"][0],
                    background=bank.pictures[0].background if bank.pictures else "none",
                    is_focused=moods[-1],
                    rate=int(10 * rates[-1]),
                    is_wrong=codes[0] != short.vocab.first_code,
                    before=before,
                )
                found.append(conversation)
            before = not told.last
    assert len(found) == MANY * 3 // 4
    return found


# ---- what is drawn together ----


@pytest.mark.parametrize("one", ["rate", "is_wrong"])
@pytest.mark.parametrize("other", ["turns", "task", "background", "is_focused", "before"])
def test_wrong_codes_depend_on_nothing_that_is_said(drawn, one, other):
    assert_independent((getattr(each, one), getattr(each, other)) for each in drawn)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_rates_of_wrong_codes_spread_evenly_over_conversations_of_any_length(drawn, turns):
    rates = Counter(each.rate for each in drawn if each.turns == turns)
    assert_as_often(rates, dict.fromkeys(range(10), 1))


def test_a_task_is_asked_about_every_background_alike(drawn):
    pairs = [(each.task, each.background) for each in drawn if not each.is_focused]
    assert_independent(pair for pair in pairs if pair[1] != "none")


def test_what_comes_before_a_conversation_tells_nothing_of_its_focus(drawn):
    assert_independent((each.before, each.is_focused) for each in drawn)
    assert_independent((each.turns, each.is_focused) for each in drawn)


@pytest.mark.parametrize("part", [0.0, 0.25, 0.5, 1.0])
def test_as_many_conversations_are_focused_as_asked_for_in_any_mixture(world, short, moods, part):
    told = MiniConversations(world, Bank(), focus=["fox"], focus_part=part)
    moods.clear()
    samples = Documents([Source(Counted()), Source(told)], short)
    for number in range(MANY // 10):
        samples.sample(number, Streams(0))
    assert len(moods) == MANY // 20
    if part in (0, 1):
        assert set(moods) == {bool(part)}
    else:
        assert_as_often(Counter(moods), {True: part, False: 1 - part})


def test_favoured_objects_are_shown_plain_as_often_as_any(artwork):
    settings = WorldSettings(artwork, augmented=0.5, free=0.5)
    samples = SceneSamples(settings, World(artwork), ["fox", "owl"], 0.5)
    scenes = [samples.sample(number, Streams(0)) for number in range(MANY)]
    is_plain = Counter(scene.look == Look() for scene in scenes)
    assert_as_often(is_plain, {True: 0.5, False: 0.5})


# ---- mixtures ----


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (1.0, 0.001, 0.3), (5, 2, 0.5, 1, 0.5, 1)])
def test_sources_come_as_their_weights_say_and_count_for_themselves(weights):
    mixture, streams = Mixture(weights), Streams(3)
    drawn = [mixture.at(number, streams) for number in range(MANY)]
    for index, weight in enumerate(weights):
        own = [count for source, count in drawn if source == index]
        assert own == list(range(len(own)))
        assert abs(len(own) - MANY * weight / sum(weights)) < len(weights)
    again = [Mixture(weights).at(number, streams) for number in reversed(range(0, MANY, 701))]
    assert again == drawn[::701][::-1]
    assert drawn != [mixture.at(number, Streams(4)) for number in range(MANY)]


def test_the_order_of_sources_tells_nothing_of_the_next_source():
    drawn = [Mixture((1, 1, 2)).at(number, Streams(0))[0] for number in range(MANY)]
    # Within 256 numbers every source has its part, so a source comes after itself a bit less often.
    pairs = Counter(zip(drawn[::16], drawn[7::16], strict=False))
    assert_as_often(
        pairs, {(a, b): (1, 1, 2)[a] * (1, 1, 2)[b] for a in range(3) for b in range(3)}
    )


def test_as_many_draws_of_a_source_as_it_has_documents_are_all_of_them(tmp_path, writer):
    path = tmp_path / "a.jsonl"
    lines = [f'{{"format": "text", "text": "fox {i}"}}' for i in range(37)]
    path.write_text("\n".join(lines), "utf-8")
    files, other = Watched(JsonLines(path)), Counted()
    samples = Documents([Source(files, 1.0), Source(other, 2.0)], writer)
    texts = []
    for number in range(37 * 9):
        before = len(other.asked)
        samples.sample(number, Streams(0))
        if len(other.asked) == before:
            texts.append(files.last["text"])
    rounds = [texts[start : start + 37] for start in range(0, len(texts) - 36, 37)]
    assert len(rounds) == 3
    assert {tuple(sorted(each)) for each in rounds} == {
        tuple(sorted(f"fox {i}" for i in range(37)))
    }
    assert len(set(map(tuple, rounds))) == 3


def test_files_of_equal_length_are_read_in_different_orders(tmp_path, writer):
    for name in "ab":
        lines = [f'{{"format": "text", "text": "{name} {i}"}}' for i in range(50)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), "utf-8")
    orders: dict[str, list[int]] = {"a": [], "b": []}
    files = [Watched(JsonLines(tmp_path / f"{name}.jsonl")) for name in "ab"]
    samples = Documents([Source(each) for each in files], writer)
    for number in range(100):
        for each in files:
            each.last = None
        samples.sample(number, Streams(0))
        (document,) = [each.last for each in files if each.last]
        name, _, row = document["text"].partition(" ")
        orders[name].append(int(row))
    assert sorted(orders["a"][:40]) != sorted(orders["b"][:40])


# ---- streams ----


def test_streams_of_different_names_share_nothing():
    streams = Streams(0)
    kinds = [
        *[streams.of("a"), streams.of("a", 1), streams.of("a", 11), streams.of("a", 1, 1)],
        *[streams.of("a 1"), streams.of("a, 1"), streams.of("b", 1), Streams(1).of("a", 1)],
        *[streams.within("a").of("a", 1), streams.within("a", 1).of("a", 1)],
        *[streams.within("a", "b").of("c"), streams.within("a b").of("c")],
    ]
    assert len({chance.random() for chance in kinds}) == len(kinds)
    assert streams.within("a").of("b", 2).random() == Streams(0, ("a",)).of("b", 2).random()


def test_no_sample_takes_two_draws_from_one_stream(world, artwork, short, tmp_path, monkeypatch):
    """Nor does it take a stream of another sample; only orders belong to several."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    asked, original = [], Streams._key

    def key(self, *what):
        if what[0] not in ("order of sources", "picture"):
            asked.append(original(self, *what))
        return original(self, *what)

    monkeypatch.setattr(Streams, "_key", key)
    settings = WorldSettings(artwork, augmented=0.5)
    scenes = SceneSamples(settings, world, ["fox"], 0.5)
    told = MiniConversations(world, Bank(), focus=["fox"])
    every = [
        *[WorldPictures(settings, world, 0.5, 100), scenes],
        NoisedSamples(scenes, Chances(), (1, 2, 2), 4),
        PictureFolders([tmp_path], 4, has_captions=False),
        Documents([Source(told), Source(told), Source(Counted())], short, wrong_codes=0.1),
    ]
    for samples in every:
        asked.clear()
        for number in range(40):
            samples.sample(number, Streams(0))
        assert len(asked) >= 40
        assert len(set(asked)) == len(asked), type(samples).__name__


def test_training_draws_from_streams_alone():
    """A generator that a data set seeds by itself may be the twin of another one's."""
    package = Path(sources.__file__).parents[1]
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(
            r"random\.Random\(|manual_seed\(|default_rng\(|random\.seed\(", path.read_text("utf-8")
        )
    }
    # The codebook's restarts go by its own count of steps, and what is measured by the split.
    allowed = {"networks/moving_average.py", "evaluation/measure.py"}
    assert found == {"streams.py", *allowed}
