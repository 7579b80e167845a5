"""Pictures as files: which paths can be written to."""

import pytest
from PIL import Image

from seed_core.errors import OptionError
from seed_core.files.pictures import check_picture_output
from seed_core.files.writer import check_output


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
