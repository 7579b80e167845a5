"""Laws: a conversation is the same for the same number, shows and asks for no held-out pair, says what
its pictures show, changes nothing but what it was asked to, and never names what declining is
measured with; the bank holds the codes of the pictures it names."""

import argparse
import copy
import json
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from seed_core.errors import OptionError
from seed_core.models.names import bundled
from seed_core.training.data.documents import DocumentWriter
from seed_core.training.streams import Streams
from seed_core.training.world import data as world_data
from seed_core.training.world import prompts
from seed_core.training.world.artwork import read_artwork, write_description
from seed_core.training.world.closed_world import World
from seed_core.training.world.code_bank import CodeBank, Picture
from seed_core.training.world.conversations import ConversationSettings, MiniConversations
from seed_core.training.world.dialogue import Dialogue
from seed_core.training.world.prompts import ask_for
from seed_core.training.world.scenes import Look, Scene
from seed_core.training.world.sentences import (
    DECLINED,
    PLURAL,
    UNCOUNTABLE,
    describe,
    naming,
    sized,
    with_article,
)
from seed_core.training.world.turns import FIRST_ONLY, TASKS
from seed_core.training.world.unknown import (
    MORE_UNKNOWN,
    UNKNOWN,
    barred_words,
    known_words,
    made_up_word,
    unknown_objects,
)

COUNT = 3000


class Album(CodeBank):
    """A bank whose codes tell which picture they are of."""

    def codes(self, picture):
        self._check(picture)
        number = self._numbers.setdefault(picture, len(self._numbers))
        return [number // 512**place % 512 for place in range(32)]

    def picture(self, codes):
        number = sum(code * 512**place for place, code in enumerate(codes))
        return list(self._numbers)[number]

    def __init__(self, *args):
        super().__init__(*args)
        self._numbers = {}


@pytest.fixture(scope="module")
def album(world) -> Album:
    return Album(world, 16)


@pytest.fixture(scope="module")
def conversations(world, album, artwork) -> MiniConversations:
    return MiniConversations(world, album, others=read_artwork(artwork).names)


@pytest.fixture(scope="module")
def exchanges(conversations, album) -> list[tuple]:
    """Task, question, shown pictures, answer (text or picture) and the picture before, of each turn."""
    rows = []
    for number in range(COUNT):
        document, before = conversations.document(number, Streams(0)), None
        turns = [turn["parts"] for turn in document["turns"]]
        for task, asked, (said,) in zip(document["tasks"], turns[::2], turns[1::2], strict=True):
            (question,) = [part for part in asked if isinstance(part, str)]
            shown = [album.picture(part) for part in asked if not isinstance(part, str)]
            answer = said if isinstance(said, str) else album.picture(said)
            rows.append((task, question, shown, answer, before))
            if isinstance(answer, Picture):
                before = answer
            elif shown:
                before = shown[0] if len(shown) == 1 else None
    return rows


def of(exchanges, *tasks):
    return [row[1:] for row in exchanges if row[0] in tasks]


# --- documents ---


def test_a_number_has_the_same_document_whatever_was_asked_for_before(world, album, conversations):
    again = MiniConversations(world, album, others=conversations._setting.unknown)
    ours = [conversations.document(number, Streams(0)) for number in (5, 900, 3)]
    assert [again.document(number, Streams(0)) for number in (3, 5, 900)] == [ours[2], *ours[:2]]
    other = again.document(5, Streams(1))
    assert other != ours[0]
    assert len({json.dumps(conversations.document(n, Streams(0))) for n in range(300)}) > 295


def test_turns_alternate_and_there_are_one_to_three_of_each(conversations):
    counts = Counter()
    for number in range(1000):
        document = conversations.document(number, Streams(0))
        roles = [turn["role"] for turn in document["turns"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert document["format"] == "conversation"
        assert not FIRST_ONLY.intersection(document["tasks"][1:])
        counts[len(roles) // 2] += 1
    assert set(counts) == {1, 2, 3}
    assert 500 < counts[1] < 700


def test_no_conversation_shows_or_draws_a_held_out_pair(world, exchanges, album):
    pictures = {p for _, _, shown, said, _ in exchanges for p in (*shown, said)}
    pictures = {p for p in pictures if isinstance(p, Picture)}
    assert len(pictures) > 2000
    assert len({p.concept for p in pictures}) == 192
    assert not any(world.is_held_out(album.scene(picture)) for picture in pictures)


def test_every_task_occurs_about_as_often_as_it_weighs(exchanges):
    counts = Counter(row[0] for row in exchanges)
    assert set(counts) == set(TASKS)
    total = sum(weight for weight, _ in TASKS.values())
    for task, (weight, _) in TASKS.items():
        if task not in FIRST_ONLY:
            assert 0.5 < counts[task] / len(exchanges) / (weight / total) < 1.6


def test_drawings_show_what_was_asked_for(world, exchanges):
    for question, shown, picture, _ in of(exchanges, "draw"):
        assert not shown
        assert not picture.is_mirrored
        assert not picture.is_augmented
        concept = world.concepts[picture.concept]
        words = question.lower()
        assert any(noun.lower() in words for noun in (concept["name"], *concept["synonyms"]))
        if " on " in words or "background" in words:
            assert picture.background in words
        sizes = {word: "big" for word in ("big", "large", "huge")}
        sizes |= {word: "small" for word in ("small", "little", "tiny")}
        said = [size for word, size in sizes.items() if f" {word} " in f" {words} "]
        assert picture.size == (said or ["medium"])[0]


def test_answers_say_what_the_picture_shows(world, exchanges):
    for question, shown, answer, before in of(exchanges, "caption", "what", "background", "size"):
        (picture,) = shown or [before]
        scene = Scene(picture.concept, picture.background, picture.size)
        assert answer in (
            describe(world, scene)[0].upper() + describe(world, scene)[1:] + ".",
            naming(world, scene)[0].upper() + naming(world, scene)[1:],
            f"The background is {picture.background}.",
            f"It is {picture.size}.",
        ), question


def test_yes_and_no_are_both_frequent_and_right(world, exchanges):
    rows = of(exchanges, "is_it", "is_background", "is_size")
    agreed = [answer.startswith("Yes") for _, _, answer, _ in rows]
    assert 0.4 < sum(agreed) / len(agreed) < 0.6
    for question, shown, answer, before in rows:
        (picture,) = shown or [before]
        concept = world.concepts[picture.concept]
        own = {concept["name"], *concept["synonyms"], picture.background, picture.size}
        asked = f" {question.lower().rstrip('?.! ')} "
        is_named = any(f" {word.lower()} " in asked for word in own)
        if answer.startswith("Yes"):
            assert is_named, question
    for question, _, answer, _ in of(exchanges, "is_background"):
        colour = answer.rsplit(" ", 1)[1].rstrip(".")
        assert answer.startswith("Yes") == (f" {colour}" in question)


def test_questions_about_kinds_are_answered_from_the_description(world, exchanges):
    for _, shown, answer, before in of(exchanges, "category", "eat"):
        (picture,) = shown or [before]
        category = world.concepts[picture.concept]["category"]
        if answer.startswith(("Yes", "It is", "They are")):
            assert answer.endswith(f" {category}.")
        else:
            assert " not " in answer
            assert not answer.endswith(f" {category}.")


@pytest.mark.parametrize(
    ("task", "changed"),
    [
        ("edit_background", {"background"}),
        ("edit_object", {"concept"}),
        ("edit_size", {"size"}),
        ("edit_both", {"size", "background"}),
    ],
)
def test_an_edit_changes_nothing_but_what_it_was_asked_to(album, exchanges, task, changed):
    rows = of(exchanges, task)
    for _, shown, answer, before in rows:
        (source,) = shown or [before]
        different = {name for name, value in vars(answer).items() if getattr(source, name) != value}
        assert different - {"is_augmented"} == changed
        assert not answer.is_augmented
        places = [album.scene(picture).offset for picture in (source, answer)]
        most = 0.13 if "concept" in changed else 0
        assert max(abs(a - b) for a, b in zip(*places, strict=True)) <= most
    assert any(shown for _, shown, _, _ in rows)
    assert not all(shown for _, shown, _, _ in rows)


def test_two_pictures_are_combined_as_asked(exchanges):
    seconds = 0
    for question, (first, second), answer, _ in of(exchanges, "combine"):
        from_second = any(question[1:].startswith(w[1:]) for w in prompts.COMBINE_SECOND)
        object_, other = (second, first) if from_second else (first, second)
        assert answer == replace(object_, background=other.background, is_augmented=False)
        seconds += from_second
    assert 0 < seconds < len(of(exchanges, "combine")) / 2


def test_shown_pictures_are_plain_mirrored_and_augmented(exchanges):
    shown = [picture for row in exchanges for picture in row[2]]
    assert 0.08 < sum(p.is_mirrored for p in shown) / len(shown) < 0.22
    assert 0.18 < sum(p.is_augmented for p in shown) / len(shown) < 0.32
    assert {p.variant for p in shown} == set(range(16))


# --- what is not known ---


def test_what_is_declined_is_not_known_and_not_what_declining_is_measured_with(world, exchanges):
    declined = of(exchanges, "draw_unknown", "edit_unknown")
    assert {answer for _, _, answer, _ in declined} == {DECLINED}
    questions = " ".join(f" {row[1].lower()} " for row in exchanges)
    for thing in (*UNKNOWN, *MORE_UNKNOWN):
        assert f" {thing} " not in questions
        assert f" {thing}." not in questions
        assert f" {thing}?" not in questions


def test_unknown_objects_are_many_and_none_is_known(world, artwork):
    things = unknown_objects(world, read_artwork(artwork).names)
    assert len(things) > 600
    assert {"wolf", "wombat"} <= set(things)
    known = {n for c in world.concepts for n in (c["name"], c["source"], *c["synonyms"])}
    assert not known.intersection(things)
    assert not {"black cat", "running shoe", "racing car"}.intersection(things)
    measured = {*UNKNOWN, *MORE_UNKNOWN}
    assert len(measured) == 100
    assert not measured & ({*things} | known)


def test_made_up_words_are_no_known_ones(world):
    chance = random.Random(0)
    barred = barred_words(world)
    assert {"fox", "boot", "truck"} <= barred
    words = {made_up_word(chance, barred) for _ in range(100_000)}
    assert len(words) > 30_000
    assert not words & barred


# --- words ---


def test_words_of_a_scene(world):
    names = {c["name"]: i for i, c in enumerate(world.concepts)}
    cases = {
        ("owl", "medium"): "an owl on an orange background",
        ("unicorn", "medium"): "a unicorn on an orange background",
        ("umbrella", "big"): "a big umbrella on an orange background",
        ("grapes", "small"): "small grapes on an orange background",
        ("UFO", "medium"): "a UFO on an orange background",
    }
    for (name, size), words in cases.items():
        assert describe(world, Scene(names[name], "orange", size)) == words
    assert sized(world, Scene(names["cat"], "red", "small"), "kitten") == "a small kitten"
    assert with_article("hourglass", "hourglass") == "an hourglass"
    assert naming(world, Scene(names["scissors"], "red", "big")) == "they are scissors."


@pytest.mark.parametrize(
    ("noun", "said"),
    [
        *(("rice ball", "a rice ball"), ("broccoli", "broccoli"), ("fire", "fire")),
        *(("fire engine", "a fire engine"), ("lightning", "lightning"), ("soap", "soap")),
        *(("butter", "butter"), ("butterfly", "a butterfly"), ("jeans", "jeans")),
    ],
)
def test_what_is_not_counted_takes_no_article(noun, said):
    assert with_article(noun, noun) == said


def test_every_noun_without_an_article_is_one_of_the_world_or_unknown(world, artwork):
    assert not PLURAL & UNCOUNTABLE
    unknown = unknown_objects(world, read_artwork(artwork).names)
    assert {*known_words(world), *unknown, *UNKNOWN, *MORE_UNKNOWN} >= PLURAL | UNCOUNTABLE


def test_plurals_are_asked_about_as_such(conversations, monkeypatch):
    """Whether by name, by a synonym, or unknown."""
    nouns = sorted(PLURAL)
    monkeypatch.setattr(Dialogue, "noun", lambda self, concept: self.chance.choice(nouns))
    monkeypatch.setattr(Dialogue, "unknown", lambda self: self.chance.choice(nouns))
    questions = [
        part.lower()
        for number in range(COUNT)
        for turn in conversations.document(number, Streams(0))["turns"][::2]
        for part in turn["parts"]
        if isinstance(part, str)
    ]
    noun = f"(small |big |little |tiny |large |huge )?({'|'.join(nouns)})"
    met = [q for q in questions if re.match(f"(are these|are they|what do) {noun}", q)]
    assert {question.split()[0] for question in met} == {"are", "what"}
    assert len(met) > COUNT // 40
    singular = f"(is this|is it|is that|is there|is|what does) {noun}"
    assert [question for question in questions if re.match(singular, question)] == []


def test_people_type_a_wording_in_several_ways():
    chance = random.Random(0)
    typed = Counter(ask_for("Draw a fox", chance) for _ in range(1000))
    assert {"Draw a fox", "draw a fox", "Draw a fox.", "Draw a fox please", "Draw a fox!"} <= set(
        typed
    )
    assert typed["Draw a fox"] > 500
    assert all(wording.lower().startswith("draw a fox") for wording in typed)


# --- as a model reads them ---


def test_the_language_model_can_read_every_conversation(conversations, mini_llm):
    writer = DocumentWriter(mini_llm.vocab, "seed-mini", "joined")
    for number in range(400):
        example = writer.write(conversations.document(number, Streams(0)), random.Random(0))
        assert example.teaches
        assert len(example) <= 300


# --- a focus ---


def test_a_part_of_the_conversations_is_about_the_objects_in_focus(world, album):
    focused = MiniConversations(world, album, focus=["fox", "owl"], focus_part=1.0)
    plain = MiniConversations(world, album)
    seen = Counter()
    for number in range(300):
        for name, source in (("focused", focused), ("plain", plain)):
            parts = [
                p for turn in source.document(number, Streams(0))["turns"] for p in turn["parts"]
            ]
            pictures = [album.picture(part) for part in parts if not isinstance(part, str)]
            names = {world.concepts[picture.concept]["name"] for picture in pictures}
            seen[name] += bool(names & {"fox", "owl"})
    assert seen["focused"] > 220
    assert seen["plain"] < 30
    with pytest.raises(OptionError, match="has no object wolpertinger"):
        MiniConversations(world, album, focus=["wolpertinger"])


def test_drawings_are_of_the_first_variants(world, album):
    source = MiniConversations(world, album, drawings=1)
    drawn = 0
    for number in range(200):
        document = source.document(number, Streams(0))
        for task, turn in zip(document["tasks"], document["turns"][1::2], strict=True):
            if task == "draw":
                assert album.picture(turn["parts"][0]).variant == 0
                drawn += 1
    assert drawn > 50


# --- what is shown ---


class Traced(Album):
    """A bank whose codes tell their place, and which picture they are of."""

    def codes(self, picture):
        self._check(picture)
        number = self._numbers.setdefault(picture, len(self._numbers))
        return [number * 32 + place for place in range(32)]

    def picture(self, codes):
        return list(self._numbers)[Counter(code // 32 for code in codes).most_common(1)[0][0]]


def shown_and_said(source, count):
    """Return codes of the first turns: those that are shown, and those that are answered."""
    shown, said = [], []
    for number in range(count):
        for turn in source.document(number, Streams(0))["turns"]:
            parts = [part for part in turn["parts"] if not isinstance(part, str)]
            (shown if turn["role"] == "user" else said).extend(parts)
    return shown, said


def test_up_to_a_fraction_of_the_codes_that_are_shown_are_of_other_pictures_at_their_places(world):
    plain = shown_and_said(MiniConversations(world, Traced(world, 4)), 400)
    for most in (0.5, 0.3):
        shown, said = shown_and_said(MiniConversations(world, Traced(world, 4), mixed=most), 400)
        assert len(shown) == len(plain[0])
        assert len(said) == len(plain[1])
        for codes in said:  # what is to be said stays right
            assert len({code // 32 for code in codes}) == 1
        rates = []
        for codes in shown:
            assert [code % 32 for code in codes] == list(range(32))
            (_, own), *_ = Counter(code // 32 for code in codes).most_common(1)
            rates.append(1 - own / 32)
        assert abs(sum(rates) / len(rates) - most / 2) < 0.02
        # One rate for all pictures would hardly ever leave a picture whole.
        assert sum(rate < most / 8 for rate in rates) > 0.06 * len(rates)
        assert sum(rate > most * 7 / 8 for rate in rates) > 0.06 * len(rates)


def test_mixed_codes_leave_words_and_drawings_as_they_are(world, album):
    def told(number, **settings):
        turns = MiniConversations(world, album, **settings).document(number, Streams(0))["turns"]
        return [
            part
            for turn in turns
            for part in turn["parts"]
            if isinstance(part, str) or turn["role"] == "assistant"
        ]

    for number in range(50):
        assert told(number, mixed=0.5) == told(number)


def test_as_many_shown_pictures_are_mirrored_as_is_asked_for(world, album):
    for part in (0.0, 0.4, 1.0):
        source = MiniConversations(world, album, mirrored=part)
        seen = [album.picture(codes).is_mirrored for codes in shown_and_said(source, 400)[0]]
        assert abs(sum(seen) / len(seen) - part) < 0.07


@pytest.mark.parametrize("name", ["mirrored", "mixed"])
def test_fractions_outside_0_to_1_are_refused(artwork, name):
    with pytest.raises(OptionError, match=rf"{name} must lie in 0..1; got 1.5"):
        ConversationSettings(artwork, **{name: 1.5})


# --- the bank ---


@pytest.fixture(scope="module")
def small_files(artwork, tmp_path_factory) -> Path:
    """A description of three objects on three backgrounds in two sizes."""
    description = json.loads(bundled("concepts.json").read_text("utf-8"))
    description["concepts"] = description["concepts"][2:5]
    for concept, background in zip(description["concepts"], ("red", "white", "blue"), strict=True):
        concept["held_out_background"] = background
    description["backgrounds"] = {
        k: description["backgrounds"][k] for k in ("red", "white", "blue")
    }
    description["sizes"] = {k: description["sizes"][k] for k in ("small", "big")}
    path = tmp_path_factory.mktemp("small") / "concepts.json"
    write_description(description, path)
    return path


@pytest.fixture(scope="module")
def small(artwork, small_files) -> World:
    return World(artwork, small_files)


@pytest.fixture(scope="module")
def bank(small, mini_tokenizer) -> CodeBank:
    bank = CodeBank(small, 2, 3, mini_tokenizer)
    done = []
    bank.fill(batch_size=20, on_pictures=done.append)
    assert sum(done) == len(bank) == 3 * 2 * 2 * 2 * 4
    return bank


def test_the_bank_has_the_codes_of_its_pictures(small, bank, mini_tokenizer):
    pictures = list(bank.pictures())
    renderings = small.render([bank.scene(picture) for picture in pictures])
    codes = mini_tokenizer.encode(mini_tokenizer.preprocess(renderings))
    assert (codes == torch.tensor([bank.codes(p) for p in pictures])).float().mean() > 0.99
    on_demand = CodeBank(small, 2, 3, mini_tokenizer)
    assert on_demand.codes(pictures[5]) == bank.codes(pictures[5])


def test_the_bank_has_no_held_out_pair(bank):
    assert all(not bank._world.is_held_out(bank.scene(picture)) for picture in bank.pictures())
    with pytest.raises(OptionError, match="a fox on red is held out"):
        bank.codes(Picture(0, "red", "big", 0))
    with pytest.raises(OptionError, match="a fox on red is held out"):
        bank.scene(Picture(0, "red", "big", 0))


def test_a_mirrored_picture_keeps_its_place(world):
    bank = CodeBank(world, 8)
    for variant in range(8):
        pictures = [Picture(2, "red", "small", variant, is_mirrored=way) for way in (False, True)]
        scenes = [bank.scene(picture) for picture in pictures]
        places = []
        for rendering in world.render(scenes):
            columns = (rendering - rendering[:, :1, :1]).abs().sum((0, 1)) > 0.5
            places.append(columns.nonzero().float().mean())
        assert abs(places[0] - places[1]) < 4
        assert scenes[1].look.mirrored


def test_an_augmented_picture_always_has_the_same_look(world):
    pictures = [Picture(2, "red", "small", 1, mirrored, True) for mirrored in (False, True)]
    first, second = ([CodeBank(world, 2).scene(p) for p in pictures] for _ in range(2))
    assert first == second
    assert [scene.look.mirrored for scene in first] == [False, True]
    assert all(replace(scene.look, mirrored=False) != Look() for scene in first)


def test_a_bank_is_read_as_it_was_written(
    world, small, bank, mini_tokenizer, artwork, small_files, tmp_path
):
    path = tmp_path / "bank.safetensors"
    bank.save(path)
    read = CodeBank.load(path, small)
    assert all(read.codes(picture) == bank.codes(picture) for picture in bank.pictures())
    assert read.scene(next(bank.pictures())) == bank.scene(next(bank.pictures()))
    with pytest.raises(OptionError, match="of another world"):
        CodeBank.load(path, world)
    other = World(artwork, small_files)
    other.digest = "of other pictures"
    with pytest.raises(OptionError, match="of other artwork; make it anew"):
        CodeBank.load(path, other)
    CodeBank.load(path, small, mini_tokenizer)
    changed = copy.deepcopy(mini_tokenizer)
    changed.module.embedder.quantizer.codebook.data[3] += 1
    with pytest.raises(OptionError, match="of another tokenizer; make it anew"):
        CodeBank.load(path, small, changed)
    path.write_bytes(b"no bank")
    for name in ("bank.safetensors", "none.safetensors"):
        with pytest.raises(OptionError, match="must be a code bank"):
            CodeBank.load(tmp_path / name, small)


def test_a_bank_without_codes_or_tokenizer_says_so(small):
    with pytest.raises(OptionError, match="has no codes of"):
        CodeBank(small, 1).codes(Picture(0, "blue", "big", 0))
    with pytest.raises(OptionError, match="at least 1 variant"):
        CodeBank(small, 0)


def test_the_command_makes_a_bank_that_a_recipe_can_name(artwork, small_files, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    world_data.add_bank(parser)
    path = tmp_path / "bank.safetensors"
    options = [
        "--artwork",
        artwork,
        "--description",
        small_files,
        "--variants",
        1,
        "--device",
        "cpu",
    ]
    world_data.run_bank(parser.parse_args([*map(str, options), "-o", str(path)]))
    assert "48 pictures" in capsys.readouterr().out
    settings = ConversationSettings(artwork, small_files, path, focus=("fox",))
    stored, on_demand = (replace(settings, bank=bank, variants=1).open(0) for bank in (path, None))
    ours, theirs = ([s.document(n, Streams(0)) for n in range(10)] for s in (stored, on_demand))
    assert ours == theirs
    for field, value in (("augmented", 2.0), ("focus_part", -1.0), ("drawings", 0)):
        with pytest.raises(OptionError, match=field):
            replace(settings, **{field: value})
    for name in ("--variants", "--batch"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--artwork", "x", "-o", "y", name, "0"])
        assert "must be a whole number of at least 1; got '0'" in capsys.readouterr().err
