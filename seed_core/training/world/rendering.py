"""Pictures of scenes.

They are made as the ones that seed-mini was trained on, measured on its shipped samples: the object
is scaled with premultiplied alpha (bicubic, antialiased), moved by a fraction of a pixel
(bilinear), laid over the background and rounded to 8 bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ...tokenizer.preprocess import CLIP_MEAN, CLIP_STD
from .scenes import Look, Scene, tint

SIDE = 128
"""Pixels along a side of a rendering."""


class Renderer:
    """Draws scenes on a device, from cut-out pictures uint8 ``[N, 120, 120, 4]`` of their objects."""

    def __init__(
        self,
        rgba: npt.NDArray[np.uint8],
        backgrounds: Mapping[str, Sequence[float]],  # RGB in 0..255 by name
        sizes: Mapping[str, int],  # sides of the scaled objects in pixels, by name
        device: torch.device,
    ) -> None:
        self._rgba = rgba
        self._backgrounds = backgrounds
        self._sizes = sizes
        self._device = device
        self._scaled: dict[str, torch.Tensor] = {}

    def render(self, scenes: Sequence[Scene]) -> torch.Tensor:
        """Draw scenes, float32 ``[B, 3, 128, 128]`` in 0..1 with 8-bit steps.

        A plain picture is the same in every batch; one with a look may differ by one 8-bit step.
        """
        with torch.autocast(self._device.type, enabled=False):  # 8-bit steps need more than 16 bits
            return self._render(scenes)

    def _render(self, scenes: Sequence[Scene]) -> torch.Tensor:
        pictures = torch.empty(len(scenes), 3, SIDE, SIDE, device=self._device)
        for size in self._sizes:
            rows = [i for i, scene in enumerate(scenes) if scene.size == size]
            if rows:
                pictures[rows] = self._compose([scenes[i] for i in rows], size)
        looks = [scene.look for scene in scenes]
        if rows := [i for i, look in enumerate(looks) if look.is_tinted]:
            pictures[rows] = _tinted(pictures[rows], [looks[i] for i in rows])
        if rows := [i for i, look in enumerate(looks) if look.blur]:
            pictures[rows] = _blurred(pictures[rows], [looks[i].blur for i in rows])
        if rows := [i for i, look in enumerate(looks) if look.mirrored]:
            pictures[rows] = pictures[rows].flip(3)
        return pictures.clamp(0, 1).mul(255).round() / 255

    def cover(self, scenes: Sequence[Scene]) -> torch.Tensor:
        """Return how much of each pixel the objects cover, float32 ``[B, 1, 128, 128]`` in 0..1.

        A blur changes the picture and not the cover.
        """
        with torch.autocast(self._device.type, enabled=False):
            covers = torch.empty(len(scenes), 1, SIDE, SIDE, device=self._device)
            for size in self._sizes:
                rows = [i for i, scene in enumerate(scenes) if scene.size == size]
                if rows:
                    covers[rows] = self._placed([scenes[i] for i in rows], size)[:, 3:]
            if rows := [i for i, scene in enumerate(scenes) if scene.look.mirrored]:
                covers[rows] = covers[rows].flip(3)
            return covers

    def _compose(self, scenes: Sequence[Scene], size: str) -> torch.Tensor:
        """Lay objects of one size over their backgrounds."""
        art = self._placed(scenes, size)
        return art[:, :3] + self._background(scenes) * (1 - art[:, 3:])

    def _placed(self, scenes: Sequence[Scene], size: str) -> torch.Tensor:
        """Return objects of one size in their places, premultiplied ``[B, 4, H, W]`` in 0..1."""
        pixels = self._sizes[size]
        margin = (SIDE - pixels) // 2
        art = self._scaled_artwork(size)[[scene.concept for scene in scenes]]
        art = nn.functional.pad(art, (margin,) * 4)
        shift = -torch.tensor([scene.offset for scene in scenes], device=self._device)
        grid = nn.functional.affine_grid(
            torch.eye(2, 3, device=self._device)[None], [1, 4, SIDE, SIDE], align_corners=False
        )
        grid = grid + (shift * margin / (SIDE / 2))[:, None, None]
        return nn.functional.grid_sample(art, grid, align_corners=False)

    def _scaled_artwork(self, size: str) -> torch.Tensor:
        """Return all objects, premultiplied ``[N, 4, P, P]`` in 0..1."""
        if size not in self._scaled:
            art = torch.from_numpy(self._rgba).to(self._device).permute(0, 3, 1, 2) / 255
            art = torch.cat([art[:, :3] * art[:, 3:], art[:, 3:]], dim=1)
            pixels = self._sizes[size]
            art = nn.functional.interpolate(art, (pixels, pixels), mode="bicubic", antialias=True)
            self._scaled[size] = art.clamp(0, 1)
        return self._scaled[size]

    def _ends(self, scene: Scene) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return scene.look.ends(self._backgrounds[scene.background])

    def _background(self, scenes: Sequence[Scene]) -> torch.Tensor:
        """Return ``[B, 3, 1, 1]`` if no scene has a gradient, otherwise ``[B, 3, 128, 128]``."""
        first, last = zip(*map(self._ends, scenes), strict=True)
        start = torch.tensor(first, device=self._device).view(-1, 3, 1, 1) / 255
        if first == last:
            return start
        end = torch.tensor(last, device=self._device).view(-1, 3, 1, 1) / 255
        degrees = torch.tensor([scene.look.direction for scene in scenes], device=self._device)
        right, down = degrees.deg2rad().cos(), degrees.deg2rad().sin()
        places = (torch.arange(SIDE, device=self._device) + 0.5) / SIDE * 2 - 1
        along = right.view(-1, 1, 1, 1) * places + down.view(-1, 1, 1, 1) * places[:, None]
        along = along / (right.abs() + down.abs()).view(-1, 1, 1, 1)  # -1..1 from corner to corner
        return start + (along + 1) / 2 * (end - start)


def _tinted(pictures: torch.Tensor, looks: Sequence[Look]) -> torch.Tensor:
    matrices, shifts = zip(*map(tint, looks), strict=True)
    matrix = torch.tensor(np.stack(matrices), dtype=torch.float32, device=pictures.device)
    shift = torch.tensor(shifts, dtype=torch.float32, device=pictures.device)
    mixed = torch.einsum("bij,bjhw->bihw", matrix, pictures)
    return (mixed + shift.view(-1, 1, 1, 1)).clamp(0, 1)


def _blurred(pictures: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    """Blur each picture by its own gaussian; the edge is continued outwards."""
    radius = math.ceil(3 * max(sigmas))
    steps = torch.arange(-radius, radius + 1, device=pictures.device)
    kernels = torch.exp(-0.5 * (steps / torch.tensor(sigmas, device=pictures.device)[:, None]) ** 2)
    kernels = kernels / kernels.sum(1, keepdim=True)
    kernels = kernels.repeat_interleave(3, 0)[:, None]  # one for each channel of each picture
    planes = nn.functional.pad(pictures, (radius,) * 4, mode="replicate").flatten(0, 1)[None]
    planes = nn.functional.conv2d(planes, kernels[:, :, :, None], groups=len(kernels))
    planes = nn.functional.conv2d(planes, kernels[:, :, None], groups=len(kernels))
    return planes[0].view_as(pictures)


def normalize(pictures: torch.Tensor) -> torch.Tensor:
    """Return what a vision tower takes for pictures ``[B, 3, S, S]`` in 0..1; see `preprocess`."""
    mean, std = (pictures.new_tensor(numbers).view(3, 1, 1) for numbers in (CLIP_MEAN, CLIP_STD))
    return (pictures - mean) / std
