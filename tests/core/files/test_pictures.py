"""Pictures as files: which can be read, what is said of the others, where one can be written."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seed_core.errors import OptionError, PictureError
from seed_core.files.pictures import (
    check_picture_output,
    decode_picture,
    is_picture_file,
    read_picture,
)
from seed_core.files.writer import check_output


@pytest.fixture(scope="module")
def odd(load_helper):
    return load_helper(Path(__file__).parents[2] / "odd_pictures.py")


@pytest.fixture(scope="module")
def refused(odd):
    return odd.refused()


KINDS = [
    *("empty", "zeros", "broken chunk", "cut png", "cut jpeg", "cut webp", "cut gif", "cut tiff"),
    *(
        "cut in its head",
        "cut in its mark",
        "one byte",
        "bomb",
        "no pixels",
        "much text",
        "git lfs",
        "web page",
    ),
    *("page without type", "svg", "json", "words", "heic", "raw of Canon", "raw of Nikon", "video"),
    *("pdf", "postscript", "zip", "jpeg xl", "32 bits", "noise", "weights"),
]


def same(picture, other):
    return np.array_equal(np.asarray(picture), np.asarray(other))


# --- what cannot be read ---


@pytest.mark.parametrize("kind", KINDS)
def test_what_shows_no_picture_is_one_sentence_with_its_name(refused, kind, tmp_path, capfd):
    assert list(refused) == KINDS
    content, words = refused[kind]
    (tmp_path / "my fox.png").write_bytes(content)
    with pytest.raises(PictureError, match=words) as caught:
        read_picture(tmp_path / "my fox.png")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'my fox.png'} cannot be read as a picture: ")
    assert "object at 0x" not in message
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")


def test_what_is_no_file_is_said_to_be_none(tmp_path):
    for path, words in (
        (tmp_path / "gone.png", "gone.png does not exist"),
        (tmp_path, "is a folder; name the pictures in it"),
        (tmp_path / ("x" * 300), "cannot be read"),
        (tmp_path / "gone.png" / "fox.png", "does not exist"),
    ):
        with pytest.raises(PictureError, match=words):
            read_picture(path)


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither")
def test_pipes_and_links_to_nothing_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe")
    assert not is_picture_file(tmp_path / "pipe")
    with pytest.raises(PictureError, match="a device or a pipe"):
        read_picture(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(PictureError, match="link.png does not exist"):
        read_picture(tmp_path / "link.png")
    (tmp_path / "round.png").symlink_to(tmp_path / "round.png")
    with pytest.raises(PictureError, match="round.png cannot be read"):
        read_picture(tmp_path / "round.png")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_a_name_with_odd_letters_is_shown_in_one_line(tmp_path):
    path = tmp_path / os.fsdecode(b"fox\n\x1b[31m\xff.png")
    with pytest.raises(PictureError) as caught:
        read_picture(path)
    assert str(caught.value) == f"the picture {tmp_path}/fox\\n\\x1b[31m\\udcff.png does not exist"


@pytest.mark.parametrize(
    "name", ["-o.png", "früh 狐 🦊.PNG", "a b.png", "fox.jpg", "fox", "fox.txt"]
)
def test_a_picture_is_known_by_its_content_not_by_its_name(odd, tmp_path, name):
    (tmp_path / name).write_bytes(odd.saved(odd.fox()))
    assert same(read_picture(tmp_path / name), odd.fox())
    assert is_picture_file(tmp_path / name)


def test_codes_and_folders_are_no_picture_files(tmp_path):
    (tmp_path / "codes").write_text('{"codes": []}', encoding="utf-8")
    (tmp_path / "codes.txt").write_text("# seed-mini\n" + "1 " * 32, encoding="utf-8")
    for path in (tmp_path / "codes", tmp_path / "codes.txt", tmp_path, tmp_path / "gone"):
        assert not is_picture_file(path)
    assert is_picture_file(tmp_path / "gone.png")  # whoever reads it says that it is missing


# --- what is read ---


def test_a_picture_behind_a_link_is_read(odd, tmp_path):
    (tmp_path / "fox.png").write_bytes(odd.saved(odd.fox()))
    try:
        (tmp_path / "link.png").symlink_to(tmp_path / "fox.png")
    except OSError:
        pytest.skip("links are not allowed here")
    assert same(read_picture(tmp_path / "link.png"), odd.fox())


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_pictures_the_first_is_read_and_that_is_said(odd, tmp_path, caplog, form):
    first, second = odd.fox().quantize(64), odd.fox().quantize(64).rotate(180)
    if form != "GIF":
        first, second = first.convert("RGB"), second.convert("RGB")
    options = {"lossless": True} if form == "WEBP" else {}
    if form == "TIFF":
        options = {"compression": "raw"}
    content = odd.saved(first, form, save_all=True, append_images=[second], **options)
    (tmp_path / "several").write_bytes(content)
    assert same(read_picture(tmp_path / "several"), first.convert("RGB"))
    assert caplog.messages == [f"{tmp_path / 'several'}: only the first of its pictures is read"]


def test_an_animation_shows_what_browsers_show(odd):
    """A PNG may hold a picture for programs that know no animation; no other shows it."""
    content = odd.saved(
        odd.noise(96, 64),
        save_all=True,
        append_images=[odd.fox(), odd.noise(96, 64)],
        default_image=True,
    )
    assert same(decode_picture(io.BytesIO(content), "x"), odd.fox())


def test_a_phone_photo_of_several_pictures_is_read_without_a_word(odd, tmp_path, caplog):
    """Phones put a preview or a map of depth behind the photo."""
    content = odd.saved(odd.fox(), "MPO", save_all=True, append_images=[odd.fox(32, 32)])
    (tmp_path / "phone.jpg").write_bytes(content)
    assert read_picture(tmp_path / "phone.jpg").size == (96, 64)
    assert not caplog.messages


def test_large_pictures_are_read_without_a_word(odd, tmp_path, caplog):
    path = tmp_path / "large.png"
    path.write_bytes(odd.black(12000, 7600))  # Pillow warns from 89 million pixels on
    assert read_picture(path).size == (12000, 7600)
    assert not caplog.messages


def test_no_picture_is_a_map_of_its_file(odd, tmp_path, monkeypatch):
    """Pillow maps some plain files, and a map of a file that has shrunk ends the process."""
    path = tmp_path / "fox.tif"
    path.write_bytes(odd.saved(odd.fox().convert("RGBA"), "TIFF"))
    monkeypatch.setattr("mmap.mmap", lambda *args, **options: pytest.fail("a map"))
    assert same(read_picture(path, "RGBA"), odd.fox().convert("RGBA"))
    with Image.open(path) as picture, pytest.raises(pytest.fail.Exception):
        picture.load()  # so that the law is one


# --- what is written ---


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpg", ".webp", ".tiff"])
def test_a_suffix_that_passes_can_be_written(tmp_path, suffix):
    path = tmp_path / f"picture{suffix}"
    check_picture_output(path)
    assert not path.exists()
    Image.new("RGB", (8, 8)).save(path)


@pytest.mark.parametrize("name", ["picture", "picture.xyz", "picture.psd", "picture.xbm", ".png"])
def test_a_suffix_that_cannot_be_written_is_refused(tmp_path, name):
    """Pillow opens .psd without writing it, and writes .xbm without color."""
    with pytest.raises(OptionError, match=rf"{name} .*\.png"):
        check_picture_output(tmp_path / name)


@pytest.mark.parametrize("check", [check_output, check_picture_output])
def test_a_path_that_cannot_be_written_is_refused(tmp_path, check):
    with pytest.raises(OptionError, match="folder .*gone does not exist"):
        check(tmp_path / "gone" / "picture.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OptionError, match="folder.png is a folder"):
        check(tmp_path / "folder.png")
