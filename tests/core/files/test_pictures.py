"""Pictures and codes as files: what is read, and which paths can be written to."""

import pytest
import torch
from PIL import Image

from seed_core import SeedCodes
from seed_core.errors import CodesError, OptionError
from seed_core.files.pictures import check_picture_output, read_codes, save_codes
from seed_core.files.writer import check_output


@pytest.fixture
def codes_file(tmp_path, sample_codes):
    path = tmp_path / "codes.json"
    save_codes(SeedCodes(sample_codes, "seed-mini", 512), path)
    return path


def test_codes_come_back_from_their_file(codes_file, sample_codes):
    assert torch.equal(read_codes(codes_file).values, sample_codes)


def test_a_truncated_codes_file_is_one_clear_error_wherever_it_ends(codes_file):
    content = codes_file.read_bytes().rstrip()
    for length in range(len(content)):
        codes_file.write_bytes(content[:length])
        with pytest.raises(CodesError):
            read_codes(codes_file)


@pytest.mark.parametrize("content", [b"\xff\xfe{", b"\x00" * 100, b"\x89PNG\r\n\x1a\n"])
def test_a_file_of_something_else_is_no_codes_file(codes_file, content):
    codes_file.write_bytes(content)
    with pytest.raises(CodesError):
        read_codes(codes_file)


def test_a_folder_is_no_codes_file(tmp_path):
    with pytest.raises(CodesError, match=tmp_path.name):
        read_codes(tmp_path)


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
