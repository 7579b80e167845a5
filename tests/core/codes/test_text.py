"""Codes as text: three forms are read exactly, everything else is one error."""

import json
import random
from dataclasses import replace

import pytest
import torch

from seed_core import CODEBOOK_SIZES, SeedCodes
from seed_core.codes.text import (
    codes_from_json,
    codes_from_text,
    codes_to_json,
    codes_to_text_file,
)
from seed_core.errors import CodesError

ROW = list(range(100, 132))
NUMBERS = " ".join(map(str, ROW))
LINE = "<img>" + "".join(f"<img_{code:05d}>" for code in ROW) + "</img>"
RECORD = {"family": "seed-mini", "codebook_size": 512, "codes": [ROW]}


def rows(text, family="seed-mini"):
    codes = codes_from_text(text, family)
    assert (codes.family, codes.codebook_size) == (family, CODEBOOK_SIZES[family])
    assert codes.values.dtype == torch.int64
    return codes.values.tolist()


@pytest.mark.parametrize("family", CODEBOOK_SIZES)
@pytest.mark.parametrize("count", [1, 3])
def test_text_and_json_come_back_as_equal_codes(family, count, generator):
    size = CODEBOOK_SIZES[family]
    values = torch.randint(0, size, (count, 32), generator=generator)
    codes = SeedCodes(values, family, size)
    numbers = "\n".join(" ".join(map(str, row)) for row in values.tolist())
    for text in (codes.to_text(), codes_to_json(codes), json.dumps(values.tolist()), numbers):
        assert rows(text, family) == values.tolist()


@pytest.mark.parametrize(
    "text",
    [
        LINE,
        f"\n  {LINE}\n\n",
        LINE.replace("><", ">\n<"),
        NUMBERS,
        NUMBERS.replace(" ", ", "),
        NUMBERS.replace(" ", "\t"),
        str(ROW),
        json.dumps(ROW, indent=1),
        str([ROW]),
        json.dumps(RECORD),
    ],
)
def test_every_form_of_one_picture(text):
    assert rows(text) == [ROW]


@pytest.mark.parametrize(
    "text",
    [
        LINE + LINE,
        f"{LINE}\n\n{LINE}",
        f"{NUMBERS} {NUMBERS}",
        f"{NUMBERS}\n\n{NUMBERS}\n",
        str([ROW, ROW]),
    ],
)
def test_several_pictures_in_a_row_or_one_a_line(text):
    assert rows(text) == [ROW, ROW]


def test_json_keeps_the_size_of_its_own_codebook_and_may_hold_no_picture():
    codes = codes_from_text(json.dumps(RECORD | {"codebook_size": 256}), "seed-mini")
    assert codes.codebook_size == 256
    assert len(codes_from_text(codes_to_json(SeedCodes.empty("seed-2", 8192)), "seed-2")) == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ("a red fox", "line 1: 'a' is not a code"),
        (f"{NUMBERS} 5", "line 1 has 33 numbers"),
        (f"{NUMBERS}\n{NUMBERS[:-4]}", "line 2 has 31 numbers"),
        (NUMBERS[:63] + "\n" + NUMBERS[64:], "line 1 has 16 numbers"),
        (NUMBERS.replace(" ", ",,"), "line 1: a number is missing beside a comma"),
        (f"{NUMBERS},", "line 1: a number is missing beside a comma"),
        (NUMBERS.replace("105", "1.5"), "'1.5' is not a code"),
        (NUMBERS.replace("105", "-5"), "got -5 at row 0, position 5"),
        (NUMBERS.replace("105", "512"), "got 512 at row 0, position 5"),
        (NUMBERS.replace("105", "9" * 5000), "is not a code"),
        (LINE.replace("<img_00105>", ""), "row 0 has 31"),
        (LINE.replace("<img_00105>", "<img_00105>" * 2), "row 0 has 33"),
        (LINE.replace("<img_00105>", "<img_00512>"), "got 512 at row 0, position 5"),
        (LINE.replace("<img_00105>", "<img_105>"), "is not a whole picture"),
        (LINE.replace("<img_00105>", "105"), "is not a whole picture"),
        (f"{LINE} and {LINE}", "'and' is not a whole picture"),
        (LINE[:-6], "is not a whole picture"),
        (LINE[5:], "is not a whole picture"),
        ("<img></img>", "row 0 has 0"),
        (str([ROW[1:]]), "row 0 has 31"),
        (str(ROW + ROW), "row 0 has 64"),
        (str([ROW, 5]), "is not a list"),
        (str(ROW).replace("105", "true"), "True is not a whole number"),
        (str(ROW).replace("105", "5.0"), "5.0 is not a whole number"),
        (str(ROW).replace("105", "1" * 30), "far too large"),
        (str(ROW)[:-1], "could not read"),
        ('{"codes": {}, "family": "seed-mini", "codebook_size": 512}', "is not a list"),
        (json.dumps(RECORD | {"codebook_size": True}), "True is not a whole number"),
        (json.dumps(RECORD | {"codebook_size": 9999}), "seed-mini has 512"),
    ],
)
def test_anything_else_says_what_was_found(text, words):
    with pytest.raises(CodesError) as caught:
        codes_from_text(text, "seed-mini")
    assert words in str(caught.value)
    assert len(str(caught.value)) < 600


def test_json_of_another_family_is_refused_with_both_names():
    with pytest.raises(CodesError, match="seed-mini codes, but seed-2 was asked for"):
        codes_from_text(json.dumps(RECORD), "seed-2")


@pytest.mark.parametrize("title", ["# seed-2", "#seed-2", "# seed-2 8192", "# seed-2\t8192 \r"])
@pytest.mark.parametrize("body", [LINE, NUMBERS, f"\n{LINE}\n{LINE}"])
def test_a_first_line_may_name_the_family(title, body):
    for family in (None, "seed-2"):
        codes = codes_from_text(f"{title}\n{body}", family)
        assert (codes.family, codes.codebook_size) == ("seed-2", 8192)
        assert codes.values[0].tolist() == ROW
    with pytest.raises(CodesError, match="seed-2 codes, but seed-mini was asked for"):
        codes_from_text(f"{title}\n{body}", "seed-mini")


@pytest.mark.parametrize(("size", "count"), [(512, 3), (200, 1), (512, 0)])
def test_a_text_file_keeps_family_and_codebook(size, count, generator):
    codes = SeedCodes(torch.randint(0, size, (count, 32), generator=generator), "seed-mini", size)
    again = codes_from_text(codes_to_text_file(codes))
    assert (again.family, again.codebook_size) == ("seed-mini", size)
    assert torch.equal(again.values, codes.values)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LINE, "first line"),
        (NUMBERS, "# seed-mini"),
        (str(ROW), "expected JSON like"),
        (f"# a fox\n{LINE}", "first line"),
        (f"# seed-x\n{LINE}", "unknown family 'seed-x'"),
        (f"# seed-mini 9999\n{LINE}", "9999"),
        (f"# seed-mini\n{NUMBERS} 5", "line 2 has 33 numbers"),
    ],
)
def test_without_a_family_the_text_must_name_one_it_can_have(text, words):
    with pytest.raises(CodesError, match=words):
        codes_from_text(text)


@pytest.mark.parametrize("text", [LINE, NUMBERS, str(ROW), "[]"])
def test_an_unknown_family_is_refused(text):
    with pytest.raises(CodesError, match="unknown family 'seed-x'"):
        codes_from_text(text, "seed-x")


def test_ten_thousand_broken_texts_give_codes_or_one_error():
    """Whole texts with pieces cut out, put in or doubled; what is read must be what was written."""
    chance = random.Random(7)
    whole = [LINE, f"{LINE}\n{LINE}", NUMBERS, NUMBERS.replace(" ", ","), str(ROW)]
    whole += [str([ROW, ROW]), json.dumps(RECORD), json.dumps(RECORD | {"family": "seed-2"})]
    pieces = [
        "",
        "<img>",
        "</img>",
        "<img_00007>",
        "<img_99999>",
        "7",
        "-",
        ",",
        "[",
        "]",
        "{",
        "}",
    ]
    pieces += [
        '"',
        "\n",
        " ",
        "1e9",
        "null",
        "NaN",
        "true",
        "٣",
        "\ud800",
        "\0",
        "\u2028",
        "9" * 50,
    ]
    read = 0
    for _ in range(10_000):
        text = chance.choice(whole)
        if chance.random() < 0.1:
            text = "".join(chance.choices(pieces, k=40))
        for _ in range(chance.randrange(3)):
            first = chance.randrange(len(text) + 1)
            last = min(len(text), first + chance.choice((0, 0, 1, 4, 40)))
            text = text[:first] + chance.choice(pieces) + text[last:]
        try:
            codes = codes_from_text(text, "seed-mini")
        except CodesError:
            continue
        read += 1
        assert rows(codes.to_text() or "[]") == codes.values.tolist()
    assert 1000 < read < 9000  # neither side was tried only in name


# --- JSON ---


@pytest.fixture
def codes(generator):
    return SeedCodes(torch.randint(0, 512, (3, 32), generator=generator), "seed-mini", 512)


def test_json_round_trip_keeps_everything(codes):
    again = codes_from_json(codes_to_json(codes))
    assert torch.equal(again.values, codes.values)
    assert (again.family, again.codebook_size) == ("seed-mini", 512)


def test_json_keeps_distances_to_the_last_bit(codes, generator):
    distances = torch.rand(3, 32, generator=generator)
    distances[1, 5:] = torch.nan
    again = codes_from_json(codes_to_json(replace(codes, distances=distances)))
    assert again.distances.dtype == torch.float32
    assert torch.equal(again.distances.nan_to_num(9), distances.nan_to_num(9))


def test_json_of_unknown_distances_is_what_it_always_was(codes):
    record = json.loads(codes_to_json(codes))
    assert sorted(record) == ["codebook_size", "codes", "family"]
    assert codes_from_json(json.dumps(record)).distances.isnan().all()


@pytest.mark.parametrize(
    ("distances", "words"),
    [
        ([], r"need as many distances; got \[0, 32\]"),
        ([[0.1] * 31], "exactly 32 distances"),
        ([[0.1] * 32] * 2, r"got \[2, 32\]"),
        ([[0.1] * 31 + [-1]], "0 or more"),
        ([[0.1] * 31 + [float("inf")]], "0 or more"),
        ([[0.1] * 31 + [10**400]], "OverflowError"),
        ([[0.1] * 31 + [True]], "True is not a number"),
        ([["0.1"] * 32], "'0.1' is not a number"),
        ({}, "is not a list"),
    ],
)
def test_distances_that_cannot_be_are_one_error(distances, words):
    with pytest.raises(CodesError, match=words):
        codes_from_json(json.dumps(RECORD | {"distances": distances}))


def test_json_round_trip_of_no_picture():
    again = codes_from_json(codes_to_json(SeedCodes.empty("seed-2", 8192)))
    assert len(again) == 0
    assert again.values.shape == (0, 32)
    assert again.values.dtype == torch.int64


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "[]",
        "3",
        '{"codes": []}',
        '{"codes": 7, "family": "seed-mini", "codebook_size": 512}',
        '{"codes": [[1, 2, 3]], "family": "seed-mini", "codebook_size": 512}',
        '{"codes": [["x"]], "family": "seed-mini", "codebook_size": 512}',
        '{"codes": [], "family": "seed-x", "codebook_size": 512}',
        "[" * 100_000,
    ],
)
def test_broken_json_is_one_clear_error(text):
    with pytest.raises(CodesError):
        codes_from_json(text)


@pytest.mark.parametrize("value", [1.7, 10**30, None, "1"])
def test_json_values_that_are_no_codes_are_refused_not_rounded(value):
    row = [0] * 31 + [value]
    text = json.dumps({"codes": [row], "family": "seed-mini", "codebook_size": 512})
    with pytest.raises(CodesError):
        codes_from_json(text)
