"""The stage decoder: an autoencoder and a diffusion model that learn, at toy size."""

import json
import math
import random
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from seed_core import DecodeOptions, load_decoder, load_tokenizer
from seed_core.errors import CheckpointError, OptionError
from seed_core.models.names import bundled
from seed_core.training import loop
from seed_core.training.networks.album import open_album
from seed_core.training.networks.averaging import WeightAverage
from seed_core.training.networks.decoder_folder import read_vae
from seed_core.training.networks.losses import mean_on
from seed_core.training.networks.painters import SceneUnet
from seed_core.training.networks.unet import (
    Embedder,
    UnetLearner,
    UnetSizes,
    VelocityLoss,
    diffusion_scheduler,
    noising_scheduler,
)
from seed_core.training.networks.vae import (
    PictureLoss,
    VaeLearner,
    VaeSizes,
    latents_of,
    standardize,
)
from seed_core.training.recipe import RECIPES, read_recipe
from seed_core.training.schedule import Schedule
from seed_core.training.stages import decoder
from seed_core.training.stages.decoder import (
    DecoderRecipe,
    UnetOptions,
    VaeOptions,
    noised_samples,
    open_world,
    scene_samples,
)
from seed_core.training.streams import Streams
from seed_core.training.world.noised import Chances, collate_noised
from seed_core.training.world.rendering import normalize
from seed_core.training.world.samples import WorldSettings


def noised(recipe, latent_shape, embedding_dim):
    """The samples of a recipe for a UNet."""
    scenes = scene_samples(recipe, open_world(recipe))
    return noised_samples(recipe, scenes, latent_shape, embedding_dim)


BUNDLED = bundled("decoder")

TOY_VAE = VaeSizes(image_size=16, block_out_channels=(16, 16), norm_num_groups=2)
TOY_UNET = UnetSizes(block_out_channels=(32, 32), attention_head_dim=8, norm_num_groups=8)


def schedule(steps: int, **others) -> Schedule:
    usual = {"batch_size": 16, "learning_rate": 1e-2, "weight_decay": 0.0, "warm_up": 5}
    often = (
        {"log_every": 1, "save_every": 1} if steps < 10 else {"log_every": 5, "save_every": 1000}
    )
    return Schedule(steps=steps, **{**usual, **often, **others})


def vae_recipe(artwork: Path, steps: int, alone: int, **others) -> DecoderRecipe:
    options = VaeOptions(TOY_VAE, decoder_alone=schedule(alone), measured=64)
    return DecoderRecipe("vae", WorldSettings(artwork), schedule(steps), vae=options, **others)


def unet_recipe(artwork: Path, steps: int, vae: Path | None, **others) -> DecoderRecipe:
    options = UnetOptions(
        TOY_UNET, vae=None if vae is None else str(vae), draws_per_scene=4, measured=64
    )
    slower = schedule(steps, learning_rate=3e-3)
    return DecoderRecipe("unet", WorldSettings(artwork), slower, unet=options, **others)


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in json.loads((folder / loop.LOG_FILE).read_text("utf-8"))]


def built(sizes, *args):
    """A network with random weights, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return sizes.build(*args)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def in_vae_form(pictures: torch.Tensor) -> torch.Tensor:
    return 2 * nn.functional.avg_pool2d(pictures, 8) - 1


@pytest.fixture(scope="module")
def trained_vae(artwork, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vae")
    decoder.run(vae_recipe(artwork, 100, 20, half=False), folder)
    return folder


@pytest.fixture(scope="module")
def trained_unet(artwork, trained_vae, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unet")
    decoder.run(unet_recipe(artwork, 80, trained_vae, half=False), folder)
    return folder


# ---- sizes and recipes ----


def test_the_default_sizes_are_those_of_seed_mini():
    def described(part: str, name: str = "config.json") -> dict:
        return json.loads((BUNDLED / part / name).read_text("utf-8"))

    def same(config, part: str, name: str = "config.json") -> dict:
        wanted = described(part, name)
        return {
            key: (config.get(key), value)
            for key, value in wanted.items()
            if not key.startswith("_") and json.loads(json.dumps(config.get(key))) != value
        }

    unet = built(UnetSizes(), 16, 4, 256)
    assert not same(unet.config, "unet")
    assert sum(parameter.numel() for parameter in unet.parameters()) == 3500708
    vae = built(VaeSizes())
    assert set(same(vae.config, "vae")) == {"scaling_factor"}  # which training measures
    assert sum(parameter.numel() for parameter in vae.parameters()) == 1471447
    numbers = "scheduler_config.json"
    assert not same(diffusion_scheduler().config, "scheduler", numbers)
    assert not same(noising_scheduler().config, "image_noising_scheduler", numbers)


@pytest.mark.parametrize(
    "name",
    ["mini-vae", "mini-unet", "mini-unet-more", "smoke-vae", "smoke-unet", "teach-unet"],
)
def test_recipes_can_be_read(name):
    recipe = read_recipe(decoder.RECIPE, RECIPES / f"{name}.yaml")
    assert recipe.part == name.split("-")[1]


def test_settings_that_do_not_fit_are_refused(artwork):
    world = WorldSettings(artwork)
    with pytest.raises(OptionError, match="either start"):
        DecoderRecipe("unet", world, schedule(1))
    with pytest.raises(OptionError, match="either start"):
        DecoderRecipe("unet", world, schedule(1), start="seed-mini", unet=UnetOptions(vae="x"))
    with pytest.raises(OptionError, match="favour_part"):
        DecoderRecipe("vae", world, schedule(1), favour=("fox",))
    with pytest.raises(OptionError, match=r"0\.\.1"):
        DecoderRecipe("vae", world, schedule(1), favour=("fox",), favour_part=1.5)
    with pytest.raises(OptionError, match=r"drop must lie in 0\.\.1"):
        Chances(drop=-0.1)
    with pytest.raises(OptionError, match=r"chances\.teacher"):
        UnetOptions(teacher=Path("x"))
    for power in (0.5, math.inf, math.nan):
        with pytest.raises(OptionError, match="high_noise must be at least 1"):
            Chances(high_noise=power)
    with pytest.raises(OptionError, match=r"loss\.object must be at least 0"):
        VelocityLoss(object=-1.0)
    for settings in ({"average": 1.0}, {"average": -0.1}, {"album": -1}):
        with pytest.raises(OptionError, match=f"{next(iter(settings))}.* must be at least 0"):
            UnetOptions(**settings)
    with pytest.raises(OptionError, match="norm_num_groups"):
        VaeSizes(norm_num_groups=7)
    with pytest.raises(OptionError, match="levels"):
        VaeSizes(image_size=100)
    recipe = vae_recipe(artwork, 1, 1, favour=("yeti",), favour_part=0.5)
    with pytest.raises(OptionError, match="no picture of yeti"):
        scene_samples(recipe, open_world(recipe))


def test_parts_that_do_not_fit_are_refused(artwork, tmp_path, trained_unet):
    with pytest.raises(CheckpointError, match=r"vae/config\.json"):
        decoder.run(unet_recipe(artwork, 1, tmp_path), tmp_path / "run")
    recipe = unet_recipe(artwork, 1, None, start=str(tmp_path / "nothing"))
    with pytest.raises(CheckpointError, match="nothing"):
        decoder.run(recipe, tmp_path / "run")
    odd = VaeOptions(VaeSizes(image_size=48, block_out_channels=(16, 16), norm_num_groups=4))
    with pytest.raises(OptionError, match="whole fraction"):
        decoder.run(
            DecoderRecipe("vae", WorldSettings(artwork), schedule(1), vae=odd), tmp_path / "run"
        )


# ---- samples ----


def test_a_sample_is_the_same_whatever_was_asked_for_before(artwork):
    recipe = unet_recipe(artwork, 1, Path("x"))
    first, second = (noised(recipe, (4, 8, 8), 256) for _ in range(2))
    forward = [first.sample(number, Streams(0)) for number in range(8)]
    backward = [second.sample(number, Streams(0)) for number in reversed(range(8))][::-1]
    for (scene, draws), (same_scene, same_draws) in zip(forward, backward, strict=True):
        assert scene == same_scene
        for name, value in vars(draws).items():
            assert torch.equal(value, getattr(same_draws, name)), name
    assert len({scene for scene, _ in forward}) == 2, "four samples in a row show one scene"
    assert len({float(draws.noise.sum()) for _, draws in forward}) == 8
    assert len({int(draws.timestep) for _, draws in forward}) > 5


def test_random_numbers_come_as_often_as_asked_for(artwork):
    chances = Chances(drop=0.1, noise_embedding=0.25, teacher=0.4)
    options = UnetOptions(vae="x", teacher=Path("x"), chances=chances)
    recipe = DecoderRecipe("unet", WorldSettings(artwork), schedule(1), unet=options)
    samples = noised(recipe, (1, 2, 2), 4)
    count = 3000
    batch = collate_noised([samples.sample(number, Streams(0)) for number in range(count)])

    def assert_rate(flags: torch.Tensor, rate: float) -> None:
        spread = math.sqrt(rate * (1 - rate) / count)
        assert abs(flags.float().mean() - rate) < 4 * spread

    assert_rate(batch["is_dropped"], 0.1)
    assert_rate(batch["is_teacher"], 0.4)
    assert_rate(batch["embedding_level"] > 0, 0.25)
    assert_rate(batch["timestep"] < 250, 0.25)
    assert {int(batch["timestep"].min()), int(batch["timestep"].max())} <= set(range(1000))
    assert batch["timestep"].max() > 990
    assert abs(batch["noise"].mean()) < 0.05
    assert abs(batch["noise"].std() - 1) < 0.05


def test_more_levels_are_drawn_near_pure_noise():
    even = torch.rand(20000, generator=generator())
    assert torch.equal(Chances().timestep(even), (1000 * (1 - even.double())).long())
    for power in (1.0, 2.0, 3.0):
        levels = Chances(high_noise=power).timestep(even)
        assert 0 <= levels.min() < 10
        assert levels.max() == 999
        for level in (250, 500, 750):  # by the law u ** power < 1 - level / 1000
            rate = (1 - level / 1000) ** (1 / power)
            spread = math.sqrt(rate * (1 - rate) / len(even))
            assert abs((levels >= level).float().mean() - rate) < 4 * spread
    ends = Chances(high_noise=2.0).timestep(torch.tensor([0.0, 1.0]))
    assert ends.tolist() == [999, 0]


def test_an_album_shows_its_scenes_again_and_again(artwork):
    recipe = unet_recipe(artwork, 1, Path("x"))
    recipe = replace(recipe, unet=replace(recipe.unet, draws_per_scene=1, album=8))
    samples = noised(recipe, (4, 8, 8), 256)
    batch = [samples.sample(number, Streams(0)) for number in range(400)]
    shown = [scene for scene, _ in batch]
    first = list(scene_samples(recipe, open_world(recipe)).batches(8, Streams(0)))
    assert set(shown) == set(sum(first, []))
    assert all(shown.count(scene) == 50 for scene in set(shown)), "each as often"
    assert shown[:100] != shown[100:200]
    assert len({float(draws.noise.sum()) for _, draws in batch}) == 400, "never the same noise"


def test_favoured_objects_are_shown_as_often_as_asked_for(artwork, world):
    recipe = vae_recipe(artwork, 1, 1, favour=("wolf", "skull"), favour_part=0.5)
    everything = open_world(recipe)
    samples = scene_samples(recipe, everything)
    scenes = [samples.sample(number, Streams(0)) for number in range(600)]
    described = len(world.concepts)
    new = [scene for scene in scenes if scene.concept >= described]
    assert len({scene.concept for scene in new}) == 2, "the two, and nothing else of the artwork"
    assert 0.42 < len(new) / len(scenes) < 0.58
    assert not any(everything.is_held_out(scene) for scene in scenes)


# ---- the autoencoder ----


def test_the_terms_of_the_picture_loss_are_those_of_their_formulas():
    wanted = torch.zeros(1, 1, 2, 2)
    pictures = torch.tensor([[1.0, -0.5], [0.0, 0.5]]).view(1, 1, 2, 2)
    loss, terms = PictureLoss(1, 2, 3, 4, area=2)(pictures, wanted)
    assert terms["l1"] == pytest.approx((1 + 0.5 + 0 + 0.5) / 4)
    assert terms["l2"] == pytest.approx((1 + 0.25 + 0 + 0.25) / 4)
    assert terms["gradient"] == pytest.approx((1.5 + 0.5) / 2 + (1 + 1) / 2)
    assert terms["low_frequency"] == pytest.approx(0.25**2)
    assert loss == pytest.approx(0.5 + 2 * 0.375 + 3 * 2 + 4 * 0.0625)
    cover = torch.tensor([[1.0, 0.5], [0.5, 0.0]]).view(1, 1, 2, 2)
    more, terms = PictureLoss(1, 2, 3, 4, object=5, area=2)(pictures, wanted, cover)
    assert terms["object"] == pytest.approx((1 + 0.25 + 0) / 2)
    assert more == pytest.approx(float(loss) + 5 * 0.625)


def test_small_objects_count_as_much_as_big_ones():
    small, big = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    small[..., :2, :2] = big[..., :6, :6] = 1
    cover = torch.cat([small, big])
    errors = cover.expand(2, 3, 8, 8).clone()
    errors[0] *= 4
    assert mean_on(errors, cover) == pytest.approx((4 + 1) / 2)
    assert mean_on(torch.ones(2, 3, 8, 8), cover) == 1


def test_standardized_latents_have_mean_0_and_deviation_1_and_the_same_pictures():
    vae = built(TOY_VAE).requires_grad_(False)
    pictures = torch.rand(12, 3, 16, 16, generator=generator()) * 2 - 1
    vae.quant_conv.bias += torch.arange(8.0)
    vae.post_quant_conv.weight += 0.1
    before = vae.decode(latents_of(vae, pictures)).sample
    standardize(vae, pictures.split(5))
    latents = latents_of(vae, pictures)
    scaled = latents * vae.config.scaling_factor
    assert scaled.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert scaled.std(correction=0) == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(vae.decode(latents).sample, before, atol=1e-5, rtol=1e-4)
    drawn = vae.encode(pictures).latent_dist.sample(generator())
    torch.testing.assert_close(drawn, latents, atol=1e-5, rtol=0)
    with pytest.raises(OptionError, match="at least one"):
        standardize(vae, [])


def test_workers_can_make_samples(artwork, trained_vae, tmp_path, assert_workers_can_make_samples):
    for recipe in (vae_recipe(artwork, 3, 3), unet_recipe(artwork, 3, trained_vae)):
        assert_workers_can_make_samples(partial(decoder.run, recipe, tmp_path))


def test_the_decoder_alone_is_trained_in_the_second_run():
    vae = built(TOY_VAE)
    VaeLearner(vae, PictureLoss(), decoder_alone=True)
    trained = {name.split(".")[0] for name, p in vae.named_parameters() if p.requires_grad}
    assert trained == {"decoder", "post_quant_conv"}
    VaeLearner(vae, PictureLoss(), decoder_alone=False)
    assert all(parameter.requires_grad for parameter in vae.parameters())


def test_the_autoencoder_learns(trained_vae, world):
    curve = losses(trained_vae / "autoencoder")
    assert curve[-1] < 0.6 * curve[0]
    assert losses(trained_vae / "decoder_alone")[-1] < curve[-1]
    vae = read_vae(trained_vae)
    pictures = in_vae_form(world.render(world.held_out(48, random.Random(5))))
    with torch.no_grad():
        latents = latents_of(vae, pictures)
        painted = vae.decode(latents).sample
    error = (painted - pictures).square().mean()
    of_mean_picture = (pictures.mean(dim=0) - pictures).square().mean()
    assert 10 * torch.log10(of_mean_picture / error) > 3, "dB more than the mean picture"
    scaled = latents * vae.config.scaling_factor
    assert scaled.mean().abs() < 0.2
    assert 0.8 < scaled.std() < 1.2


def assert_same_tensors(folder: Path, other: Path) -> None:
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.safetensors"))
    assert files
    for file in files:
        tensors, others = load_file(folder / file), load_file(other / file)
        assert tensors.keys() == others.keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, others[name]), f"{file}: {name}"


def test_an_autoencoder_that_went_on_equals_one_that_never_stopped(artwork, tmp_path, interrupt):
    recipe = vae_recipe(artwork, 3, 3)
    decoder.run(recipe, tmp_path / "whole")
    interrupt(lambda: decoder.run(recipe, tmp_path / "parts"), step=2)
    interrupt(lambda: decoder.run(recipe, tmp_path / "parts"), step=1, training=2)
    decoder.run(recipe, tmp_path / "parts")
    whole, parts = tmp_path / "whole" / "vae", tmp_path / "parts" / "vae"
    assert_same_tensors(whole, parts)
    assert (whole / "config.json").read_bytes() == (parts / "config.json").read_bytes()


# ---- the diffusion model ----


class ZeroUnet(nn.Module):
    """Predicts nothing, and remembers what it was asked."""

    config = SimpleNamespace(cross_attention_dim=32)

    def forward(self, sample, timestep, encoder_hidden_states, class_labels):
        self.asked = sample, timestep, encoder_hidden_states, class_labels
        return SimpleNamespace(sample=torch.zeros_like(sample))


def zero_snr_alphas() -> torch.Tensor:
    """The products of 1 - beta by the formulas of the papers, in double precision."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    roots = (1 - betas).cumprod(0).sqrt()
    return ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2


def test_the_schedule_ends_in_noise_alone():
    scheduler = diffusion_scheduler()
    wanted = zero_snr_alphas()
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), wanted, atol=1e-6, rtol=1e-3)
    assert scheduler.alphas_cumprod[-1] < 1e-12
    scheduler.set_timesteps(20)
    assert scheduler.timesteps.tolist() == [1000 - 50 * step - 1 for step in range(20)]


def test_the_network_is_shown_noised_latents_and_asked_for_v():
    unet = ZeroUnet()
    learner = UnetLearner(unet, torch.zeros(1, 6), torch.ones(1, 6))
    x = torch.randn(3, 4, 8, 8, generator=generator())
    noise = torch.randn(3, 4, 8, 8, generator=generator(1))
    timestep = torch.tensor([0, 500, 999])
    embeddings = torch.randn(3, 6, generator=generator(2))
    level = torch.zeros(3, dtype=torch.int64)
    loss = learner(x, embeddings, noise, timestep, torch.zeros(3, 6), level, level > 0)
    signal = zero_snr_alphas()[timestep].view(3, 1, 1, 1)
    a, s = signal.sqrt().float(), (1 - signal).sqrt().float()
    shown, at, text, _ = unet.asked
    torch.testing.assert_close(shown, a * x + s * noise, atol=1e-4, rtol=1e-4)
    assert torch.equal(shown[2], noise[2]), "the last level holds no signal"
    assert at is timestep
    assert text.shape == (3, 1, 32)
    assert loss == pytest.approx(float((a * noise - s * x).square().mean()), rel=1e-4)


def test_the_loss_of_v_is_that_of_its_formula():
    wanted, predicted = torch.zeros(2, 2, 4, 4), torch.zeros(2, 2, 4, 4)
    predicted[0, :, :2, :2] = 2.0  # 4 off on a quarter, which is the object
    predicted[1] = 0.1  # 0.01 off everywhere
    cover = torch.zeros(2, 1, 4, 4)
    cover[0, :, :2, :2] = cover[1, :, 1:, 1:] = 1
    plain = VelocityLoss()
    assert plain(predicted, wanted) == pytest.approx((1 + 0.01) / 2)
    assert plain(predicted, wanted, cover) == plain(predicted, wanted)
    assert VelocityLoss(object=0.5)(predicted, wanted) == plain(predicted, wanted)
    more = VelocityLoss(object=0.5)(predicted, wanted, cover)
    assert more == pytest.approx((1 + 0.01) / 2 + 0.5 * (4 + 0.01) / 2), "small ones count as much"
    log = VelocityLoss(logarithmic=True)(predicted, wanted)
    assert log == pytest.approx((math.log(1.001) + math.log(0.011)) / 2, rel=1e-4)
    both = VelocityLoss(0.5, True)(predicted, wanted, cover)
    on_objects = (math.log(4.001) + math.log(0.011)) / 2
    assert both == pytest.approx(float(log) + 0.5 * on_objects, rel=1e-4)
    assert torch.isfinite(VelocityLoss(0.5, True)(wanted, wanted, cover))


def test_the_network_learns_by_the_loss_it_is_given():
    x, noise = (torch.randn(2, 4, 8, 8, generator=generator(seed)) for seed in (0, 1))
    timestep, level = torch.tensor([999, 0]), torch.zeros(2, dtype=torch.int64)
    cover = torch.zeros(2, 1, 8, 8)
    cover[..., :3, :5] = 1
    given = (x, torch.zeros(2, 6), noise, timestep, torch.zeros(2, 6), level, level > 0, cover)
    signal = zero_snr_alphas()[timestep].view(2, 1, 1, 1)
    wanted = (signal.sqrt() * noise - (1 - signal).sqrt() * x).float()
    for loss in (VelocityLoss(), VelocityLoss(0.5), VelocityLoss(0.5, logarithmic=True)):
        learner = UnetLearner(ZeroUnet(), torch.zeros(1, 6), torch.ones(1, 6), loss=loss)
        expected = float(loss(torch.zeros_like(wanted), wanted, cover))
        assert learner(*given) == pytest.approx(expected, rel=1e-3)


def test_the_average_follows_the_weights_by_its_formula():
    with torch.random.fork_rng():
        network = nn.Linear(1, 1, bias=False)
    average = WeightAverage(network, 0.5)
    expected = float(network.weight.detach())
    for step, decay in enumerate(
        [1 / 10, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16, 8 / 17, 0.5]
    ):
        with torch.no_grad():
            network.weight.fill_(step**2)
        average.update(network)
        expected = decay * expected + (1 - decay) * step**2
        assert float(average.network.weight) == pytest.approx(expected, rel=1e-5)
    assert not average.network.weight.requires_grad
    assert float(network.weight.detach()) == 64, "the network itself stays"


def test_labels_are_those_that_pictures_are_decoded_from(seed_mini_decoder):
    module = seed_mini_decoder.module
    learner = UnetLearner(nn.Identity(), module.mean, module.std)
    embeddings = torch.randn(4, 256, generator=generator())
    noise = torch.randn(4, 256, generator=generator(1))
    dropped = torch.tensor([False, False, True, False])
    for number in (0, 400, 999):
        level = torch.full((4,), number)
        labels = learner.labels(embeddings, noise, level, dropped)
        wanted = seed_mini_decoder._noised(embeddings, noise, number)
        assert torch.equal(labels[~dropped], wanted[~dropped])
        assert not labels[2].any(), "no condition is all zeros"


@pytest.fixture(scope="module")
def seed_mini_decoder():
    return load_decoder("seed-mini")


def test_the_embeddings_are_the_tokenizers_and_the_teachers(world):
    tokenizer = load_tokenizer("seed-mini")
    pictures = world.render(world.held_out(3, random.Random(1)))
    teacher = nn.Identity()
    teacher.embed = lambda pixels: pixels.mean(dim=(2, 3)).repeat(1, 86)[:, :256]
    pixels = normalize(pictures)
    embeddings = Embedder(tokenizer.module, teacher)(pixels)
    wanted = tokenizer.embed(tokenizer.encode(tokenizer.preprocess(pictures)))
    torch.testing.assert_close(embeddings[:, 0], wanted, atol=1e-4, rtol=1e-4)
    assert torch.equal(embeddings[:, 1], teacher.embed(pixels))
    mean, std = Embedder(tokenizer.module).measure(pixels.split(2))
    torch.testing.assert_close(mean[0], wanted.mean(dim=0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(std[0], wanted.std(dim=0, correction=0), atol=1e-4, rtol=1e-4)
    with pytest.raises(OptionError, match="the same for every picture"):
        Embedder(tokenizer.module).measure([pixels[:1]])


def test_the_diffusion_model_learns(trained_unet):
    curve = losses(trained_unet)
    assert sum(curve[-5:]) / 5 < 0.75 * curve[0]
    assert sum(curve[-5:]) / 5 < 0.7, "a model that predicts 0 has 1, the variance of v"


def test_the_diffusion_model_listens_to_its_embedding(trained_unet, trained_vae, world):
    module = load_decoder(trained_unet / "decoder").module
    learner = UnetLearner(module.unet, module.mean, module.std)
    pictures = world.render(world.held_out(64, random.Random(2)))
    embeddings = Embedder(load_tokenizer("seed-mini").module)(normalize(pictures))[:, 0]
    vae = read_vae(trained_vae)
    no = torch.zeros(64, dtype=torch.int64)
    with torch.no_grad():
        latents = latents_of(vae, in_vae_form(pictures)) * vae.config.scaling_factor
        noise = torch.randn(latents.shape, generator=generator())
        # Nothing of the picture is left in the noise: what the network knows is the embedding.
        told, misled, untold = (
            float(learner(latents, rows, noise, no + 999, torch.zeros(64, 256), no, is_dropped))
            for rows, is_dropped in (
                (embeddings, no > 0),
                (embeddings.roll(1, 0), no > 0),
                (embeddings, no == 0),
            )
        )
    assert told < 0.8 * untold
    assert told < 0.6 * misled


def test_the_written_decoder_paints(trained_unet):
    made = load_decoder(trained_unet / "decoder")
    embeddings = torch.randn(2, 256, generator=generator())
    options = DecodeOptions(num_inference_steps=5, guidance_scale=2)
    painted = made.decode(embeddings, options=options, generator=generator(3))
    assert painted.shape == (2, 3, 16, 16)
    assert 0 <= painted.min() < painted.max() <= 1
    other = made.decode(-embeddings, options=options, generator=generator(3))
    assert (painted - other).abs().mean() > 0.02


def test_the_written_decoder_is_what_was_trained(trained_unet, trained_vae):
    (checkpoint,) = (trained_unet / loop.CHECKPOINTS).glob("checkpoint-*/model.safetensors")
    trained = load_file(checkpoint)
    assert all(name.startswith("learner.") for name in trained), "frozen parts have own files"
    module = load_decoder(trained_unet / "decoder").module
    for name, tensor in module.unet.state_dict().items():
        assert torch.equal(tensor, trained[f"learner.unet.{name}"]), name
    assert torch.equal(module.mean, trained["learner.mean"])
    assert torch.equal(module.std, trained["learner.std"])
    vae = read_vae(trained_vae)
    assert module.vae.config.scaling_factor == vae.config.scaling_factor
    for name, tensor in vae.state_dict().items():
        assert torch.equal(tensor, module.vae.state_dict()[name]), name
    made, bundled = (
        json.loads((folder / "model_index.json").read_text("utf-8"))
        for folder in (trained_unet / "decoder", BUNDLED)
    )
    assert {k: v for k, v in made.items() if k != "_diffusers_version"} == {
        k: v for k, v in bundled.items() if k != "_diffusers_version"
    }


def test_a_diffusion_model_that_went_on_equals_one_that_never_stopped(
    artwork, trained_vae, tmp_path, interrupt
):
    recipe = unet_recipe(artwork, 3, trained_vae)
    decoder.run(recipe, tmp_path / "whole")
    interrupt(lambda: decoder.run(recipe, tmp_path / "parts"), step=2)
    decoder.run(recipe, tmp_path / "parts")
    assert_same_tensors(tmp_path / "whole" / "decoder", tmp_path / "parts" / "decoder")


def test_the_average_and_the_album_go_on_where_a_run_stopped(
    artwork, trained_vae, tmp_path, interrupt
):
    recipe = unet_recipe(artwork, 4, trained_vae, half=False)
    options = replace(recipe.unet, album=12, average=0.8, loss=VelocityLoss(0.5, True))
    recipe = replace(recipe, unet=options)
    decoder.run(recipe, tmp_path / "whole")
    interrupt(lambda: decoder.run(recipe, tmp_path / "parts"), step=2)
    album = load_file(tmp_path / "parts" / decoder.ALBUM_FILE)
    assert {name: len(tensor) for name, tensor in album.items()} == {
        "latents": 12,
        "embeddings": 12,
        "cover": 12,
    }
    decoder.run(recipe, tmp_path / "parts")
    assert_same_tensors(tmp_path / "whole" / "decoder", tmp_path / "parts" / "decoder")
    newest = max((tmp_path / "whole" / loop.CHECKPOINTS).glob("checkpoint-*/model.safetensors"))
    trained, written = load_file(newest), load_decoder(tmp_path / "whole" / "decoder").module.unet
    differences = []
    for name, tensor in written.state_dict().items():
        assert torch.equal(tensor, trained[f"learner.average.network.{name}"]), "it is written"
        differences.append(float((tensor - trained[f"learner.unet.{name}"]).abs().max()))
    assert max(differences) > 0
    assert trained["learner.average.steps"] == 4


def test_a_part_of_the_start_is_kept(artwork, trained_vae, tmp_path):
    decoder.run(unet_recipe(artwork, 1, trained_vae, half=False), tmp_path / "start")
    start = tmp_path / "start" / "decoder"
    recipe = unet_recipe(artwork, 2, None, start=str(start), half=False)
    recipe = replace(recipe, unet=replace(recipe.unet, average=0.5))
    decoder.run(recipe, tmp_path / "trained")
    decoder.run(replace(recipe, unet=replace(recipe.unet, keep=0.25)), tmp_path / "kept")
    folders = start, tmp_path / "trained" / "decoder", tmp_path / "kept" / "decoder"
    weights = [load_decoder(folder).module.unet.state_dict() for folder in folders]
    for name, before in weights[0].items():
        after, kept = weights[1][name], weights[2][name]
        torch.testing.assert_close(kept, 0.25 * before + 0.75 * after)
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_what_is_kept_is_of_a_start(artwork, trained_vae):
    recipe = unet_recipe(artwork, 1, trained_vae)
    with pytest.raises(OptionError, match=r"unet\.keep 0\.5 is of the weights of start"):
        replace(recipe, unet=replace(recipe.unet, keep=0.5))


def test_an_album_holds_what_its_scenes_show(artwork, trained_vae, world, tmp_path):
    embedder = Embedder(load_tokenizer("seed-mini").module)
    learner = UnetLearner(ZeroUnet(), torch.zeros(1, 256), torch.ones(1, 256))
    vae = read_vae(trained_vae)
    stage = SceneUnet(learner, vae, embedder, world)
    scenes = world.held_out(5, random.Random(3))
    path, cpu = tmp_path / "album.safetensors", torch.device("cpu")
    shown, origin = stage.show(scenes), stage.origin()
    pictures = world.render(scenes)
    wanted = latents_of(vae, in_vae_form(pictures)) * vae.config.scaling_factor
    assert torch.equal(shown.latents, wanted)
    assert torch.equal(shown.embeddings, embedder(normalize(pictures)))
    torch.testing.assert_close(
        shown.cover, nn.functional.avg_pool2d(world.cover(scenes), 128 // wanted.shape[-1])
    )
    for _ in range(2):  # made, then read
        album = open_album(path, [scenes[:3], scenes[3:]], stage.show, origin, cpu)
        for part, whole in zip(album([scenes[4], scenes[0], scenes[4]]), shown, strict=True):
            torch.testing.assert_close(part, whole[[4, 0, 4]], atol=1e-5, rtol=1e-4)
    before = path.read_bytes()
    with torch.no_grad():
        vae.decoder.conv_in.bias += 1
    for others, now in (
        (scenes[:4], origin),
        (scenes[::-1], origin),
        (world.held_out(5, random.Random(4)), origin),
        (scenes, stage.origin()),
    ):
        with pytest.raises(CheckpointError, match=f"does not hold the {len(others)} scenes"):
            open_album(path, [others], stage.show, now, cpu)
    assert path.read_bytes() == before


def test_teaching_goes_on_from_a_decoder(artwork, trained_unet, tmp_path):
    start = trained_unet / "decoder"
    teach = unet_recipe(artwork, 2, None, start=str(start), favour=("wolf",), favour_part=0.5)
    often = replace(teach.schedule, log_every=1)
    decoder.run(replace(teach, schedule=often), tmp_path)
    before, after = (load_decoder(folder).module for folder in (start, tmp_path / "decoder"))
    assert torch.equal(before.mean, after.mean)
    moved = [
        float((new - old).abs().max())
        for new, old in zip(after.unet.parameters(), before.unet.parameters(), strict=True)
    ]
    assert 0 < max(moved) < 0.02, "two small steps away"
    weights = load_file(tmp_path / "decoder" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    started, ended = losses(tmp_path)[0], losses(trained_unet)[-1]
    assert started < (losses(trained_unet)[0] + ended) / 2, "it begins about where the other ended"
