"""The language model's own linear layer: torch's product, in pieces on a CPU."""

import pytest
import torch

from seed_core.linear import Linear

CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # the same products in another order of summation


@pytest.fixture
def threads():
    """As on a machine with more cores than this one may have."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(1,), (1, 1), (3, 1), (4,), (2, 3), (9, 2), (0,)])
@pytest.mark.parametrize("out_features", [12, 7, 1], ids=["divides", "prime", "one"])
@pytest.mark.usefixtures("threads")
def test_it_is_torchs_product_for_any_number_of_rows(shape, out_features, make_generator):
    random = make_generator(1)
    layer = Linear(10, out_features, bias=False, device="meta").to_empty(device="cpu")
    layer.requires_grad_(False)
    layer.weight.copy_(torch.randn(out_features, 10, generator=random))
    x = torch.randn(*shape, 10, generator=random)
    expected = torch.nn.functional.linear(x, layer.weight)
    ours = layer(x)
    assert ours.shape == expected.shape
    torch.testing.assert_close(ours, expected, **CLOSE)


@pytest.mark.usefixtures("threads")
def test_a_row_is_the_same_with_others_beside_it(make_generator):
    random = make_generator(2)
    layer = Linear(64, 48, bias=False, device="meta").to_empty(device="cpu").requires_grad_(False)
    layer.weight.copy_(torch.randn(48, 64, generator=random))
    x = torch.randn(8, 64, generator=random)
    together = layer(x)
    for i in range(8):
        torch.testing.assert_close(layer(x[i : i + 1])[0], together[i], **CLOSE)
