"""Each kind of wire has a colour of its own on the screen, whichever palette is chosen."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from skimage.color import deltaE_ciede2000, rgb2lab

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
SCRIPT = (ROOT / "nodes" / "web" / "seed.js").read_text(encoding="utf-8")
LISTS = {
    name: re.findall(r'"([^"]+)"', values)
    for name, values in re.findall(r"const (WIRES|DARK|LIGHT) = \[(.*)\];", SCRIPT)
}
COLOURS = {
    name.lower(): dict(zip(LISTS["WIRES"], LISTS[name], strict=True)) for name in ("DARK", "LIGHT")
}
ON_THE_CANVAS = """(kinds) => Object.fromEntries(kinds.map((kind) => [kind, [
    app.canvas.default_connection_color_byType[kind], LGraphCanvas.link_type_colors[kind]]]))"""
IN_VUE_NODES = """(kinds) => Object.fromEntries(kinds.map((kind) => [kind,
    getComputedStyle(document.querySelector('#vue-app'))
        .getPropertyValue(`--color-datatype-${kind}`).trim()]))"""
# Linear RGB as people see it who lack the medium or the long-wave cones: Machado et al. 2009.
EYES = {
    "all colours": np.eye(3),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
}
# Of the palettes Dark and Light; a type without a colour of its own is grey.
HOSTS = {
    "dark": {
        "CLIP": "#ffd500",
        "CONDITIONING": "#ffa931",
        "IMAGE": "#64b5f6",
        "LATENT": "#ff9cf9",
        "MODEL": "#b39ddb",
        "VAE": "#ff6e6e",
        "STRING": "#aaaaaa",
    },
    "light": {
        "CLIP": "#ffa726",
        "CONDITIONING": "#ef5350",
        "IMAGE": "#42a5f5",
        "LATENT": "#ab47bc",
        "MODEL": "#7e57c2",
        "VAE": "#ff7043",
        "STRING": "#aaaaaa",
    },
}
GROUNDS = {"dark": ("#222222", "#353535"), "light": ("#d3d3d3", "#f5f5f5")}
CHOOSE = "(palette) => app.extensionManager.setting.set('Comfy.ColorPalette', palette)"


def linear(colour: str) -> np.ndarray:
    """Light of the three primaries, float [3] in 0..1."""
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def apart(one: str, other: str, eyes: np.ndarray) -> float:
    """CIEDE2000 between two colours as these eyes see them. 1 is just noticed."""

    def lab(colour: str) -> np.ndarray:
        seen = np.clip(eyes @ linear(colour), 0, 1)
        coded = np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055)
        return rgb2lab(coded[None, None])

    return float(deltaE_ciede2000(lab(one), lab(other)).item())


def contrast(one: str, other: str) -> float:
    """WCAG's ratio, 1 to 21; parts of a drawing need 3."""
    light = sorted(linear(colour) @ [0.2126, 0.7152, 0.0722] + 0.05 for colour in (one, other))
    return light[1] / light[0]


def choose(frontend, palette: str) -> None:
    frontend.page.evaluate(CHOOSE, palette)
    frontend.settle()


def test_the_colours_can_be_told_apart_and_seen():
    """By everyone, from one another and from the host's own, on nodes and canvas of both themes."""
    for theme, ours in COLOURS.items():
        assert len(ours) == 5
        for (one, a), (other, b) in itertools.combinations(ours.items(), 2):
            for eyes, matrix in EYES.items():
                assert apart(a, b, matrix) > 20, (theme, eyes, one, other)
        for kind, colour in ours.items():
            for name, theirs in HOSTS[theme].items():
                assert apart(colour, theirs, EYES["all colours"]) > 11, (theme, kind, name)
            for ground in GROUNDS[theme]:
                assert contrast(colour, ground) >= 3, (theme, kind, ground)


@pytest.mark.every_frontend
def test_a_wire_keeps_its_colour_in_every_palette(open_frontend, screenshot_folder, front_end):
    frontend = open_frontend(vue_nodes=True)
    frontend.load_template("text_to_image")
    frontend.fit_view()
    try:
        for palette, theme in (("light", "light"), ("nord", "dark"), ("dark", "dark")):
            choose(frontend, palette)
            wanted = COLOURS[theme]
            kinds = list(wanted)
            assert frontend.page.evaluate(IN_VUE_NODES, kinds) == wanted, palette
            on_canvas = frontend.page.evaluate(ON_THE_CANVAS, kinds)
            assert on_canvas == {kind: [wanted[kind]] * 2 for kind in kinds}, palette
            frontend.screenshot(screenshot_folder / f"colours-{front_end}-{palette}.png")
    finally:
        choose(frontend, "dark")
    assert frontend.complaints() == []
