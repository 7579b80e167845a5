"""Recipes are read strictly: nothing that a file says is ignored, and nothing is guessed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from seed_core.errors import OptionError
from seed_core.training import recipe
from seed_core.training.__main__ import main
from seed_core.training.data.sources import SourceFiles
from seed_core.training.recipe import find_recipe, read_recipe, to_yaml
from seed_core.training.schedule import Schedule


@dataclass(frozen=True)
class Ingredient:
    name: str
    weight: float = 1.0


@dataclass(frozen=True)
class Cake:
    schedule: Schedule
    ingredients: tuple[Ingredient, ...]
    folder: Path
    layers: tuple[int, ...] = (1, 2)
    shape: Literal["round", "square"] = "round"
    topping: str | None = None
    candles: int | None = 3
    is_vegan: bool = False


TEXT = """
schedule: {steps: 10, batch_size: 4, learning_rate: 1}
ingredients: [{name: flour, weight: 2}, {name: sugar}]
folder: some/where
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "cake.yaml"
        path.write_text(text, "utf-8")
        return path

    return write


def test_a_recipe_fills_nested_dataclasses(write):
    cake = read_recipe(Cake, write(TEXT))
    assert cake == Cake(
        schedule=Schedule(steps=10, batch_size=4, learning_rate=1.0),
        ingredients=(Ingredient("flour", 2.0), Ingredient("sugar")),
        folder=Path("some/where"),
    )
    assert isinstance(cake.schedule.learning_rate, float)
    assert isinstance(cake.ingredients[0].weight, float)


def test_every_kind_of_field_is_read(write):
    text = TEXT + "layers: [3]\nshape: square\ntopping: cream\ncandles: null\nis_vegan: true\n"
    cake = read_recipe(Cake, write(text))
    read = (cake.layers, cake.shape, cake.topping, cake.candles, cake.is_vegan)
    assert read == ((3,), "square", "cream", None, True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("colour: red", r"has no field colour; known: schedule, ingredients, folder, .*is_vegan"),
        ("schedule: {steps: 1, batch_size: 1, learning_rate: 1, speed: 2}", "schedule has no field speed"),
        ("ingredients: [{name: flour, wieght: 2}]", "ingredients has no field wieght; known: name, weight"),
        ("1: 2", "has no field 1"),
        ("schedule: {steps: 1, batch_size: 1}", "schedule is incomplete: .*'learning_rate'"),
        ("schedule: 5", "schedule must be names and values; got 5"),
        ("schedule: {steps: 1.0, batch_size: 1, learning_rate: 1}", r"schedule: steps must be of type int; got 1\.0"),
        ("schedule: {steps: true, batch_size: 1, learning_rate: 1}", "steps must be of type int; got True"),
        ("schedule: {steps: 1, batch_size: 1, learning_rate: e-4}", "learning_rate must be a number; got 'e-4'"),
        ("schedule: {steps: 1, batch_size: 1, learning_rate: true}", "learning_rate must be a number.*got True"),
        ("schedule: {steps: 0, batch_size: 1, learning_rate: 1}", r"schedule\.steps must be at least 1; got 0"),
        ("schedule: {steps: 1, batch_size: 1, learning_rate: 0}", r"schedule\.learning_rate must be over 0"),
        ("schedule: {steps: 1, batch_size: 1, learning_rate: 1, save_every: 5, log_every: 2}", "save_every 5 must be a multiple of log_every 2"),
        ("schedule: {steps: 1, batch_size: 1, learning_rate: 1, precision: fp8}", "precision must be one of fp32, bf16, fp16; got 'fp8'"),
        ("ingredients: flour", "ingredients must be a list; got 'flour'"),
        ("ingredients: [flour]", "ingredients must be names and values; got 'flour'"),
        ("layers: [1, two]", "layers must be of type int; got 'two'"),
        ("layers: 1", "layers must be a list; got 1"),
        ("shape: oval", "shape must be one of round, square; got 'oval'"),
        ("topping: 3", "topping must be of type str; got 3"),
        ("candles: many", "candles must be of type int; got 'many'"),
        ("folder: 3", "folder must be a path; got 3"),
        ("folder: null", "folder must be a path; got None"),
        ("is_vegan: 1", "is_vegan must be of type bool; got 1"),
        ("is_vegan: 'yes'", "is_vegan must be of type bool; got 'yes'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(write, line, message):
    name = line.partition(":")[0]
    kept = "".join(f"{each}\n" for each in TEXT.split("\n") if not each.startswith(f"{name}:"))
    path = write(kept + line)
    with pytest.raises(OptionError, match=message) as error:
        read_recipe(Cake, path)
    assert name == "schedule" or str(path) in str(error.value)


def test_what_is_left_out_is_named(write):
    with pytest.raises(OptionError, match="is incomplete: .*'folder'"):
        read_recipe(Cake, write(TEXT.replace("folder", "# folder")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "must be a YAML file"),
        ("- 1\n- 2", "must hold names and values"),
        ("word", "it holds 'word'"),
    ],
)
def test_files_that_are_no_recipe_are_refused(write, text, message):
    with pytest.raises(OptionError, match=message):
        read_recipe(Cake, write(text))
    path = write("")
    path.write_bytes(b"a: \xff\xfe")
    with pytest.raises(OptionError, match="must be a YAML file"):
        read_recipe(Cake, path)


def test_an_empty_recipe_is_incomplete(write):
    with pytest.raises(OptionError, match="is incomplete"):
        read_recipe(Cake, write("# nothing\n"))
    assert read_recipe(Ingredient, write(""), ["name=salt"]) == Ingredient("salt")


def test_settings_can_be_changed(write):
    changes = [
        *("schedule.steps=100", "schedule.learning_rate=1.0e-3", "topping=sweet = sour"),
        *("layers=[5, 6]", "ingredients=[{name: salt}]", "candles=null", "is_vegan=true"),
    ]
    cake = read_recipe(Cake, write(TEXT), changes)
    assert (cake.schedule.steps, cake.schedule.batch_size) == (100, 4)
    assert cake.schedule.learning_rate == 1e-3
    assert cake.topping == "sweet = sour"
    assert cake.layers == (5, 6)
    assert cake.ingredients == (Ingredient("salt"),)
    assert (cake.candles, cake.is_vegan) == (None, True)


@pytest.mark.parametrize("text", ["5e-4", "5E-4", "+5e-4", "5.e-4", "5.0e-4", ".5e-3", "0.0005"])
def test_numbers_are_read_as_people_write_them(write, text):
    # YAML 1.1 reads an exponent without a point before it as text.
    changed = read_recipe(Cake, write(TEXT), [f"schedule.learning_rate={text}"])
    assert changed.schedule.learning_rate == 5e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("schedule.steps", "--set takes NAME=VALUE"),
        ("schedule.stesp=3", "has no field stesp"),
        ("colour=red", "has no field colour"),
        ("folder.name=a", "folder is one value and has no fields"),
        ("layers=[1", "must be a value in YAML"),
        ("schedule.steps=many", "steps must be of type int; got 'many'"),
    ],
)
def test_changes_are_read_as_strictly(write, change, message):
    with pytest.raises(OptionError, match=message):
        read_recipe(Cake, write(TEXT), [change])


def test_a_recipe_that_is_written_reads_back_the_same(write):
    changes = ["topping=null", "candles=7", "schedule.epsilon=1.0e-10", "shape=square"]
    cake = read_recipe(Cake, write(TEXT), changes)
    text = to_yaml(cake)
    assert read_recipe(Cake, write(text)) == cake
    assert to_yaml(read_recipe(Cake, write(text))) == text


def test_recipes_are_found_by_path_and_by_name(write, tmp_path, monkeypatch):
    path = write(TEXT)
    monkeypatch.setattr(recipe, "RECIPES", tmp_path)
    assert find_recipe(str(path)) == path
    assert find_recipe("cake") == path
    with pytest.raises(
        OptionError, match="the recipe bread is missing; give a YAML file, or one of cake"
    ):
        find_recipe("bread")


# ---- numbers out of range ----

OUT_OF_RANGE = {
    ("tower", "smoke-tower"): [
        *("embedding_dim=0", "picture_side=0", "weights.object=-1", "weights.picture=.nan"),
        *(
            "vision.depth=0",
            "vision.num_heads=0",
            "world.augmented=1.5",
            "schedule.learning_rate=.inf",
        ),
    ],
    ("tokenizer", "smoke-tokenizer"): [
        *("network.codebook_dim=0", "network.decode_heads=0", "network.image_down=[0]"),
        *("network.qformer.num_heads=0", "mini.shortened=-1", "mini.commitment=.inf"),
        *("mini.reading.size=-1", "mini.decay=1.5", "mini.restart_below=-1"),
    ],
    ("decoder", "smoke-vae"): [
        *(
            "vae.sizes.norm_num_groups=0",
            "vae.sizes.block_out_channels=[]",
            "vae.sizes.image_size=0",
        ),
        *("vae.sizes.block_out_channels=[0]", "vae.sizes.latent_channels=-1", "vae.measured=0"),
        *("vae.sizes.layers_per_block=0", "vae.loss.area=0", "vae.loss.l1=-1", "vae.loss.l2=.nan"),
    ],
    ("decoder", "smoke-unet"): [
        *("unet.sizes.attention_head_dim=0", "unet.sizes.norm_num_groups=0", "unet.measured=1"),
        *(
            "unet.sizes.block_out_channels=[-16]",
            "unet.sizes.text_width=0",
            "unet.draws_per_scene=0",
        ),
        *("unet.sizes.layers_per_block=0", "unet.chances.drop=.nan", "unet.keep=-1"),
    ],
    ("llm", "smoke-llm"): [
        *("sizes.hidden_size=0", "sizes.hidden_size=60", "sizes.num_attention_heads=0"),
        *("sizes.num_hidden_layers=0", "sizes.max_position_embeddings=0", "sizes.rms_norm_eps=-1"),
        *("data.wrong_codes=2", "keep=2", "data.world.augmented=-1", "data.world.drawings=0"),
    ],
    ("tune", "smoke-tune"): ["rank=0", "alpha=.inf", "dropout=1", "schedule.clip=.nan"],
}


@pytest.mark.parametrize(
    ("stage", "name", "change"),
    [(*recipe, change) for recipe, changes in OUT_OF_RANGE.items() for change in changes],
)
def test_numbers_out_of_range_are_refused_in_one_sentence(
    stage, name, change, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(Path(__file__).parents[2])
    given = change.partition("=")
    assert main([stage, name, "-o", str(tmp_path / "run"), "--set", change]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert given[0].rpartition(".")[2].replace("_", " ") in line.replace("_", " ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change", [{"swapped": 1.5}, {"weight": float("inf")}, {"max_length": 1}])
def test_a_source_out_of_range_is_refused(change):
    with pytest.raises(OptionError, match=next(iter(change))):
        SourceFiles("codes.jsonl", **change)
