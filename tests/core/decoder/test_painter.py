"""Latents to pixels: large pictures in tiles, and pictures that overflow float16 painted again."""

import copy
import logging

import pytest
import torch
from torch import nn

import seed_core
from seed_core import DecodeOptions, seeded_generators
from seed_core.decoder import painter
from seed_core.errors import GenerationError

FAST = DecodeOptions(num_inference_steps=3, guidance_scale=2.0)
SAME = {"rtol": 0, "atol": 0}


@pytest.fixture(scope="module")
def embedding(mini_tokenizer, sample_codes):
    return mini_tokenizer.embed(sample_codes)  # fox on yellow, cat on orange, castle on blue


@pytest.fixture
def decoded_by(mini_decoder, monkeypatch):
    """Sides of the latents that the VAE's own decoder was given, one entry a call."""
    seen, vae_decoder = [], mini_decoder.module.vae.decoder
    forward = vae_decoder.forward

    def watched(latents):
        seen.append(tuple(latents.shape[-2:]))
        return forward(latents)

    monkeypatch.setattr(vae_decoder, "forward", watched)
    return seen


def test_a_picture_up_to_twice_the_own_area_is_decoded_whole(mini_decoder, embedding, decoded_by):
    for width, height in ((0, 0), (160, 192), (512, 64)):
        options = DecodeOptions(num_inference_steps=1, width=width, height=height)
        mini_decoder.decode(embedding[:1], options=options)
    assert decoded_by == [(16, 16), (24, 20), (8, 64)]


def test_a_larger_picture_is_decoded_in_tiles_of_the_own_size(
    mini_decoder, embedding, decoded_by, monkeypatch
):
    """Tiles differ from the whole where norms average over less; the picture stays the same.

    Between pictures of other codes the mean difference is five times as large.
    """
    options = DecodeOptions(num_inference_steps=3, guidance_scale=2.0, width=256, height=256)
    tiled = mini_decoder.decode(embedding[:1], options=options)
    assert len(decoded_by) > 1
    assert max(decoded_by) == (16, 16)
    again = mini_decoder.decode(embedding[:1], options=options)
    assert torch.equal(tiled, again)
    monkeypatch.setattr(painter, "_TILED_ABOVE", 100)
    decoded_by.clear()
    whole = mini_decoder.decode(embedding[:1], options=options)
    assert decoded_by == [(32, 32)]
    difference = (tiled - whole).abs()
    assert difference.mean() < 0.03
    assert difference.quantile(0.99) < 0.15
    other = mini_decoder.decode(embedding[1:2], options=options)
    assert (other - whole).abs().mean() > 0.09


def test_tiles_leave_nothing_behind(mini_decoder, embedding):
    before = mini_decoder.decode(embedding[:1], options=FAST)
    large = DecodeOptions(num_inference_steps=1, width=192, height=192)
    mini_decoder.decode(embedding[:1], options=large)
    assert torch.equal(mini_decoder.decode(embedding[:1], options=FAST), before)
    assert not mini_decoder.module.vae.use_tiling


# --- pictures that overflow ---

ONCE = DecodeOptions(num_inference_steps=1, guidance_scale=1.0, width=64, height=64)


@pytest.fixture
def overflowing():
    """seed-mini in fp16, whose VAE works with numbers of about a million."""
    decoder = seed_core.load_decoder("seed-mini", dtype=torch.float16)
    with torch.inference_mode():
        for parameter in decoder.module.vae.decoder.conv_in.parameters():
            parameter.mul_(1e4)
            assert parameter.isfinite().all()
    return decoder


@pytest.fixture
def painted(overflowing, monkeypatch):
    """Latents that the VAE was given, in order."""
    seen, paint = [], overflowing._painter.paint

    def watched(latents):
        seen.append(latents.clone())
        return paint(latents)

    monkeypatch.setattr(overflowing._painter, "paint", watched)
    return seen


def in_float32(decoder, latents):
    """The picture of diffusers' own VAE in float32, of the same weights."""
    vae = copy.deepcopy(decoder.module.vae)
    with torch.inference_mode():
        vae = nn.Module.to(vae, dtype=torch.float32)
        decoded = vae.decode(latents.float() / vae.config.scaling_factor).sample
    return decoded.div(2).add(0.5).clamp(0, 1)


def test_a_picture_that_overflows_is_painted_again_in_float32(
    overflowing, painted, embedding, caplog
):
    caplog.set_level(logging.INFO, logger="seed_core.decoder.painter")
    before = {n: p.clone() for n, p in overflowing.module.vae.named_parameters()}
    picture = overflowing.decode(embedding[:1], options=ONCE)
    first, second = painted
    assert (first.dtype, second.dtype) == (torch.float16, torch.float32)
    torch.testing.assert_close(second, first.float(), **SAME)
    torch.testing.assert_close(picture, in_float32(overflowing, first), rtol=0, atol=1e-5)
    assert picture.std() > 0.02  # neither black nor one colour
    assert [r.getMessage() for r in caplog.records if "fp16" in r.getMessage()] == [
        "fp16 overflowed in the VAE; pictures painted again in fp32: 1"
    ]
    after = dict(overflowing.module.vae.named_parameters())
    for name, parameter in before.items():  # as they were, and what they were
        assert after[name].dtype == torch.float16
        torch.testing.assert_close(after[name], parameter, **SAME)


def test_only_rows_that_overflow_are_painted_again(embedding, monkeypatch):
    decoder = seed_core.load_decoder("seed-mini", dtype=torch.float16)
    paint, dtypes = decoder._painter.paint, []

    def second_overflows(latents):
        dtypes.append(latents.dtype)
        pixels = paint(latents)
        if len(dtypes) == 2:
            pixels[..., 3, 5] = torch.inf  # one number, which a clamp would hide
        return pixels

    wanted = decoder.decode(embedding, options=ONCE, generator=seeded_generators(4, 3))
    monkeypatch.setattr(decoder._painter, "paint", second_overflows)
    made = decoder.decode(embedding, options=ONCE, generator=seeded_generators(4, 3))
    assert dtypes == [torch.float16] * 3 + [torch.float32]
    torch.testing.assert_close(made[[0, 2]], wanted[[0, 2]], **SAME)
    torch.testing.assert_close(made[1], wanted[1], rtol=0, atol=0.05)


def test_room_is_made_before_a_picture_is_painted_again(overflowing, painted, embedding):
    asked = []
    overflowing.decode(
        embedding[:1], options=ONCE, make_room=lambda size: asked.append((size, len(painted)))
    )
    ((size, times),) = asked
    assert times == 1  # before the second
    in_16_bits = overflowing._painter.memory_required(64, 64, torch.float16)
    assert size == 2 * in_16_bits


@pytest.mark.parametrize(
    "error",
    [torch.cuda.OutOfMemoryError("tried to allocate"), RuntimeError("CUDA error: out of memory")],
    ids=["allocator", "driver"],
)
def test_where_memory_is_short_the_picture_is_painted_in_bfloat16(
    overflowing, embedding, monkeypatch, error
):
    wanted = overflowing.decode(embedding[:1], options=ONCE)
    paint, dtypes = overflowing._painter.paint, []

    def short(latents):
        dtypes.append(latents.dtype)
        if latents.dtype == torch.float32:
            raise error
        return paint(latents)

    monkeypatch.setattr(overflowing._painter, "paint", short)
    picture = overflowing.decode(embedding[:1], options=ONCE)
    assert dtypes == [torch.float16, torch.float32, torch.bfloat16]
    assert (picture - wanted).abs().mean() < 0.02


def test_a_large_picture_that_overflows_is_painted_again_in_tiles(
    overflowing, painted, embedding, monkeypatch
):
    monkeypatch.setattr(painter, "_TILED_ABOVE", 0.1)
    picture = overflowing.decode(embedding[:1], options=ONCE)
    torch.testing.assert_close(picture, in_float32(overflowing, painted[0]), rtol=0, atol=1e-5)


def test_nothing_is_rounded_between_the_blocks_of_the_vae(overflowing, painted, embedding):
    """Some releases of diffusers round there, to the precision of the weights."""
    overflowing.module.vae.decoder.up_blocks[0].register_forward_pre_hook(
        lambda _, given: (given[0].half(), *given[1:])
    )
    picture = overflowing.decode(embedding[:1], options=ONCE)
    vae = overflowing.module.vae.decoder
    vae.up_blocks[0]._forward_pre_hooks.popitem()
    assert not vae.mid_block._forward_hooks  # ours are gone by themselves
    assert not vae.up_blocks[0]._forward_pre_hooks
    torch.testing.assert_close(picture, in_float32(overflowing, painted[0]), rtol=0, atol=1e-5)


def test_weights_that_are_none_are_one_sentence_and_no_black_picture(embedding):
    decoder = seed_core.load_decoder("seed-mini", dtype=torch.float16)
    with torch.inference_mode():
        decoder.module.vae.decoder.conv_out.bias.fill_(torch.nan)
    with pytest.raises(GenerationError, match=r"picture 1 .*VAE .*float32.*download them again"):
        decoder.decode(embedding[:1], options=ONCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_wide_precision_cannot_hold_is_not_tried_again(dtype, embedding, monkeypatch):
    decoder = seed_core.load_decoder("seed-mini", dtype=dtype)
    with torch.inference_mode():
        decoder.module.vae.decoder.conv_out.bias.fill_(torch.inf)
    with pytest.raises(GenerationError, match=f"VAE.*in {str(dtype)[6:]}. Its files"):
        decoder.decode(embedding[:1], options=ONCE)


def test_steps_that_overflow_are_refused_with_the_precision_to_choose(embedding):
    decoder = seed_core.load_decoder("seed-mini", dtype=torch.float16)
    with torch.inference_mode():
        decoder.module.unet.conv_out.weight.fill_(6e4)
    with pytest.raises(GenerationError, match=r"diffusion steps .*float16.*bf16 or fp32"):
        decoder.decode(embedding[:1], options=ONCE)
