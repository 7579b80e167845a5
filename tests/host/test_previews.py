"""Previews on a live server: they reach the websocket if the host's setting asks for them."""

import io

import pytest
from PIL import Image, ImageStat


@pytest.fixture
def paint(comfy_server, graphs):
    """Paint a picture that no test painted before; the previews that arrived, and the picture."""

    def run(method, seed):
        graph = graphs["reconstruct"].set("decode", steps=8, seed=seed)
        extra = {} if method is None else {"preview_method": method}
        done = comfy_server.wait(comfy_server.queue(graph, **extra))
        assert done.status == "execution_success", done.error
        picture = comfy_server.picture(done.outputs["show"]["images"][0])
        return done.previews(), Image.open(io.BytesIO(picture)).convert("RGB")

    return run


@pytest.mark.parametrize("method", ["auto", "latent2rgb", "taesd"])
def test_previews_arrive_while_it_paints(paint, method):
    files, picture = paint(method, seed=101 + len(method))
    assert files
    preview = Image.open(io.BytesIO(files[-1]))
    assert preview.format == "JPEG"
    assert max(preview.size) == 512
    # A fox on yellow from the first step on: the ground is warm in both.
    for shown in (preview, picture):
        red, _, blue = ImageStat.Stat(shown.resize((8, 8)).crop((0, 0, 8, 1))).mean
        assert red > blue + 20


@pytest.mark.parametrize("method", ["none", None])
def test_without_the_setting_none_arrive(paint, method):
    """The server's own default is none."""
    files, _ = paint(method, seed=201 + bool(method))
    assert files == []
