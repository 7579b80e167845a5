"""What is said of how well codes fit their pictures."""

import pytest
import torch

from seed_core import SeedCodes
from seed_core.codes.familiarity import (
    FAMILIAR_DISTANCE,
    KNOWN_KINDS,
    describe_distances,
    summarize_distances,
    unfamiliar_rows,
)

SIZES = {"seed-mini": 512, "seed-2": 8192}


def codes(family, *means):
    distances = torch.tensor(means)[:, None].expand(len(means), 32)
    values = torch.zeros(len(means), 32, dtype=torch.int64)
    return SeedCodes(values, family, SIZES[family], distances)


@pytest.mark.parametrize(
    ("family", "mean", "words"),
    [
        ("seed-mini", 0.1, "distance 0.10: of the kind seed-mini knows (up to 0.23)"),
        ("seed-mini", 0.4, "distance 0.40: unlike what seed-mini knows (up to 0.23)"),
        ("seed-2", 0.4, "distance 0.40"),
        ("seed-mini", float("nan"), "distance unknown"),
    ],
)
def test_a_picture_is_judged_only_where_a_limit_was_measured(family, mean, words):
    assert describe_distances(codes(family, mean)) == [words]


def test_each_picture_has_its_own_words():
    near, far = describe_distances(codes("seed-mini", 0.1, 0.4))
    assert "of the kind" in near
    assert "unlike" in far


NAN = float("nan")


@pytest.mark.parametrize(
    ("family", "means", "words"),
    [
        ("seed-mini", (0.1,), "One picture of the kind that seed-mini knows: distance 0.10,"),
        ("seed-mini", (0.1, 0.2), "2 pictures of the kind that seed-mini knows: distance 0.10 to"),
        ("seed-mini", (0.4,), "This picture is of a kind that seed-mini does not know (distance"),
        ("seed-mini", (0.1, 0.4, 0.5), "2 of these 3 pictures (2, 3) are of a kind that seed-mini"),
        ("seed-mini", (0.1, 0.4, NAN), "1 of these 3 pictures (2) is of a kind that seed-mini"),
        (
            "seed-mini",
            (0.4,) * 12,
            "12 of these 12 pictures (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ...) are",
        ),
        ("seed-mini", (NAN,), "One picture in codes of seed-mini: distance unknown."),
        ("seed-mini", (0.1, NAN), "2 pictures in codes of seed-mini: distance 0.10."),
        ("seed-2", (0.1, 0.45), "2 pictures in codes of seed-2: distance 0.10 to 0.45."),
    ],
)
def test_all_pictures_are_told_of_together(family, means, words):
    assert summarize_distances(codes(family, *means)).startswith(words)


def test_what_a_family_knows_is_said_where_a_picture_is_of_another_kind():
    assert "192 objects" in summarize_distances(codes("seed-mini", 0.4))
    assert unfamiliar_rows(codes("seed-mini", 0.1, 0.4, NAN)) == [1]
    assert unfamiliar_rows(codes("seed-2", 0.9)) == []


def test_every_family_that_is_judged_is_described():
    assert FAMILIAR_DISTANCE.keys() == KNOWN_KINDS.keys()
