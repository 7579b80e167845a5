"""The judge of drawings: a small classifier that had no role in training seed-mini."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import OptionError
from ...files.side_files import read_json
from ...files.weights import read_tensors
from .closed_world import World
from .scenes import Scene

METRICS = ("concept", "bg", "size", "concept+bg")


class Judge:
    """Tells which object, background and size a picture shows.

    Args:
        world: whose scenes it knows.
        folder: has ``classifier.json`` and ``classifier.safetensors``.

    Raises:
        CheckpointError: a file is missing or damaged.
        OptionError: the judge is of another world.
    """

    def __init__(self, world: World, folder: Path) -> None:
        self._world = world
        config = read_json(folder / "classifier.json")
        counts = [len(world.concepts), len(world.backgrounds), len(world.sizes)]
        self._outputs = list(config["outputs"].values())
        self.objects = self._outputs[0]  # the first ones of the world, not those that were added
        if self._outputs[1:] != counts[1:] or self.objects > counts[0]:
            raise OptionError(
                f"the judge in {folder} knows {self._outputs} objects, backgrounds and sizes; this "
                f"world has {counts}"
            )
        with torch.device("meta"):  # no weights are drawn: the global generator stays untouched
            self._network = self._build(config)
        weights = dict(read_tensors(folder / "classifier.safetensors"))
        self._network.load_state_dict(weights, assign=True)
        self._network.float().requires_grad_(False)

    def _build(self, config: dict[str, Any]) -> nn.ModuleDict:
        """Return the layers under the names of the weight file."""
        layers: list[nn.Module] = []
        kernel = config["first_kernel"]
        channels, groups = config["channels"], config["groups"]
        for narrow, wide in zip(channels, channels[1:], strict=False):
            layers += [nn.Conv2d(narrow, wide, kernel, 2, kernel // 2)]
            layers += [nn.GroupNorm(groups, wide), nn.SiLU(), nn.Conv2d(wide, wide, 3, 1, 1)]
            layers += [nn.GroupNorm(groups, wide), nn.SiLU()]
            kernel = 3
        head = nn.Linear(2 * channels[-1], sum(self._outputs))
        return nn.ModuleDict({"f": nn.Sequential(*layers), "o": head})

    @torch.inference_mode()
    def see(self, pictures: torch.Tensor) -> list[tuple[int, str, str]]:
        """Return object, background and size of pictures, float ``[B, 3, 128, 128]`` in 0..1."""
        seen = []
        backgrounds, sizes = list(self._world.backgrounds), list(self._world.sizes)
        for picture in pictures.cpu():
            features = self._network["f"](picture[None] * 2 - 1)
            pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)
            concept, background, size = (
                int(scores.argmax())
                for scores in self._network["o"](pooled)[0].split(self._outputs)
            )
            seen.append((concept, backgrounds[background], sizes[size]))
        return seen

    def score(self, pictures: torch.Tensor, scenes: Sequence[Scene]) -> list[dict[str, float]]:
        """Return which of `METRICS` are right for each picture, 1 or 0."""
        scores = []
        for scene, (concept, background, size) in zip(scenes, self.see(pictures), strict=True):
            right = concept == scene.concept, background == scene.background, size == scene.size
            both = right[0] and right[1]
            scores.append(dict(zip(METRICS, map(float, (*right, both)), strict=True)))
        return scores
