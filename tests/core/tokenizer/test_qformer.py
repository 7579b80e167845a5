"""The Q-Former: causal with 32 queries, open with any other number."""

import pytest
import torch
from torch import nn

from seed_core.errors import CheckpointError
from seed_core.tokenizer.qformer import QFormer, QFormerConfig


def build(num_queries, make_generator):
    config = QFormerConfig(
        num_queries=num_queries, width=16, context_width=12, depth=3, num_heads=2, mlp_width=24
    )
    module, random = QFormer(config, nn, device="meta"), make_generator(1)
    filled = {
        key: float("norm.weight" in key) + 0.4 * torch.randn(value.shape, generator=random)
        for key, value in module.state_dict().items()
    }
    module.load_state_dict(filled, assign=True)
    return module.requires_grad_(False)


def change_of_each_query(module, context, changed):
    """How far every query's output moves when one learned query changes."""
    before = module(context)
    module.query_tokens[0, changed] *= -1.0  # adding a constant would vanish in the norm
    return (module(context) - before).abs().amax(-1)[0]  # [Q]


@pytest.fixture
def context(make_generator):
    return torch.randn(2, 9, 12, generator=make_generator(2))


def test_of_32_queries_each_sees_only_the_earlier_ones(context, make_generator):
    moved = change_of_each_query(build(32, make_generator), context, 20)
    assert torch.equal(moved[:20], torch.zeros(20))
    assert (moved[20:] > 1e-4).all()


@pytest.mark.parametrize("count", [4, 31, 33])
def test_any_other_number_of_queries_sees_everything(count, context, make_generator):
    moved = change_of_each_query(build(count, make_generator), context, count - 1)
    assert (moved > 1e-4).all()


def test_only_every_second_layer_reads_the_image(make_generator):
    layers = build(32, make_generator).layers
    assert [layer.cross_attention is not None for layer in layers] == [True, False, True]


def test_the_image_reaches_every_query(context, make_generator):
    module = build(32, make_generator)
    moved = (module(context) - module(-context)).abs().amax(-1)
    assert (moved > 1e-4).all()


def test_the_published_sizes_are_the_defaults():
    config = QFormerConfig()
    sizes = (config.num_queries, config.width, config.context_width, config.depth)
    assert sizes == (32, 768, 1408, 12)
    assert (config.num_heads, config.mlp_width, config.norm_eps) == (12, 3072, 1e-12)
    assert config.cross_attention_every == 2


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(CheckpointError, match="16 must be a multiple of its 3 heads"):
        QFormerConfig(width=16, num_heads=3)
