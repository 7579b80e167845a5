"""Teachers on disk: the tower under upstream's names, the layers on top of it, and both sizes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from ...errors import OptionError
from ...files import assemble, side_files, weights
from ...tokenizer.eva_vit import EvaVit, VisionConfig
from ..processes import is_first_process
from ..settings import from_fields
from .teacher import Teacher, TeacherSizes
from .weights import load_module, upstream_tensors, write_tensors

TOWER_FILE = "tower.safetensors"
TEACHER_FILE = "teacher.safetensors"
SIZES_FILE = "tower.json"

_TOWER = "visual_encoder"


def write_teacher(teacher: Teacher, sizes: TeacherSizes, folder: Path) -> None:
    """Write a teacher; only the first of several processes does."""
    write_tensors(folder / TOWER_FILE, upstream_tensors(teacher.visual_encoder, _TOWER))
    rest = {k: v for k, v in teacher.state_dict().items() if not k.startswith(_TOWER)}
    write_tensors(folder / TEACHER_FILE, rest)
    if is_first_process():
        fields = {
            "vision": dataclasses.asdict(teacher.vision),
            "teacher": dataclasses.asdict(sizes),
        }
        (folder / SIZES_FILE).write_text(json.dumps(fields, indent=1) + "\n", "utf-8")


def load_tower(path: Path, vision: VisionConfig) -> EvaVit:
    """Load a vision tower, frozen.

    Args:
        path: a folder that `write_teacher` wrote, or a file of upstream's, such as
            ``eva_vit_g.pth``.
        vision: its sizes.

    Raises:
        CheckpointError: the file is missing, or its tower has other sizes.
    """
    file = path / TOWER_FILE if path.is_dir() else path
    return load_module(lambda layers: EvaVit(vision, layers, device="meta"), _TOWER, file)


def load_teacher(folder: Path) -> Teacher:
    """Load what `write_teacher` wrote, frozen.

    Raises:
        CheckpointError: a file is missing or damaged.
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


def check_teacher(folder: Path, made: Sequence[int], pupil: str, wanted: Sequence[int]) -> None:
    """Refuse a teacher whose pictures or embeddings are not those of its pupil.

    Args:
        folder: of the teacher.
        made: pixels a side of the pictures that the teacher takes, and width of its embeddings.
        pupil: a tokenizer, in words.
        wanted: the same of the pupil.

    Raises:
        OptionError: they have other sizes.
    """
    if tuple(made) != tuple(wanted):
        (size, *shape), (wanted_size, *wanted_shape) = made, wanted
        raise OptionError(
            f"the teacher {folder} makes embeddings {shape} of pictures of {size} pixels a side; "
            f"{pupil} makes embeddings {wanted_shape} of pictures of {wanted_size} pixels: give the "
            "teacher that it learns from"
        )
