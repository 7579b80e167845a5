"""caption_a_folder on the live server: each picture of a folder is saved with its own caption."""

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from seed_core import GenerationOptions
from seed_core.models.names import sample_pictures

pytestmark = pytest.mark.host

TWIN = Path(__file__).parents[1] / "workflows" / "api" / "caption_a_folder.json"
FIVE = ("owl_on_red", "cat_on_orange", "penguin_on_yellow", "castle_on_blue", "donut_on_black")
MIB = 2**20


def captions():
    """What each bundled picture shows, by name."""
    index = next(iter(sample_pictures().values())).with_name("index.json")
    rows = json.loads(index.read_text(encoding="utf-8"))
    return {Path(row["file"]).stem: row["caption"] for row in rows}


def open_sample(name):
    with Image.open(sample_pictures()[name]) as picture:
        return picture.convert("RGB")


def template(folder, name):
    """The template's graph after its three steps for a folder of one's own, without previews."""
    graph = json.loads(TWIN.read_text(encoding="utf-8"))
    key = {node["class_type"]: key for key, node in graph.items()}
    del graph[key["PreviewImage"]]
    graph[key["LoadImageDataSetFromFolder"]]["inputs"]["folder"] = folder
    graph[key["PrimitiveString"]]["inputs"]["value"] = name
    for node in graph.values():
        for socket, value in node["inputs"].items():
            if value == [key["RebatchImages"], 0]:
                node["inputs"][socket] = [key["LoadImageDataSetFromFolder"], 0]
    return graph


@pytest.fixture
def caption(comfy_server, request):
    """Captions pictures, given by file name: (picture, text) of each as saved, and the run."""

    def run(pictures, timeout=300):
        name = request.node.name
        folder = comfy_server.base_dir / "input" / name
        folder.mkdir()
        for file, picture in pictures.items():
            picture.save(folder / file)
        done = comfy_server.run(template(name, name), timeout)
        assert done.status == "execution_success", done.error.get("exception_message")
        return SimpleNamespace(run=done, saved=saved(comfy_server.base_dir / "output" / name))

    return run


def saved(folder):
    """Pictures and texts of one name; nothing else is there."""
    pictures = sorted(folder.glob("*.png"))
    names = [f"{folder.name}_{i:05d}" for i in range(len(pictures))]
    assert [path.stem for path in pictures] == names
    assert len(list(folder.iterdir())) == 2 * len(pictures)
    return [
        (Image.open(path), path.with_suffix(".txt").read_text(encoding="utf-8"))
        for path in pictures
    ]


def test_five_pictures_give_five_right_captions(caption):
    shown = {name: open_sample(name) for name in FIVE}
    found = caption({f"{name}.png": picture for name, picture in shown.items()}).saved
    names = [
        next(name for name in FIVE if np.array_equal(picture, shown[name])) for picture, _ in found
    ]
    assert sorted(names) == sorted(FIVE)
    assert [text for _, text in found] == [captions()[name] for name in names]


def test_pictures_of_any_size_and_mode_keep_their_size_and_their_own_caption(
    caption, mini_tokenizer, mini_llm
):
    """A caption is what the library says of the picture that lies beside it."""
    pictures = {
        "wide.png": open_sample("owl_on_red").resize((300, 200)),
        "high.jpg": open_sample("cat_on_orange").resize((90, 400)),
        "alpha.png": open_sample("castle_on_blue").resize((64, 64)).convert("RGBA"),
        "gray.png": open_sample("donut_on_black").convert("L"),
        "palette.png": open_sample("frog_on_yellow").convert("P"),
        "small.webp": open_sample("fox_on_yellow").resize((7, 5)),
    }
    pictures["alpha.png"].putalpha(40)
    found = caption(pictures).saved
    assert sorted(picture.size for picture, _ in found) == sorted(
        picture.size for picture in pictures.values()
    )
    options = GenerationOptions(reply="text", temperature=0.0, max_new_tokens=128)
    for picture, text in found:
        codes = mini_tokenizer.encode(mini_tokenizer.preprocess([picture.convert("RGB")]))
        reply = mini_llm.generate("Describe this picture.", codes=codes, options=options)
        assert text == reply.text


class MemoryOf:
    """Watches a server: (seconds of the monotonic clock, bytes in memory), a few times a second."""

    def __init__(self, server):
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.seen = []

    def _watch(self):
        while not self._over.wait(0.2):
            size = self._server.get("/seed_test/memory")["rss"]
            self.seen.append((time.monotonic(), size))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()


@pytest.mark.slow
def test_two_hundred_pictures_in_one_run_take_no_more_memory_than_the_first(caption, comfy_server):
    """From the first code to the last word. The pictures themselves the host holds all at once."""
    names = sorted(sample_pictures())
    pictures = {
        f"{i:03d}.png": open_sample(names[i % len(names)]).resize((512, 512)) for i in range(200)
    }
    with MemoryOf(comfy_server) as memory:
        done = caption(pictures, timeout=1200)
    known = captions()
    assert len(done.saved) == 200
    assert {text for _, text in done.saved} == set(known.values())
    began = {e.data["node"]: e.time for e in done.run.events if e.type == "executing"}
    graph = template("", "")
    start = {node["class_type"]: began[key] for key, node in graph.items() if key in began}
    first, last = start["SEEDEncode"] + 1, start["SaveImageTextDataSetToFolder"]
    work = [size for time, size in memory.seen if first <= time <= last]
    print(f"{len(work)} looks: {work[0] / MIB:.0f} MiB at first, {max(work) / MIB:.0f} at most")
    assert max(work) - work[0] < 32 * MIB
