"""IP-Adapter files: what is one for codes, what is not, and what a damaged one is told by."""

import re

import pytest
import torch
from safetensors.torch import save_file

from seed_core import CheckpointError, open_ip_adapter
from seed_core.errors import OptionError
from seed_core.models.ip_adapter import layer_names

DIM, CONTEXT, TOKENS = 1024, 768, 4
WIDTHS = (32, 64, 32, 64)


def tensors(context=CONTEXT, dim=DIM, widths=WIDTHS):
    random = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=random) / shape[-1] ** 0.5

    table = {
        "image_proj.proj.weight": draw(TOKENS * context, dim),
        "image_proj.proj.bias": draw(TOKENS * context),
        "image_proj.norm.weight": draw(context),
        "image_proj.norm.bias": draw(context),
    }
    for i, width in enumerate(widths):
        table |= {name: draw(width, context) for name in layer_names(i)}
    return table


@pytest.fixture
def save(tmp_path):
    def save(table, name="ip-adapter.safetensors"):
        path = tmp_path / name
        save_file({key: tensor.contiguous() for key, tensor in table.items()}, path)
        return path

    return save


def test_an_adapter_tells_what_it_fits(save):
    adapter = open_ip_adapter(save(tensors()))
    assert (adapter.context, adapter.widths) == (CONTEXT, WIDTHS)
    adapter.check_fits(CONTEXT, WIDTHS)
    with pytest.raises(
        CheckpointError, match="for SD 1.5 and this model is SDXL: use ip-adapter_sdxl"
    ):
        adapter.check_fits(2048, WIDTHS)
    with pytest.raises(OptionError, match="has 4 layers, and this model reads its text in 3"):
        adapter.check_fits(CONTEXT, WIDTHS[:3])
    for context, name in ((1024, "SD 2"), (1280, "one whose text has 1280 numbers a token")):
        with pytest.raises(OptionError, match=f"this model is {name}, and IP-Adapters"):
            adapter.check_fits(context, WIDTHS)


def test_keys_and_values_are_those_of_the_formula(save):
    """Linear, cut into tokens, layer norm; then a matrix for the keys and one for the values."""
    table = tensors()
    embedding = torch.randn(2, DIM, generator=torch.Generator().manual_seed(2))
    found = open_ip_adapter(save(table)).keys_and_values(embedding)
    flat = embedding @ table["image_proj.proj.weight"].T + table["image_proj.proj.bias"]
    norm = table["image_proj.norm.weight"], table["image_proj.norm.bias"]
    read = torch.nn.functional.layer_norm(flat.view(2, TOKENS, CONTEXT), (CONTEXT,), *norm)
    for i, (keys, values) in enumerate(found):
        for ours, name in zip((keys, values), layer_names(i), strict=True):
            assert ours.shape == (2, TOKENS, WIDTHS[i])
            assert (ours - read @ table[name].T).abs().max() < 1e-5


def test_the_published_bin_is_the_same_file_in_two_tables(save, tmp_path):
    table, embedding = tensors(), torch.ones(1, DIM)
    halves = {
        part: {k.removeprefix(f"{part}."): v for k, v in table.items() if k.startswith(part)}
        for part in ("image_proj", "ip_adapter")
    }
    torch.save(halves, tmp_path / "ip-adapter.bin")
    one, other = (
        open_ip_adapter(path).keys_and_values(embedding)
        for path in (save(table), tmp_path / "ip-adapter.bin")
    )
    for ours, theirs in zip(one, other, strict=True):
        # Up to rounding: where a tensor lies in memory decides how its products are summed.
        assert (torch.stack(ours) - torch.stack(theirs)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ({"image_proj.latents": (1, 16, 768)}, "is an IP-Adapter plus"),
        ({"ip_adapter.1.to_k_lora.down.weight": (8, 32)}, "is an IP-Adapter FaceID"),
        ({"control_model.time_embed.0.weight": (8, 8)}, "is a ControlNet"),
        ({"lora_unet_down.lora_up.weight": (8, 8)}, "is a LoRA"),
        ({"double_blocks.0.processor.weight": (8, 8)}, "is for Flux"),
        ({"model.diffusion_model.out.0.weight": (8,)}, "is a checkpoint"),
        ({"vision_model.embeddings.weight": (8, 8)}, "is a CLIP vision model"),
    ],
)
def test_another_kind_of_file_is_called_what_it_is(save, added, said):
    table = tensors() | {name: torch.zeros(shape) for name, shape in added.items()}
    with pytest.raises(CheckpointError, match=said):
        open_ip_adapter(save(table))


@pytest.mark.parametrize(
    ("dim", "maker"), [(1280, "CLIP ViT-bigG"), (1152, "SigLIP"), (512, "FaceID"), (77, "another")]
)
def test_an_adapter_for_other_embeddings_says_whose(save, dim, maker):
    with pytest.raises(CheckpointError, match=f"embeddings of {dim} numbers, which .*{maker}"):
        open_ip_adapter(save(tensors(dim=dim)))


@pytest.mark.parametrize(
    ("dim", "said"),
    [
        (1280, "is an IP-Adapter full face"),
        (512, "of 512 numbers, which a face recogniser"),
        (1152, "of 1152 numbers, which SigLIP"),
        (1024, "of another form"),
        (77, "of 77 numbers, which another model"),
    ],
)
def test_a_projection_of_several_layers_is_told_by_what_it_reads(save, dim, said):
    table = tensors()
    del table["image_proj.proj.weight"], table["image_proj.proj.bias"]
    table |= {f"image_proj.proj.{i}.weight": torch.ones(8, dim) for i in (0, 2)}
    with pytest.raises(CheckpointError, match=said):
        open_ip_adapter(save(table))


@pytest.mark.parametrize("key", list(tensors()))
def test_each_missing_tensor_is_named(save, key):
    table = tensors()
    del table[key]
    with pytest.raises(CheckpointError, match=re.escape(key)):
        open_ip_adapter(save(table))


@pytest.mark.parametrize("key", list(tensors()))
def test_a_tensor_of_another_shape_is_refused(save, key):
    table = tensors()
    table[key] = torch.cat((table[key], table[key]))
    with pytest.raises(CheckpointError):
        open_ip_adapter(save(table))


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("key", ["image_proj.norm.bias", layer_names(2)[1]])
def test_numbers_that_are_not_finite_are_refused_with_their_tensor(save, key, dtype, number):
    table = {name: tensor.to(dtype) for name, tensor in tensors().items()}
    table[key].view(-1)[0] = number
    adapter = open_ip_adapter(save(table))
    with pytest.raises(CheckpointError, match=f"{re.escape(key)} holds NaN or infinity. The file"):
        adapter.keys_and_values(torch.ones(1, DIM))


@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2],
)
def test_every_number_format_that_opens_is_read(save, dtype):
    table = {name: tensor.to(dtype) for name, tensor in tensors().items()}
    rounded = {name: tensor.float() for name, tensor in table.items()}
    embedding = torch.ones(1, DIM)
    ours, wanted = (
        open_ip_adapter(save(each, name)).keys_and_values(embedding)
        for each, name in ((table, "stored.safetensors"), (rounded, "float32.safetensors"))
    )
    for found, expected in zip(ours, wanted, strict=True):
        assert (torch.stack(found) - torch.stack(expected)).abs().max() < 1e-5


def test_products_that_float32_cannot_hold_are_refused_with_their_weight(save):
    table = tensors()
    key = layer_names(2)[0]
    table[key].fill_(3e38)
    adapter = open_ip_adapter(save(table))
    with pytest.raises(CheckpointError, match=f"{re.escape(key)} makes numbers of these codes"):
        adapter.keys_and_values(torch.ones(1, DIM))
