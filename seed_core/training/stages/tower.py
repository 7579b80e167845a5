"""The stage ``tower``: a vision tower that reads the closed world, and its image embedding.

See `networks.teacher` for what it learns, and `networks.teacher_folder` for what it writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...errors import OptionError
from ...tokenizer.eva_vit import VisionConfig
from ..loop import train
from ..networks.teacher import HeadLossWeights, Teacher, TeacherLearner, TeacherSizes
from ..networks.teacher_folder import write_teacher
from ..networks.weights import initialize, keep_key_bias_zero
from ..processes import check_whole, compute_device
from ..schedule import Schedule
from ..settings import check_at_least
from ..world.rendering import SIDE
from ..world.samples import WorldPictures, WorldSettings, check_image_size, collate_scenes


@dataclass(frozen=True)
class TowerRecipe:
    """What the stage reads."""

    world: WorldSettings
    vision: VisionConfig
    schedule: Schedule
    embedding_dim: int = 256  # width of the image embedding
    picture_side: int = 16  # of the small copy, in pixels
    weights: HeadLossWeights = HeadLossWeights()

    def __post_init__(self) -> None:
        check_schedule(self.schedule)
        check_at_least(1, self, "embedding_dim")
        check_image_size("this vision tower", self.vision.image_size)
        if self.picture_side < 1 or SIDE % self.picture_side:
            raise OptionError(
                f"picture_side must be a divisor of {SIDE}, the pixels of the world's pictures; "
                f"got {self.picture_side}"
            )


RECIPE = TowerRecipe


def check_schedule(schedule: Schedule) -> None:
    """Refuse settings that the stages of vision ignore.

    Raises:
        OptionError: checkpoint_activations is set.
    """
    if schedule.checkpoint_activations:
        raise OptionError(
            "this stage keeps its activations; where memory is short, lower schedule.batch_size "
            "instead of setting checkpoint_activations"
        )


def run(recipe: TowerRecipe, output: Path) -> None:
    """Train a tower and write it into the folder of the run, or go on with a run.

    Raises:
        OptionError: settings do not fit one another, or the launcher asked for FSDP.
        CheckpointError: the description of the world cannot be read.
    """
    check_whole()
    world = recipe.world.open()
    sizes = TeacherSizes(
        len(world.concepts),
        len(world.backgrounds),
        len(world.sizes),
        recipe.embedding_dim,
        recipe.picture_side,
    )

    def build() -> TeacherLearner:
        teacher = Teacher(recipe.vision, sizes)
        initialize(teacher)
        keep_key_bias_zero(teacher.visual_encoder)
        return TeacherLearner(teacher, recipe.weights, recipe.world.open(compute_device()))

    samples = WorldPictures(recipe.world, world)
    learner = train(build, samples, collate_scenes, recipe, output)
    assert isinstance(learner, TeacherLearner)
    write_teacher(learner.teacher, sizes, output)
