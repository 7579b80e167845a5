"""Laws: training never sees a held-out pair, whatever a background is made of; the halves of the
held-out pairs share none; a look changes a rendering as it says; artwork is what its sources hold."""

import argparse
import io
import json
import random
import tarfile
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from seed_core.errors import DownloadError, OptionError, PictureError
from seed_core.models.names import bundled
from seed_core.training.world import data as world_data
from seed_core.training.world import fluent_emoji
from seed_core.training.world.artwork import (
    Artwork,
    add_object,
    cut_out,
    read_artwork,
    write_artwork,
    write_description,
)
from seed_core.training.world.closed_world import World
from seed_core.training.world.scenes import Look, Scene

FOX = 2  # held out on green


def corners(pictures: torch.Tensor) -> torch.Tensor:
    """The colours in the corners, where no object reaches, [B, 4, 3] in 0..255."""
    return pictures[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].transpose(1, 2) * 255


def names_of(world: World, colours: torch.Tensor) -> list[list[str]]:
    """The named background nearest to each colour, told apart from the code under test."""
    known = torch.tensor(list(world.backgrounds.values()), dtype=torch.float32)
    nearest = (colours[..., None, :] - known).square().sum(-1).argmin(-1)
    names = list(world.backgrounds)
    return [[names[i] for i in row] for row in nearest.tolist()]


# --- which scenes there are ---


@pytest.mark.parametrize("free", [0.0, 1.0])
def test_no_training_picture_shows_a_held_out_pair(world, free):
    chance = random.Random(0)
    scenes = [world.draw(chance, augmented=0.9, free=free) for _ in range(600)]
    assert len({scene.look for scene in scenes}) > 300
    for scene, seen in zip(scenes, names_of(world, corners(world.render(scenes))), strict=True):
        assert world.concepts[scene.concept]["held_out_background"] not in seen


def test_a_background_of_training_may_be_called_by_its_name_unless_it_is_free(world):
    chance = random.Random(1)
    scenes = [world.draw(chance, augmented=1.0) for _ in range(300)]
    for scene, seen in zip(scenes, names_of(world, corners(world.render(scenes))), strict=True):
        assert set(seen) == {scene.background}
        assert world.is_named(scene)
    free = [world.draw(chance, augmented=1.0, free=1.0) for _ in range(300)]
    assert 10 < sum(map(world.is_named, free)) < 200
    for scene in free:
        assert scene.background == world.nearest_background(scene.look.colour)


def test_draws_every_object_background_and_size(world):
    chance = random.Random(2)
    scenes = [world.draw(chance) for _ in range(4000)]
    assert len({scene.concept for scene in scenes}) == 192
    assert len({(scene.background, scene.size) for scene in scenes}) == 24
    assert all(scene.look == Look() for scene in scenes)
    assert max(abs(place) for scene in scenes for place in scene.offset) <= 0.6


@pytest.mark.parametrize(
    ("look", "is_held_out"),
    [
        (Look(), False),
        (Look(colour=(128, 200, 138)), True),
        (Look(gradient=(130, 205, 140)), True),
        (Look(colour=(250, 224, 120), gradient=(110, 165, 240)), True),  # green half way
        (Look(hue=-30), False),
        (Look(mirrored=True, blur=2, brightness=1.1), False),
    ],
)
def test_what_is_held_out_is_judged_by_every_colour_of_the_background(world, look, is_held_out):
    assert world.is_held_out(Scene(FOX, "yellow", "big", look=look)) is is_held_out


def test_a_turned_hue_can_make_a_pair_held_out(world):
    turned = [Scene(FOX, "yellow", "big", look=Look(hue=hue)) for hue in range(-180, 180, 5)]
    seen = names_of(world, corners(world.render(turned)))
    assert {"green" in names for names in seen} == {True, False}
    assert 5 < sum(map(world.is_held_out, turned)) < 40
    for scene, names in zip(turned, seen, strict=True):
        assert world.is_held_out(scene) or "green" not in names


def test_validation_and_test_share_no_pair_and_are_all_together(world):
    halves = {
        split: world.held_out(288, random.Random(0), split) for split in ("validation", "test")
    }
    pairs = {s: {(x.concept, x.background) for x in scenes} for s, scenes in halves.items()}
    assert len(pairs["validation"]) == len(pairs["test"]) == 96
    assert not pairs["validation"] & pairs["test"]
    everything = world.held_out(192, random.Random(0), "all")
    assert pairs["validation"] | pairs["test"] == {(x.concept, x.background) for x in everything}
    for scenes in halves.values():
        assert len({(x.concept, x.size) for x in scenes}) == 288
        assert {x.background for x in scenes} == set(world.backgrounds)
        assert {world.concepts[x.concept]["category"] for x in scenes} == {
            *("animal", "plant", "food", "thing")
        }
        assert all(world.is_held_out(scene) for scene in scenes)
        assert len({x.offset for x in scenes}) == 288


def test_few_held_out_scenes_are_spread_over_the_objects(world):
    scenes = world.held_out(6, random.Random(0), "test")
    assert len({scene.concept // 32 for scene in scenes}) == 6
    with pytest.raises(OptionError, match="training"):
        world.held_out(6, random.Random(0), "training")


def test_a_random_look_of_a_held_out_scene_is_held_out_too(world):
    chance = random.Random(0)
    for scene in world.held_out(50, chance):
        changed = world.augment(scene, chance)
        assert changed.look != Look()
        assert world.is_held_out(changed)
        assert world.is_named(changed)


def test_everything_adds_the_rest_of_the_artwork(artwork, world):
    whole = World(artwork, everything=True)
    assert whole.concepts[:192] == world.concepts
    assert len(whole.concepts) == 319
    assert {concept["category"] for concept in whole.concepts[192:]} == {None}
    backgrounds = list(whole.backgrounds)
    for i, concept in enumerate(whole.concepts):
        assert concept["held_out_background"] == backgrounds[(5 * i + 3) % 8]


def test_a_world_says_what_its_files_lack(artwork, tmp_path):
    description = json.loads(bundled("concepts.json").read_text("utf-8"))
    few = read_artwork(artwork)
    write_artwork(Artwork(few.names[:2], few.rgba[:2]), tmp_path / "few.npz")
    with pytest.raises(OptionError, match=r"few.npz has no picture of dog, fox"):
        World(tmp_path / "few.npz")
    del description["sizes"]
    write_description(description, tmp_path / "concepts.json")
    with pytest.raises(OptionError, match="lacks 'sizes'"):
        World(artwork, tmp_path / "concepts.json")
    with pytest.raises(OptionError, match="data artwork"):
        World(tmp_path / "none.npz")


# --- their pictures ---


@pytest.fixture(scope="module")
def fox() -> Scene:
    return Scene(FOX, "red", "medium", (0.4, -0.3))


def test_a_plain_picture_is_the_same_in_any_company_and_has_8_bit_steps(world, fox):
    scenes = [fox, replace(fox, size="big"), replace(fox, look=Look(blur=1)), fox]
    together = world.render(scenes)
    assert torch.equal(together[0], world.render([fox])[0])
    assert torch.equal(together[0], together[3])
    levels = together * 255
    assert torch.equal(levels, levels.round())


def test_an_object_moves_with_its_offset(world):
    centred, moved = world.render([Scene(FOX, "red", "small"), Scene(FOX, "red", "small", (1, 0))])
    margin = (128 - 60) // 2
    difference = (moved[:, :, margin:] - centred[:, :, :-margin]).abs()
    assert difference.max() * 255 < 1.5


def test_the_cover_is_where_the_background_does_not_shine_through(world):
    scenes = [
        Scene(concept, "white", size, place, Look(mirrored=mirrored))
        for concept, size, place, mirrored in (
            (FOX, "big", (0.0, 0.0), False),
            (FOX, "small", (0.3, -0.7), False),
            (30, "medium", (0.5, 0.2), True),
        )
    ]
    bright, dark = (
        world.render([replace(scene, background=name) for scene in scenes])
        for name in ("white", "black")
    )
    white, black = (
        torch.tensor(world.backgrounds[name]).view(3, 1, 1) / 255 for name in ("white", "black")
    )
    shining = (bright - dark) / (white - black)
    cover = world.cover(scenes)
    assert cover.shape == (3, 1, 128, 128)
    torch.testing.assert_close(1 - shining, cover.expand_as(shining), rtol=0, atol=0.01)
    assert cover[1].sum() < cover[0].sum() / 2


def test_mirrored_is_the_plain_picture_flipped(world, fox):
    looks = [Look(mirrored=True), Look(gradient=(250, 170, 90), mirrored=True)]
    for look in looks:
        mirrored, plain = (
            world.render([replace(fox, look=replace(look, mirrored=way))])[0]
            for way in (True, False)
        )
        assert torch.equal(mirrored, plain.flip(2))
        assert not torch.equal(mirrored, plain)


def test_a_gradient_runs_in_its_direction_from_colour_to_colour(world, fox):
    look = Look(colour=(0, 0, 0), gradient=(255, 255, 255))
    right, down = (
        world.render([replace(fox, look=replace(look, direction=degrees))])[0, 0]
        for degrees in (0, 90)
    )
    assert right[0, 0] < 0.01
    assert right[0, -1] > 0.99
    assert (right[0].diff() >= 0).all()
    assert torch.allclose(right[0], down[:, 0], atol=1 / 255)


def test_a_blur_softens_edges_and_keeps_colours(world, fox):
    sharp, soft, softer = world.render(
        [fox, replace(fox, look=Look(blur=0.7)), replace(fox, look=Look(blur=1.5))]
    )
    steps = [picture.diff(dim=2).abs().max() for picture in (sharp, soft, softer)]
    assert steps[0] > 1.2 * steps[1] > 1.2 * steps[2]
    assert torch.allclose(sharp.mean((1, 2)), softer.mean((1, 2)), atol=0.002)
    assert torch.equal(sharp[:, 0, 0], softer[:, 0, 0])


def test_tints_change_colours_as_they_say(world, fox):
    plain, dark, flat, turned = world.render(
        [
            fox,
            *(
                replace(fox, look=look)
                for look in (Look(brightness=0.5), Look(contrast=0.5), Look(hue=120))
            ),
        ]
    )
    assert torch.allclose(dark, plain / 2, atol=1 / 255)
    assert torch.allclose(flat, 0.25 + plain / 2, atol=1 / 255)
    assert torch.allclose(turned[:, 0, 0], plain[[2, 0, 1], 0, 0], atol=2 / 255)


# --- artwork ---


def picture(size=(40, 20), place=(10, 5), canvas=(80, 60)) -> Image.Image:
    image = Image.new("RGBA", canvas)
    image.paste(Image.new("RGBA", size, (200, 30, 60, 255)), place)
    return image


def test_cuts_the_visible_part_out_and_puts_it_into_the_middle():
    rgba = cut_out(picture())
    assert rgba.shape == (120, 120, 4)
    visible = np.flatnonzero((rgba[..., 3] > 128).any(1))
    assert (visible[0], visible[-1]) == (30, 89)
    assert (rgba[60, :, 3] == 255).all()
    assert rgba[60, 60].tolist() == [200, 30, 60, 255]


def test_an_object_of_ones_own_joins_artwork_and_description(artwork, tmp_path):
    before = read_artwork(artwork)
    description = json.loads(bundled("concepts.json").read_text("utf-8"))
    after, described = add_object(before, description, "mascot", picture(), "thing")
    write_artwork(after, tmp_path / "a.npz")
    write_description(described, tmp_path / "c.json")
    world = World(tmp_path / "a.npz", tmp_path / "c.json")
    assert len(description["concepts"]) == 192
    assert world.concepts[192]["name"] == "mascot"
    backgrounds = list(world.backgrounds)
    assert world.concepts[192]["held_out_background"] == backgrounds[(5 * 192 + 3) % 8]
    seen = world.render([Scene(192, "white", "big")])[0, :, 64, 64] * 255
    assert torch.allclose(seen, torch.tensor([200.0, 30.0, 60.0]), atol=1)
    for name, category, message in (
        ("fox", "animal", "name of its own"),
        ("bunny", "animal", "name of its own"),
        ("mascot 2", "hero", "category must be one of animal, plant, food, thing"),
    ):
        with pytest.raises(OptionError, match=message):
            add_object(before, description, name, picture(), category)


def command(add_arguments, *arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([*map(str, arguments)])


def test_the_command_adds_an_object(artwork, tmp_path, capsys):
    path = tmp_path / "mascot.png"
    picture().save(path)
    options = (
        "--name",
        "mascot",
        "--category",
        "thing",
        "--artwork",
        artwork,
        "-o",
        tmp_path / "my",
    )
    world_data.run_own_object(command(world_data.add_own_object, path, *options))
    assert "object 193" in capsys.readouterr().out
    world = World(tmp_path / "my" / "artwork.npz", tmp_path / "my" / "concepts.json")
    assert world.concepts[-1]["name"] == "mascot"
    with pytest.raises(OptionError, match="the picture .* is missing"):
        world_data.run_own_object(command(world_data.add_own_object, tmp_path / "no", *options))
    path.write_bytes(b"no picture")
    with pytest.raises(PictureError, match="cannot be read"):
        world_data.run_own_object(command(world_data.add_own_object, path, *options))


def test_a_picture_that_cannot_be_cut_out_is_refused():
    with pytest.raises(PictureError, match="shows nothing"):
        cut_out(Image.new("RGBA", (9, 9)))
    with pytest.raises(PictureError, match="no transparency"):
        cut_out(Image.new("RGB", (9, 9)))


def test_artwork_of_another_form_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"no archive")
    with pytest.raises(OptionError, match="must be an artwork file"):
        read_artwork(path)
    np.savez(path, names=np.array(["a"]), rgba=np.zeros((1, 8, 8, 4), np.uint8))
    with pytest.raises(OptionError, match=r"needs uint8 pictures \[1, 120, 120, 4\]"):
        read_artwork(path)
    with pytest.raises(OptionError, match="two pictures of a"):
        Artwork(("a", "a"), np.zeros((2, 120, 120, 4), np.uint8))


# --- the npm package ---


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A package of two pictures, unpacked."""
    monkeypatch.setattr(
        fluent_emoji, "fluent_emoji_names", lambda: {"box": "1f600", "bar": "1f601"}
    )
    assets = tmp_path / "package" / "assets"
    assets.mkdir(parents=True)
    picture().save(assets / "1f600.webp", lossless=True)
    picture((30, 30)).save(assets / "1f601.webp", lossless=True)
    picture().save(assets / "1f602.webp")
    return tmp_path


def pack(folder: Path) -> Path:
    path = folder / "package.tgz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder / "package", "package")
    return path


def test_the_package_is_read_packed_and_unpacked(package):
    read = [
        fluent_emoji.read_package(path) for path in (package, package / "package", pack(package))
    ]
    for artwork in read:
        assert artwork.names == ("box", "bar")
        assert np.array_equal(artwork.rgba[0], cut_out(picture()))
        assert np.array_equal(artwork.rgba, read[0].rgba)


def test_the_command_makes_artwork_of_a_package(package, tmp_path):
    path = tmp_path / "artwork.npz"
    world_data.run_artwork(command(world_data.add_artwork, "--package", package, "-o", path))
    assert read_artwork(path).names == ("box", "bar")


def test_another_package_is_refused(package):
    (package / "package" / "assets" / "1f601.webp").unlink()
    for path in (package, pack(package)):
        with pytest.raises(OptionError, match=r"no assets/1f601.webp"):
            fluent_emoji.read_package(path)
    (package / "no.tgz").write_bytes(b"no archive")
    for name in ("no.tgz", "none.tgz"):
        with pytest.raises(OptionError, match=r"cannot be read as a .tgz"):
            fluent_emoji.read_package(package / name)


def test_a_download_is_kept_only_if_it_has_the_hash(package, monkeypatch, tmp_path):
    path = pack(package)
    monkeypatch.setattr(
        urllib.request, "urlopen", lambda url, timeout: io.BytesIO(path.read_bytes())
    )
    with pytest.raises(DownloadError, match="expected sha512-Wlq2"):
        fluent_emoji.download_package(tmp_path / "new.tgz")
    assert not (tmp_path / "new.tgz").exists()
    monkeypatch.setattr(fluent_emoji, "INTEGRITY", fluent_emoji.integrity(path.read_bytes()))
    fluent_emoji.download_package(tmp_path / "new.tgz")
    assert (tmp_path / "new.tgz").read_bytes() == path.read_bytes()

    def refuse(url, timeout):
        raise OSError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(DownloadError, match="npm pack @lobehub/fluent-emoji-3d@1.1.0"):
        fluent_emoji.download_package(tmp_path / "new.tgz")


def test_every_name_of_the_artwork_has_a_picture_file_of_its_own(artwork):
    names = fluent_emoji.fluent_emoji_names()
    assert tuple(names) == read_artwork(artwork).names
    assert len(set(names.values())) == 319
