"""Pictures of training data are read as those of the command line: as they look, or named."""

import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seed_core.__main__ import main
from seed_core.errors import PictureError
from seed_core.training.__main__ import main as training
from seed_core.training.data.picture_sources import PictureFile
from seed_core.training.data.pictures import PictureFolders
from seed_core.training.streams import Streams


@pytest.fixture(scope="module")
def odd(load_helper):
    return load_helper(Path(__file__).parents[1] / "odd_pictures.py")


@pytest.fixture
def good(odd, tmp_path):
    """A folder of pictures of all kinds that are read."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    fox, exif = odd.fox(), Image.Exif()
    exif[274] = 6
    lying = fox.transpose(Image.Transpose.ROTATE_90)
    clear = fox.copy()
    clear.putalpha(7)
    deep = Image.fromarray(np.asarray(fox.convert("L")).astype(np.uint16) * 257)
    for name, content in {
        "deep.png": odd.saved(deep),
        "grey.png": odd.saved(fox.convert("L")),
        "lying.jpg": odd.saved(lying, "JPEG", exif=exif, quality=95),
        "lying.png": odd.saved(lying, exif=exif),
        "lying.tif": odd.saved(lying, "TIFF", exif=exif),
        "lying.webp": odd.saved(lying, "WEBP", exif=exif, lossless=True),
        "palette.png": odd.saved(fox.quantize(64), transparency=bytes([0, 9])),
        "print.jpg": odd.saved(fox.convert("CMYK"), "JPEG"),
        "several.gif": odd.saved(
            fox.quantize(64), "GIF", save_all=True, append_images=[odd.noise().quantize(64)]
        ),
        "through.png": odd.saved(clear),
        "upright.png": odd.saved(fox),
    }.items():
        (folder / name).write_bytes(content)
    return folder


def codes_in(folder):
    lines = [line for shard in folder.glob("*.jsonl") for line in shard.open(encoding="utf-8")]
    return {each["picture"]: each["codes"] for each in map(json.loads, lines)}


def encode(source, output):
    arguments = ["data", "encode", str(source), "-o", str(output), "--device", "cpu"]
    return training(arguments)


def test_training_and_the_command_line_give_the_same_codes(good, tmp_path):
    paths = sorted(good.iterdir())
    assert main(["encode", *map(str, paths), "-o", str(tmp_path / "codes.json")]) == 0
    codes = json.loads((tmp_path / "codes.json").read_text(encoding="utf-8"))["codes"]
    expected = dict(zip((path.name for path in paths), codes, strict=True))
    assert encode(good, tmp_path / "folder") == 0
    assert codes_in(tmp_path / "folder") == expected
    with tarfile.open(tmp_path / "pictures.tar", "w") as archive:
        for number, path in enumerate(paths):
            archive.add(path, f"{number:03d}{path.suffix}")
    assert encode(tmp_path / "pictures.tar", tmp_path / "archive") == 0
    assert list(codes_in(tmp_path / "archive").values()) == codes
    for name in ("lying.png", "lying.tif", "lying.webp", "through.png"):
        assert expected[name] == expected["upright.png"]
    assert expected["deep.png"] == expected["grey.png"]


def test_what_shows_no_picture_is_left_out_by_name(odd, good, tmp_path, capfd, caplog):
    refused = odd.refused()
    for kind, (content, _) in refused.items():
        (good / f"bad {kind}.png").write_bytes(content)
    assert encode(good, tmp_path / "codes") == 0
    assert len(codes_in(tmp_path / "codes")) == 11
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    for kind, (_, words) in refused.items():
        line = next(line for line in err.splitlines() if f"bad {kind}.png is left out" in line)
        assert re.search(words, line), line
    assert "several.gif: only the first of its pictures is read" in caplog.messages


def test_a_stage_sees_pictures_upright_and_in_8_bits(good, mini_tokenizer):
    files = {path.name: PictureFile(path.name, path.read_bytes, str) for path in good.iterdir()}
    for name in ("lying.png", "lying.tif", "lying.webp", "through.png"):
        assert np.array_equal(files[name].open(), files["upright.png"].open())
    assert np.array_equal(files["deep.png"].open(), files["grey.png"].open())
    samples = PictureFolders([good], 32, has_captions=False)
    assert {tuple(samples.sample(number, Streams(0))[0].shape) for number in range(11)} == {
        (3, 32, 32)
    }


def test_a_stage_without_one_whole_picture_says_so(odd, tmp_path):
    (tmp_path / "cut.png").write_bytes(odd.saved(odd.fox())[:900])
    with pytest.raises(PictureError, match="pictures in a row are damaged"):
        PictureFolders([tmp_path], 32, has_captions=False).sample(0, Streams(0))


def test_an_object_of_ones_own_may_lie_on_its_side_and_have_a_palette(
    odd, artwork, tmp_path, capfd
):
    exif = Image.Exif()
    exif[274] = 6
    picture = odd.fox(60, 90).quantize(64)
    path = tmp_path / "mascot.png"
    path.write_bytes(odd.saved(picture, exif=exif, transparency=2))
    arguments = ["--name", "mascot", "--category", "thing", "--artwork", str(artwork)]
    arguments += ["-o", str(tmp_path / "my")]
    assert training(["data", "object", str(path), *arguments]) == 0
    capfd.readouterr()
    for content, words in odd.refused().values():
        path.write_bytes(content)
        assert training(["data", "object", str(path), *arguments]) == 1
        (line,) = capfd.readouterr().err.splitlines()
        assert re.search(words, line), line
