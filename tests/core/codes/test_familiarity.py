"""What is said of how well codes fit their pictures."""

import pytest
import torch

from seed_core import SeedCodes
from seed_core.codes.familiarity import describe_distances, summarize_distances

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
    assert summarize_distances(codes(family, mean)) == words


def test_each_picture_has_its_own_words():
    near, far = describe_distances(codes("seed-mini", 0.1, 0.4))
    assert "of the kind" in near
    assert "unlike" in far


@pytest.mark.parametrize(
    ("family", "means", "words"),
    [
        ("seed-mini", (0.1, 0.4, 0.5), "3 pictures, 2 of them unlike what seed-mini knows"),
        ("seed-mini", (0.1, 0.2), "2 pictures, none of them unlike what seed-mini knows"),
        ("seed-2", (0.1, 0.45), "2 pictures, distances 0.10 to 0.45"),
    ],
)
def test_many_pictures_are_one_line(family, means, words):
    assert summarize_distances(codes(family, *means)) == words
