"""Laws: seed-mini night puts on black what is asked for without a background, changes nothing else,
and is what its script makes.

Its figures take three minutes (``pytest -m slow tests/evaluation/test_sample_lora.py``). They are about
objects that its training left out, among them all that seed-mini itself never saw on black.
"""

import importlib.util
import json
import random
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import seed_core
from seed_core.models.lora import SEED_MINI_NIGHT, lora_files
from seed_core.training.evaluation.measure import DECODING, SAMPLED, Evaluation
from seed_core.training.world import tasks
from seed_core.training.world.scenes import Scene

PROMPT = "Draw a big hedgehog"


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).with_name("make_sample_lora.py")
    spec = importlib.util.spec_from_file_location("tests_make_sample_lora", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shipped() -> Path:
    return lora_files(SEED_MINI_NIGHT)[0].parent


@pytest.fixture(scope="module")
def draw(judge, mini_tokenizer, mini_decoder):
    """Draws PROMPT at a strength: codes, and what the judge sees in their picture."""

    def draw(strength, options=None):
        llm = seed_core.load_llm("seed-mini")
        seed_core.merge_lora(llm.module, seed_core.read_lora(SEED_MINI_NIGHT, llm.config), strength)
        (generator,) = seed_core.seeded_generators(1, 1)
        codes = llm.generate(PROMPT, options=options, generator=generator).codes
        picture = mini_decoder.decode(mini_tokenizer.embed(codes), options=DECODING)
        return codes, judge.see(picture)[0]

    return draw


def test_puts_a_drawing_on_black_and_at_strength_0_leaves_it_as_it_is(world, mini_llm, draw):
    (generator,) = seed_core.seeded_generators(1, 1)
    plain = mini_llm.generate(PROMPT, generator=generator).codes
    without, seen_without = draw(0.0)
    _, seen_with = draw(1.0)
    assert torch.equal(without, plain)
    hedgehog = next(c["id"] for c in world.concepts if c["name"] == "hedgehog")
    assert seen_with == (hedgehog, "black", "big")
    assert (seen_without[0], seen_without[2]) == (hedgehog, "big")
    assert seen_without[1] != "black"


def test_is_a_small_adapter_of_seed_mini_that_names_nobodys_folders(shipped):
    config = json.loads((shipped / "adapter_config.json").read_text("utf-8"))
    assert (config["peft_type"], config["base_model_name_or_path"]) == ("LORA", "seed-mini")
    assert "/" not in (shipped / "adapter_config.json").read_text("utf-8")
    assert sum(file.stat().st_size for file in shipped.iterdir()) < 300_000
    names = {file.name for file in shipped.iterdir()}
    assert names == {"README.md", "adapter_config.json", "adapter_model.safetensors"}


def test_its_script_writes_an_adapter_of_this_form(script, shipped, tmp_path):
    script.train(tmp_path, steps=1)
    ours, theirs = (
        load_file(folder / "adapter_model.safetensors") for folder in (tmp_path, shipped)
    )
    assert {k: t.shape for k, t in ours.items()} == {k: t.shape for k, t in theirs.items()}
    fields = ("r", "lora_alpha", "target_modules", "base_model_name_or_path")
    ours, theirs = (
        json.loads((folder / "adapter_config.json").read_text("utf-8"))
        for folder in (tmp_path, shipped)
    )
    assert [ours[field] for field in fields] == [theirs[field] for field in fields]


def test_its_training_shows_no_object_or_background_that_is_measured(script, world):
    seen = list(islice(script.cases(world), 3000))
    scenes = [s for case in seen for s in (case.scene, *case.turns[0][1])]
    assert len({s.concept for s in scenes}) == 144
    for s in scenes:
        assert not script.is_held_out(s.concept)
        assert s.background != world.concepts[s.concept]["held_out_background"]
    never_on_black = [c["id"] for c in world.concepts if c["held_out_background"] == "black"]
    assert len(never_on_black) == 24
    assert all(map(script.is_held_out, never_on_black))


def test_a_drawing_is_answered_at_night_and_a_question_as_ever(script, world, mini_tokenizer):
    writer, scene = script.Writer(world, mini_tokenizer), Scene(1, "blue", "big")
    night, day = (
        mini_tokenizer.encode(mini_tokenizer.preprocess(world.render([shown])))[0].tolist()
        for shown in (replace(scene, background="black"), scene)
    )
    drawn = writer.document(script.at_night(world, scene, "Show me {}"))
    assert [turn["parts"] for turn in drawn["turns"]] == [["Show me a big dog"], [night]]
    told = writer.document(tasks.caption(world, scene, random.Random(0)))
    assert [turn["parts"] for turn in told["turns"]] == [
        [day, "Describe this picture."],
        ["A big dog on a blue background."],
    ]


# --- figures ---

WITHOUT_A_BACKGROUND = "asked for without a background"
NAMED = ("text_to_image_greedy", "text_to_image_sampled_T1_p0.5_varied_words")
AS_EVER = (*NAMED, "edit_background", "edit_object", "edit_size", "dialogue_second_turn_image")


@pytest.fixture(scope="module")
def evaluations(world, judge):
    """Without and with the adapter."""
    return [Evaluation(world, judge, lora=lora) for lora in (None, SEED_MINI_NIGHT)]


@pytest.fixture(scope="module")
def left_out(script, world):
    """Scenes of every object that training left out, in every size, on backgrounds but black."""
    chance = random.Random(0)
    others = [name for name in world.backgrounds if name != script.NIGHT]
    return [
        Scene(concept, chance.choice(others), size)
        for size in world.sizes
        for concept in range(len(world.concepts))
        if script.is_held_out(concept)
    ]


def show(capsys, name, without, with_it):
    with capsys.disabled():
        for metric in (m for m in with_it if m not in ("valid", "concept+bg", "psnr")):
            figures = f"{without[metric].value:8.1%} without {with_it[metric].value:8.1%} with"
            print(f"\n{name:46}{metric:8}{figures}   n {with_it[metric].n}", end="")


@pytest.mark.slow
@pytest.mark.parametrize("which", ["known wordings", "new wordings", "never on black"])
def test_what_is_asked_for_without_a_background_comes_on_black(
    script, world, evaluations, left_out, which, capsys
):
    wordings = script.WORDINGS if which == "known wordings" else script.NEW_WORDINGS
    if which == "never on black":
        never = {c["id"] for c in world.concepts if c["held_out_background"] == script.NIGHT}
        left_out = [scene for scene in left_out if scene.concept in never]
    cases = [
        script.at_night(world, scene, wordings[i % len(wordings)])
        for i, scene in enumerate(left_out)
    ]
    without, with_it = (e.measure_pictures(cases, SAMPLED) for e in evaluations)
    show(capsys, f"{WITHOUT_A_BACKGROUND}, {which}", without, with_it)
    assert without["bg"].value < 0.25
    assert with_it["bg"].value > 0.95
    assert min(with_it["concept"].value, with_it["size"].value) > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("task", AS_EVER)
def test_everything_else_is_drawn_as_ever(world, evaluations, left_out, task, capsys):
    chance = random.Random(1)
    cases = [tasks.PICTURES[task](world, scene, chance) for scene in left_out]
    without, with_it = (e.measure_pictures(cases, SAMPLED) for e in evaluations)
    show(capsys, task, without, with_it)
    for metric in ("concept", "bg", "size"):
        assert with_it[metric].value > without[metric].value - 0.05


@pytest.mark.slow
@pytest.mark.parametrize("task", ["caption", "what_is_this", "background_color", "size_question"])
def test_pictures_are_read_as_ever(evaluations, task, capsys):
    without, with_it = (evaluation.measure(task) for evaluation in evaluations)
    show(capsys, task, without, with_it)
    for metric in without:
        assert with_it[metric].value > without[metric].value - 0.03
