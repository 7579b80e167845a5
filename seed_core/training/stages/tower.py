"""The stage ``tower``: a vision tower that reads the closed world, and its image embedding.

Heads on the embedding read the object, its background, size and place and a small copy of the
picture; what they need, the embedding holds. It then plays the part for seed-mini that CLIP's image
embedding plays for SEED: the tokenizer learns to restore it, the decoder to paint from it.

Writes `TOWER_FILE` with upstream's names, `TEACHER_FILE` with the rest, and `SIZES_FILE`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...errors import OptionError
from ...files import assemble, side_files, weights
from ...tokenizer.eva_vit import EvaVit, VisionConfig
from .. import loop
from ..data.pictures import WorldPictures, WorldSettings, collate_scenes, normalize
from ..networks.weights import (
    initialize,
    keep_key_bias_zero,
    load_part,
    upstream_tensors,
    write_tensors,
)
from ..recipe import from_fields
from ..world.scenes import SIDE, Scene, World

TOWER_FILE = "tower.safetensors"
TEACHER_FILE = "teacher.safetensors"
SIZES_FILE = "tower.json"

_TOWER = "visual_encoder"


@dataclass(frozen=True)
class TeacherSizes:
    """Sizes of what sits on a tower.

    Attributes:
        objects: that the world has; so too ``backgrounds`` and ``sizes``.
        embedding_dim: width of the image embedding.
        picture_side: pixels along the side of the small copy.
        picture_width: hidden width of the head that makes the copy.
    """

    objects: int
    backgrounds: int
    sizes: int
    embedding_dim: int = 256
    picture_side: int = 16
    picture_width: int = 512


@dataclass(frozen=True)
class Weights:
    """Weights of the losses of the heads."""

    object: float = 1.0
    background: float = 0.5
    size: float = 0.5
    position: float = 1.0
    picture: float = 2.0


@dataclass(frozen=True)
class TowerRecipe:
    """What the stage reads.

    Attributes:
        embedding_dim: width of the image embedding.
        picture_side: pixels along the side of the small copy.
    """

    world: WorldSettings
    vision: VisionConfig
    schedule: loop.Schedule
    embedding_dim: int = 256
    picture_side: int = 16
    weights: Weights = Weights()

    def __post_init__(self) -> None:
        check_schedule(self.schedule)
        if self.picture_side < 1 or SIDE % self.picture_side:
            raise OptionError(
                f"picture_side must be a divisor of {SIDE}, the pixels of the world's pictures; "
                f"got {self.picture_side}"
            )


RECIPE = TowerRecipe


def check_schedule(schedule: loop.Schedule) -> None:
    """Refuse what the stages of vision do not have.

    Raises:
        OptionError: activations are to be computed again.
    """
    if schedule.checkpoint_activations:
        raise OptionError(
            "this stage keeps its activations; where memory is short, lower schedule.batch_size "
            "instead of setting checkpoint_activations"
        )


@dataclass(frozen=True)
class Labels:
    """What scenes show, for a batch of them.

    Attributes:
        objects: int64 ``[B]``, numbers of the concepts.
        backgrounds: int64 ``[B]``, or `pictures.NOT_NAMED`.
        sizes: int64 ``[B]``.
        positions: float ``[B, 2]``, centres of the objects from that of the picture, right and
            down, -1..1 from edge to edge.
        pictures: float ``[B, 3, S, S]`` in 0..1, what is seen.
    """

    objects: torch.Tensor
    backgrounds: torch.Tensor
    sizes: torch.Tensor
    positions: torch.Tensor
    pictures: torch.Tensor

    @classmethod
    def of(cls, scenes: Sequence[Scene], backgrounds: torch.Tensor, world: World) -> Labels:
        """Render scenes, and say what they show."""
        sides = list(world.sizes.values())
        sizes = [list(world.sizes).index(scene.size) for scene in scenes]
        positions = []
        for scene, size in zip(scenes, sizes, strict=True):
            free = (SIDE - sides[size]) / SIDE
            right, down = (place * free for place in scene.offset)
            positions.append((-right if scene.look.mirrored else right, down))
        device = world.device
        return cls(
            torch.tensor([scene.concept for scene in scenes], device=device),
            backgrounds.to(device),
            torch.tensor(sizes, device=device),
            torch.tensor(positions, device=device),
            world.render(scenes),
        )


class SceneReader(nn.Module):
    """Heads that read an image embedding."""

    def __init__(self, sizes: TeacherSizes) -> None:
        super().__init__()
        dim, self._side = sizes.embedding_dim, sizes.picture_side
        self.object = nn.Linear(dim, sizes.objects)
        self.background = nn.Linear(dim, sizes.backgrounds)
        self.size = nn.Linear(dim, sizes.sizes)
        self.position = nn.Linear(dim, 2)
        self.picture = nn.Sequential(
            nn.Linear(dim, sizes.picture_width),
            nn.GELU(),
            nn.Linear(sizes.picture_width, 3 * sizes.picture_side**2),
        )

    def losses(self, embedding: torch.Tensor, labels: Labels) -> dict[str, torch.Tensor]:
        """Return how badly each head reads embeddings ``[B, D]``, by the names of `Weights`."""
        small = F.adaptive_avg_pool2d(labels.pictures, self._side).flatten(1)
        return {
            "object": F.cross_entropy(self.object(embedding), labels.objects),
            "background": _cross_entropy(self.background(embedding), labels.backgrounds),
            "size": F.cross_entropy(self.size(embedding), labels.sizes),
            "position": F.l1_loss(self.position(embedding).float(), labels.positions),
            "picture": F.l1_loss(self.picture(embedding).float(), small),
        }

    @torch.no_grad()
    def accuracy(self, embedding: torch.Tensor, labels: Labels) -> torch.Tensor:
        """Return the part of embeddings ``[B, D]`` whose object is named."""
        is_right = self.object(embedding).argmax(1).eq(labels.objects)
        part: torch.Tensor = is_right.float().mean()
        return part


def _cross_entropy(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean over all rows, of which those without a label count 0.

    So the mean of several processes' losses is that of all their rows.
    """
    return F.cross_entropy(scores, labels, reduction="sum") / len(labels)


class Teacher(nn.Module):
    """A vision tower, the image embedding of its class token, and heads that read that.

    Args:
        vision: sizes of the tower.
        sizes: of the rest.

    Attributes:
        vision: as given.
        reader: the heads.
    """

    def __init__(self, vision: VisionConfig, sizes: TeacherSizes) -> None:
        super().__init__()
        self.vision = vision
        self.visual_encoder = EvaVit(vision, nn)
        self.projection = nn.Linear(vision.width, sizes.embedding_dim)
        # Without weights, so that every number of the embedding is about as large as another.
        self.norm = nn.LayerNorm(sizes.embedding_dim, elementwise_affine=False)
        self.reader = SceneReader(sizes)

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return image embeddings ``[B, D]`` of pixels ``[B, 3, S, S]``."""
        return self.embed_features(self.visual_encoder(pixels))

    def embed_features(self, features: torch.Tensor) -> torch.Tensor:
        """Return image embeddings ``[B, D]`` of the tower's image features ``[B, P, W]``."""
        embedding: torch.Tensor = self.norm(self.projection(features[:, 0]))
        return embedding


class TowerNetwork(nn.Module):
    """A teacher with its losses."""

    def __init__(self, teacher: Teacher, weights: Weights, world: World) -> None:
        super().__init__()
        self.teacher = teacher
        self._weights = weights
        self._world = world

    def forward(
        self, scenes: list[Scene], backgrounds: torch.Tensor, num_codes: torch.Tensor
    ) -> dict[str, Any]:
        """Return the loss of a batch of `pictures.collate_scenes`."""
        del num_codes  # a tower has none
        labels = Labels.of(scenes, backgrounds, self._world)
        embedding = self.teacher.embed(normalize(labels.pictures))
        losses = self.teacher.reader.losses(embedding, labels)
        loss = torch.stack([getattr(self._weights, k) * v for k, v in losses.items()]).sum()
        accuracy = self.teacher.reader.accuracy(embedding, labels)
        terms = {**detached(losses), "object_accuracy": accuracy}
        return {"loss": loss, "terms": terms}


def detached(terms: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return parts of a loss for the log, without their gradients."""
    return {name: value.detach() for name, value in terms.items()}


def run(recipe: TowerRecipe, output: Path) -> None:
    """Train a tower and write it, or go on with it.

    Args:
        recipe: of the tower.
        output: folder of the run, and of the files.

    Raises:
        OptionError: settings that do not fit, or FSDP.
        CheckpointError: a description of the world that cannot be read.
    """
    loop.check_whole()
    world = recipe.world.open(recipe.vision)
    sizes = TeacherSizes(
        len(world.concepts),
        len(world.backgrounds),
        len(world.sizes),
        recipe.embedding_dim,
        recipe.picture_side,
    )

    def build() -> TowerNetwork:
        teacher = Teacher(recipe.vision, sizes)
        initialize(teacher)
        keep_key_bias_zero(teacher.visual_encoder)
        return TowerNetwork(
            teacher, recipe.weights, recipe.world.open(recipe.vision, compute_device())
        )

    samples = WorldPictures(recipe.world, world, recipe.schedule.seed)
    network = loop.train(build, samples, collate_scenes, recipe, output)
    assert isinstance(network, TowerNetwork)
    _write(network.teacher, recipe.vision, sizes, output)


def compute_device() -> torch.device:
    """Return where the loop computes, in any process."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _write(teacher: Teacher, vision: VisionConfig, sizes: TeacherSizes, folder: Path) -> None:
    write_tensors(folder / TOWER_FILE, upstream_tensors(teacher.visual_encoder, _TOWER))
    rest = {k: v for k, v in teacher.state_dict().items() if not k.startswith(_TOWER)}
    write_tensors(folder / TEACHER_FILE, rest)
    if loop.is_first_process():
        fields = {"vision": dataclasses.asdict(vision), "teacher": dataclasses.asdict(sizes)}
        (folder / SIZES_FILE).write_text(json.dumps(fields, indent=1) + "\n", "utf-8")


def load_tower(path: Path, vision: VisionConfig) -> EvaVit:
    """Load a vision tower, frozen.

    Args:
        path: the folder of a run of this stage, or a file of upstream's, as ``eva_vit_g.pth``.
        vision: its sizes.

    Raises:
        CheckpointError: no such file, or one of other sizes.
    """
    file = path / TOWER_FILE if path.is_dir() else path
    return load_part(lambda layers: EvaVit(vision, layers, device="meta"), _TOWER, file)


def load_teacher(folder: Path) -> Teacher:
    """Load what this stage wrote, frozen.

    Raises:
        CheckpointError: a missing or damaged file.
    """
    fields = side_files.read_json(folder / SIZES_FILE)
    where = str(folder / SIZES_FILE)
    vision = from_fields(VisionConfig, fields.get("vision", {}), where)
    sizes = from_fields(TeacherSizes, fields.get("teacher", {}), where)
    with torch.device("meta"):
        teacher = Teacher(vision, sizes)
    rest = dict(weights.read_tensors(folder / TEACHER_FILE))
    assemble.check_complete(
        [k for k in teacher.state_dict() if not k.startswith(_TOWER)], rest, folder / TEACHER_FILE
    )
    teacher.load_state_dict(rest, strict=False, assign=True)
    teacher.visual_encoder = load_tower(folder, vision)
    return teacher.requires_grad_(False).eval()
