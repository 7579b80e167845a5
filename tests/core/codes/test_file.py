"""Files of codes: all forms come back whole, those of earlier versions too, and nothing else does."""

import contextlib
import json
import pickle
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from seed_core import SeedCodes
from seed_core.codes.file import looks_like_codes, read_codes_file, save_codes_file
from seed_core.errors import CodesError

HEADER = {"family": "seed-mini", "codebook_size": "512"}
# What earlier versions wrote of two samples, before files had distances.
EARLIER = Path(__file__).parents[2] / "data" / "codes"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "codes.safetensors"


@pytest.fixture
def codes(sample_codes):
    return SeedCodes(sample_codes, "seed-mini", 512)


@pytest.fixture
def encoded(codes, generator):
    """With distances, one of them unknown."""
    distances = torch.rand(codes.values.shape, generator=generator)
    distances[0, 3] = torch.nan
    return replace(codes, distances=distances)


@pytest.mark.parametrize(
    "name", ["a.safetensors", "a.json", "a.txt", "a.TXT", "a.Safetensors", "a"]
)
@pytest.mark.parametrize(("family", "size"), [("seed-2", 8192), ("seed-mini", 512), ("seed-1", 7)])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_codes_come_back_from_their_file(tmp_path, name, family, size, count, generator):
    values = torch.randint(0, size, (count, 32), generator=generator)
    save_codes_file(SeedCodes(values, family, size), tmp_path / name)
    again = read_codes_file(tmp_path / name)
    assert torch.equal(again.values, values)
    assert again.values.shape == (count, 32)
    assert (again.family, again.codebook_size) == (family, size)
    assert not again.has_distances


@pytest.mark.parametrize("name", ["a.safetensors", "a.json"])
def test_distances_come_back_to_the_last_bit(tmp_path, name, encoded):
    save_codes_file(encoded, tmp_path / name)
    again = read_codes_file(tmp_path / name)
    assert again.distances.dtype == torch.float32
    assert torch.equal(again.distances.nan_to_num(9), encoded.distances.nan_to_num(9))


@pytest.mark.parametrize(
    ("name", "form"), [("a.json", b"{"), ("a", b"{"), ("a.txt", b"# seed-mini")]
)
def test_the_ending_is_the_form(tmp_path, name, form, codes):
    save_codes_file(codes, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(form)


@pytest.mark.parametrize("name", ["before_distances.safetensors", "before_distances.json"])
@pytest.mark.parametrize("renamed", ["a.safetensors", "a.json", "a.txt", "a"])
def test_files_of_earlier_versions_are_read_whatever_their_ending(
    tmp_path, name, renamed, sample_codes
):
    (tmp_path / renamed).write_bytes((EARLIER / name).read_bytes())
    again = read_codes_file(tmp_path / renamed)
    assert torch.equal(again.values, sample_codes[:2])
    assert (again.family, again.codebook_size) == ("seed-mini", 512)
    assert not again.has_distances


def test_codes_without_distances_are_written_as_earlier_versions_read_them(tmp_path, sample_codes):
    codes = SeedCodes(sample_codes[:2], "seed-mini", 512)
    save_codes_file(codes, tmp_path / "a.json")
    assert (tmp_path / "a.json").read_bytes() == (EARLIER / "before_distances.json").read_bytes()
    save_codes_file(codes, tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert list(file.keys()) == ["codes"]  # they refuse any other tensor beside it


def test_a_text_without_a_family_needs_one(tmp_path, codes):
    path = tmp_path / "typed.txt"
    path.write_text(codes.to_text(), encoding="utf-8")
    assert torch.equal(read_codes_file(path, "seed-mini").values, codes.values)
    with pytest.raises(CodesError, match=r"typed\.txt: .*# seed-mini"):
        read_codes_file(path)


def test_a_view_of_other_codes_is_saved_as_what_it_shows(path, codes):
    save_codes_file(SeedCodes(codes.values.T.contiguous().T[1:], "seed-mini", 512), path)
    assert torch.equal(read_codes_file(path).values, codes.values[1:])


def test_the_header_says_whose_codes_they_are(path, codes):
    save_codes_file(codes, path)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == HEADER


def test_what_was_read_does_not_change_with_the_file(path, codes):
    save_codes_file(codes, path)
    again = read_codes_file(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert torch.equal(again.values, codes.values)


@pytest.mark.parametrize("name", ["codes.safetensors", "codes.json"])
def test_a_truncated_file_is_one_error_wherever_it_ends(tmp_path, name, encoded):
    path = tmp_path / name
    save_codes_file(replace(encoded, **first_row(encoded)), path)
    content = path.read_bytes().rstrip()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CodesError, match=name):
            read_codes_file(path)


def first_row(codes):
    return {"values": codes.values[:1], "distances": codes.distances[:1]}


def test_a_damaged_file_is_codes_or_one_error(path, encoded):
    save_codes_file(encoded, path)
    content, chance = path.read_bytes(), random.Random(3)
    end_of_header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(1000):
        damaged = bytearray(content)
        damaged[chance.randrange(end_of_header)] = chance.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(CodesError):
            read_codes_file(path)


@pytest.mark.parametrize(
    ("tensors", "header"),
    [
        ({"codes": torch.zeros(1, 32, dtype=torch.int64)}, None),
        ({"codes": torch.zeros(1, 32, dtype=torch.int64)}, {"family": "seed-mini"}),
        ({"weight": torch.zeros(4, 4)}, HEADER),
        ({"codes": torch.zeros(1, 32, dtype=torch.int64), "weight": torch.zeros(4)}, HEADER),
        ({"weight": torch.zeros(4, 4)}, {"format": "pt"}),
    ],
)
def test_a_file_of_something_else_says_so(path, tensors, header):
    save_file(tensors, path, header)
    with pytest.raises(CodesError, match="something else"):
        read_codes_file(path)


@pytest.mark.parametrize(
    ("distances", "words"),
    [
        (torch.zeros(2, 32), r"codes \[1, 32\] need as many distances; got \[2, 32\]"),
        (torch.zeros(32), r"distances are stored as .* these are \[32\]"),
        (torch.zeros(1, 32, dtype=torch.int64), "0 or more"),
        (torch.full((1, 32), -1.0), "0 or more"),
        (torch.full((1, 32), torch.inf), "0 or more"),
    ],
)
def test_distances_that_cannot_be_are_refused_with_the_files_name(path, distances, words):
    codes = torch.zeros(1, 32, dtype=torch.int64)
    save_file({"codes": codes, "distances": distances}, path, HEADER)
    with pytest.raises(CodesError, match=words) as caught:
        read_codes_file(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("values", "header", "words"),
    [
        (torch.zeros(1, 31, dtype=torch.int64), HEADER, "exactly 32"),
        (torch.zeros(1, 32), HEADER, "must be integers"),
        (torch.full((1, 32), 512), HEADER, "got 512"),
        (torch.full((1, 32), -1), HEADER, "got -1"),
        (torch.zeros(1, 32, dtype=torch.int64), HEADER | {"family": "seed-x"}, "'seed-x'"),
        (torch.zeros(1, 32, dtype=torch.int64), HEADER | {"codebook_size": "many"}, "many"),
        (torch.zeros(1, 32, dtype=torch.int64), HEADER | {"codebook_size": "9999"}, "9999"),
        (torch.zeros(1, 32, dtype=torch.int64), HEADER | {"codebook_size": "5_12"}, "5_12"),
        (torch.zeros(32, dtype=torch.int64), HEADER, r"these are \[32\]"),
    ],
)
def test_values_that_are_no_codes_are_refused_with_the_files_name(path, values, header, words):
    save_file({"codes": values}, path, header)
    with pytest.raises(CodesError, match=words) as caught:
        read_codes_file(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        json.dumps({"codes": []}).encode(),
        pickle.dumps([1]),
        b"\xff" * 99,
    ],
)
def test_a_file_of_another_format_is_one_error(path, content):
    path.write_bytes(content)
    with pytest.raises(CodesError, match=r"codes\.safetensors"):
        read_codes_file(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(CodesError, match="gone"):
        read_codes_file(tmp_path / "gone.safetensors")
    with pytest.raises(CodesError, match=tmp_path.name):
        read_codes_file(tmp_path)


def test_codes_that_cannot_be_written_leave_no_file(tmp_path):
    (tmp_path / "taken.safetensors").mkdir()
    with pytest.raises(CodesError, match="could not be written"):
        save_codes_file(SeedCodes.empty("seed-mini", 512), tmp_path / "taken.safetensors")
    with pytest.raises(CodesError, match="could not be written"):
        save_codes_file(SeedCodes.empty("seed-mini", 512), tmp_path / "none" / "a.safetensors")
    (tmp_path / "taken.json").mkdir()
    with pytest.raises(CodesError, match="could not be written"):
        save_codes_file(SeedCodes.empty("seed-mini", 512), tmp_path / "taken.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken.json", "taken.safetensors"]


def test_a_file_in_the_way_is_replaced_and_its_neighbours_stay(tmp_path, encoded, codes):
    for name in ("a.safetensors", "a.json", "a.txt", "a.unfinished"):
        (tmp_path / name).write_text("mine", encoding="utf-8")
    save_codes_file(encoded, tmp_path / "a.safetensors")
    assert torch.equal(read_codes_file(tmp_path / "a.safetensors").values, codes.values)
    assert (tmp_path / "a.unfinished").read_text("utf-8") == "mine"
    assert (tmp_path / "a.json").read_text("utf-8") == "mine"


def test_a_file_of_more_pictures_than_anyone_makes_is_refused(path):
    save_file({"codes": torch.zeros(100_001, 32, dtype=torch.int64)}, path, HEADER)
    with pytest.raises(CodesError, match="holds 100001 pictures, and 100000 is the most"):
        read_codes_file(path)


def test_a_text_without_end_is_refused_after_what_pictures_can_take(tmp_path):
    for name, content in (("a.txt", "1 " * 25_000_000), ("a.json", "[" + "1," * 25_000_000)):
        (tmp_path / name).write_text(content, encoding="utf-8")
        with pytest.raises(CodesError, match=f"{name}: the text has 40000001 characters"):
            read_codes_file(tmp_path / name)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_text_is_read_as_windows_may_have_saved_it(tmp_path, encoding):
    file = tmp_path / "a.txt"
    file.write_text(" ".join(map(str, range(32))), encoding=encoding)
    codes = read_codes_file(file, unnamed="seed-mini")
    assert codes.values.tolist() == [list(range(32))]


@pytest.mark.parametrize("count", [0, 1, 500])
def test_a_file_of_codes_is_told_by_its_beginning(path, encoded, count):
    values = torch.zeros(count, 32, dtype=torch.int64)
    save_codes_file(SeedCodes(values, "seed-2", 8192), path)
    assert looks_like_codes(path)
    save_codes_file(encoded, path)
    assert looks_like_codes(path)


@pytest.mark.parametrize(
    "content",
    [
        *(
            b"",
            b"short",
            b"\xff" * 64,
            (2).to_bytes(8, "little") + b"{}",
            b"\5" + b"\0" * 7 + b"[[[[[",
        ),
        (900).to_bytes(8, "little") + b"[" * 900,
        (4096).to_bytes(8, "little") + b'{"codes": 1, "__metadata__": 1}'.ljust(4096),
    ],
)
def test_a_file_of_something_else_is_told_by_its_beginning(path, content):
    path.write_bytes(content)
    assert not looks_like_codes(path)
    assert not looks_like_codes(path.parent)
    assert not looks_like_codes(path.parent / "missing")
