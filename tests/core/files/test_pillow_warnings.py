"""What Pillow warns of: a line with the file's name, heard by the thread that reads."""

import io
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageFile

from seed_core.files.pictures import decode_picture, read_picture


@pytest.fixture(scope="module")
def odd(load_helper):
    return load_helper(Path(__file__).parents[2] / "odd_pictures.py")


def same(picture, other):
    return np.array_equal(np.asarray(picture), np.asarray(other))


def test_what_pillow_warns_of_is_a_line_with_the_files_name(odd, tmp_path, caplog):
    """And never a Python warning, whatever Python is told to do with those."""
    path = tmp_path / "fox.png"
    path.write_bytes(odd.saved(odd.fox(), exif=b"Exif\0\0nonsense"))
    for action in ("error", "ignore", "default"):
        with warnings.catch_warnings():
            warnings.simplefilter(action)
            filters, show = list(warnings.filters), warnings.showwarning
            assert same(read_picture(path), odd.fox())
            assert (warnings.filters, warnings.showwarning) == (filters, show)
    said = f"{path}: its EXIF data is damaged, so it may lie on its side"
    assert caplog.messages == [said] * 3


def test_threads_hear_only_their_own_warnings(odd, caplog):
    """And leave Python's warnings as they were."""
    whole, broken = odd.saved(odd.fox()), odd.saved(odd.fox(), exif=b"Exif\0\0nonsense")
    filters, show = list(warnings.filters), warnings.showwarning
    start = threading.Barrier(8)

    def read(number):
        start.wait()
        for _ in range(10):
            decode_picture(io.BytesIO(broken if number % 2 else whole), f"picture {number}")

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (warnings.filters, warnings.showwarning) == (filters, show)
    assert sorted(caplog.messages) == sorted(
        f"picture {number}: its EXIF data is damaged, so it may lie on its side"
        for number in (1, 3, 5, 7)
        for _ in range(10)
    )


def test_a_warning_of_another_thread_goes_where_it_went(odd, monkeypatch):
    """One that has nothing to do with pictures, while a picture is read."""
    original = ImageFile.ImageFile.load

    def load(self):
        elsewhere = threading.Thread(target=warnings.warn, args=("of something else",))
        elsewhere.start()
        elsewhere.join()
        return original(self)

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decode_picture(io.BytesIO(odd.saved(odd.fox(), "BMP")), "fox")
    assert {str(warning.message) for warning in caught} == {"of something else"}
