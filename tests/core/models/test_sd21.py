"""SD 2.1 unCLIP-h as one file in its makers' format, with networks of a hundredth of its width."""

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from seed_core.errors import CheckpointError
from seed_core.models import sd21
from seed_core.models.convert import convert_model, plan_conversion
from seed_core.models.unclip import load_decoder, open_decoder

WIDTH = 32
SMALL = {
    "UNET": {
        "block_out_channels": (WIDTH, 2 * WIDTH, 4 * WIDTH, 4 * WIDTH),
        "attention_head_dim": 4,
        "cross_attention_dim": WIDTH,
        "projection_class_embeddings_input_dim": 2 * WIDTH,
    },
    "VAE": {"block_out_channels": (WIDTH,) * 4},
    "TEXT_ENCODER": {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
}


def published_shapes():
    """Every tensor by the name that it has in such a file."""
    file = Path(__file__).parents[2] / "host" / "random_checkpoints.py"
    spec = importlib.util.spec_from_file_location("shapes_of_checkpoints", file)
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    make.UNET_WIDTH, make.VAE_WIDTHS = WIDTH, (WIDTH,) * 4
    unet = {  # with linear projections, which are those of a context of 1024
        key: (shape[0], WIDTH) if "attn2.to_k" in key or "attn2.to_v" in key else shape
        for key, shape in make.unet(1024, label=2 * WIDTH).items()
    }
    return (
        make.under("model.diffusion_model.", unet)
        | make.under("first_stage_model.", make.vae())
        | make.under("cond_stage_model.model.", make.open_clip_text(WIDTH, 3))
    )


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, sizes in SMALL.items():
        monkeypatch.setattr(sd21, name, getattr(sd21, name) | sizes)


@pytest.fixture(scope="module")
def tensors(make_generator):
    random = make_generator(3)
    return {
        key: torch.randn(shape, generator=random) * 0.1 for key, shape in published_shapes().items()
    }


@pytest.fixture
def file(tensors, tmp_path):
    path = tmp_path / "sd21-unclip-h.safetensors"
    save_file(tensors, path)
    return path


def state(decoder):
    return decoder.module.state_dict() | dict(decoder.module.named_buffers())


def equal(decoder, other):
    ours, theirs = state(decoder), state(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_every_tensor_goes_where_diffusers_puts_it(file, tensors):
    from diffusers.loaders import single_file_utils

    module = load_decoder(file).module
    unet = single_file_utils.convert_ldm_unet_checkpoint(dict(tensors), dict(sd21.UNET))
    vae = single_file_utils.convert_ldm_vae_checkpoint(dict(tensors), dict(sd21.VAE))
    for network, expected in ((module.unet, unet), (module.vae, vae)):
        found = network.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found)
    assert module.text.shape == (1, 77, WIDTH)


@pytest.mark.parametrize("form", ["safetensors", "ckpt"])
def test_a_single_file_loads_as_the_model_it_is_converted_to(file, tensors, tmp_path, form):
    """As it is published, and pickled as it came then, under the table that training writes."""
    path = tmp_path / f"unclip.{form}"
    if form == "ckpt":
        torch.save({"state_dict": tensors, "global_step": 7}, path)
    else:
        file.rename(path)
    convert_model(plan_conversion(path, torch.float32), tmp_path / "converted.safetensors")
    decoder = load_decoder(path)
    assert equal(decoder, load_decoder(tmp_path / "converted.safetensors"))
    assert type(decoder.scheduler).__name__ == "PNDMScheduler"


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("model.diffusion_model.middle_block.1.proj_in.weight", "proj_in"),
        ("model.diffusion_model.label_emb.0.2.bias", "label_emb"),
        ("first_stage_model.decoder.mid.attn_1.q.weight", "to_q|attn_1"),
        ("first_stage_model.post_quant_conv.bias", "post_quant_conv"),
        ("cond_stage_model.model.transformer.resblocks.1.mlp.c_fc.weight", "fc1"),
        ("cond_stage_model.model.token_embedding.weight", "token_embedding"),
    ],
)
def test_what_a_single_file_lacks_is_named_when_it_is_opened(file, lost, named):
    tensors = load_file(file)
    del tensors[lost]
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=named):
        open_decoder(file)


def test_a_single_file_of_other_sizes_is_refused_when_it_is_opened(file):
    tensors = load_file(file)
    key = "model.diffusion_model.out.2.weight"
    tensors[key] = tensors[key][:, :-1].clone()
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"conv_out\.weight"):
        open_decoder(file)
