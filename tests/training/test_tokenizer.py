"""The stage tokenizer: its losses by hand, and its three parts at toy size."""

import dataclasses
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

import seed_core
from seed_core.errors import CheckpointError, OptionError, PictureError
from seed_core.files.pictures import picture_from_pixels
from seed_core.files.weights import read_stand_ins, read_tensors
from seed_core.models.names import bundled
from seed_core.tokenizer.codebook import Codebook
from seed_core.tokenizer.config import TokenizerConfig
from seed_core.tokenizer.eva_vit import VisionConfig
from seed_core.tokenizer.network import TokenizerModel
from seed_core.tokenizer.qformer import QFormerConfig
from seed_core.training.data import pictures
from seed_core.training.networks import losses, weights
from seed_core.training.networks import tokenizer as tokenizer_learners
from seed_core.training.networks.embedders import load_embedder
from seed_core.training.networks.moving_average import MovingAverage
from seed_core.training.networks.teacher import HeadLossWeights, Labels
from seed_core.training.networks.teacher_folder import TOWER_FILE, load_teacher, load_tower
from seed_core.training.recipe import find_recipe, read_recipe
from seed_core.training.schedule import Schedule
from seed_core.training.stages import tokenizer, tower
from seed_core.training.streams import Streams
from seed_core.training.world.rendering import normalize
from seed_core.training.world.samples import WorldPictures, WorldSettings, collate_scenes

VISION = VisionConfig(image_size=128, patch_size=32, width=32, depth=1, num_heads=4, mlp_width=64)
QFORMER = QFormerConfig(width=24, context_width=32, depth=2, num_heads=4, mlp_width=48)
NETWORK = TokenizerConfig(
    family="seed-mini",
    vision=VISION,
    qformer=QFORMER,
    codebook_size=64,
    codebook_dim=8,
    decode_depth=1,
    image_down=(16, 8),
    embedding_dim=32,
)
OBJECTS = ("fox", "pizza", "frog", "robot", "whale", "castle", "cherries", "ghost")
WORDS = ("a", "big", "medium", "small", "on", "background", *OBJECTS)


@pytest.fixture(scope="module")
def settings(small_world: Callable[..., WorldSettings]) -> WorldSettings:
    """A world of eight objects, which is ready sooner than that of all."""
    return small_world(OBJECTS)


@pytest.fixture(scope="module")
def tower_folder(settings: WorldSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tower")
    schedule = Schedule(steps=10, batch_size=16, learning_rate=3e-3)
    tower.run(tower.TowerRecipe(settings, VISION, schedule, embedding_dim=32), folder)
    return folder


def schedule(steps: int, **changes: object) -> Schedule:
    often = {"log_every": 5, "save_every": 10}
    fields = {**often, "steps": steps, "batch_size": 16, "learning_rate": 3e-3, **changes}
    return Schedule(**fields)


def log_of(folder: Path) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = json.loads((folder / "log.json").read_text("utf-8"))
    return rows


def assert_same(first: Path, second: Path) -> None:
    """Two weight files hold the same, to the bit."""
    one, other = dict(read_tensors(first)), dict(read_tensors(second))
    assert one.keys() == other.keys()
    changed = [key for key in one if not torch.equal(one[key], other[key])]
    assert not changed


def assert_goes_on(
    recipe: tokenizer.TokenizerRecipe, straight: Path, folder: Path, interrupt: Callable[..., None]
) -> None:
    """An interrupted run ends in the same network, log and files."""
    step = recipe.schedule.save_every
    interrupt(lambda: tokenizer.run(recipe, folder), step + 1)
    assert [path.name for path in (folder / "checkpoints").glob("*-*")] == [f"checkpoint-{step}"]
    tokenizer.run(recipe, folder)
    assert log_of(folder) == log_of(straight)
    last = f"checkpoints/checkpoint-{recipe.schedule.steps}/model.safetensors"
    assert_same(straight / last, folder / last)


# ---- losses ----


def test_beta_weighs_the_codebooks_term() -> None:
    """(1, 2) and row (0, 0): both mean squares are 2.5. The vectors' gradient has weight 1."""
    vectors = torch.tensor([[[1.0, 2.0]]], requires_grad=True)
    rows = torch.zeros(1, 1, 2, requires_grad=True)
    loss = losses.quantization_loss(vectors, rows)
    loss.backward()
    assert loss.item() == 2.5 + 0.25 * 2.5
    assert vectors.grad is not None
    assert rows.grad is not None
    assert vectors.grad.flatten().tolist() == [1.0, 2.0]
    assert rows.grad.flatten().tolist() == [-0.25, -0.5]


def test_straight_through_gives_rows_and_takes_their_gradient() -> None:
    vectors = torch.tensor([[1.0, 2.0]], requires_grad=True)
    rows = torch.tensor([[4.0, 5.0]], requires_grad=True)
    passed = losses.straight_through(vectors, rows)
    (passed * torch.tensor([[10.0, 20.0]])).sum().backward()
    assert passed.tolist() == [[4.0, 5.0]]
    assert vectors.grad is not None
    assert vectors.grad.tolist() == [[10.0, 20.0]]
    assert rows.grad is None


def test_cosines_are_of_tokens() -> None:
    """Same direction, right angle, opposite: 0, 1 and 2."""
    given = torch.tensor([[[3.0, 0.0], [1.0, 0.0], [0.0, 2.0]]])
    wanted = torch.tensor([[[1.0, 0.0], [0.0, 5.0], [0.0, -1.0]]])
    assert losses.cosine_loss(given, wanted).item() == pytest.approx(1.0)


def test_the_contrastive_loss_by_numpy(generator: torch.Generator) -> None:
    sides = [F.normalize(torch.randn(5, 4, generator=generator), dim=1) for _ in "ab"]
    loss = losses.contrastive_loss(*sides, torch.tensor(0.07), smoothing=0.1)
    scores = sides[0].double().numpy() @ sides[1].double().numpy().T / 0.07
    targets = np.full((5, 5), 0.1 / 5) + 0.9 * np.eye(5)
    directions = []
    for table in (scores, scores.T):
        log_parts = table - np.log(np.exp(table).sum(1, keepdims=True))
        directions.append(-(targets * log_parts).sum(1).mean())
    assert loss.item() == pytest.approx(sum(directions) / 2, rel=1e-5)
    assert abs(directions[0] - directions[1]) > 1e-3  # so both directions matter


_TWO_PROCESSES = """
import sys
import torch
from torch import distributed
from seed_core.tokenizer.codebook import Codebook
from seed_core.training.networks.moving_average import MovingAverage
from seed_core.training.networks.losses import contrastive_loss
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
data = {k: v for k, v in torch.load(f"{folder}/data.pt").items()}
weight = data["weight"].requires_grad_()
mine = slice(3 * rank, 3 * rank + 3)
loss = contrastive_loss(
    torch.nn.functional.normalize(data["pictures"][mine] @ weight, dim=1),
    torch.nn.functional.normalize(data["texts"][mine] @ weight, dim=1),
    torch.tensor(0.2),
)
loss.backward()
distributed.all_reduce(weight.grad)
distributed.all_reduce(loss.detach())
codebook = Codebook(4, 2).requires_grad_(False)
average = MovingAverage(4, 2, 0.9, 0.5)
vectors = data["vectors"][mine]
average.prepare(codebook, vectors)
average.update(codebook, vectors, codebook.nearest(vectors))
torch.save(
    {"loss": loss.detach() / 2, "gradient": weight.grad / 2, "codebook": codebook.codebook},
    f"{folder}/result{rank}.pt",
)
distributed.barrier()  # whoever leaves first would hang up on the other
distributed.destroy_process_group()
"""


def test_two_processes_learn_what_one_learns(tmp_path: Path, generator: torch.Generator) -> None:
    shapes = {"weight": (4, 4), "pictures": (6, 4), "texts": (6, 4), "vectors": (6, 3, 2)}
    data = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    torch.save(data, tmp_path / "data.pt")
    script = [sys.executable, "-c", _TWO_PROCESSES]
    processes = [subprocess.Popen([*script, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f"result{rank}.pt") for rank in range(2))

    weight = data["weight"].clone().requires_grad_()
    sides = (F.normalize(data[name] @ weight, dim=1) for name in ("pictures", "texts"))
    loss = losses.contrastive_loss(*sides, torch.tensor(0.2))
    loss.backward()
    codebook, average = Codebook(4, 2).requires_grad_(False), MovingAverage(4, 2, 0.9, 0.5)
    average.prepare(codebook, data["vectors"])
    average.update(codebook, data["vectors"], codebook.nearest(data["vectors"]))
    for result in (first, second):
        torch.testing.assert_close(result["loss"], loss.detach())
        torch.testing.assert_close(result["gradient"], weight.grad)
        torch.testing.assert_close(result["codebook"], codebook.codebook.data)
    assert torch.equal(first["codebook"], second["codebook"])


# ---- the moving average ----


def average_of(
    rows: list[float], decay: float, restart_below: float
) -> tuple[Codebook, MovingAverage]:
    """A codebook of width 1, each row used once a step so far."""
    codebook = Codebook(len(rows), 1).requires_grad_(False)
    codebook.codebook.copy_(torch.tensor(rows)[:, None])
    average = MovingAverage(len(rows), 1, decay, restart_below)
    average.counts.fill_(1)
    average.sums.copy_(torch.tensor(rows)[:, None])
    average.steps.fill_(1)
    return codebook, average


def test_a_step_of_the_moving_average_by_hand() -> None:
    """Vectors 1 and 3 are nearest to row 0, 9 to row 10; half of the memory stays.

    Counts: 0.5 + 0.5 * 2 = 1.5 and 0.5 + 0.5 * 1 = 1. Sums: 0 + 0.5 * 4 = 2 and 5 + 0.5 * 9 = 9.5.
    """
    codebook, average = average_of([0.0, 10.0], decay=0.5, restart_below=0.0)
    vectors = torch.tensor([[[1.0], [3.0], [9.0]]])
    codes = codebook.nearest(vectors)
    assert codes.tolist() == [[0, 0, 1]]
    average.update(codebook, vectors, codes)
    assert average.counts.tolist() == [1.5, 1.0]
    assert average.sums.flatten().tolist() == [2.0, 9.5]
    assert codebook.codebook.flatten().tolist() == pytest.approx([2 / 1.5, 9.5])


def test_rows_that_nobody_uses_start_anew_and_others_do_not() -> None:
    codebook, average = average_of([0.0, 10.0, 500.0], decay=0.5, restart_below=0.2)
    vectors = torch.tensor([[[1.0], [2.0], [9.0], [11.0]]])
    average.update(codebook, vectors, codebook.nearest(vectors))
    assert codebook.codebook[2].item() == 500.0  # used 0.5 times a step on the average
    average.update(codebook, vectors, codebook.nearest(vectors))
    assert codebook.codebook[2].item() == 500.0  # 0.25
    average.update(codebook, vectors, codebook.nearest(vectors))
    fresh = codebook.codebook[2].item()  # 0.125
    assert fresh in {1.0, 2.0, 9.0, 11.0}
    assert average.counts[2].item() == 1
    assert average.sums[2].item() == fresh
    assert codebook.codebook[0].item() == pytest.approx(1.5, abs=0.2)
    assert codebook.codebook[1].item() == pytest.approx(10.0, abs=0.2)


def test_the_first_batch_gives_the_rows(generator: torch.Generator) -> None:
    codebook, average = Codebook(8, 2).requires_grad_(False), MovingAverage(8, 2, 0.9, 0.1)
    nn.init.zeros_(codebook.codebook)
    vectors = torch.randn(3, 32, 2, generator=generator)
    average.prepare(codebook, vectors)
    given = {tuple(row) for row in vectors.flatten(0, 1).tolist()}
    assert {tuple(row) for row in codebook.codebook.tolist()} <= given
    average.update(codebook, vectors, codebook.nearest(vectors))
    rows = codebook.codebook.clone()
    average.prepare(codebook, vectors + 100)
    assert torch.equal(codebook.codebook, rows)


@pytest.mark.parametrize(("decay", "restart_below"), [(1.0, 0.1), (0.0, 0.1), (0.9, 1.0)])
def test_a_memory_of_no_sense_is_refused(decay: float, restart_below: float) -> None:
    with pytest.raises(OptionError):
        MovingAverage(4, 2, decay, restart_below)


def test_perplexity_counts_rows_used_alike() -> None:
    average = MovingAverage(8, 1, 0.9, 0.0)
    average.counts[:4] = 3.0
    assert average.perplexity().item() == pytest.approx(4.0)


# ---- names in files ----


def test_what_is_written_of_the_bundled_tokenizer_is_its_file() -> None:
    file = dict(read_tensors(bundled("tokenizer") / "model.safetensors"))
    module = seed_core.load_tokenizer("seed-mini").module
    written = weights.upstream_tensors(module)
    assert written.keys() == file.keys()
    assert all(torch.equal(written[key].half(), file[key]) for key in file)


def test_left_out_tensors_are_in_no_checkpoint_and_stay(isolated_random_state: None) -> None:
    def make() -> nn.Sequential:
        network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        weights.leave_out(network, lambda name: name.startswith("0."))
        return network

    one, other = make(), make()
    state = one.state_dict()
    assert {key.split(".")[0] for key in state} == {"1"}
    kept = other[0].weight.clone()
    one[1].weight.data.fill_(7)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other[0].weight, kept)
    assert other[1].weight.tolist() == [7, 7]


# ---- part: mini ----


@pytest.fixture(scope="module")
def mini_recipe(settings: WorldSettings, tower_folder: Path) -> tokenizer.TokenizerRecipe:
    return tokenizer.TokenizerRecipe(
        part="mini",
        tower=tower_folder,
        schedule=schedule(24),
        network=NETWORK,
        mini=tokenizer.MiniSettings(settings),
    )


def test_pictures_and_codes_are_float32_in_a_bf16_run(
    tower_folder: Path, settings: WorldSettings, isolated_random_state: None
) -> None:
    learner = mini_learner(tower_folder, settings).eval()
    nn.init.normal_(learner.model.embedder.quantizer.codebook)
    world = settings.open()
    samples = WorldPictures(dataclasses.replace(settings, augmented=1.0), world)
    batch = collate_scenes([samples.sample(i, Streams(0)) for i in range(8)])
    plain = learner(**batch)["loss"]
    vectors = torch.randn(20, 32, 8)
    expected = learner.model.embedder.quantizer.nearest(vectors)
    with torch.autocast("cpu", torch.bfloat16):
        labels = Labels.of(batch["scenes"], batch["backgrounds"], world)
        codes, _ = tokenizer_learners.nearest_rows(learner.model.embedder.quantizer, vectors)
        half = learner(**batch)["loss"]
        learner.train()(**batch)["loss"].backward()
    assert torch.equal(labels.pictures, world.render(batch["scenes"]))
    assert torch.equal(codes, expected)
    assert half.item() == pytest.approx(plain.item(), rel=0.02)
    assert half.item() != plain.item()
    assert learner.average.sums.dtype == learner.average.counts.dtype == torch.float32


@pytest.fixture(scope="module")
def mini_run(
    mini_recipe: tokenizer.TokenizerRecipe, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("mini")
    tokenizer.run(mini_recipe, folder)
    return folder


def held_out_pixels(settings: WorldSettings, count: int) -> torch.Tensor:
    world = settings.open()
    return normalize(world.render(world.held_out(count, random.Random(0))))


def test_mini_learns_the_teachers_embedding(
    mini_run: Path, tower_folder: Path, settings: WorldSettings
) -> None:
    rows = log_of(mini_run)
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert rows[-1]["regression"] < 0.6 * rows[0]["regression"]
    trained = seed_core.load_tokenizer(mini_run / "tokenizer")
    pixels = held_out_pixels(settings, 24)
    wanted = load_teacher(tower_folder).embed(pixels)
    own = F.mse_loss(trained.embed(trained.encode(pixels)), wanted)
    of_others = F.mse_loss(trained.embed(trained.encode(pixels)).roll(1, 0), wanted)
    assert own < 0.7 * of_others


def test_codes_tell_pictures_apart(mini_run: Path, settings: WorldSettings) -> None:
    codes = seed_core.load_tokenizer(mini_run / "tokenizer").encode(held_out_pixels(settings, 24))
    assert len({tuple(row) for row in codes.tolist()}) > 8
    assert len(codes.unique()) > 8


def test_mini_goes_on_bit_for_bit(
    mini_recipe: tokenizer.TokenizerRecipe,
    mini_run: Path,
    tmp_path: Path,
    interrupt: Callable[..., None],
) -> None:
    assert_goes_on(mini_recipe, mini_run, tmp_path, interrupt)
    assert_same(
        mini_run / "tokenizer" / "model.safetensors", tmp_path / "tokenizer" / "model.safetensors"
    )


def test_the_loaded_tokenizer_computes_as_the_trained_network(
    mini_run: Path,
    tower_folder: Path,
    settings: WorldSettings,
    isolated_random_state: None,
) -> None:
    """The network of the last checkpoint, put together here from its own tensors."""
    state = dict(read_tensors(mini_run / "checkpoints" / "checkpoint-24" / "model.safetensors"))
    model = TokenizerModel(NETWORK)
    model.encoder.visual_encoder = load_tower(tower_folder, VISION)
    own = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
    missing, unexpected = model.load_state_dict(own, strict=False)
    assert not unexpected
    assert {key.split(".")[1] for key in missing} == {"visual_encoder"}
    loaded = seed_core.load_tokenizer(mini_run / "tokenizer")
    pixels = held_out_pixels(settings, 6)
    codes = loaded.encode(pixels)
    with torch.inference_mode():
        assert torch.equal(torch.cat([model.encode(p[None])[0] for p in pixels]), codes)
        rows = torch.cat([model.embedder(row[None]) for row in codes])
    assert torch.equal(rows, loaded.embed(codes))


def test_the_written_tower_is_the_frozen_one(mini_run: Path, tower_folder: Path) -> None:
    written = dict(read_tensors(mini_run / "tokenizer" / "model.safetensors"))
    frozen = dict(read_tensors(tower_folder / TOWER_FILE))
    assert all(torch.equal(written[key], tensor) for key, tensor in frozen.items())
    assert (
        TokenizerConfig.from_dict(
            json.loads((mini_run / "tokenizer" / "config.json").read_text("utf-8"))
        )
        == NETWORK
    )


def mini_learner(tower_folder: Path, settings: WorldSettings) -> tokenizer_learners.MiniLearner:
    return tokenizer_learners.MiniLearner(
        TokenizerModel(NETWORK),
        load_teacher(tower_folder),
        MovingAverage(64, 8, 0.99, 0.3),
        settings.open(),
        HeadLossWeights(),
        commitment=0.25,
    )


def test_a_shortened_sample_depends_on_its_first_codes_alone(
    tower_folder: Path, settings: WorldSettings, isolated_random_state: None
) -> None:
    learner = mini_learner(tower_folder, settings)
    samples = WorldPictures(settings, settings.open())
    batch = collate_scenes([samples.sample(i, Streams(0)) for i in range(4)])
    batch["num_codes"] = torch.tensor([1, 5, 31, 32])
    gradients: dict[str, torch.Tensor] = {}

    def watch(_: nn.Module, __: object, out: torch.Tensor) -> None:
        out.register_hook(lambda gradient: gradients.update(out=gradient))

    learner.model.embedder.decode_head.register_forward_hook(watch)
    learner(**batch)["loss"].backward()
    is_used = gradients["out"].abs().sum(-1) > 0
    assert is_used.sum(1).tolist() == [1, 5, 31, 32]
    assert all(is_used[i, :n].all() for i, n in enumerate([1, 5, 31, 32]))


def test_mini_trains_all_but_tower_teacher_and_codebook(
    tower_folder: Path, settings: WorldSettings, isolated_random_state: None
) -> None:
    learner = mini_learner(tower_folder, settings)
    samples = WorldPictures(settings, settings.open())
    learner(**collate_scenes([samples.sample(i, Streams(0)) for i in range(4)]))["loss"].backward()
    frozen = {name for name, parameter in learner.named_parameters() if parameter.grad is None}
    expected = {
        name
        for name, _ in learner.named_parameters()
        if name.startswith(("model.encoder.visual_encoder.", "teacher."))
    }
    assert frozen == {*expected, "model.embedder.quantizer.codebook"}
    assert not any(key.startswith(("model.visual", "teacher")) for key in learner.state_dict())
    before = {name: p.clone() for name, p in learner.named_parameters()}
    learner.eval()(**collate_scenes([samples.sample(9, Streams(0))]))
    assert all(torch.equal(before[name], p) for name, p in learner.named_parameters())


def test_a_tower_that_does_not_fit_is_refused(
    mini_recipe: tokenizer.TokenizerRecipe, artwork: Path, tmp_path: Path
) -> None:
    wider = dataclasses.replace(NETWORK, embedding_dim=48)
    with pytest.raises(OptionError, match=r"embeddings \[32\] .*; network in the recipe .* \[48\]"):
        tokenizer.run(dataclasses.replace(mini_recipe, network=wider), tmp_path)
    assert mini_recipe.mini is not None
    world = dataclasses.replace(mini_recipe.mini.world, artwork=artwork, description=None)
    more = dataclasses.replace(mini_recipe.mini, world=world)
    with pytest.raises(OptionError, match="knows 8 objects, and the world has 192"):
        tokenizer.run(dataclasses.replace(mini_recipe, mini=more), tmp_path)


# ---- part: qformer ----


@pytest.fixture(scope="module")
def picture_folder(settings: WorldSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Renderings of three objects with captions."""
    folder = tmp_path_factory.mktemp("pictures")
    world = settings.open()
    names = {str(concept["name"]): i for i, concept in enumerate(world.concepts)}
    chance = random.Random(0)
    for i in range(48):
        name = OBJECTS[i % 3]
        scene = dataclasses.replace(world.draw(chance), concept=names[name])
        picture_from_pixels(world.render([scene])[0]).save(folder / f"{i}.png")
        caption = f"a {scene.size} {name} on a {scene.background} background"
        (folder / f"{i}.txt").write_text(caption, "utf-8")
    return folder


@pytest.fixture(scope="module")
def vocabulary(settings: WorldSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vocabulary")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    words += settings.open().backgrounds
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", "utf-8")
    fields = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields), "utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}), "utf-8")
    return folder


@pytest.fixture(scope="module")
def qformer_recipe(
    tower_folder: Path, picture_folder: Path, vocabulary: Path
) -> tokenizer.TokenizerRecipe:
    return tokenizer.TokenizerRecipe(
        part="qformer",
        tower=tower_folder / TOWER_FILE,
        schedule=schedule(24),
        network=NETWORK,
        qformer=tokenizer.QFormerSettings((picture_folder,), vocabulary),
    )


@pytest.fixture(scope="module")
def qformer_run(
    qformer_recipe: tokenizer.TokenizerRecipe, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("qformer")
    tokenizer.run(qformer_recipe, folder)
    return folder


def test_pictures_find_their_captions(qformer_run: Path) -> None:
    rows = log_of(qformer_run)
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    assert rows[-1]["accuracy"] > 2.5 / 16  # chance: 1 of 16
    assert rows[-1]["temperature"] != rows[0]["temperature"]


def test_qformer_goes_on_bit_for_bit(
    qformer_recipe: tokenizer.TokenizerRecipe,
    qformer_run: Path,
    tmp_path: Path,
    interrupt: Callable[..., None],
) -> None:
    assert_goes_on(qformer_recipe, qformer_run, tmp_path, interrupt)
    assert_same(qformer_run / "qformer.safetensors", tmp_path / "qformer.safetensors")


def contrastive_learner(tower_folder: Path) -> tokenizer_learners.ContrastiveLearner:
    encoder = load_tower(tower_folder, VISION)
    return tokenizer_learners.ContrastiveLearner(encoder, QFORMER, 1e-5, vocabulary_size=40)


def test_the_text_encoder_has_the_attention_of_the_queries(
    tower_folder: Path, isolated_random_state: None
) -> None:
    """The reference's text side, put together here from the Q-Former's layers."""
    learner = contrastive_learner(tower_folder)
    text, qformer = learner.text_encoder, learner.qformer
    ids = torch.tensor([[2, 7, 9, 3]])
    x = text.embeddings.word_embeddings(ids) + text.embeddings.position_embeddings.weight[:4]
    x = qformer.norm(x)
    for layer, own in zip(qformer.layers, text.encoder.layer, strict=True):
        x = layer.self_attention(x, x)  # not causal
        hidden = F.gelu(own.intermediate.dense(x))
        x = own.output.LayerNorm(own.output.dense(hidden) + x)
    out = text(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    torch.testing.assert_close(out, x, atol=1e-5, rtol=1e-4)
    padded = F.pad(ids, (0, 3))
    with_padding = text(input_ids=padded, attention_mask=(padded > 0).long()).last_hidden_state
    torch.testing.assert_close(with_padding[:, :4], x, atol=1e-5, rtol=1e-4)
    out.sum().backward()
    assert qformer.layers[0].self_attention.query.weight.grad is not None


def test_the_last_query_is_compared_with_the_first_word(
    tower_folder: Path, isolated_random_state: None
) -> None:
    learner = contrastive_learner(tower_folder)
    pixels, ids = torch.randn(4, 3, 128, 128), torch.randint(5, 40, (4, 6))
    mask = torch.ones_like(ids)
    features = learner.visual_encoder(pixels)
    queries = learner.qformer(learner.image_norm(features))
    words = learner.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    expected = losses.contrastive_loss(
        F.normalize(learner.vision_proj(queries[:, 31]), dim=1),
        F.normalize(learner.text_proj(words[:, 0]), dim=1),
        torch.tensor(0.07),
    )
    result = learner(pixels, ids, mask)
    torch.testing.assert_close(result["loss"], expected)
    result["loss"].backward()
    idle = {name for name, p in learner.named_parameters() if p.grad is None}
    assert {name.split(".")[0] for name in idle} == {"visual_encoder", "text_encoder"}
    assert {n for n in idle if "text" in n} == {
        "text_encoder.embeddings.token_type_embeddings.weight"
    }


def test_qformer_starts_from_a_file_of_upstreams_names(
    qformer_recipe: tokenizer.TokenizerRecipe, qformer_run: Path, tmp_path: Path
) -> None:
    """A run of no length to speak of, from the other's result, ends beside it."""
    first = dict(read_tensors(qformer_run / "qformer.safetensors"))
    assert {"query_tokens", "ln_vision.weight", "vision_proj.weight", "text_proj.bias"} <= set(
        first
    )
    assert "Qformer.bert.encoder.layer.1.intermediate.dense.weight" in first
    assert "Qformer.bert.encoder.layer.1.intermediate_query.dense.weight" in first
    assert first["temp"].shape == ()
    torch.save({"model": {**first, "itm_head.bias": torch.zeros(2)}}, tmp_path / "blip2.pth")
    assert qformer_recipe.qformer is not None
    start = dataclasses.replace(qformer_recipe.qformer, start=tmp_path / "blip2.pth")
    recipe = dataclasses.replace(
        qformer_recipe, qformer=start, schedule=schedule(1, learning_rate=1e-12)
    )
    tokenizer.run(recipe, tmp_path / "run")
    second = dict(read_tensors(tmp_path / "run" / "qformer.safetensors"))
    for key, tensor in first.items():
        torch.testing.assert_close(second[key], tensor, atol=1e-7, rtol=0)
    save_file({k: v for k, v in first.items() if k != "temp"}, tmp_path / "part.safetensors")
    start = dataclasses.replace(start, start=tmp_path / "part.safetensors")
    with pytest.raises(CheckpointError, match="temp"):
        tokenizer.run(dataclasses.replace(recipe, qformer=start), tmp_path / "other")


@pytest.mark.parametrize("part", ["mini", "qformer", "codebook"])
def test_workers_can_make_samples(
    part: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    assert_workers_can_make_samples: Callable[..., None],
) -> None:
    recipe = request.getfixturevalue(f"{part}_recipe")
    assert_workers_can_make_samples(lambda: tokenizer.run(recipe, tmp_path))


def test_damaged_pictures_are_passed_over(
    picture_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "pictures"
    shutil.copytree(picture_folder, folder)
    (folder / "7.png").write_bytes(b"no picture")
    samples = pictures.PictureFolders([folder], 128, has_captions=True)
    whole = pictures.PictureFolders([picture_folder], 128, has_captions=True)
    changed = 0
    for number in range(96):  # two epochs
        (pixels, caption), (others, other_caption) = (
            samples.sample(number, Streams(0)),
            whole.sample(number, Streams(0)),
        )
        changed += not (torch.equal(pixels, others) and caption == other_caption)
    assert changed == 2
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("7.png is passed over: this is a text, not a picture")
    for path in folder.glob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(PictureError, match="100 pictures in a row are damaged"):
        samples.sample(0, Streams(0))


# ---- part: codebook ----


@pytest.fixture(scope="module")
def codebook_recipe(
    tower_folder: Path, picture_folder: Path, qformer_run: Path
) -> tokenizer.TokenizerRecipe:
    settings = tokenizer.CodebookSettings(
        (picture_folder,), qformer_run / "qformer.safetensors", tower_folder
    )
    return tokenizer.TokenizerRecipe(
        part="codebook",
        tower=tower_folder,
        schedule=schedule(24),
        network=NETWORK,
        codebook=settings,
    )


@pytest.fixture(scope="module")
def codebook_run(
    codebook_recipe: tokenizer.TokenizerRecipe, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("codebook")
    tokenizer.run(codebook_recipe, folder)
    return folder


def test_codebook_learns_and_leaves_the_frozen_parts(
    codebook_run: Path, tower_folder: Path, qformer_run: Path, isolated_random_state: None
) -> None:
    rows = log_of(codebook_run)
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    assert rows[-1]["reconstruction"] < 0.6 * rows[0]["reconstruction"]
    assert rows[-1]["embedding"] < rows[0]["embedding"]
    written = dict(read_tensors(codebook_run / "tokenizer" / "model.safetensors"))
    frozen = dict(read_tensors(tower_folder / TOWER_FILE))
    of_qformer = {
        key: tensor
        for key, tensor in read_tensors(qformer_run / "qformer.safetensors")
        if key in written
    }
    assert {"query_tokens", "ln_vision.weight"} <= of_qformer.keys()
    assert all(torch.equal(written[k], t) for k, t in {**frozen, **of_qformer}.items())
    assert written.keys() == set(weights.upstream_tensors(TokenizerModel(NETWORK)))


def test_codebook_goes_on_bit_for_bit(
    codebook_recipe: tokenizer.TokenizerRecipe,
    codebook_run: Path,
    tmp_path: Path,
    interrupt: Callable[..., None],
) -> None:
    assert_goes_on(codebook_recipe, codebook_run, tmp_path, interrupt)


class _Flat(nn.Module):
    """A teacher whose embedding is a piece of the picture."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels[:, 0, 0, :32]


def codebook_learner() -> tokenizer_learners.CodebookLearner:
    model = TokenizerModel(NETWORK)
    weights.initialize(model)
    return tokenizer_learners.CodebookLearner(model, NETWORK, _Flat())


def test_the_codebooks_loss_is_5_2_and_a_half(isolated_random_state: None) -> None:
    learner = codebook_learner()
    model = learner.model
    pixels = torch.randn(3, 3, 128, 128)
    queries = model.encoder.qformer(model.encoder.image_norm(model.encoder.visual_encoder(pixels)))
    z = model.encoder.encode_head(queries)
    table = model.embedder.quantizer.codebook
    codes = ((z[:, :, None] - table) ** 2).sum(-1).argmin(-1)
    e = table[codes]
    restored = model.embedder.decode_head(e) + learner.pos_embed
    for block in learner.blocks:
        restored = block(restored)
    cosines = (restored * queries).sum(-1) / (restored.norm(dim=-1) * queries.norm(dim=-1))
    expected = (
        5 * 1.25 * ((e - z) ** 2).mean()
        + 2 * (1 - cosines).mean()
        + 0.5 * ((model.embedder(codes) - pixels[:, 0, 0, :32]) ** 2).mean()
    )
    torch.testing.assert_close(learner(pixels)["loss"], expected, rtol=1e-4, atol=1e-5)


def test_codebook_trains_what_the_reference_trains(isolated_random_state: None) -> None:
    learner = codebook_learner()
    learner(torch.randn(3, 3, 128, 128))["loss"].backward()
    idle = {
        name.split(".")[2]
        for name, parameter in learner.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    }
    assert idle == {"visual_encoder", "image_norm", "qformer"}
    trained = {name for name, parameter in learner.named_parameters() if parameter.requires_grad}
    assert trained == {key for key in learner.state_dict()}


def test_blocks_of_training_are_written_on_demand(
    codebook_recipe: tokenizer.TokenizerRecipe, codebook_run: Path, tmp_path: Path
) -> None:
    assert codebook_recipe.codebook is not None
    asked = dataclasses.replace(codebook_recipe.codebook, write_reconstruction=True)
    recipe = dataclasses.replace(
        codebook_recipe, codebook=asked, schedule=schedule(1), precision="fp16"
    )
    tokenizer.run(recipe, tmp_path)
    shapes = dict(read_stand_ins(tmp_path / "tokenizer" / "model.safetensors"))
    plain = dict(read_stand_ins(codebook_run / "tokenizer" / "model.safetensors"))
    more = shapes.keys() - plain.keys()
    assert shapes["pos_embed"].shape == (1, 32, 24)
    assert shapes["blocks.3.attn.qkv.weight"].shape == (72, 24)
    assert {key.split(".")[0] for key in more} == {"pos_embed", "blocks"}
    assert len(more) == 4 * 12 + 1
    loaded = seed_core.load_tokenizer(tmp_path / "tokenizer", dtype=torch.float16)
    assert loaded.embedding_shape == (32,)
    dtypes = {t.dtype for _, t in read_tensors(tmp_path / "tokenizer" / "model.safetensors")}
    assert dtypes == {torch.float16}


def test_clip_teaches_as_well(
    codebook_recipe: tokenizer.TokenizerRecipe, tmp_path: Path, isolated_random_state: None
) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    def save(**sizes: int) -> CLIPVisionModelWithProjection:
        config = CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=128,
            patch_size=64,
            **sizes,
        )
        model = CLIPVisionModelWithProjection(config).eval()
        model.save_pretrained(tmp_path / "clip")
        return model

    model = save(projection_dim=32)
    embedder = load_embedder(tmp_path / "clip", NETWORK)
    pixels = torch.randn(2, 3, 128, 128)
    assert torch.equal(embedder(pixels), model(pixel_values=pixels).image_embeds)
    save(projection_dim=48)
    with pytest.raises(
        OptionError, match=r"clip makes embeddings \[48\] .*; network in the recipe .* \[32\]"
    ):
        load_embedder(tmp_path / "clip", NETWORK)
    with pytest.raises(CheckpointError, match="no CLIP vision model"):
        load_embedder(tmp_path / "nothing", NETWORK)


# ---- recipes ----


@pytest.mark.parametrize("name", ["mini-tokenizer", "smoke-tokenizer", "qformer", "codebook"])
def test_the_recipes_of_the_pack_are_right(name: str) -> None:
    recipe = read_recipe(tokenizer.RECIPE, find_recipe(name))
    if name in ("qformer", "codebook"):
        assert recipe.network == TokenizerConfig.seed_2()
        assert recipe.part == name
    else:
        before = read_recipe(tower.RECIPE, find_recipe(name.replace("tokenizer", "tower")))
        assert recipe.network.vision == before.vision
        assert recipe.network.embedding_dim == before.embedding_dim
    if name == "mini-tokenizer":
        shipped = json.loads((bundled("tokenizer") / "config.json").read_text("utf-8"))
        assert recipe.network == TokenizerConfig.from_dict(shipped)


def test_a_recipe_has_the_settings_of_its_part(mini_recipe: tokenizer.TokenizerRecipe) -> None:
    with pytest.raises(OptionError, match="part: codebook"):
        dataclasses.replace(mini_recipe, part="codebook")
    qformer = dataclasses.replace(QFORMER, context_width=16)
    network = dataclasses.replace(NETWORK, qformer=qformer)
    with pytest.raises(OptionError, match="context_width"):
        dataclasses.replace(mini_recipe, network=network)
