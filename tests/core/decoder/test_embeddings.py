"""Blending two embeddings: what holds for any two, and what has no answer."""

import pytest
import torch

from seed_core.decoder.embeddings import (
    BLEND_MODES,
    blend_embeddings,
    require_image_embedding,
    require_ip_adapter,
    require_text_condition,
)
from seed_core.errors import EmbeddingError, OptionError

FACTORS = [0.0, 0.2, 0.5, 0.9, 1.0]


@pytest.fixture
def pair(generator):
    """Three rows each, of unlike lengths."""
    a, b = torch.randn(2, 3, 64, generator=generator)
    return a, 3 * b


def cosine(a, b):
    return torch.cosine_similarity(a, b, dim=-1)


@pytest.mark.parametrize("mode", BLEND_MODES)
def test_the_ends_are_the_two_themselves(pair, mode):
    a, b = pair
    assert torch.equal(blend_embeddings(a, b, 0, mode), a)
    assert torch.equal(blend_embeddings(a, b, 1, mode), b)


@pytest.mark.parametrize("mode", BLEND_MODES)
@pytest.mark.parametrize("factor", FACTORS)
def test_walking_back_is_the_same_way(pair, mode, factor):
    a, b = pair
    forth, back = blend_embeddings(a, b, factor, mode), blend_embeddings(b, a, 1 - factor, mode)
    torch.testing.assert_close(forth, back)


@pytest.mark.parametrize("mode", BLEND_MODES)
def test_a_row_does_not_depend_on_the_others(pair, mode):
    a, b = pair
    alone = [blend_embeddings(a[i], b[i], 0.3, mode) for i in range(3)]
    torch.testing.assert_close(blend_embeddings(a, b, 0.3, mode), torch.stack(alone))


def test_linear_is_the_weighted_mean(pair):
    a, b = pair
    torch.testing.assert_close(blend_embeddings(a, b, 0.25), 0.75 * a + 0.25 * b)


@pytest.mark.parametrize("factor", FACTORS)
def test_spherical_turns_evenly_and_its_length_grows_evenly(pair, factor):
    a, b = pair
    blend = blend_embeddings(a, b, factor, "spherical")
    whole, part = cosine(a, b).acos(), cosine(a, blend).clamp(-1, 1).acos()
    torch.testing.assert_close(part, factor * whole, atol=1e-3, rtol=0)  # acos is coarse near 1
    norms = (1 - factor) * a.norm(dim=-1) + factor * b.norm(dim=-1)
    torch.testing.assert_close(blend.norm(dim=-1), norms)


@pytest.mark.parametrize("angle", [1e-8, 1e-5, 1e-3, 1.0, 3.14, 3.1415])
def test_spherical_is_exact_at_every_angle(angle):
    """The textbook's formula divides by the sine, which is nearly nothing at both ends."""
    angle = torch.tensor(angle)
    a, b = torch.tensor([1.0, 0.0]), torch.stack((angle.cos(), angle.sin()))
    wanted = torch.stack(((angle / 2).cos(), (angle / 2).sin()))
    blend = blend_embeddings(a, b, 0.5, "spherical")
    # float32 knows b to 1e-7, and with it the way aside to 1e-7 of its length
    torch.testing.assert_close(blend, wanted, atol=1e-6, rtol=0)


def test_between_parallel_vectors_only_the_length_changes(pair):
    a, _ = pair
    torch.testing.assert_close(blend_embeddings(a, 3 * a, 0.5, "spherical"), 2 * a)


@pytest.mark.parametrize("mode", BLEND_MODES)
def test_a_zero_vector_takes_the_others_direction(pair, mode):
    a, zero = pair[0], torch.zeros(3, 64)
    torch.testing.assert_close(blend_embeddings(a, zero, 0.25, mode), 0.75 * a)
    torch.testing.assert_close(blend_embeddings(zero, a, 0.25, mode), 0.25 * a)
    assert torch.equal(blend_embeddings(zero, zero, 0.5, mode), zero)


def test_opposite_vectors_have_no_spherical_way_between(pair):
    a, _ = pair
    with pytest.raises(EmbeddingError, match="opposite directions.*choose linear"):
        blend_embeddings(a, -2 * a, 0.5, "spherical")
    torch.testing.assert_close(blend_embeddings(a, -2 * a, 0.5), -0.5 * a)
    assert torch.equal(blend_embeddings(a, -2 * a, 1, "spherical"), -2 * a)


@pytest.mark.parametrize("mode", BLEND_MODES)
def test_the_blend_is_float32_and_the_inputs_stay(pair, mode):
    a, b = pair[0].half(), pair[1].bfloat16()
    kept = a.clone(), b.clone()
    blend = blend_embeddings(a, b, 0.5, mode)
    assert blend.dtype == torch.float32
    torch.testing.assert_close(blend, blend_embeddings(a.float(), b.float(), 0.5, mode))
    assert torch.equal(a, kept[0])
    assert torch.equal(b, kept[1])


@pytest.mark.parametrize("shape", [(3, 32), (1, 64), (64,)])
def test_other_shapes_are_refused_with_both(pair, shape):
    with pytest.raises(EmbeddingError) as refused:
        blend_embeddings(pair[0], torch.zeros(shape), 0.5)
    assert "[3, 64]" in str(refused.value)
    assert str(list(shape)) in str(refused.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [((-0.1,), "0..1"), ((1.5,), "1.5"), ((float("nan"),), "nan"), ((0.5, "cubic"), "'cubic'")],
)
def test_options_out_of_range_are_refused(pair, options, words):
    with pytest.raises(OptionError, match=words):
        blend_embeddings(*pair, *options)


def test_ip_adapter_reads_1024_numbers():
    require_ip_adapter((1024,), "seed-2")
    with pytest.raises(
        EmbeddingError, match=r"1024.*seed-mini.*256.*sdxl_vit-h for SDXL, not the plus"
    ):
        require_ip_adapter((256,), "seed-mini")


def test_each_kind_of_embedding_is_sent_to_the_node_that_reads_it():
    require_image_embedding((256,), "seed-mini")
    require_text_condition((77, 768), "seed-1")
    with pytest.raises(EmbeddingError, match=r"seed-1.*77 x 768.*Codes to Conditioning"):
        require_image_embedding((77, 768), "seed-1")
    with pytest.raises(EmbeddingError, match=r"seed-2.*1024.*Codes to Embedding"):
        require_text_condition((1024,), "seed-2")
