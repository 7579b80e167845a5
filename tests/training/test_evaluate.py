"""Laws: the command prints every metric beside the published one with its number of questions; what is
asked has the answer that the scene has; a reply that is not one picture counts as wrong."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from seed_core.errors import CheckpointError, OptionError
from seed_core.llm.chat import SeedChat
from seed_core.llm.language import Reply
from seed_core.models.names import bundled
from seed_core.training.__main__ import main
from seed_core.training.evaluation import command, measure
from seed_core.training.evaluation.comparison import Row, compare, published_metrics
from seed_core.training.evaluation.measure import TASKS, UNKNOWN_OBJECTS, Evaluation, mean
from seed_core.training.networks.losses import psnr
from seed_core.training.world.closed_world import World
from seed_core.training.world.judge import Judge
from seed_core.training.world.scenes import Look, Scene
from seed_core.training.world.sentences import DECLINED
from seed_core.training.world.tasks import ANSWERS, PICTURES, Case, other

GIVEN = ("value", "exact", "name", "bg", "concept", "size", "concept+bg", "valid", "psnr", "cosine")
NOT_MEASURED = ("mse", "codes_used_on_test")
"""What is published of embeddings beside the cosine, which says the same of vectors of one length."""


@pytest.fixture(scope="module")
def judge(world, data_folder) -> Judge:
    return Judge(world, data_folder)


@pytest.fixture(scope="module")
def evaluation(world, judge) -> Evaluation:
    return Evaluation(world, judge, samples=1, split="validation", threads=1)


@pytest.fixture
def options(artwork, data_folder) -> list[str]:
    return ["--artwork", str(artwork), "--judge", str(data_folder), "--device", "cpu"]


# --- the command ---


def sizes(folder: Path) -> list[int]:
    parts = ("tokenizer", "llm", "decoder")
    return [x.stat().st_size for part in parts for x in (folder / part).rglob("*") if x.is_file()]


def test_prints_the_table_and_writes_the_metrics(options, tmp_path, capsys, mini_folder):
    tasks = ["classifier_on_originals", "what_is_this", "what_is_this_mirrored"]
    path = tmp_path / "metrics.json"
    options += ["--samples", "2", "--tasks", *tasks, "--json", str(path)]
    too_low = main(["evaluate", *options])
    header, *rows, files = capsys.readouterr().out.splitlines()
    assert too_low == any(row.endswith("TOO LOW") for row in rows)
    assert files == f"files: {sum(sizes(mini_folder)) / 2**20:.2f} MiB of at most 24"
    assert header.split() == ["task", "metric", "ours", "published", "difference", "n"]
    assert list(dict.fromkeys(row.split()[0] for row in rows)) == tasks
    assert {row.removesuffix("  TOO LOW").split()[-1] for row in rows} == {"2"}
    value = next(row for row in rows if row.startswith("what_is_this "))
    assert "97.22 %" in value
    assert "97.22" not in next(row for row in rows if row.startswith("what_is_this_mirrored"))
    written = json.loads(path.read_text("utf-8"))
    assert (written["model"], written["split"]) == ("seed-mini", "validation")
    assert written["bytes"] == sum(sizes(mini_folder))
    assert list(written["metrics"]) == tasks
    assert written["metrics"]["classifier_on_originals"]["concept+bg"] == 1


@pytest.mark.parametrize(
    ("beside", "line", "status"),
    [
        (0.5, "classifier_on_originals concept 100.00 % 50.00 % +50.00 2", 0),
        (1.001, "classifier_on_originals concept 100.00 % 100.10 % -0.10 2 TOO LOW", 1),
    ],
)
def test_nothing_may_lie_below_another_run(options, tmp_path, capsys, beside, line, status):
    metrics = {"classifier_on_originals": {"concept": beside, "n": 2}}
    path = tmp_path / "other.json"
    path.write_text(json.dumps({"split": "validation", "metrics": metrics}), "utf-8")
    options += ["--samples", "2", "--tasks", "classifier_on_originals", "--beside", str(path)]
    assert main(["evaluate", *options]) == status
    assert capsys.readouterr().out.splitlines()[1].split() == line.split()


def test_files_that_are_too_large_are_told(options, capsys, monkeypatch):
    monkeypatch.setattr(command, "LARGEST", 2**20)
    assert main(["evaluate", *options, "--samples", "1", "--tasks", "classifier_on_originals"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].endswith("MiB of at most 1  TOO LARGE")


def test_says_what_it_cannot_measure(options, tmp_path, capsys):
    (tmp_path / "no.json").write_text("{}", "utf-8")
    (tmp_path / "test.json").write_text('{"split": "test", "metrics": {}}', "utf-8")
    cases = {
        "at least 1 sample": ["--samples", "0"],
        "has no metrics": ["--beside", str(tmp_path / "no.json")],
        "of the split test, which cannot stand beside val": [
            "--beside",
            str(tmp_path / "test.json"),
        ],
        "does not exist": ["--json", str(tmp_path / "no" / "metrics.json")],
        "embedding needs the folder of the vision tower": ["--tasks", "embedding"],
        str(tmp_path): ["--model", str(tmp_path)],
    }
    for message, more in cases.items():
        assert main(["evaluate", *options, *more]) == 1
        assert message in capsys.readouterr().err


def test_a_folder_of_three_parts_is_measured_as_a_model(world, judge, mini_folder, tmp_path):
    for part in ("tokenizer", "llm", "decoder"):
        shutil.copytree(mini_folder / part, tmp_path / part)
    names = ("caption", "text_to_image_greedy")
    ours, bundled = (
        [Evaluation(world, judge, 1, "test", model).measure(name) for name in names]
        for model in (tmp_path, None)
    )
    assert ours == bundled
    assert ours[0]["n"] == 1
    shutil.rmtree(tmp_path / "llm")
    with pytest.raises(CheckpointError):
        Evaluation(world, judge, 1, "test", tmp_path)


# --- tasks ---


@pytest.mark.parametrize("name", [*ANSWERS, *PICTURES])
def test_nothing_but_the_goal_is_held_out(world, name):
    task = (ANSWERS | PICTURES)[name]
    chance = random.Random(0)
    for scene in world.held_out(60, chance, "test"):
        case = task(world, scene, chance)
        assert bool(case.answer) == (name in ANSWERS)
        assert replace(case.scene, look=Look()) == scene
        for _, shown in case.turns:
            for picture in shown:
                is_goal = (picture.concept, picture.background) == (scene.concept, scene.background)
                assert is_goal or not world.is_held_out(picture)


def test_looks_are_changed_where_the_task_says_so(world):
    chance = random.Random(0)
    for scene in world.held_out(20, chance):
        ((_, (mirrored,)),) = ANSWERS["what_is_this_mirrored"](world, scene, chance).turns
        assert mirrored.look == Look(mirrored=True)
        ((_, (changed,)),) = ANSWERS["what_is_this_changed"](world, scene, chance).turns
        assert changed.look not in (Look(), Look(mirrored=True))


def test_another_object_may_stand_on_the_background(world):
    chance = random.Random(0)
    scene = Scene(2, "green", "big")
    others = {other(scene, world, chance, "concept").concept for _ in range(2000)}
    held_out = {i for i, c in enumerate(world.concepts) if c["held_out_background"] == "green"}
    assert others == set(range(192)) - held_out
    assert {other(scene, world, chance, "size").size for _ in range(30)} == {"small", "medium"}


def test_answers_are_what_the_shipped_samples_are_called(world):
    chance, scene = random.Random(0), Scene(2, "green", "big")
    answers = {name: task(world, scene, chance).answer for name, task in ANSWERS.items()}
    assert answers["caption"] == "A big fox on a green background."
    assert answers["what_is_this"] == answers["what_is_this_mirrored"] == "It is a fox."
    assert answers["background_color"] == "The background is green."
    assert answers["size_question"] == "It is big."
    assert answers["yes_no"].split(", ")[1] == "it is a fox."


# --- scores ---


def reply(text: str, codes: torch.Tensor, is_complete: bool = True) -> Reply:
    return Reply(text, codes, SeedChat("seed-mini", 512), (), is_complete)


def test_a_reply_that_is_not_exactly_one_picture_has_all_wrong(evaluation, world, mini_tokenizer):
    (scene,) = world.held_out(1, random.Random(1))
    codes = mini_tokenizer.encode(mini_tokenizer.preprocess(world.render([scene])))
    case = Case((("Make it big", (scene,)),), scene)
    replies = [
        reply("<image>", codes),
        reply("<image>", codes, is_complete=False),
        reply("Here: <image>", codes),
        reply("<image><image>", codes.repeat(2, 1)),
        reply("No.", codes[:0]),
    ]
    scores = mean(evaluation._score_pictures([case] * 5, replies))
    assert {name: scores[name] for name in ("valid", "concept", "bg", "concept+bg", "n")} == {
        **dict.fromkeys(("valid", "concept", "bg", "concept+bg"), 0.2),
        "n": 5,
    }
    assert scores["psnr"] > 18  # of the one that there is
    lost = mean(evaluation._score_pictures([case] * 2, replies[1:3]))
    assert (lost["valid"], lost["concept"], lost["n"]) == (0, 0, 2)


def test_places_are_compared_only_where_a_picture_told_them(evaluation):
    assert "psnr" in evaluation.measure("edit_background")
    assert "psnr" not in evaluation.measure("text_to_image_greedy")


def test_a_caption_is_scored_by_its_parts(evaluation, world):
    scene = Scene(2, "green", "big")
    case = ANSWERS["caption"](world, scene, random.Random(0))
    cases = {
        "A big fox on a green background.": (1, 1, 1),
        "A small fox on a green background.": (0, 1, 1),
        "A big fox on a red background.": (0, 1, 0),
        "A big cat on a green background.": (0, 0, 1),
        "Nothing": (0, 0, 0),
    }
    for text, wanted in cases.items():
        score = evaluation._score_answer("caption", case, reply(text, torch.empty(0, 32)))
        assert (score["exact"], score["name"], score["bg"]) == wanted


def test_a_hundred_things_are_declined_or_not(evaluation, monkeypatch):
    asked = []

    def answer(prompt, options):
        asked.append(prompt)
        text = DECLINED if "gorilla" in prompt else "<image>"
        return reply(text, torch.empty(0, 32))

    monkeypatch.setattr(evaluation._llm, "generate", answer)
    halves = {}
    for split in ("all", "validation", "test"):
        monkeypatch.setattr(evaluation, "split", split)
        twenty = evaluation.measure("declines_unknown_object")
        asked.clear()
        hundred = evaluation.measure("declines_hundred_unknown_objects")
        halves[split] = set(asked)
        is_there = "Draw a gorilla" in halves[split]
        assert twenty == {"value": is_there / twenty["n"], "n": 20 if split == "all" else 10}
        assert hundred == {"value": is_there / hundred["n"], "n": 100 if split == "all" else 50}
    assert len(halves["all"]) == 100
    assert halves["all"] == halves["validation"] | halves["test"]
    assert not halves["validation"] & halves["test"]


def test_what_the_world_has_is_not_to_be_declined(evaluation, monkeypatch):
    monkeypatch.setattr(evaluation, "split", "all")
    description = [*evaluation.world.concepts, {"name": "boot", "synonyms": ["Gorilla"]}]
    monkeypatch.setattr(evaluation.world, "concepts", description)
    left = evaluation._unknown(UNKNOWN_OBJECTS["declines_hundred_unknown_objects"])
    assert len(left) == 98
    assert not {"boot", "gorilla"} & set(left)


def test_pictures_pass_through_the_autoencoder_alone(evaluation):
    through_vae = evaluation.measure("vae_reconstruction")
    through_codes = evaluation.measure("image_to_codes_to_image")
    assert through_vae["psnr"] > through_codes["psnr"] + 2
    assert through_vae["psnr_small"] > through_codes["psnr_small"]
    assert through_vae["psnr_small"] < through_vae["psnr"] - 3  # the rest is background


def test_the_teacher_s_embedding_is_compared_and_painted(world, judge, monkeypatch):
    """With the tokenizer's own embedding as the teacher's, both say what is known of that."""

    class Itself(torch.nn.Module):
        def embed(self, pixels):
            return tokenizer.embed(tokenizer.encode(pixels))

    monkeypatch.setattr(measure, "load_teacher", lambda folder: Itself())
    taught = Evaluation(world, judge, 2, "validation", teacher=Path("tower"), threads=1)
    tokenizer = taught._tokenizer
    assert set(taught.tasks) == set(TASKS)
    assert taught.measure("embedding") == {"cosine": pytest.approx(1), "n": 2}
    scores = taught.measure("teacher_embedding_to_image")
    assert (scores["concept+bg"], scores["n"]) == (1, 2)
    assert scores["psnr"] > 18


@pytest.mark.parametrize("samples", [1, 287, 288, 600])
def test_quick_tasks_have_as_many_samples_as_published_or_as_asked_for(
    evaluation, monkeypatch, samples
):
    counts = []
    monkeypatch.setattr(evaluation, "samples", samples)
    monkeypatch.setattr(evaluation.world, "held_out", lambda count, *_: counts.append(count) or [])
    monkeypatch.setattr(measure, "mean", lambda scores: {})
    evaluation.measure("what_is_this")
    assert counts == [{288: 576}.get(samples, samples)]


def test_progress_is_told_after_each_reply(evaluation):
    told = []
    assert evaluation.measure("size_question", lambda: told.append(1))["n"] == 1
    assert len(told) == 1


# --- the judge ---


def test_the_judge_tells_right_from_wrong(world, judge):
    scenes = world.held_out(12, random.Random(0))
    wrong = [replace(scene, background="white", size="big") for scene in scenes]
    right, other_ = (judge.score(world.render(scenes), these) for these in (scenes, wrong))
    assert all(set(score.values()) == {1.0} for score in right)
    for score, scene in zip(other_, scenes, strict=True):
        assert score["concept"] == 1
        assert score["bg"] == score["concept+bg"] == (scene.background == "white")
        assert score["size"] == (scene.size == "big")


def test_a_judge_of_another_world_is_refused(artwork, data_folder, tmp_path):
    fewer = World(artwork)
    fewer.concepts = fewer.concepts[:100]
    with pytest.raises(OptionError, match=r"knows \[192, 8, 3\].*world has \[100, 8, 3\]"):
        Judge(fewer, data_folder)
    with pytest.raises(CheckpointError, match=r"classifier.json"):
        Judge(World(artwork), tmp_path)


def test_what_the_judge_does_not_know_is_not_judged(artwork, data_folder, monkeypatch):
    world = World(artwork, everything=True)
    evaluation = Evaluation(world, Judge(world, data_folder), 319, "all", threads=1)
    scored = []
    monkeypatch.setattr(evaluation.judge, "score", lambda _, scenes: scored.extend(scenes) or [])
    evaluation.measure("classifier_on_originals")
    assert {scene.concept for scene in scored} == set(range(192))


def test_psnr_of_pictures_a_tenth_apart_is_20_db():
    assert psnr(torch.full((3, 4, 4), 0.5), torch.full((3, 4, 4), 0.6)) == pytest.approx(20)


# --- rows ---


@pytest.mark.parametrize(
    ("row", "holds"),
    [
        (Row("caption", "exact", 0.96, 0.9757, 288), True),
        (Row("caption", "exact", 0.95, 0.9757, 288), False),
        (Row("edit_size", "valid", 0.9965, 0.98, 288), False),
        (Row("edit_size", "valid", 1.0, 0.98, 288), True),
        (Row("image_to_codes_to_image", "psnr", 23.6, 24.4, 576), True),
        (Row("image_to_codes_to_image", "psnr", 23.2, 24.4, 576), False),
        (Row("declines_unknown_object", "value", 0.45, 0.65, 20), True),
        (Row("declines_unknown_object", "value", 0.40, 0.65, 20), False),
        (Row("declines_unknown_object", "value", 0.6, 0.65, 20, is_strict=True), False),
        (Row("caption", "exact", 0.9756, 0.9757, 288, is_strict=True), True),
        (Row("caption", "exact", 0.975, 0.9757, 288, is_strict=True), False),
        (Row("what_is_this_mirrored", "value", 0.0, None, 288), True),
    ],
)
def test_a_row_holds_if_it_is_not_too_low(row, holds):
    assert row.holds is holds
    assert str(row).endswith("TOO LOW") is not holds


def test_a_row_shows_ours_the_other_the_difference_and_n():
    (row,) = compare("caption", {"exact": 0.9861, "n": 288}, {"caption": {"exact": 0.9757}})
    assert str(row).split() == ["caption", "exact", "98.61", "%", "97.57", "%", "+1.04", "288"]
    (alone,) = compare("new", {"value": 0.5, "n": 4}, {})
    assert str(alone).split() == ["new", "value", "50.00", "%", "4"]


def test_what_is_published_has_every_metric_the_law_is_about():
    published = published_metrics()
    for task in set(TASKS) & set(published):
        assert set(published[task]) - {"n", *NOT_MEASURED} <= set(GIVEN)
    assert published["edit_size"]["concept"] == 0.8194
    assert Path(bundled("results.json")).is_file()
