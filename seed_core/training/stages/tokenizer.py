"""The stage ``tokenizer``: pictures to 32 codes, and codes to an image embedding.

``part: qformer`` and ``part: codebook`` are the reference's two steps: the causal Q-Former learns
to agree with captions, then codes learn to stand for its output. ``part: mini`` trains all of
seed-mini's tokenizer on the closed world, from a run of the stage ``tower``. The first part writes
`QFORMER_FILE`, the others the folder `TOKENIZER_FOLDER`, which `load_tokenizer` reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from ...compute import precision
from ...errors import CheckpointError, OptionError
from ...files import assemble, weights
from ...models.names import CONFIG_FILE
from ...tokenizer.config import TokenizerConfig
from ...tokenizer.network import TokenizerModel
from ...tokenizer.qformer import QFormer
from ..data.captions import collate_captioned, read_vocabulary
from ..data.pictures import PictureFolders
from ..loop import Collate, Samples, train
from ..networks.embedders import load_embedder
from ..networks.moving_average import MovingAverage
from ..networks.teacher import HeadLossWeights, Teacher
from ..networks.teacher_folder import check_teacher, load_teacher, load_tower
from ..networks.tokenizer import CodebookLearner, ContrastiveLearner, MiniLearner
from ..networks.weights import load_module, materialize, upstream_tensors, write_tensors
from ..processes import check_whole, compute_device, is_first_process
from ..schedule import Schedule
from ..settings import check_at_least, check_fractions
from ..world.samples import WorldPictures, WorldSettings, collate_scenes
from .tower import check_schedule

QFORMER_FILE = "qformer.safetensors"
TOKENIZER_FOLDER = "tokenizer"
WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True)
class QFormerSettings:
    """Settings of ``part: qformer``."""

    pictures: tuple[Path, ...]  # folders of pictures with captions, as "data encode" reads them
    vocabulary: Path  # folder of BERT's tokenizer, such as bert-base-uncased
    start: Path | None = None  # a file such as blip2_pretrained.pth; by default random weights


@dataclass(frozen=True)
class CodebookSettings:
    """Settings of ``part: codebook``."""

    pictures: tuple[Path, ...]  # folders of pictures
    qformer: Path  # the output of part: qformer
    teacher: Path  # folder of a CLIP vision model, or of a run of the stage tower
    write_reconstruction: bool = False  # also write the blocks that only training needs


@dataclass(frozen=True)
class MiniSettings:
    """Settings of ``part: mini``."""

    world: WorldSettings
    decay: float = 0.99  # fraction of the codebook's memory that a step keeps
    restart_below: float = 0.3  # rows with fewer vectors per step start anew
    shortened: float = 0.25  # fraction of the first half that is restored from its first codes
    commitment: float = 0.25  # factor of the pull of the vectors to the codebook
    reading: HeadLossWeights = HeadLossWeights(
        object=0.1, background=0.05, size=0.05, position=0.1, picture=0.2
    )

    def __post_init__(self) -> None:
        check_fractions(self, "decay", "shortened", group="mini.")
        check_at_least(0, self, "restart_below", "commitment", group="mini.")


@dataclass(frozen=True)
class TokenizerRecipe:
    """What the stage reads."""

    part: Literal["qformer", "codebook", "mini"]  # what is trained
    # The frozen vision tower: a file such as eva_vit_g.pth, or a run of the stage tower, which is
    # also the teacher of part: mini.
    tower: Path
    schedule: Schedule
    network: TokenizerConfig = TokenizerConfig()  # sizes of the whole tokenizer
    qformer: QFormerSettings | None = None
    codebook: CodebookSettings | None = None
    mini: MiniSettings | None = None
    precision: Literal["fp32", "fp16"] = "fp32"  # of the file that is written

    def __post_init__(self) -> None:
        check_schedule(self.schedule)
        for name in _PARTS:
            if (getattr(self, name) is not None) != (name == self.part):
                raise OptionError(
                    f"a recipe with part: {self.part} has settings under {self.part} and under no "
                    f"other of {', '.join(_PARTS)}"
                )
        width, context = self.network.vision.width, self.network.qformer.context_width
        if width != context:
            raise OptionError(
                f"network.qformer.context_width must be the tower's width {width}; got {context}"
            )
        if self.network.embeds_text:
            raise OptionError("SEED-1's tokenizer, whose codes become text, is not trained here")


RECIPE = TokenizerRecipe


class _Task(NamedTuple):
    """What the loop gets, and what is written in the end."""

    build: Callable[[], nn.Module]
    samples: Samples
    collate: Collate
    write: Callable[[Any, Path], None]


def run(recipe: TokenizerRecipe, output: Path) -> None:
    """Train the ``part`` of a recipe and write it into the folder of the run, or go on with a run.

    Raises:
        OptionError: settings or files do not fit one another, or the launcher asked for FSDP.
        CheckpointError: a file cannot be read.
    """
    check_whole()
    task = _PARTS[recipe.part](recipe)
    network = train(task.build, task.samples, task.collate, recipe, output)
    task.write(network, output)


def _qformer(recipe: TokenizerRecipe) -> _Task:
    assert recipe.qformer is not None
    settings, sizes = recipe.qformer, recipe.network
    vocabulary = read_vocabulary(settings.vocabulary)

    def build() -> ContrastiveLearner:
        learner = ContrastiveLearner(
            load_tower(recipe.tower, sizes.vision),
            sizes.qformer,
            sizes.image_norm_eps,
            len(vocabulary),
        )
        if settings.start is not None:
            _start(learner, settings.start)
        return learner

    def write(learner: ContrastiveLearner, output: Path) -> None:
        write_tensors(output / QFORMER_FILE, learner.upstream_tensors())

    pictures = _pictures(recipe, settings.pictures, has_captions=True)
    return _Task(build, pictures, partial(collate_captioned, vocabulary), write)


def _start(learner: ContrastiveLearner, path: Path) -> None:
    """Fill everything that is trained from a file with upstream's names."""
    wanted = learner.upstream_tensors()
    given = {k: tensor for k, tensor in weights.read_tensors(path) if k in wanted}
    assemble.check_complete(wanted, given, path)
    for key, tensor in given.items():
        if tensor.shape != wanted[key].shape:
            raise CheckpointError(
                f"{path} holds {key} {list(tensor.shape)}; these sizes need "
                f"{list(wanted[key].shape)}"
            )
        wanted[key].copy_(tensor)


def _codebook(recipe: TokenizerRecipe) -> _Task:
    assert recipe.codebook is not None
    settings, sizes = recipe.codebook, recipe.network

    def build() -> CodebookLearner:
        # A second tower would take as long to fill with random numbers as it is large.
        model = TokenizerModel(sizes, device="meta")
        model.encoder.visual_encoder = load_tower(recipe.tower, sizes.vision)
        model.encoder.image_norm = load_module(
            lambda layers: layers.LayerNorm(
                sizes.vision.width, eps=sizes.image_norm_eps, device="meta"
            ),
            "image_norm",
            settings.qformer,
        )
        model.encoder.qformer = load_module(
            lambda layers: QFormer(sizes.qformer, layers, device="meta"),
            "qformer",
            settings.qformer,
        )
        materialize(model)
        return CodebookLearner(model, sizes, load_embedder(settings.teacher, sizes))

    def write(learner: CodebookLearner, output: Path) -> None:
        extra = learner.reconstruction_tensors() if settings.write_reconstruction else {}
        _write_tokenizer(learner.model, recipe, output, extra)

    pictures = _pictures(recipe, settings.pictures, has_captions=False)
    return _Task(build, pictures, _collate_pictures, write)


def _collate_pictures(samples: Sequence[tuple[torch.Tensor, str]]) -> dict[str, torch.Tensor]:
    """Return a batch of pictures, as `CodebookLearner` takes it."""
    return {"pixels": torch.stack([pixels for pixels, _ in samples])}


def _pictures(
    recipe: TokenizerRecipe, folders: Sequence[Path], has_captions: bool
) -> PictureFolders:
    return PictureFolders(folders, recipe.network.vision.image_size, has_captions)


def _mini(recipe: TokenizerRecipe) -> _Task:
    assert recipe.mini is not None
    settings, sizes = recipe.mini, recipe.network
    world = settings.world.open()
    teacher = load_teacher(recipe.tower)
    _check_teacher(teacher, recipe, len(world.concepts))

    def build() -> MiniLearner:
        return MiniLearner(
            TokenizerModel(sizes),
            load_teacher(recipe.tower),
            MovingAverage(
                sizes.codebook_size, sizes.codebook_dim, settings.decay, settings.restart_below
            ),
            settings.world.open(compute_device()),
            settings.reading,
            settings.commitment,
        )

    def write(learner: MiniLearner, output: Path) -> None:
        _write_tokenizer(learner.model, recipe, output, {})

    half = recipe.schedule.samples // 2
    samples = WorldPictures(settings.world, world, settings.shortened, until=half)
    return _Task(build, samples, collate_scenes, write)


def _check_teacher(teacher: Teacher, recipe: TokenizerRecipe, concepts: int) -> None:
    sizes = recipe.network
    made = teacher.image_size, teacher.embedding_dim
    wanted = sizes.vision.image_size, *sizes.embedding_shape
    check_teacher(recipe.tower, made, "network in the recipe", wanted)
    if teacher.vision != sizes.vision:
        raise OptionError(
            f"the tower in {recipe.tower} has {teacher.vision}; network.vision has {sizes.vision}"
        )
    if (known := teacher.reader.object.out_features) < concepts:
        raise OptionError(
            f"the tower in {recipe.tower} knows {known} objects, and the world has {concepts}"
        )


def _write_tokenizer(
    model: TokenizerModel, recipe: TokenizerRecipe, output: Path, extra: dict[str, torch.Tensor]
) -> None:
    folder = output / TOKENIZER_FOLDER
    dtype = precision.PRECISIONS[recipe.precision]
    write_tensors(folder / WEIGHTS_FILE, {**upstream_tensors(model), **extra}, dtype)
    if is_first_process():
        config = json.dumps(recipe.network.to_dict(), indent=1)
        (folder / CONFIG_FILE).write_text(config + "\n", "utf-8")


_PARTS: dict[str, Callable[[TokenizerRecipe], _Task]] = {
    "qformer": _qformer,
    "codebook": _codebook,
    "mini": _mini,
}
