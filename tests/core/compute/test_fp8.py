"""float8 weights: rounding, layers, and products of float8 with float8, which torch emulates here."""

import pytest
import torch
from torch.nn.functional import linear

from seed_core.compute import fp8
from seed_core.compute.layers import Linear

HALF_STEP = 2**-4
"""Largest rounding error of a float8_e4m3fn number, which has three bits after its first."""


def quantized(weight):
    scale = fp8.scale_of(float(weight.abs().max()))
    return fp8.quantize(weight, scale), scale


@pytest.fixture
def layer(make_generator):
    """A quantised layer, 32 to 48 wide, and its weight, as it was and as it is now."""
    weight = torch.randn(48, 32, generator=make_generator(1))
    values, scale = quantized(weight)
    layer = Linear(32, 48, bias=False, device="meta")
    layer.load_state_dict({"weight": values, "weight_scale": scale}, strict=True, assign=True)
    return layer.requires_grad_(False), weight, values.float() * scale


@pytest.mark.parametrize("size", [1e-30, 1e-6, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_largest_magnitude_becomes_448(make_generator, size, dtype):
    weight = (size * torch.randn(64, 64, generator=make_generator())).to(dtype)
    before = weight.clone()
    values, scale = quantized(weight)
    assert values.dtype == torch.float8_e4m3fn
    assert scale.dtype == torch.float32
    assert scale.shape == ()
    assert values.float().abs().max() == 448
    assert torch.equal(weight, before)
    back = fp8.dequantize(values, scale, torch.float32)
    assert torch.equal(back, values.float() * scale)
    normal = weight.float().abs() > 2**-6 * scale  # below, steps do not get smaller any more
    error = (back - weight.float()).abs() / weight.float().abs()
    assert error[normal].max() <= HALF_STEP * 1.001


def test_zeros_stay_zeros():
    values, scale = quantized(torch.zeros(3, 3))
    assert scale > 0
    assert (values.float() == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_layer_multiplies_by_its_dequantised_weight(layer, make_generator, dtype):
    layer, _, weight = layer
    x = torch.randn(2, 7, 32, generator=make_generator(2)).to(dtype)
    expected = linear(x.double(), weight.double())
    # Rounded at most twice: the product, and it times the scale; or the weight, and the product.
    limit = 2 * torch.finfo(dtype).eps * (expected.abs() + expected.abs().max())
    assert ((layer(x).double() - expected).abs() <= limit).all()
    assert layer(x).dtype == dtype
    assert set(layer.state_dict()) == {"weight", "weight_scale"}


def test_float16_does_not_overflow_where_unscaled_sums_would():
    """448 times 300 ones is more than float16 holds; with its scale the sum is 300."""
    layer = Linear(304, 16, bias=False, device="meta")
    values, scale = quantized(torch.ones(16, 304))
    layer.load_state_dict({"weight": values, "weight_scale": scale}, assign=True)
    assert torch.equal(layer(torch.ones(1, 304).half()), torch.full((1, 16), 304.0).half())


def test_no_cpu_is_asked_to_multiply_float8():
    assert not fp8.has_fp8_units(torch.device("cpu"))


# --- products of float8 with float8 ---


def expected_product(x, weight):
    """Both sides rounded to float8, each row with a scale of its own, and multiplied exactly."""
    scale = fp8.activation_scales(x)
    return linear((x.float() / scale).to(fp8.FP8).double() * scale, weight.double())


def assert_product(x, weight, product):
    assert product.dtype == x.dtype
    assert product.shape == (*x.shape[:-1], 48)
    expected = expected_product(x.cpu(), weight.cpu())
    # Rounded once to the precision of the product. Before that, sums are of float32 on a CPU, and
    # of about 14 bits inside a card's units (arXiv 2412.19437, 3.3.2).
    of_sums = 1e-3 if product.is_cuda else 1e-5
    # Of several rows it is rounded once more, times their scales.
    largest = expected.abs().amax(-1, keepdim=True)
    limit = 2 * torch.finfo(x.dtype).eps * expected.abs() + of_sums * largest
    assert ((product.cpu().double() - expected).abs() <= limit).all()


@pytest.mark.parametrize("size", [0.0, 1e-6, 1.0, 1e4])
def test_each_row_has_a_scale_that_makes_its_largest_magnitude_448(make_generator, size):
    rows = (size * torch.randn(5, 64, generator=make_generator(2))).bfloat16()
    scales = fp8.activation_scales(rows)
    assert scales.dtype == torch.float32
    expected = rows.float().abs().amax(-1, keepdim=True) / 448
    torch.testing.assert_close(scales, expected, rtol=1e-3, atol=1e-11)
    assert (scales > 0).all()
    assert (rows / scales).abs().max() <= 448.001


@pytest.mark.parametrize("rows", [(1, 1), (3, 1), (1, 16), (2, 17)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_a_product_scales_its_activations(layer, make_generator, rows, dtype, size):
    layer, _, weight = layer
    x = (size * torch.randn(*rows, 32, generator=make_generator(2))).to(dtype)
    product = fp8.scaled_product(x, layer.weight, layer.weight_scale)
    assert_product(x, weight, product)


def test_a_huge_row_does_not_crush_its_neighbours(layer, make_generator):
    """As LLaMA's first token is: with one scale for all, the other rows would become zeros."""
    layer, _, weight = layer
    x = torch.randn(1, 5, 32, generator=make_generator(2)).bfloat16()
    x[:, 0] *= 1e6
    product = fp8.scaled_product(x, layer.weight, layer.weight_scale)
    assert_product(x, weight, product)
    alone = fp8.scaled_product(x[:, 1:], layer.weight, layer.weight_scale)
    assert torch.equal(product[:, 1:], alone)


@pytest.mark.parametrize("has_units", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_residual_is_added_to_the_product(layer, make_generator, monkeypatch, has_units, rows):
    monkeypatch.setattr(fp8, "has_fp8_units", lambda device: has_units)
    layer = layer[0]
    x = torch.randn(1, rows, 32, generator=make_generator(2)).bfloat16()
    residual = torch.randn(1, rows, 48, generator=make_generator(4)).bfloat16()
    expected = residual.float() + layer(x).float()
    added = layer.add_to(residual.clone(), x)
    assert added.shape == residual.shape
    torch.testing.assert_close(added.float(), expected, rtol=2**-7, atol=2**-7)


def test_activations_of_zeros_give_zeros(layer):
    layer = layer[0]
    x = torch.zeros(1, 3, 32, dtype=torch.bfloat16)
    assert (fp8.scaled_product(x, layer.weight, layer.weight_scale) == 0).all()


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_activations_that_are_no_numbers_give_none(layer, number):
    """What the decode loop looks for: they must not turn into large but finite ones."""
    layer = layer[0]
    x = torch.full((1, 3, 32), number, dtype=torch.bfloat16)
    product = fp8.scaled_product(x, layer.weight, layer.weight_scale)
    assert not product.isfinite().any()


def test_a_layer_uses_the_units_of_its_device_where_its_sides_fit(
    layer, make_generator, monkeypatch
):
    monkeypatch.setattr(fp8, "has_fp8_units", lambda device: True)
    layer, _, weight = layer
    x = torch.randn(1, 3, 32, generator=make_generator(2)).bfloat16()
    assert_product(x, weight, layer(x))
    narrow = Linear(8, 12, bias=False, device="meta")
    values, scale = quantized(torch.randn(12, 8, generator=make_generator(3)))
    narrow.load_state_dict({"weight": values, "weight_scale": scale}, assign=True)
    x = x[..., :8].contiguous()
    assert torch.equal(narrow(x), linear(x, values.bfloat16()) * scale)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [(1, 1), (3, 1), (1, 16), (2, 17), (1, 500)])
def test_a_cards_product_is_the_emulated_one(layer, make_generator, rows):
    layer, _, weight = layer
    x = torch.randn(*rows, 32, generator=make_generator(2)).bfloat16()
    layer, x = layer.cuda(), x.cuda()
    if not fp8.has_fp8_units(x.device):
        pytest.skip("this card has no units for float8")
    with torch.inference_mode():
        assert_product(x, weight, layer(x))


@pytest.mark.gpu
def test_a_cards_product_can_be_captured(layer, make_generator):
    """It waits for nothing, and a replay takes new activations with a new scale."""
    layer, _, weight = layer
    x = torch.randn(1, 1, 32, generator=make_generator(2)).bfloat16().cuda()
    layer = layer.cuda()
    if not fp8.has_fp8_units(x.device):
        pytest.skip("this card has no units for float8")
    with torch.inference_mode():
        layer(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            product = layer(x)
        x.mul_(30)
        graph.replay()
        assert_product(x, weight, product)


def test_the_scratch_of_a_network_is_its_largest_quantised_weight_in_16_bits(layer, monkeypatch):
    """Plain weights need none, and neither do units that multiply float8."""
    plain, cpu = torch.nn.Linear(100, 100, device="meta"), torch.device("cpu")
    both = torch.nn.ModuleList([plain, layer[0]])
    assert fp8.scratch_bytes(plain, cpu) == 0
    assert fp8.scratch_bytes(both, cpu) == 48 * 32 * 2
    monkeypatch.setattr(fp8, "has_fp8_units", lambda device: True)
    assert fp8.scratch_bytes(both, cpu) == 0
