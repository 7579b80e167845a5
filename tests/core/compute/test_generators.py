"""Random numbers: row i is seeded with the first seed plus i."""

import pytest
import torch

from seed_core import seeded_generators


def draws(generators):
    return [torch.rand(4, generator=generator).tolist() for generator in generators]


def test_row_i_is_the_first_row_of_seed_plus_i():
    assert draws(seeded_generators(40, 3)) == [
        draws(seeded_generators(40 + i, 1))[0] for i in range(3)
    ]


def test_rows_differ():
    first, second = draws(seeded_generators(0, 2))
    assert first != second


def test_they_are_cpu_generators():
    assert [g.device.type for g in seeded_generators(0, 2)] == ["cpu", "cpu"]


@pytest.mark.parametrize("first", [0, 2**63, 2**64 - 1])
def test_the_hosts_largest_seed_works(first):
    assert len(seeded_generators(first, 3)) == 3


def test_none_are_made_for_no_row():
    assert seeded_generators(5, 0) == []
