"""The curves of a run as a picture: a panel for the loss and for each of its terms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_NO_CURVE = frozenset(["epoch", "step"])


def draw_curves(rows: Sequence[dict[str, float]], path: Path) -> None:
    """Write a PNG of the log, whose rows have ``step`` and what was measured there."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for row in rows for name in row if name not in _NO_CURVE))
    if not names:
        return
    figure = Figure(figsize=(4 * len(names), 3), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        points = [(row["step"], row[name]) for row in rows if name in row]
        axes.plot(*zip(*points, strict=True), linewidth=1)
        axes.set(title=name, xlabel="step")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=80)
