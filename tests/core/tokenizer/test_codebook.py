"""The codebook: nearest row, ties, precision."""

import pytest
import torch

from seed_core.tokenizer.codebook import Codebook


@pytest.fixture
def codebook(make_generator):
    module = Codebook(64, 8)
    module.codebook.data = torch.randn(64, 8, generator=make_generator(5))
    return module.requires_grad_(False)


def test_nearest_is_the_nearest_by_brute_force(codebook, make_generator):
    vectors = torch.randn(4, 32, 8, generator=make_generator(6))
    rows = codebook.codebook.double()
    distance = (vectors.double()[:, :, None] - rows).square().sum(-1)
    assert torch.equal(codebook.nearest(vectors), distance.argmin(-1))


def test_codes_round_trip_through_their_vectors(codebook):
    codes = torch.arange(64).view(2, 32)
    assert torch.equal(codebook.nearest(codebook.lookup(codes)), codes)


def test_the_lowest_code_wins_a_tie(codebook):
    codebook.codebook[40] = codebook.codebook[7]
    assert codebook.nearest(codebook.codebook[40].view(1, 1, 8)).item() == 7


def test_length_matters_so_nothing_is_normalised(codebook):
    codebook.codebook[0] = 1.0
    codebook.codebook[1] = 9.0
    assert codebook.nearest(torch.full((1, 1, 8), 8.0)).item() == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_table_is_float32_whatever_the_networks_are(dtype):
    """bfloat16 distances confuse codes that are a hundredth apart."""
    assert Codebook(4, 8, dtype=dtype).codebook.dtype == torch.float32


def test_half_precision_vectors_are_compared_in_float32():
    """Two rows closer to each other than bfloat16 can tell at this length: 100.0 and 100.2."""
    module = Codebook(2, 1).requires_grad_(False)
    module.codebook.copy_(torch.tensor([[100.2], [100.0]]))
    assert module.nearest(torch.full((1, 1, 1), 100.0, dtype=torch.bfloat16)).item() == 1


def test_lookup_is_float32(codebook):
    assert codebook.lookup(torch.zeros(1, 32, dtype=torch.int64)).dtype == torch.float32
