"""What a diffusion model learns of scenes: made anew for each batch, or once for a set of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from tqdm import tqdm

from ...errors import CheckpointError
from ...files.safetensors import read_metadata
from ...files.weights import read_tensors
from ...files.writer import replacing
from ..processes import is_first_process
from ..world.scenes import Scene


class Shown(NamedTuple):
    """A batch of scenes, as a diffusion model learns from them."""

    latents: torch.Tensor  # float32 [B, C, h, w], scaled
    embeddings: torch.Tensor  # float32 [B, N, D], see Embedder
    cover: torch.Tensor  # float32 [B, 1, h, w], how much of each place the object covers


Show = Callable[[Sequence[Scene]], Shown]

_ORIGIN = "origin"  # in the header of an album's file


class Album:
    """A set of scenes that were shown once, and are looked up from then on."""

    def __init__(self, scenes: Sequence[Scene], shown: Shown) -> None:
        self._rows = {scene: row for row, scene in enumerate(scenes)}
        self._shown = shown

    def __call__(self, scenes: Sequence[Scene]) -> Shown:
        """Return what `Show` would, on the same device."""
        rows = torch.tensor([self._rows[scene] for scene in scenes])
        return Shown(*(part[rows.to(part.device)] for part in self._shown))


def open_album(
    path: Path, batches: Iterable[Sequence[Scene]], show: Show, origin: str, device: torch.device
) -> Album:
    """Return the album of a run, which makes it at its start and reads it when it goes on.

    Args:
        path: its file, in the folder of the run.
        batches: all its scenes, as many at once as are shown together.
        show: makes what the file lacks.
        origin: names all that decides what a scene shows.
        device: where it is looked up.

    Raises:
        CheckpointError: the file is damaged, or is of other scenes or of another origin.
    """
    listed = list(batches)
    everything = [scene for scenes in listed for scene in scenes]
    about = {_ORIGIN: hashlib.sha256(f"{origin} {everything}".encode()).hexdigest()}
    if not path.is_file():
        bar = tqdm(listed, "album of scenes", unit=" batches", leave=False, disable=None)
        made = [show(scenes) for scenes in bar]
        parts = {
            name: torch.cat([getattr(shown, name) for shown in made]).cpu().contiguous()
            for name in Shown._fields
        }
        if is_first_process():
            with replacing(path) as unfinished:  # other processes may read it
                save_file(parts, unfinished, about)
    else:
        parts = {name: tensor.clone() for name, tensor in read_tensors(path)}
        if read_metadata(path).get(_ORIGIN) != about[_ORIGIN]:
            raise CheckpointError(
                f"{path} does not hold the {len(everything)} scenes of this run as its world, "
                "autoencoder and embeddings show them; delete it, and it is made again"
            )
    return Album(everything, Shown(**{name: parts[name].to(device) for name in Shown._fields}))
