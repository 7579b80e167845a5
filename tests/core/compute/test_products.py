"""The product of a plain weight: torch's own, in pieces on a CPU."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from seed_core.compute import products
from seed_core.compute.layers import Linear

CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # the same products in another order of summation


class Calls(TorchDispatchMode):
    """The names of what torch was asked to compute."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        self.names.append(str(function))
        return function(*arguments, **(named or {}))


@pytest.fixture
def threads():
    """As on a machine with more cores than this one may have."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(1,), (1, 1), (3, 1), (4,), (2, 3), (9, 2), (300,), (0,)])
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


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("rows", [1, 4, 5, 16, 256])
def test_a_product_of_few_rows_is_cut_for_all_cores(rows):
    """torch's own uses one core for up to 16 rows, and two thirds of two for 128."""
    layer = Linear(32, 96, bias=False, device="meta").to_empty(device="cpu").requires_grad_(False)
    with Calls() as calls:
        layer(torch.zeros(rows, 32))
    assert "aten.bmm.default" in calls.names


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_product_in_16_bits_is_torchs_own(dtype):
    """Pieces take bfloat16 up to 1.7 times as long."""
    layer = Linear(32, 96, bias=False, device="meta", dtype=dtype).to_empty(device="cpu")
    x = torch.zeros(1, 32, dtype=dtype)
    with torch.inference_mode(), Calls() as calls:
        layer(x)
    assert calls.names == ["aten.linear.default"]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("rows", [1, 4])
def test_a_small_product_on_one_thread_is_one_call(rows):
    torch.set_num_threads(1)
    layer = Linear(32, 96, bias=False, device="meta").to_empty(device="cpu").requires_grad_(False)
    x = torch.zeros(rows, 32)
    with torch.inference_mode(), Calls() as calls:
        layer(x)
    assert calls.names == ["aten.linear.default"]


@pytest.mark.parametrize(
    ("outputs", "threads", "expected"),
    [
        (5632, 2, 22),
        (1024, 2, 4),
        (1024, 16, 16),
        (1024, 64, 64),
        (1024, 6, 16),
        (40194, 16, 174),
        (1538, 2, 2),
        (7, 4, 1),
        (9, 6, 3),
    ],
)
def test_pieces_keep_every_thread_busy_where_the_sides_allow(outputs, threads, expected):
    assert products._pieces(outputs, threads) == expected
    assert outputs % products._pieces(outputs, threads) == 0
