"""Laws: the command prints every metric beside the published one with its number of questions; what is
asked has the answer that the scene has; a reply that is not one picture counts as wrong."""

import json
import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import avg_pool2d

from seed_core.errors import CheckpointError, OptionError
from seed_core.files.side_files import read_json
from seed_core.llm.chat import SeedChat
from seed_core.llm.language import Reply
from seed_core.models.names import bundled
from seed_core.tokenizer.eva_vit import VisionConfig
from seed_core.training.__main__ import main
from seed_core.training.evaluation import command, measure
from seed_core.training.evaluation.comparison import (
    PUBLISHED_SPLIT,
    Row,
    compare,
    published_metrics,
)
from seed_core.training.evaluation.measure import (
    TASKS,
    UNKNOWN_OBJECTS,
    Evaluation,
    as_large_as_the_world,
)
from seed_core.training.evaluation.metrics import (
    AVERAGES,
    Metric,
    average,
    difference,
    fraction,
    from_fields,
    pairs_of,
    summarize,
    to_fields,
)
from seed_core.training.networks.embedders import load_embedder
from seed_core.training.networks.losses import psnr
from seed_core.training.networks.teacher import Teacher, TeacherSizes
from seed_core.training.networks.teacher_folder import write_teacher
from seed_core.training.networks.weights import initialize
from seed_core.training.stages import decoder
from seed_core.training.world.closed_world import World
from seed_core.training.world.judge import Judge
from seed_core.training.world.noised import Chances
from seed_core.training.world.scenes import Look, Scene
from seed_core.training.world.sentences import DECLINED
from seed_core.training.world.tasks import ANSWERS, PICTURES, Case, other

GIVEN = (
    *("value", "exact", "name", "bg", "concept", "size", "concept+bg", "valid"),
    *("psnr", "psnr_small", "cosine"),
)
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
    columns = ["task", "metric", "ours", "95", "%", "interval", "n", "published", "change"]
    assert header.split() == columns
    assert list(dict.fromkeys(row.split()[0] for row in rows)) == tasks
    assert all(row.split()[3:8] == ["%", "34.24", "to", "100.00", "2"] for row in rows[:4])
    value = next(row for row in rows if row.startswith("what_is_this "))
    published = published_metrics()["what_is_this"]["value"].value
    assert value.split()[8:10] == [f"{100 * published:.2f}", "%"]
    written = json.loads(path.read_text("utf-8"))
    assert (written["model"], written["split"]) == ("seed-mini", "validation")
    assert written["bytes"] == sum(sizes(mini_folder))
    assert list(written["metrics"]) == tasks
    original = written["metrics"]["classifier_on_originals"]
    assert (original["concept+bg"], original["n"]) == (1, 2)
    assert original["intervals"]["concept+bg"] == [pytest.approx(0.3424, abs=1e-4), 1]


@pytest.fixture
def beside(options, tmp_path, capsys):
    """Runs the command on the originals beside another run; returns its status and lines."""

    def run(metrics: dict, *more: str) -> tuple[int, list[list[str]]]:
        path = tmp_path / "other.json"
        path.write_text(json.dumps({"split": "validation", "metrics": metrics}), "utf-8")
        status = main(["evaluate", *options, "--samples", "40", "--beside", str(path), *more])
        return status, [line.split() for line in capsys.readouterr().out.splitlines()]

    return run


ONE_TASK = ("--tasks", "classifier_on_originals")


def test_each_metric_is_better_equal_or_lower_than_that_of_another_run(beside, monkeypatch):
    monkeypatch.setattr(
        Judge,
        "score",
        lambda self, pictures, scenes: [
            {"concept": float(i < 30), "bg": 1.0, "size": float(i < 20)} for i in range(len(scenes))
        ],
    )
    others = {"concept": 0.95, "bg": 0.95, "size": 0.3, "n": 40}
    status, (header, *rows, count, _) = beside({"classifier_on_originals": others}, *ONE_TASK)
    assert header[-2:] == ["other", "change"]
    assert [" ".join(row[1:]) for row in rows] == [
        "concept 75.00 % 59.81 to 85.81 40 95.00 % -20.00 lower TOO LOW",
        "bg 100.00 % 91.24 to 100.00 40 95.00 % +5.00 equal",
        "size 50.00 % 35.20 to 64.80 40 30.00 % +20.00 equal",
    ]
    assert " ".join(count).startswith(
        "0 better, 2 equal, 1 lower, 0 new, 0 missing; equal: the 95 %"
    )
    assert status == 1
    others = {"concept": 0.75, "bg": 0.9, "size": 0.2, "n": 40}
    status, (_, *rows, count, _) = beside({"classifier_on_originals": others}, *ONE_TASK)
    assert [row[-1] for row in rows] == ["equal", "equal", "better"]
    assert status == 0


def test_what_only_one_of_two_runs_has_is_told(beside, monkeypatch):
    monkeypatch.setattr(command, "tasks_of", lambda has_teacher: ONE_TASK[1:])
    monkeypatch.setattr(
        Judge, "score", lambda self, pictures, scenes: [{"concept": 1.0, "bg": 1.0} for _ in scenes]
    )
    others = {
        "classifier_on_originals": {"concept": 1.0, "size": 1.0, "n": 40},
        "caption": {"exact": 0.9, "n": 288},
    }
    status, (_, *rows, count, _) = beside(others)
    assert [" ".join((*row[:2], row[-1])) for row in rows] == [
        "classifier_on_originals concept equal",
        "classifier_on_originals bg new",
        "classifier_on_originals size missing",
        "caption exact missing",
    ]
    assert " ".join(count).startswith("0 better, 1 equal, 0 lower, 1 new, 2 missing;")
    assert status == 1
    del others["classifier_on_originals"]["size"]
    status, (_, *rows, _, _) = beside(others, *ONE_TASK)  # nobody asked for captions
    assert [row[-1] for row in rows] == ["equal", "new"]
    assert status == 0


def test_files_that_are_too_large_are_told(options, capsys, monkeypatch):
    monkeypatch.setattr(command, "LARGEST", 2**20)
    assert main(["evaluate", *options, "--samples", "1", "--tasks", "classifier_on_originals"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].endswith("MiB of at most 1  TOO LARGE")


def test_says_what_it_cannot_measure(options, tmp_path, capsys):
    def other(metrics: dict) -> str:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        path.write_text(json.dumps({"split": "validation", "metrics": metrics}), "utf-8")
        return str(path)

    (tmp_path / "no.json").write_text("{}", "utf-8")
    (tmp_path / "test.json").write_text('{"split": "test", "metrics": {}}', "utf-8")
    cases = {
        "at least 1 sample": ["--samples", "0"],
        "has no metrics": ["--beside", str(tmp_path / "no.json")],
        "of the split test, which cannot stand beside val": [
            "--beside",
            str(tmp_path / "test.json"),
        ],
        "has none of the tasks that are measured here; it has caption": [
            *("--beside", other({"caption": {"exact": 1, "n": 1}}), "--tasks", "yes_no")
        ],
        "caption does not hold metrics as evaluate writes them: 'n'": [
            *("--beside", other({"caption": {"exact": 1}}))
        ],
        "does not exist": ["--json", str(tmp_path / "no" / "metrics.json")],
        "embedding needs the folder of the vision tower": ["--tasks", "embedding"],
        str(tmp_path): ["--model", str(tmp_path)],
    }
    for message, more in cases.items():
        assert main(["evaluate", *options, *more]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "--artwork", "x", "--judge", "y"],
        ["data", "bank", "--artwork", "x", "-o", "y"],
        ["data", "encode", "x", "-o", "y"],
    ],
)
def test_a_device_that_is_not_there_is_told_at_once(command, capsys):
    with pytest.raises(SystemExit):
        main([*command, "--device", "cuda:99"])
    assert "'cuda:99' is not usable here" in capsys.readouterr().err


def test_a_folder_of_three_parts_is_measured_as_a_model(world, judge, mini_folder, tmp_path):
    for part in ("tokenizer", "llm", "decoder"):
        shutil.copytree(mini_folder / part, tmp_path / part)
    names = ("caption", "text_to_image_greedy")
    ours, bundled = (
        [Evaluation(world, judge, 1, "test", model).measure(name) for name in names]
        for model in (tmp_path, None)
    )
    assert ours == bundled
    assert {metric.n for metric in ours[0].values()} == {1}
    shutil.rmtree(tmp_path / "llm")
    with pytest.raises(CheckpointError):
        Evaluation(world, judge, 1, "test", tmp_path)


@pytest.mark.parametrize(("embedding_dim", "image_size"), [(32, 128), (256, 64)])
def test_a_teacher_of_other_sizes_is_one_error_wherever_it_is_given(
    world, judge, mini_tokenizer, tmp_path, embedding_dim, image_size, isolated_random_state
):
    vision = VisionConfig(image_size, 32, width=32, depth=1, num_heads=4, mlp_width=64)
    sizes = TeacherSizes(192, 8, 3, embedding_dim)
    teacher = Teacher(vision, sizes)
    initialize(teacher)
    write_teacher(teacher, sizes, tmp_path)
    options = decoder.UnetOptions(vae="x", teacher=tmp_path, chances=Chances(teacher=0.3))
    places = {
        "this model's tokenizer": lambda: Evaluation(world, judge, teacher=tmp_path),
        "the tokenizer seed-mini": lambda: decoder._embedder(options),
        "network in the recipe": lambda: load_embedder(tmp_path, mini_tokenizer.config),
    }
    for pupil, give in places.items():
        with pytest.raises(OptionError) as caught:
            give()
        assert str(caught.value) == (
            f"the teacher {tmp_path} makes embeddings [{embedding_dim}] of pictures of {image_size} "
            f"pixels a side; {pupil} makes embeddings [256] of pictures of 128 pixels: give the "
            "teacher that it learns from"
        )


def test_parts_of_different_models_are_refused(world, judge, monkeypatch):
    wide = SimpleNamespace(embedding_shape=(1024,), codebook_size=512)
    large = SimpleNamespace(embedding_shape=(256,), codebook_size=8192)
    for tokenizer, message in ((wide, r"\[1024\].*from \[256\]"), (large, "8192 codes.*512")):
        monkeypatch.setattr(measure, "load_tokenizer", lambda *_, it=tokenizer: it)
        with pytest.raises(OptionError, match=f"{message}: they are of different models"):
            Evaluation(world, judge)


def test_smaller_pictures_are_measured_at_the_size_of_the_world():
    pictures = torch.arange(2 * 3 * 32 * 32).view(2, 3, 32, 32) / 6144
    large = as_large_as_the_world(pictures)
    assert large.shape == (2, 3, 128, 128)
    inside = (..., slice(1, -1), slice(1, -1))  # an edge is repeated
    torch.testing.assert_close(avg_pool2d(large, 4)[inside], pictures[inside])
    assert torch.equal(as_large_as_the_world(large), large)


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
    scores = summarize(evaluation._score_pictures([case] * 5, replies))
    for name in ("valid", "concept", "bg", "concept+bg"):
        assert (scores[name].value, scores[name].n) == (0.2, 5)
    assert scores["psnr"].value > 18
    assert scores["psnr"].n == 1  # of the one that there is
    turned = summarize(evaluation._score_pictures([case] * 5, replies[::-1]))
    assert scores["valid"].scores == (1, 0, 0, 0, 0)
    assert turned["valid"].scores == (0, 0, 0, 0, 1)  # each question keeps its place
    assert turned["psnr"].scores == (None, None, None, None, scores["psnr"].value)
    lost = summarize(evaluation._score_pictures([case] * 2, replies[1:3]))
    assert lost["valid"] == lost["concept"] == fraction(0, 2)


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
        assert [
            (each["value"].value * each["value"].n, each["value"].n) for each in (twenty, hundred)
        ] == [
            (is_there, 20 if split == "all" else 10),
            (is_there, 100 if split == "all" else 50),
        ]
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
    through_vae, through_codes = (
        {name: metric.value for name, metric in evaluation.measure(task).items()}
        for task in ("vae_reconstruction", "image_to_codes_to_image")
    )
    assert through_vae["psnr"] > through_codes["psnr"] + 2
    assert through_vae["psnr_small"] > through_codes["psnr_small"]
    assert through_vae["psnr_small"] < through_vae["psnr"] - 3  # the rest is background


def test_small_objects_are_a_metric_of_their_own_with_their_number(evaluation, monkeypatch):
    monkeypatch.setattr(evaluation, "samples", 7)
    metrics = evaluation.measure("vae_reconstruction")
    scenes = evaluation.world.held_out(
        7, random.Random("validation vae_reconstruction"), "validation"
    )
    small = sum(scene.size == "small" for scene in scenes)
    assert 0 < small < 7
    assert (metrics["psnr"].n, metrics["psnr_small"].n) == (7, small)
    (row,) = (
        row
        for row in compare("vae_reconstruction", metrics, {}, False)
        if row.metric == "psnr_small"
    )
    assert str(row).split()[-1] == str(small)
    assert to_fields(metrics)["counts"] == {"psnr_small": small}


def test_the_teacher_s_embedding_is_compared_and_painted(world, judge, monkeypatch):
    """With the tokenizer's own embedding as the teacher's, both say what is known of that."""

    class Itself(torch.nn.Module):
        image_size, embedding_dim = 128, 256

        def embed(self, pixels):
            return tokenizer.embed(tokenizer.encode(pixels))

    monkeypatch.setattr(measure, "load_teacher", lambda folder: Itself())
    taught = Evaluation(world, judge, 2, "validation", teacher=Path("tower"), threads=1)
    tokenizer = taught._tokenizer
    assert set(taught.tasks) == set(TASKS)
    cosine = taught.measure("embedding")["cosine"]
    assert (cosine.value, cosine.n) == (pytest.approx(1), 2)
    scores = taught.measure("teacher_embedding_to_image")
    assert scores["concept+bg"] == fraction(1, 2)
    assert scores["psnr"].value > 18


@pytest.mark.parametrize("samples", [1, 287, 288, 600])
def test_quick_tasks_have_as_many_samples_as_published_or_as_asked_for(
    evaluation, monkeypatch, samples
):
    counts = []
    monkeypatch.setattr(evaluation, "samples", samples)
    monkeypatch.setattr(evaluation.world, "held_out", lambda count, *_: counts.append(count) or [])
    monkeypatch.setattr(measure, "summarize", lambda scores: {})
    evaluation.measure("what_is_this")
    assert counts == [{288: 576}.get(samples, samples)]


def test_progress_is_told_after_each_reply(evaluation):
    told = []
    assert evaluation.measure("size_question", lambda: told.append(1))["value"].n == 1
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


# --- numbers ---


@pytest.mark.parametrize(
    ("value", "n", "low", "high"),
    [  # by R's prop.test(value * n, n, correct = FALSE)
        (0.65, 20, 0.4329, 0.8188),
        (281 / 288, 288, 0.9507, 0.9882),
        (1.0, 288, 0.9868, 1.0),
        (0.0, 10, 0.0, 0.2775),
    ],
)
def test_the_interval_of_a_fraction_is_wilsons(value, n, low, high):
    assert fraction(value, n).interval == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize("truth", [0.5, 0.9, 0.98])
def test_intervals_hold_the_truth_about_19_times_in_20(truth):
    chance = random.Random(0)
    met = 0
    for _ in range(1000):
        right = [{"value": float(chance.random() < truth)} for _ in range(288)]
        low, high = summarize(right)["value"].bounds
        met += low <= truth <= high
    assert 925 <= met <= 985


def test_the_interval_of_an_average_is_of_its_standard_error():
    chance = random.Random(0)
    met = 0
    for _ in range(1000):
        low, high = average([chance.gauss(24, 2) for _ in range(192)]).bounds
        assert high - low == pytest.approx(2 * 1.96 * 2 / 192**0.5, rel=0.25)
        met += low <= 24 <= high
    assert 925 <= met <= 985
    assert average([24.0]) == Metric(24.0, 1)  # of one it is not known
    assert average([24.0]).bounds == (24.0, 24.0)


@pytest.mark.parametrize("n", [2, 3, 8, 29])
def test_the_interval_of_few_is_as_often_right_as_that_of_many(n):
    chance = random.Random(n)
    intervals = [average([chance.gauss(24, 2) for _ in range(n)]).bounds for _ in range(2000)]
    assert 1870 <= sum(low <= 24 <= high for low, high in intervals) <= 1930


def test_a_hundredth_of_a_decibel_between_a_few_pictures_is_no_difference():
    ours, other = average([24.0, 21.0, 26.0]), average([24.0, 21.03, 26.0])
    assert Row("caption", "psnr", ours, other, is_run=True).verdict == "equal"


@pytest.mark.parametrize(
    ("ours", "other", "low", "high"),
    [  # Newcombe 1998, table II, method 10
        (fraction(56 / 70, 70), fraction(48 / 80, 80), 0.0524, 0.3339),
        (fraction(9 / 10, 10), fraction(3 / 10, 10), 0.1705, 0.8090),
        (fraction(10 / 10, 10), fraction(0, 10), 0.6075, 1.0),
        (Metric(3, 99, (0, 6)), Metric(1, 99, (-3, 5)), -3.0, 7.0),
    ],
)
def test_the_interval_of_a_difference_is_newcombes(ours, other, low, high):
    assert difference(ours, other) == pytest.approx((low, high), abs=1e-4)
    assert difference(other, ours) == pytest.approx((-high, -low), abs=1e-4)


def of_questions(name: str, scores: list[float | None]) -> Metric:
    return summarize([{} if score is None else {name: score} for score in scores])[name]


@pytest.mark.parametrize(
    ("ours_alone", "other_alone", "verdict"),
    [(5, 0, "equal"), (6, 0, "better"), (0, 6, "lower"), (9, 2, "equal"), (10, 2, "better")],
)
def test_right_answers_are_compared_question_by_question(ours_alone, other_alone, verdict):
    # As the exact test of McNemar: 5 to 0 by chance is 6.3 %, 6 to 0 3.1 %, 9 to 2 6.5 %, 10 to 2 3.9 %.
    both = [float(i < 250) for i in range(300 - ours_alone - other_alone)]
    ours = of_questions("exact", [1.0] * ours_alone + [0.0] * other_alone + both)
    other = of_questions("exact", [0.0] * ours_alone + [1.0] * other_alone + both)
    assert Row("caption", "exact", ours, other, is_run=True).verdict == verdict
    low, high = difference(ours, other)
    assert low <= (ours_alone - other_alone) / 300 <= high
    assert difference(other, ours) == pytest.approx((-high, -low))
    without = replace(other, scores=())
    assert Row("caption", "exact", ours, without, is_run=True).verdict == "equal"  # Newcombe's


def test_of_two_alike_hardly_one_in_twenty_counts_as_different():
    chance = random.Random(0)
    verdicts = Counter()
    for _ in range(1000):
        rate = [chance.choice((0.3, 0.9, 1.0)) for _ in range(288)]  # easy and hard questions
        ours, other = (
            of_questions("exact", [float(chance.random() < each) for each in rate])
            for _ in range(2)
        )
        verdicts[Row("caption", "exact", ours, other, is_run=True).verdict] += 1
    assert 5 <= verdicts["better"] <= 30
    assert 5 <= verdicts["lower"] <= 30


def test_a_gain_that_most_pictures_have_is_better_though_intervals_overlap():
    chance = random.Random(0)
    pictures = [chance.gauss(24.8, 3) for _ in range(576)]
    other = of_questions("psnr", pictures)
    ours = of_questions("psnr", [each + chance.gauss(0.3, 1) for each in pictures])
    assert ours.bounds[0] < other.bounds[1]
    assert Row("image_to_codes_to_image", "psnr", ours, other, is_run=True).verdict == "better"
    low, high = difference(ours, other)
    assert low == pytest.approx(ours.value - other.value - 1.96 / 24, abs=0.01)
    assert high == pytest.approx(ours.value - other.value + 1.96 / 24, abs=0.01)


def test_only_what_both_have_is_compared_one_by_one():
    ours = of_questions("psnr", [20.0, None, 30.0, 24.0, 22.0])
    other = of_questions("psnr", [None, 40.0, 29.0, 23.0, 21.1])
    assert pairs_of(ours, other) == [(30, 29), (24, 23), (22, 21.1)]
    assert Row("edit_size", "psnr", ours, other, is_run=True).verdict == "better"
    longer = of_questions("psnr", [None, 40.0, 29.0, 23.0, 21.1, 24.0])
    assert pairs_of(ours, longer) == []  # other questions
    assert Row("edit_size", "psnr", ours, longer, is_run=True).verdict == "equal"
    alone = of_questions("psnr", [20.0, 30.0, None, None, None])  # only one is common to both
    assert pairs_of(alone, other) == [(30, 40)]
    assert Row("edit_size", "psnr", alone, other, is_run=True).verdict == "equal"


def test_metrics_in_json_are_read_as_they_were_written():
    metrics = {
        "concept": fraction(0.95, 40),
        "psnr": average([20.0 + i % 3 for i in range(40)]),
        "psnr_small": average([18.0]),
    }
    written = json.loads(json.dumps(to_fields(metrics)))
    assert (written["n"], written["counts"]) == (40, {"psnr_small": 1})
    assert written["intervals"].keys() == {"concept", "psnr"}
    assert from_fields(written, "a file") == metrics
    measured = summarize([{"exact": 1.0, "psnr": 20.5}, {"exact": 0.0}, {"exact": 1.0, "psnr": 23}])
    read = from_fields(json.loads(json.dumps(to_fields(measured))), "a file")
    assert read == measured
    assert {name: metric.scores for name, metric in read.items()} == {
        "exact": (1, 0, 1),
        "psnr": (20.5, None, 23),
    }
    before = {"concept": 0.95, "psnr": 21, "n": 40}  # as they were written without intervals
    assert from_fields(before, "a file") == {
        "concept": fraction(0.95, 40),
        "psnr": Metric(21, 40),
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"concept": 0.9},
        {"concept": 1.001, "n": 40},
        {"concept": 0.9, "n": 0},
        {"concept": "high", "n": 40},
        {"concept": 0.9, "n": 40, "intervals": {"concept": [0.95, 0.99]}},
        {"psnr": float("nan"), "n": 40, "intervals": {"psnr": [20, 21]}},
        {"concept": 0.9, "n": 40, "counts": 3},
        {"concept": 0.5, "n": 2, "scores": {"concept": [1]}},
        {"concept": 0.5, "n": 2, "scores": {"concept": [1, None]}},
        {"concept": 0.5, "n": 2, "scores": {"concept": [1, "wrong"]}},
        {"concept": 0.5, "n": 2, "scores": {"concept": [1, float("inf")]}},
        ["concept"],
    ],
)
def test_what_is_no_metric_is_refused(fields):
    with pytest.raises(OptionError, match=r"a file does not hold metrics as evaluate writes them"):
        from_fields(fields, "a file")


# --- rows ---


def published(
    task: str, metric: str, ours: float, other: float | None, n: int, split: str = "test"
) -> Row:
    ours_ = Metric(ours, n) if metric in AVERAGES else fraction(ours, n)
    return Row(task, metric, ours_, None if other is None else Metric(other, n), split=split)


@pytest.mark.parametrize(
    ("row", "holds"),
    [
        (published("caption", "exact", 0.96, 0.9757, 288), True),
        (published("caption", "exact", 0.9556, 0.9757, 288), True),
        (published("caption", "exact", 0.95, 0.9757, 288), False),
        (published("edit_size", "valid", 0.9965, 0.98, 288), False),
        (published("edit_size", "valid", 1.0, 0.98, 288), True),
        (published("image_to_codes_to_image", "psnr", 23.6, 24.4, 576), True),
        (published("image_to_codes_to_image", "psnr", 23.2, 24.4, 576), False),
        # Other pairs: 2 points, and 2 standard errors of the difference, which are 4.9 points.
        (published("what_is_this_mirrored", "value", 0.745, 0.783, 576), False),
        (published("what_is_this_mirrored", "value", 0.745, 0.783, 576, "validation"), True),
        (published("what_is_this_mirrored", "value", 0.715, 0.783, 576, "validation"), True),
        (published("what_is_this_mirrored", "value", 0.713, 0.783, 576, "validation"), False),
        (published("declines_unknown_object", "value", 0.40, 0.65, 20, "all"), True),
        (published("what_is_this_mirrored", "value", 0.0, None, 288), True),
    ],
)
def test_a_row_beside_what_is_published_holds_if_it_is_not_too_low(row, holds):
    assert row.holds is holds
    assert str(row).endswith("TOO LOW") is not holds


@pytest.mark.parametrize(
    ("ours", "other", "verdict"),
    [
        (fraction(0.6, 20), fraction(0.65, 20), "equal"),
        (fraction(1, 288), fraction(287 / 288, 288), "equal"),
        (fraction(0.95, 288), fraction(0.99, 288), "lower"),
        (fraction(0.99, 288), fraction(0.95, 288), "better"),
        (Metric(26, 288, (25.8, 26.2)), Metric(24, 288, (23.8, 24.2)), "better"),
        (Metric(24.1, 288, (23.9, 24.3)), Metric(24.3, 288, (24.1, 24.5)), "equal"),
        (Metric(24, 288), Metric(24.01, 288), "lower"),  # without intervals nothing excuses it
        (None, fraction(0.5, 20), "missing"),
        (fraction(0.5, 20), None, "new"),
    ],
)
def test_a_metric_within_the_error_of_another_runs_is_equal(ours, other, verdict):
    row = Row("caption", "psnr", ours, other, is_run=True)
    assert row.verdict == verdict
    assert row.holds is (verdict not in ("lower", "missing"))
    assert verdict in str(row)
    assert str(row).endswith("TOO LOW") is (verdict == "lower")


def test_a_row_shows_ours_its_interval_n_the_other_and_the_change():
    (row,) = compare(
        "caption",
        {"exact": fraction(0.9861, 288)},
        {"caption": {"exact": fraction(0.9757, 288)}},
        False,
    )
    assert str(row).split() == [
        *("caption", "exact", "98.61", "%", "96.48", "to", "99.46", "288", "97.57", "%", "+1.04"),
    ]
    (alone,) = compare("new", {"psnr": Metric(20.5, 4)}, {}, False)
    assert str(alone).split() == ["new", "psnr", "20.50", "dB", "4"]


def test_what_is_published_has_every_metric_the_law_is_about():
    assert read_json(bundled("results.json"))["split"] == PUBLISHED_SPLIT
    published = published_metrics()
    for task in set(TASKS) & set(published):
        assert set(published[task]) - {*NOT_MEASURED} <= set(GIVEN)
    assert published["edit_size"]["concept"].n == 288


def test_published_intervals_are_those_of_their_values():
    tasks = json.loads(bundled("results.json").read_text("utf-8"))["metrics"]
    for fields in tasks.values():
        for name, interval in fields["intervals"].items():
            if name in AVERAGES:
                low, high = interval
                assert 0 < high - fields[name] == pytest.approx(fields[name] - low, abs=2e-4)
                continue
            right = round(fields[name] * fields["n"])
            assert interval == pytest.approx(
                fraction(right / fields["n"], fields["n"]).interval, abs=1e-4
            )
        without = {"n", "counts", "intervals", "cosine", *NOT_MEASURED}
        assert fields["intervals"].keys() == fields.keys() - without
