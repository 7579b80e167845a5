"""The stage tower: what it learns, what it writes, and that it goes on exactly."""

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from seed_core.errors import CheckpointError, OptionError
from seed_core.files.weights import read_tensors
from seed_core.models.names import bundled
from seed_core.tokenizer.eva_vit import VisionConfig
from seed_core.tokenizer.preprocess import preprocess
from seed_core.training.__main__ import main
from seed_core.training.data import pictures
from seed_core.training.networks.teacher import HeadLossWeights, Labels, SceneReader, TeacherSizes
from seed_core.training.networks.teacher_folder import (
    TEACHER_FILE,
    TOWER_FILE,
    load_teacher,
    load_tower,
)
from seed_core.training.recipe import find_recipe, read_recipe
from seed_core.training.schedule import Schedule
from seed_core.training.stages import tower
from seed_core.training.streams import Streams
from seed_core.training.world.rendering import normalize
from seed_core.training.world.samples import NOT_NAMED, WorldPictures, WorldSettings, collate_scenes
from seed_core.training.world.scenes import Look, Scene

OBJECTS = ("fox", "pizza", "frog", "robot")
VISION = VisionConfig(image_size=128, patch_size=16, width=32, depth=1, num_heads=4, mlp_width=64)


@pytest.fixture(scope="module")
def settings(small_world: Callable[..., WorldSettings]) -> WorldSettings:
    return small_world(OBJECTS)


@pytest.fixture(scope="module")
def recipe(settings: WorldSettings) -> tower.TowerRecipe:
    schedule = Schedule(steps=36, batch_size=24, learning_rate=5e-3, warm_up=5, save_every=10)
    return tower.TowerRecipe(settings, VISION, schedule, embedding_dim=32)


@pytest.fixture(scope="module")
def trained(recipe: tower.TowerRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tower")
    tower.run(recipe, folder)
    return folder


def batch(settings: WorldSettings, count: int, seed: int) -> Labels:
    world = settings.open()
    samples = WorldPictures(settings, world)
    content = collate_scenes([samples.sample(i, Streams(seed)) for i in range(count)])
    return Labels.of(content["scenes"], content["backgrounds"], world)


def test_a_tower_learns_to_read_scenes_it_has_not_seen(
    trained: Path, settings: WorldSettings
) -> None:
    rows = json.loads((trained / "log.json").read_text("utf-8"))
    assert rows[-1]["loss"] < 0.75 * rows[0]["loss"]
    labels = batch(settings, 200, seed=1)
    teacher = load_teacher(trained)
    embedding = teacher.embed(normalize(labels.pictures))
    assert teacher.reader.accuracy(embedding, labels) > 0.6  # chance: 0.25
    is_named = labels.backgrounds >= 0
    read = teacher.reader.background(embedding).argmax(1)
    assert (read == labels.backgrounds)[is_named].float().mean() > 0.3  # chance: 0.125


def test_an_interrupted_run_goes_on_bit_for_bit(
    trained: Path, recipe: tower.TowerRecipe, tmp_path: Path, interrupt: Callable[..., None]
) -> None:
    interrupt(lambda: tower.run(recipe, tmp_path), step=15)
    assert not (tmp_path / TOWER_FILE).exists()
    assert [path.name for path in (tmp_path / "checkpoints").glob("*-*")] == ["checkpoint-10"]
    tower.run(recipe, tmp_path)
    for name in (TOWER_FILE, TEACHER_FILE):
        straight, resumed = (dict(read_tensors(folder / name)) for folder in (trained, tmp_path))
        assert straight.keys() == resumed.keys()
        assert all(torch.equal(straight[key], resumed[key]) for key in straight)


def test_workers_can_make_samples(
    recipe: tower.TowerRecipe, tmp_path: Path, assert_workers_can_make_samples: Callable[..., None]
) -> None:
    assert_workers_can_make_samples(lambda: tower.run(recipe, tmp_path))


@pytest.mark.parametrize(
    ("stage", "name"),
    [("tower", "smoke-tower"), ("tokenizer", "smoke-tokenizer"), ("decoder", "smoke-vae")],
)
def test_stages_of_vision_do_not_share_out_their_weights(
    stage: str,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert main([stage, name, "-o", str(tmp_path / "run")]) == 1
    assert "start it without FSDP, with torchrun for several cards" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_tower_has_the_names_of_upstream_and_no_key_bias(trained: Path) -> None:
    names = {key for key, _ in read_tensors(trained / TOWER_FILE)}
    shipped = {
        key
        for key, _ in read_tensors(bundled("tokenizer") / "model.safetensors", "visual_encoder.")
        if ".blocks." not in key or ".blocks.0." in key
    }
    assert names == shipped
    (last,) = (trained / "checkpoints").glob("checkpoint-36")
    bias = dict(read_tensors(last / "model.safetensors"))[
        "teacher.visual_encoder.blocks.0.attn.qkv.bias"
    ]
    query, key, value = bias.chunk(3)
    assert not key.any()
    assert query.any()
    assert value.any()


def test_what_is_loaded_is_what_was_trained(trained: Path, recipe: tower.TowerRecipe) -> None:
    state = dict(read_tensors(trained / "checkpoints" / "checkpoint-36" / "model.safetensors"))
    teacher = load_teacher(trained)
    loaded = {f"teacher.{key}": tensor for key, tensor in teacher.state_dict().items()}
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_an_embedding_has_mean_0_and_variance_1(trained: Path, generator: torch.Generator) -> None:
    pixels = torch.randn(2, 3, 128, 128, generator=generator)
    embedding = load_teacher(trained).embed(pixels)
    assert embedding.shape == (2, 32)
    torch.testing.assert_close(embedding.mean(1), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(embedding.var(1, correction=0), torch.ones(2), atol=0.01, rtol=0)


def test_labels_say_where_the_object_is(settings: WorldSettings) -> None:
    """Small is 60 pixels of 128: a shift by all of the margin moves the centre by 34 pixels."""
    world = settings.open()
    scenes = [
        Scene(1, "blue", "small", (1.0, -0.5)),
        Scene(2, "red", "big", (0.5, 0.0), Look(mirrored=True)),
    ]
    labels = Labels.of(scenes, torch.tensor([6, 2]), world)
    expected = torch.tensor([[34 / 64, -17 / 64], [-4.5 / 64, 0.0]])
    torch.testing.assert_close(labels.positions, expected)
    assert labels.objects.tolist() == [1, 2]
    assert labels.sizes.tolist() == [0, 2]
    changed = (labels.pictures[0] - world.render([scenes[0]])[0, :, :1, :1]).abs().sum(0) > 0.05
    columns = changed.any(0).nonzero()
    centre = (columns.min() + columns.max() + 1) / 2 - 64
    assert abs(centre - 34) <= 3  # the drawing does not fill its square to the pixel


def test_a_background_without_a_name_counts_for_nothing(isolated_random_state: None) -> None:
    sizes = TeacherSizes(objects=2, backgrounds=3, sizes=3, embedding_dim=4, picture_side=4)
    reader = SceneReader(sizes)
    embedding = torch.randn(2, 4)

    def loss(*backgrounds: int) -> float:
        labels = Labels(
            torch.tensor([0, 1]),
            torch.tensor(backgrounds),
            torch.tensor([0, 1]),
            torch.zeros(2, 2),
            torch.zeros(2, 3, 8, 8),
        )
        return reader.losses(embedding, labels)["background"].item()

    scores = reader.background(embedding)
    alone = -scores[1].log_softmax(0)[2].item()
    assert loss(NOT_NAMED, 2) == pytest.approx(alone / 2)
    assert loss(NOT_NAMED, NOT_NAMED) == 0


def test_the_embedding_learns_from_every_head(
    settings: WorldSettings, isolated_random_state: None
) -> None:
    sizes = TeacherSizes(objects=4, backgrounds=8, sizes=3, embedding_dim=8)
    reader = SceneReader(sizes)
    embedding = torch.randn(6, 8, requires_grad=True)
    losses = reader.losses(embedding, batch(settings, 6, seed=0))
    assert losses.keys() == {field.name for field in dataclasses.fields(HeadLossWeights)}
    for name, loss in losses.items():
        (gradient,) = torch.autograd.grad(loss, embedding, retain_graph=True)
        assert gradient.any(), name


def test_pixels_of_renderings_are_those_of_preprocess(settings: WorldSettings) -> None:
    seen = batch(settings, 4, seed=2).pictures
    assert torch.equal(normalize(seen), preprocess(seen, 128))


def test_samples_are_the_same_for_the_same_number(settings: WorldSettings) -> None:
    world = settings.open()
    samples, again = (WorldPictures(settings, world, shortened=0.5, until=200) for _ in "ab")
    drawn = [samples.sample(i, Streams(0)) for i in range(400)]
    assert [again.sample(i, Streams(0)) for i in reversed(range(400))] == drawn[::-1]
    assert not any(world.is_held_out(sample.scene) for sample in drawn)
    short = [i for i, sample in enumerate(drawn) if sample.num_codes < 32]
    assert 60 < len(short) < 140  # half of the first 200, on the average
    assert max(short) < 200
    assert min(drawn[i].num_codes for i in short) >= 1
    assert len({drawn[i].num_codes for i in short}) > 20
    free = [sample for sample in drawn if sample.background == NOT_NAMED]
    assert free
    assert all(sample.scene.look.colour for sample in free)


def test_crops_hold_half_of_the_picture_at_least() -> None:
    chance = random.Random(0)
    picture = Image.linear_gradient("L").resize((200, 160)).convert("RGB")
    crops = [pictures.random_crop(picture, chance) for _ in range(50)]
    for crop in crops:
        assert 0.49 <= crop.width * crop.height / (200 * 160) <= 1.0
        assert 0.73 <= crop.width / crop.height <= 1.36
    assert len({crop.size for crop in crops}) > 40
    long = Image.new("RGB", (1000, 10))
    assert pictures.random_crop(long, chance).size == (1000, 10)


def test_every_epoch_shows_every_picture_once_in_another_order(tmp_path: Path) -> None:
    for i in range(12):
        Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"level {i}\n\nor {i}\n", "utf-8")
    samples = pictures.PictureFolders([tmp_path], 4, has_captions=True)
    captions = [samples.sample(i, Streams(0))[1] for i in range(24)]
    numbers = [int(caption.split()[-1]) for caption in captions]
    assert sorted(numbers[:12]) == sorted(numbers[12:]) == list(range(12))
    assert numbers[:12] != numbers[12:]
    assert {caption.split()[0] for caption in captions} == {"level", "or"}
    again = pictures.PictureFolders([tmp_path], 4, has_captions=True)
    assert [again.sample(i, Streams(0))[1] for i in reversed(range(24))] == captions[::-1]
    (tmp_path / "3.txt").write_text(" \n", "utf-8")
    with pytest.raises(OptionError, match="has no caption"):
        [samples.sample(i, Streams(0)) for i in range(12)]


def test_what_does_not_fit_is_refused(
    settings: WorldSettings, recipe: tower.TowerRecipe, trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match="128 pixels a side"):
        dataclasses.replace(recipe, vision=VisionConfig(image_size=224))
    with pytest.raises(OptionError, match="picture_side"):
        dataclasses.replace(recipe, picture_side=7)
    schedule = dataclasses.replace(recipe.schedule, checkpoint_activations=True)
    with pytest.raises(OptionError, match="keeps its activations"):
        dataclasses.replace(recipe, schedule=schedule)
    with pytest.raises(OptionError, match="augmented"):
        dataclasses.replace(settings, augmented=1.5)
    with pytest.raises(CheckpointError, match="another size"):
        load_tower(trained, dataclasses.replace(VISION, width=64))
    with pytest.raises(CheckpointError, match="tower.json"):
        load_teacher(tmp_path)


def test_a_tower_without_prefix_is_read_as_well(trained: Path, tmp_path: Path) -> None:
    """EVA's own file has the names without ``visual_encoder.``."""
    tensors = dict(read_tensors(trained / TOWER_FILE))
    torch.save(
        {key.removeprefix("visual_encoder."): tensor for key, tensor in tensors.items()},
        tmp_path / "eva_vit_g.pth",
    )
    both = [load_tower(path, VISION) for path in (trained, tmp_path / "eva_vit_g.pth")]
    pixels = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    assert torch.equal(both[0](pixels), both[1](pixels))


@pytest.mark.parametrize("name", ["mini-tower", "smoke-tower"])
def test_the_recipes_of_the_pack_are_right(name: str) -> None:
    recipe = read_recipe(tower.RECIPE, find_recipe(name))
    assert recipe.world.everything
    assert recipe.vision.image_size == 128
