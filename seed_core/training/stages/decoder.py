"""The stage ``decoder``: first an autoencoder, then the diffusion model that paints.

``part: vae`` writes the folder ``vae``. ``part: unet`` takes that and a tokenizer, and writes the
folder ``decoder``, which `load_decoder` reads. Both can start from an existing decoder and show
some objects more often: so an artist teaches seed-mini what it cannot draw yet.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from ...decoder.runtime import SeedDecoder
from ...errors import OptionError
from ...models.tokenizer import load_tokenizer
from ...models.unclip import load_decoder
from ..loop import train
from ..networks.album import open_album
from ..networks.averaging import keep_of_start
from ..networks.decoder_folder import read_vae, write_decoder, write_vae
from ..networks.painters import SceneUnet, SceneVae, as_vae_input, check_vae_size
from ..networks.teacher_folder import check_teacher, load_teacher
from ..networks.unet import Embedder, UnetLearner, UnetSizes, VelocityLoss
from ..networks.vae import PictureLoss, VaeLearner, VaeSizes, standardize
from ..processes import check_whole, compute_device, is_first_process
from ..schedule import Schedule
from ..settings import check_at_least, check_fractions
from ..streams import Streams
from ..world.closed_world import World
from ..world.noised import Chances, NoisedSamples, collate_noised
from ..world.rendering import SIDE, normalize
from ..world.samples import SceneSamples, WorldSettings, collate_plain_scenes

ALBUM_FILE = "album.safetensors"

VAE_RUNS = ("autoencoder", "decoder_alone")
"""Folders of the two runs of ``part: vae``."""


@dataclass(frozen=True)
class VaeOptions:
    """How an autoencoder is trained."""

    sizes: VaeSizes = VaeSizes()  # of a new autoencoder
    loss: PictureLoss = PictureLoss()
    decoder_alone: Schedule | None = None  # of a second run, which keeps the latents as they are
    measured: int = 2048  # pictures that give the latents' mean and deviation

    def __post_init__(self) -> None:
        check_at_least(1, self, "measured", group="vae.")


@dataclass(frozen=True)
class UnetOptions:
    """How a diffusion model is trained."""

    sizes: UnetSizes = UnetSizes()  # of a new diffusion model
    chances: Chances = Chances()  # of its random numbers
    # Folder with the autoencoder of a new one: the output of part: vae, or a decoder.
    vae: str | None = None
    tokenizer: str = "seed-mini"  # it paints from the embeddings of this one, a folder or seed-mini
    teacher: Path | None = None  # folder of the vision tower whose embeddings the tokenizer learned
    # Consecutive samples that show one scene, whose latents and embedding cost more than a step
    # of the network.
    draws_per_scene: int = 1
    # Different scenes in all, whose latents and embeddings are made once, at the start; 0 for ever
    # new ones.
    album: int = 0
    # Decay of the average of the weights, which is written in place of the last ones; 0 for none.
    average: float = 0.0
    keep: float = 0.0  # fraction of the start's weights in the result, see keep_of_start
    loss: VelocityLoss = VelocityLoss()
    measured: int = 2048  # pictures that give the embeddings' mean and deviation

    def __post_init__(self) -> None:
        check_at_least(1, self, "draws_per_scene", group="unet.")
        check_at_least(2, self, "measured", group="unet.")  # of one there is no deviation
        check_at_least(0, self, "album", group="unet.")
        check_fractions(self, "keep", group="unet.")
        if not 0 <= self.average < 1:
            raise OptionError(f"unet.average must be at least 0 and below 1; got {self.average}")
        if bool(self.teacher) != bool(self.chances.teacher):
            raise OptionError(
                "teacher is a folder, chances.teacher the fraction of the samples that it embeds: give "
                f"both or neither; got {self.teacher} and {self.chances.teacher}"
            )


@dataclass(frozen=True)
class DecoderRecipe:
    """What the stage reads."""

    part: Literal["vae", "unet"]  # which of the two networks is trained
    world: WorldSettings  # it learns to paint this one
    schedule: Schedule  # of an autoencoder's first run, or of the diffusion model
    # The decoder to go on from, a folder or seed-mini; by default a new one.
    start: str | None = None
    # Objects to show more often, by their names in the description or else in the artwork.
    favour: tuple[str, ...] = ()
    favour_part: float = 0.0  # fraction of the scenes that show one of these
    half: bool = True  # write weights in float16
    vae: VaeOptions = VaeOptions()  # settings of part: vae
    unet: UnetOptions = UnetOptions()  # settings of part: unet

    def __post_init__(self) -> None:
        check_fractions(self, "favour_part")
        if bool(self.favour) != bool(self.favour_part):
            raise OptionError(
                "favour names objects, favour_part says how often they are shown: give both or "
                f"neither; got {list(self.favour)} and {self.favour_part}"
            )
        if self.part == "unet" and (self.start is None) == (self.unet.vae is None):
            raise OptionError(
                "a UNet needs either start, a decoder to go on from, or unet.vae, the autoencoder "
                f"of a new one; got {self.start} and {self.unet.vae}"
            )
        if self.unet.keep and self.start is None:
            raise OptionError(
                f"unet.keep {self.unet.keep} is of the weights of start, which names no decoder"
            )


RECIPE = DecoderRecipe


def run(recipe: DecoderRecipe, output: Path) -> None:
    """Train one network of a decoder and write the folder ``vae`` or ``decoder`` of the output.

    Raises:
        OptionError: settings or networks do not fit one another, or the launcher asked for FSDP.
        CheckpointError: a network cannot be read.
    """
    check_whole()
    world = open_world(recipe)
    (_train_vae if recipe.part == "vae" else _train_unet)(recipe, world, output)


def open_world(recipe: DecoderRecipe, device: torch.device | str = "cpu") -> World:
    """Return the world of a recipe, with the rest of the artwork if objects are favoured."""
    settings = recipe.world
    everything = settings.everything or bool(recipe.favour)
    return replace(settings, everything=everything).open(device)


def scene_samples(recipe: DecoderRecipe, world: World) -> SceneSamples:
    """Return the scenes that a recipe learns to paint."""
    return SceneSamples(recipe.world, world, recipe.favour, recipe.favour_part)


def _renderer(recipe: DecoderRecipe, world: World) -> World:
    """Return the same world where the loop computes."""
    device = compute_device()
    return world if device == world.device else open_world(recipe, device)


# ---- the autoencoder ----


def _train_vae(recipe: DecoderRecipe, world: World, output: Path) -> None:
    vae: Any = None
    for name, schedule in zip(VAE_RUNS, (recipe.schedule, recipe.vae.decoder_alone), strict=True):
        if schedule is not None:
            vae = _run_vae(replace(recipe, schedule=schedule), world, output / name, vae)
    if is_first_process():
        renderer = _renderer(recipe, world)
        vae.to(renderer.device)
        streams = Streams(recipe.schedule.seed)
        batches = scene_samples(recipe, world).batches(recipe.vae.measured, streams)
        standardize(vae, (as_vae_input(renderer.render(scenes), vae) for scenes in batches))
        write_vae(output, vae, recipe.half)


def _run_vae(recipe: DecoderRecipe, world: World, folder: Path, trained: Any) -> Any:
    """Train an autoencoder; one that is already ``trained`` keeps its latents."""

    def build() -> SceneVae:
        if trained is not None:
            vae = copy.deepcopy(trained)
        elif recipe.start is not None:
            vae = read_vae(recipe.start)
        else:
            vae = recipe.vae.sizes.build()
        check_vae_size(vae)
        learner = VaeLearner(vae, recipe.vae.loss, decoder_alone=trained is not None)
        return SceneVae(learner, _renderer(recipe, world))

    stage = train(build, scene_samples(recipe, world), collate_plain_scenes, recipe, folder)
    assert isinstance(stage, SceneVae)
    return stage.learner.vae


# ---- the diffusion model ----


def _train_unet(recipe: DecoderRecipe, world: World, output: Path) -> None:
    options = recipe.unet
    if options.vae is not None:
        started, vae = None, read_vae(options.vae)
    else:
        assert recipe.start is not None
        started = _read_start(recipe.start)
        vae = started.module.vae
    check_vae_size(vae)
    embedder, embedding_dim = _embedder(options)
    if started is not None and started.module.mean.shape[-1] != embedding_dim:
        raise OptionError(
            f"{recipe.start} paints from embeddings of {started.module.mean.shape[-1]} numbers; "
            f"those of the tokenizer {options.tokenizer} have {embedding_dim}"
        )
    side = vae.config.sample_size // 2 ** (len(vae.config.block_out_channels) - 1)
    channels = vae.config.latent_channels
    scenes, streams = scene_samples(recipe, world), Streams(recipe.schedule.seed)
    samples = noised_samples(recipe, scenes, (channels, side, side), embedding_dim)

    def build() -> SceneUnet:
        renderer = _renderer(recipe, world)
        embedder.to(renderer.device)
        how: dict[str, Any] = {"average": options.average, "loss": options.loss}
        if started is not None:
            learner = UnetLearner(
                copy.deepcopy(started.module.unet),
                started.module.mean,
                started.module.std,
                started.scheduler,
                started.noising_scheduler,
                **how,
            )
        else:
            unet = options.sizes.build(side, channels, embedding_dim)
            batches = scenes.batches(options.measured, streams)
            pictures = (renderer.render(some) for some in batches)
            mean, std = embedder.measure(map(normalize, pictures))
            learner = UnetLearner(unet, mean, std, **how)
        stage = SceneUnet(learner, vae, embedder, renderer)
        if options.album:
            vae.to(renderer.device)
            path = output / ALBUM_FILE
            shown = scenes.batches(options.album, streams)
            stage.album = open_album(path, shown, stage.show, stage.origin(), renderer.device)
        return stage

    stage = train(build, samples, collate_noised, recipe, output)
    assert isinstance(stage, SceneUnet)
    if is_first_process():
        if started is not None and options.keep:
            keep_of_start(
                stage.learner.painter, dict(started.module.unet.named_parameters()), options.keep
            )
        write_decoder(output / "decoder", stage.learner, vae, recipe.half)


def noised_samples(
    recipe: DecoderRecipe, scenes: SceneSamples, latent_shape: tuple[int, ...], embedding_dim: int
) -> NoisedSamples:
    """Return scenes with the random numbers that a recipe asks for."""
    options = recipe.unet
    return NoisedSamples(
        scenes,
        options.chances,
        latent_shape,
        embedding_dim,
        options.draws_per_scene,
        options.album,
    )


def _read_start(path: str) -> SeedDecoder:
    started = load_decoder(path)
    kind = started.scheduler.config.prediction_type
    if kind != "v_prediction":
        raise OptionError(f"the decoder {path} predicts {kind}; only v_prediction is trained here")
    return started


def _embedder(options: UnetOptions) -> tuple[Embedder, int]:
    """Return what makes embeddings, and their width."""
    tokenizer = load_tokenizer(options.tokenizer)
    if tokenizer.image_size != SIDE or len(tokenizer.embedding_shape) != 1:
        raise OptionError(
            f"the world's pictures have {SIDE} pixels a side and a decoder takes one embedding "
            f"each; the tokenizer {options.tokenizer} takes {tokenizer.image_size} pixels and makes "
            f"embeddings {list(tokenizer.embedding_shape)}"
        )
    (embedding_dim,) = tokenizer.embedding_shape
    teacher = None
    if options.teacher is not None:
        teacher = load_teacher(options.teacher)
        made, wanted = (teacher.image_size, teacher.embedding_dim), (SIDE, embedding_dim)
        check_teacher(options.teacher, made, f"the tokenizer {options.tokenizer}", wanted)
    return Embedder(tokenizer.module, teacher), embedding_dim
