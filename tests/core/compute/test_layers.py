"""The language model's own layers; their products are in test_products and test_fp8."""

import pytest
import torch
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode

from seed_core.compute import fp8
from seed_core.compute.layers import Linear, RMSNorm

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
NORM_CLOSE = {
    torch.float32: {"rtol": 2e-6, "atol": 1e-6},
    torch.bfloat16: {"rtol": 2**-7, "atol": 1e-6},  # torch's own rounds twice
    torch.float16: {"rtol": 2**-10, "atol": 1e-6},
}


class Calls(TorchDispatchMode):
    """The names of what torch was asked to compute."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        self.names.append(str(function))
        return function(*arguments, **(named or {}))


def test_a_layer_is_a_plain_one_without_a_scale(make_generator):
    weight = torch.randn(48, 32, generator=make_generator(1))
    layer = Linear(32, 48, bias=False, device="meta")
    layer.load_state_dict({"weight": weight}, strict=True, assign=True)
    assert list(layer.state_dict()) == ["weight"]
    x = torch.randn(5, 32, generator=make_generator(2))
    torch.testing.assert_close(layer(x), linear(x, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(64,), (3, 64), (2, 5, 64), (0, 64)])
def test_the_norm_is_torchs_in_six_calls(shape, dtype, make_generator):
    random = make_generator(3)
    x = (100 * torch.randn(shape, generator=random)).to(dtype)
    weight = torch.randn(64, generator=random).to(dtype)
    ours, theirs = (kind(64, eps=1e-5, dtype=dtype) for kind in (RMSNorm, torch.nn.RMSNorm))
    for norm in (ours, theirs):
        norm.load_state_dict({"weight": weight})
        norm.requires_grad_(False)
    expected = torch.nn.functional.rms_norm(x.double(), (64,), weight.double(), 1e-5)
    with torch.inference_mode(), Calls() as calls:
        found = ours(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected.to(dtype), **NORM_CLOSE[dtype])
    torch.testing.assert_close(found, theirs(x), **NORM_CLOSE[dtype])
    assert len(calls.names) == 6, calls.names


def test_the_norm_of_zeros_is_zeros():
    assert not RMSNorm(8, eps=1e-6)(torch.zeros(2, 8)).any()


@pytest.mark.parametrize("is_quantized", [False, True], ids=["plain", "quantised"])
def test_bias_and_residual_are_added_to_the_product_of_any_weight(make_generator, is_quantized):
    random = make_generator(1)
    weight, bias = torch.randn(48, 32, generator=random), torch.randn(48, generator=random)
    state = {"weight": weight, "bias": bias}
    if is_quantized:
        scale = fp8.scale_of(float(weight.abs().max()))
        state |= {"weight": fp8.quantize(weight, scale), "weight_scale": scale}
        weight = fp8.dequantize(state["weight"], scale, torch.float32)
    layer = Linear(32, 48, device="meta")
    layer.load_state_dict(state, strict=True, assign=True)
    layer.requires_grad_(False)
    x, residual = torch.randn(5, 32, generator=random), torch.randn(5, 48, generator=random)
    wanted = linear(x, weight, bias)
    torch.testing.assert_close(layer(x), wanted, **CLOSE)
    torch.testing.assert_close(layer.add_to(residual.clone(), x), wanted + residual, **CLOSE)
