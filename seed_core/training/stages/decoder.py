"""The stage that trains a decoder: first its autoencoder, then the diffusion model that paints.

``part: vae`` writes the folder ``vae``; ``part: unet`` takes it and a tokenizer, and writes the
folder ``decoder``, which `load_decoder` reads. Either can start from a decoder that there is, and
show one object more often than others: so an artist teaches seed-mini what it cannot draw yet.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from ...decoder.runtime import SeedDecoder
from ...errors import OptionError
from ...models.tokenizer import load_tokenizer
from ...models.unclip import load_decoder
from ..data.pictures import WorldSettings, normalize
from ..loop import Samples, Schedule, check_whole, is_first_process, train
from ..networks.decoder_folder import read_vae, write_decoder, write_vae
from ..networks.unet import Chances, Draws, Embedder, UnetLearner, UnetSizes
from ..networks.vae import PictureLoss, VaeLearner, VaeSizes, latents_of, standardize
from ..networks.weights import leave_out
from ..settings import check_parts
from ..world.scenes import SIDE, Scene, World
from .tower import compute_device, load_teacher

VAE_RUNS = ("autoencoder", "decoder_alone")
"""Folders of the two runs of ``part: vae``."""

_AT_ONCE = 64
"""Pictures that are measured together."""


@dataclass(frozen=True)
class VaeOptions:
    """How an autoencoder is trained.

    Attributes:
        sizes: of a new one.
        loss: of its pictures.
        decoder_alone: a second run, in which the latents stay what they are; none if not given.
        measured: pictures that the latents' mean and deviation are measured on.
    """

    sizes: VaeSizes = VaeSizes()
    loss: PictureLoss = PictureLoss()
    decoder_alone: Schedule | None = None
    measured: int = 2048


@dataclass(frozen=True)
class UnetOptions:
    """How a diffusion model is trained.

    Attributes:
        sizes: of a new one.
        chances: of its random numbers.
        vae: folder with the autoencoder of a new one: the output of ``part: vae``, or a decoder.
        tokenizer: whose embeddings it paints from: a folder, or ``seed-mini``.
        teacher: folder of the vision tower whose embeddings the tokenizer learned from.
        draws_per_scene: samples in a row that show one scene, each with random numbers of its own.
            A scene's latents and embedding cost more than a step of the network does.
        measured: pictures that the embeddings' mean and deviation are measured on.
    """

    sizes: UnetSizes = UnetSizes()
    chances: Chances = Chances()
    vae: str | None = None
    tokenizer: str = "seed-mini"
    teacher: Path | None = None
    draws_per_scene: int = 1
    measured: int = 2048

    def __post_init__(self) -> None:
        if self.draws_per_scene < 1:
            raise OptionError(f"draws_per_scene must be at least 1; got {self.draws_per_scene}")
        if bool(self.teacher) != bool(self.chances.teacher):
            raise OptionError(
                "teacher is a folder, chances.teacher the part of the samples that it embeds: give "
                f"both or neither; got {self.teacher} and {self.chances.teacher}"
            )


@dataclass(frozen=True)
class DecoderRecipe:
    """A recipe of this stage.

    Attributes:
        part: what is trained.
        world: what it learns to paint.
        schedule: how long, and how fast; of the autoencoder's first run.
        start: a decoder to go on from, a folder or ``seed-mini``; a new one if not given.
        favour: objects to show more often, by their names in the description, or in the artwork if
            the description does not know them.
        favour_part: part of the scenes that show one of those.
        half: write weights in float16.
        vae: settings of ``part: vae``.
        unet: settings of ``part: unet``.
    """

    part: Literal["vae", "unet"]
    world: WorldSettings
    schedule: Schedule
    start: str | None = None
    favour: tuple[str, ...] = ()
    favour_part: float = 0.0
    half: bool = True
    vae: VaeOptions = VaeOptions()
    unet: UnetOptions = UnetOptions()

    def __post_init__(self) -> None:
        check_parts(self, "favour_part")
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


RECIPE = DecoderRecipe


def run(recipe: DecoderRecipe, output: Path) -> None:
    """Train a part of a decoder and write it: the folder ``vae`` or ``decoder`` of the output.

    Raises:
        OptionError: settings or parts that do not fit one another, or FSDP.
        CheckpointError: a part that cannot be read.
    """
    check_whole()
    world = open_world(recipe)
    (_train_vae if recipe.part == "vae" else _train_unet)(recipe, world, output)


def open_world(recipe: DecoderRecipe, device: torch.device | str = "cpu") -> World:
    """Return the world of a recipe, with the rest of the artwork where objects are favoured."""
    settings = recipe.world
    everything = settings.everything or bool(recipe.favour)
    return World(settings.artwork, settings.description, everything, device)


def _renderer(recipe: DecoderRecipe, world: World) -> World:
    """Return the same world where the loop computes."""
    device = compute_device()
    return world if device == world.device else open_world(recipe, device)


class SceneSamples(Samples):
    """Scenes to paint.

    Args:
        recipe: which scenes.
        world: as `open_world` returns it.

    Raises:
        OptionError: a favoured object that there is no picture of.
    """

    def __init__(self, recipe: DecoderRecipe, world: World) -> None:
        self._recipe = recipe
        self._world = world
        self._seed = recipe.schedule.seed
        concepts = world.concepts
        names = [str(concept["name"]) for concept in concepts]
        if unknown := [name for name in recipe.favour if name not in names]:
            raise OptionError(f"{recipe.world.artwork} has no picture of {', '.join(unknown)}")
        self._favoured = [names.index(name) for name in recipe.favour]
        self._usual = [
            i
            for i, concept in enumerate(concepts)
            # Objects of the artwork alone have no category.
            if recipe.world.everything or concept["category"] is not None
        ]

    def chance(self, number: int) -> random.Random:
        """Return where the randomness of a sample comes from."""
        return random.Random(f"{self._seed} {number}")

    def sample(self, number: int) -> Any:
        """Return a `Scene`."""
        return self.scene(self.chance(number))

    def scene(self, chance: random.Random) -> Scene:
        """Draw a scene of the training split."""
        is_favoured = chance.random() < self._recipe.favour_part
        concept = chance.choice(self._favoured if is_favoured else self._usual)
        settings = self._recipe.world
        while True:
            drawn = self._world.draw(chance, settings.augmented, settings.free)
            scene = replace(drawn, concept=concept)
            if not self._world.is_held_out(scene):
                return scene

    def batches(self, count: int) -> Iterator[list[Scene]]:
        """Yield the scenes of the first so many samples, some at a time."""
        for start in range(0, count, _AT_ONCE):
            numbers = range(start, min(start + _AT_ONCE, count))
            yield [self.scene(self.chance(number)) for number in numbers]


def _as_shown(pictures: torch.Tensor, vae: Any) -> torch.Tensor:
    """Return the world's pictures as an autoencoder takes them, ``[B, 3, H, W]`` in -1..1.

    One for smaller pictures is shown the means of areas.
    """
    return 2 * F.avg_pool2d(pictures, SIDE // vae.config.sample_size) - 1


def _check_size(vae: Any) -> None:
    if SIDE % vae.config.sample_size:
        raise OptionError(
            f"the VAE must be for pictures of {SIDE} pixels a side, as the world has them, or a "
            f"whole fraction of that; this one is for {vae.config.sample_size}"
        )


# ---- the autoencoder ----


class VaeStage(nn.Module):
    """An autoencoder in training, which renders its scenes where it computes.

    Args:
        learner: the autoencoder.
        world: what renders scenes.
    """

    def __init__(self, learner: VaeLearner, world: World) -> None:
        super().__init__()
        self.learner = learner
        self._world = world

    def forward(self, scenes: Sequence[Scene]) -> dict[str, Any]:
        """Return the loss of scenes and its terms."""
        shown = _as_shown(self._world.render(scenes), self.learner.vae)
        cover = F.adaptive_avg_pool2d(self._world.cover(scenes), shown.shape[-1])
        result: dict[str, Any] = self.learner(shown, cover)
        return result

    def gradient_checkpointing_enable(self, **_: Any) -> None:
        """Compute activations again rather than keep them."""
        self.learner.vae.enable_gradient_checkpointing()


def collate_plain_scenes(scenes: Sequence[Scene]) -> dict[str, Any]:
    """Return a batch of scenes."""
    return {"scenes": list(scenes)}


def _train_vae(recipe: DecoderRecipe, world: World, output: Path) -> None:
    vae: Any = None
    for name, schedule in zip(VAE_RUNS, (recipe.schedule, recipe.vae.decoder_alone), strict=True):
        if schedule is not None:
            vae = _run_vae(replace(recipe, schedule=schedule), world, output / name, vae)
    if is_first_process():
        renderer = _renderer(recipe, world)
        vae.to(renderer.device)
        batches = SceneSamples(recipe, world).batches(recipe.vae.measured)
        standardize(vae, (_as_shown(renderer.render(scenes), vae) for scenes in batches))
        write_vae(output, vae, recipe.half)


def _run_vae(recipe: DecoderRecipe, world: World, folder: Path, trained: Any) -> Any:
    """Train an autoencoder; one that is ``trained`` already keeps its latents."""

    def build() -> VaeStage:
        if trained is not None:
            vae = copy.deepcopy(trained)
        elif recipe.start is not None:
            vae = read_vae(recipe.start)
        else:
            vae = recipe.vae.sizes.build()
        _check_size(vae)
        learner = VaeLearner(vae, recipe.vae.loss, decoder_alone=trained is not None)
        return VaeStage(learner, _renderer(recipe, world))

    stage = train(build, SceneSamples(recipe, world), collate_plain_scenes, recipe, folder)
    assert isinstance(stage, VaeStage)
    return stage.learner.vae


# ---- the diffusion model ----


class NoisedSamples(SceneSamples):
    """Scenes to paint, each with its random numbers.

    Args:
        recipe: which scenes, and how random numbers are drawn.
        world: as `open_world` returns it.
        latent_shape: ``(C, h, w)``.
        embedding_dim: width of image embeddings.
    """

    def __init__(
        self,
        recipe: DecoderRecipe,
        world: World,
        latent_shape: tuple[int, ...],
        embedding_dim: int,
    ) -> None:
        super().__init__(recipe, world)
        self._latent_shape = latent_shape
        self._embedding_dim = embedding_dim

    def sample(self, number: int) -> tuple[Scene, Draws]:
        """Return a scene and its random numbers."""
        options = self._recipe.unet
        scene = self.scene(self.chance(number // options.draws_per_scene))
        seed = random.Random(f"{self._seed} {number} noise").getrandbits(63)
        generator = torch.Generator().manual_seed(seed)
        chances = options.chances
        return scene, Draws.of(generator, chances, self._latent_shape, self._embedding_dim)


def collate_noised(samples: Sequence[tuple[Scene, Draws]]) -> dict[str, Any]:
    """Return a batch: ``scenes``, and the attributes of `Draws`, stacked."""
    scenes, draws = zip(*samples, strict=True)
    return {"scenes": list(scenes), **Draws.batch(draws)}


class UnetStage(nn.Module):
    """A diffusion model in training, with what makes latents and embeddings of its scenes.

    Args:
        learner: the diffusion model.
        vae: of its latents; frozen.
        embedder: of its embeddings; frozen.
        world: what renders scenes.
    """

    def __init__(self, learner: UnetLearner, vae: Any, embedder: Embedder, world: World) -> None:
        super().__init__()
        self.learner = learner
        self.vae = vae.requires_grad_(False)
        self.embedder = embedder
        self._world = world
        leave_out(self, lambda name: not name.startswith("learner."))

    def forward(
        self,
        scenes: Sequence[Scene],
        noise: torch.Tensor,
        timestep: torch.Tensor,
        embedding_noise: torch.Tensor,
        embedding_level: torch.Tensor,
        is_dropped: torch.Tensor,
        is_teacher: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Return the loss of scenes with a batch of `Draws`."""
        places = {scene: i for i, scene in enumerate(dict.fromkeys(scenes))}
        rows = [places[scene] for scene in scenes]
        pictures = self._world.render(list(places))
        with torch.no_grad():
            latents = latents_of(self.vae, _as_shown(pictures, self.vae)).float()
            embeddings = self.embedder(normalize(pictures))
        loss = self.learner(
            latents[rows] * self.vae.config.scaling_factor,
            embeddings[rows, is_teacher.long()],
            noise,
            timestep,
            embedding_noise,
            embedding_level,
            is_dropped,
        )
        return {"loss": loss}

    def gradient_checkpointing_enable(self, **_: Any) -> None:
        """Compute activations again rather than keep them."""
        self.learner.unet.enable_gradient_checkpointing()


def _train_unet(recipe: DecoderRecipe, world: World, output: Path) -> None:
    options = recipe.unet
    if options.vae is not None:
        started, vae = None, read_vae(options.vae)
    else:
        assert recipe.start is not None
        started = _read_start(recipe.start)
        vae = started.module.vae
    _check_size(vae)
    embedder, embedding_dim = _embedder(options)
    if started is not None and started.module.mean.shape[-1] != embedding_dim:
        raise OptionError(
            f"{recipe.start} paints from embeddings of {started.module.mean.shape[-1]} numbers; "
            f"those of the tokenizer {options.tokenizer} have {embedding_dim}"
        )
    side = vae.config.sample_size // 2 ** (len(vae.config.block_out_channels) - 1)
    channels = vae.config.latent_channels
    samples = NoisedSamples(recipe, world, (channels, side, side), embedding_dim)

    def build() -> UnetStage:
        renderer = _renderer(recipe, world)
        embedder.to(renderer.device)
        if started is not None:
            learner = UnetLearner(
                copy.deepcopy(started.module.unet),
                started.module.mean,
                started.module.std,
                started.scheduler,
                started.noising_scheduler,
            )
        else:
            unet = options.sizes.build(side, channels, embedding_dim)
            pictures = (renderer.render(scenes) for scenes in samples.batches(options.measured))
            learner = UnetLearner(unet, *embedder.measure(map(normalize, pictures)))
        return UnetStage(learner, vae, embedder, renderer)

    stage = train(build, samples, collate_noised, recipe, output)
    assert isinstance(stage, UnetStage)
    if is_first_process():
        write_decoder(output / "decoder", stage.learner, vae, recipe.half)


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
    teacher = load_teacher(options.teacher) if options.teacher is not None else None
    (embedding_dim,) = tokenizer.embedding_shape
    if teacher is not None and teacher.projection.out_features != embedding_dim:
        raise OptionError(
            f"the teacher {options.teacher} makes embeddings of {teacher.projection.out_features} "
            f"numbers, the tokenizer {options.tokenizer} of {embedding_dim}"
        )
    return Embedder(tokenizer.module, teacher), embedding_dim
