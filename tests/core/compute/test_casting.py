"""Networks of another library get a host's layers, so that it can keep their weights elsewhere.

The device ``meta`` stands for a card: torch refuses to compute with tensors of two devices there too.
"""

import copy

import pytest
import torch
from torch import nn

from seed_core.compute import casting
from seed_core.compute.casting import adopt
from seed_core.models.sd21 import UNET, VAE

diffusers = pytest.importorskip("diffusers")
META = torch.device("meta")
SAME = {"rtol": 0, "atol": 0}
LAYERS = (casting.Linear, casting.Conv2d, casting.GroupNorm, casting.LayerNorm)


class Own(nn.Module):
    """A layer that is none of torch's, with a buffer."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.full((4,), 3.0), requires_grad=False)
        self.register_buffer("places", torch.arange(4))

    def forward(self, x):
        if x.dtype == torch.float64:
            raise ValueError("too precise")
        return x * self.scale + self.places


class Gated(nn.Module):
    """A parameter beside layers, one of which is never called."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.tensor(0.5), requires_grad=False)
        self.inner = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4, bias=False)

    def forward(self, *, x):
        return self.gate * nn.functional.linear(x, self.inner.weight) + self.norm(x)


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.GroupNorm(2, 4), nn.SiLU())
        self.flat = nn.GroupNorm(2, 4, affine=False)
        self.own, self.gated, self.last = Own(), Gated(), nn.Linear(4, 3)

    def forward(self, x):
        x = self.flat(self.head(x)).movedim(1, -1)
        return self.last(self.gated(x=self.own(x)))


@pytest.fixture
def network(make_generator):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return Whole().requires_grad_(False).eval()


@pytest.fixture
def pixels(make_generator):
    return torch.randn(2, 2, 6, 6, generator=make_generator(1))


def kinds(network):
    return [type(module) for module in network.modules()]


def test_the_numbers_are_those_of_torchs_layers(network, pixels):
    wanted = network(pixels)
    torch.testing.assert_close(adopt(network, casting)(pixels), wanted, **SAME)


def test_layers_compute_where_their_input_lies(network, pixels):
    with pytest.raises(RuntimeError):
        network(pixels.to(META))
    assert adopt(network, casting)(pixels.to(META)).device == META
    assert {parameter.device.type for parameter in network.parameters()} == {"cpu"}


def test_layers_compute_in_the_precision_of_their_input(network, pixels):
    wanted = network(pixels)
    half = adopt(copy.deepcopy(network).half(), casting)
    made = half(pixels)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, wanted, rtol=0, atol=0.01)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float16}


def test_weights_stay_the_tensors_they_are(network, pixels):
    before = {name: id(value) for name, value in network.state_dict(keep_vars=True).items()}
    adopt(network, casting)(pixels.half())
    after = {name: id(value) for name, value in network.state_dict(keep_vars=True).items()}
    assert after == before


def test_weights_are_back_after_an_error(network, pixels):
    adopt(network, casting)
    with pytest.raises(ValueError, match="too precise"):
        network(pixels.double())
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert not network.own.places.is_floating_point()


def test_a_host_without_some_layer_has_ours_in_its_place(network):
    class Linear(nn.Linear):
        pass

    class Operations:
        Conv2d = nn.Module  # nothing that could stand for torch's
        GroupNorm = None

    Operations.Linear = Linear
    adopt(network, Operations)
    assert type(network.last) is Linear
    assert [type(layer) for layer in network.head] == [casting.Conv2d, casting.GroupNorm, nn.SiLU]


def test_torchs_own_layers_change_nothing(network, pixels):
    before = kinds(network)
    assert kinds(adopt(network, nn)) == before
    assert not network.own._forward_pre_hooks


def test_adopting_again_changes_nothing(network, pixels):
    class Operations:
        class Linear(nn.Linear):
            pass

    before = kinds(adopt(network, Operations))
    assert kinds(adopt(network, casting)) == before
    assert len(network.own._forward_pre_hooks) == 1


def test_a_layer_without_weights_is_left_alone(network):
    adopt(network, casting)
    assert type(network.flat) is nn.GroupNorm
    assert not network.flat._forward_pre_hooks


@pytest.mark.parametrize(
    ("kind", "config"),
    [(diffusers.UNet2DConditionModel, UNET), (diffusers.AutoencoderKL, VAE)],
    ids=["unet", "vae"],
)
def test_every_weight_of_the_published_decoder_is_in_such_a_layer(kind, config):
    with META:
        network = adopt(kind(**config), casting)
    holders = [m for m in network.modules() if list(m.parameters(recurse=False))]
    assert len(holders) > 100
    assert all(isinstance(layer, LAYERS) for layer in holders)
    assert not list(network.buffers())


def test_a_unet_with_parameters_outside_of_layers_computes_anywhere_too(make_generator):
    """Those of a random Fourier basis for time steps, which no layer of torch's holds."""
    with torch.random.fork_rng(devices=[]):
        unet = diffusers.UNet2DConditionModel(
            sample_size=4,
            block_out_channels=(8, 8),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            norm_num_groups=4,
            attention_head_dim=2,
            cross_attention_dim=6,
            time_embedding_type="fourier",
            class_embed_type="projection",
            projection_class_embeddings_input_dim=10,
        )
    given = [
        torch.randn(shape, generator=make_generator(2))
        for shape in ((1, 4, 4, 4), (1, 3, 6), (1, 10))
    ]

    def predict(device):
        sample, text, label = (tensor.to(device) for tensor in given)
        step = torch.tensor(5.0, device=device)
        return unet(sample, step, encoder_hidden_states=text, class_labels=label).sample

    with torch.inference_mode():
        wanted = predict("cpu")
        with pytest.raises(RuntimeError):
            predict(META)
        adopt(unet, casting)
        torch.testing.assert_close(predict("cpu"), wanted, **SAME)
        assert predict(META).device == META


def test_a_call_within_a_call_of_the_same_module_leaves_its_weights_alone():
    class Nested(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2), requires_grad=False)

        def forward(self, x, depth=1):
            made = x * self.weight
            return self(made, depth - 1) if depth else made

    network = casting.adopt(Nested(), casting)
    weight = network.weight
    assert network(torch.ones(2, dtype=torch.float64)).dtype == torch.float64
    assert network.weight is weight
