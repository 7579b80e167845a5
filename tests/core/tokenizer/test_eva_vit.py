"""The vision tower: shapes, class token, independence of rows, attention written out by hand."""

import pytest
import torch
from torch import nn

from seed_core.errors import CheckpointError
from seed_core.tokenizer.eva_vit import EvaVit, VisionConfig, attend

TINY = VisionConfig(
    image_size=12, patch_size=4, width=16, depth=2, num_heads=2, mlp_width=24, norm_eps=1e-6
)


@pytest.fixture
def tower(make_generator):
    module, random = EvaVit(TINY, nn, device="meta"), make_generator(1)
    filled = {
        key: torch.randn(value.shape, generator=random) * 0.3
        for key, value in module.state_dict().items()
    }
    module.load_state_dict(filled, assign=True)
    return module.requires_grad_(False)


def test_the_defaults_are_the_published_sizes():
    config = VisionConfig()
    sizes = (config.image_size, config.patch_size, config.width, config.depth, config.num_heads)
    assert sizes == (224, 14, 1408, 39, 16)
    assert (config.mlp_width, config.norm_eps, config.num_tokens) == (6144, 1e-6, 257)


def test_patches_and_the_class_token_leave_the_tower(tower, make_generator):
    features = tower(torch.randn(3, 3, 12, 12, generator=make_generator(2)))
    assert features.shape == (3, 10, 16)
    assert features.isfinite().all()


def test_without_blocks_the_class_token_is_first_and_patches_are_row_major(tower, make_generator):
    tower.blocks = nn.ModuleList()
    pixels = torch.randn(1, 3, 12, 12, generator=make_generator(3))
    features = tower(pixels) - tower.pos_embed
    assert torch.allclose(features[0, 0], tower.cls_token[0, 0], atol=1e-6)
    patch = pixels[0, :, 0:4, 8:12]  # first row, third column: token 3
    expected = (tower.patch_embed.weight * patch).sum((1, 2, 3)) + tower.patch_embed.bias
    assert torch.allclose(features[0, 3], expected, atol=1e-5)


def test_rows_do_not_depend_on_their_neighbours(tower, make_generator):
    pixels = torch.randn(2, 3, 12, 12, generator=make_generator(4))
    alone = torch.cat([tower(pixels[:1]), tower(pixels[1:])])
    assert torch.allclose(tower(pixels), alone, atol=1e-5)


@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_equals_the_written_out_formula(is_causal, make_generator):
    random = make_generator(5)
    query, key, value = (torch.randn(1, 5, 8, generator=random) for _ in range(3))
    mixed = attend(query, key, value, 2, is_causal)
    for head, part in enumerate((slice(0, 4), slice(4, 8))):
        scores = query[0, :, part] @ key[0, :, part].T / 4**0.5
        if is_causal:
            scores = scores + torch.full((5, 5), float("-inf")).triu(1)
        expected = scores.softmax(-1) @ value[0, :, part]
        assert torch.allclose(mixed[0, :, part], expected, atol=1e-5), head


@pytest.mark.parametrize("change", [{"num_heads": 3}, {"patch_size": 5}])
def test_sizes_that_do_not_divide_are_refused(change):
    with pytest.raises(CheckpointError, match="multiple"):
        VisionConfig(**{"width": 16, "num_heads": 2, "image_size": 12, "patch_size": 4, **change})
