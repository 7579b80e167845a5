"""SeedDecoder on the bundled model: reproducible rows, sizes, options."""

import shutil

import pytest
import torch

import seed_core
from seed_core import DecodeOptions, seeded_generators
from seed_core.decoder.runtime import SeedDecoder
from seed_core.errors import OptionError

FAST = DecodeOptions(num_inference_steps=3, guidance_scale=2.0)

# A picture is a few hundred products of its own row, in whatever batch: it must be the same bits.
SAME = {"rtol": 0, "atol": 0}


@pytest.fixture(scope="module")
def embedding(mini_tokenizer, sample_codes):
    return mini_tokenizer.embed(sample_codes)  # fox on yellow, cat on orange, castle on blue


def test_a_picture_is_float_in_the_unit_range_at_the_decoders_size(mini_decoder, embedding):
    picture = mini_decoder.decode(embedding[:1], options=FAST)
    assert picture.shape == (1, 3, 128, 128)
    assert picture.dtype == torch.float32
    assert picture.min() >= 0
    assert picture.max() <= 1
    assert (mini_decoder.size, mini_decoder.embedding_dim) == (128, 256)


def corner(picture):
    """Mean colour of the four corners, where the plain background is."""
    edge = picture[:, [0, 0, -1, -1], :][:, :, [0, -1]]
    return edge.mean((1, 2)).tolist()


def test_pictures_show_what_was_encoded(mini_decoder, embedding):
    """Backgrounds come back: yellow, orange, blue."""
    options = DecodeOptions(num_inference_steps=10, guidance_scale=2.0)
    yellow, orange, blue = (
        corner(picture) for picture in mini_decoder.decode(embedding, options=options)
    )
    assert yellow[0] > yellow[2] + 0.3
    assert yellow[1] > yellow[2] + 0.3
    assert orange[0] > orange[1] > orange[2]
    assert yellow[1] > orange[1] + 0.05
    assert blue[2] > blue[0] + 0.15


def test_the_same_generators_give_the_same_pictures(mini_decoder, embedding):
    first, second = (
        mini_decoder.decode(embedding, options=FAST, generator=seeded_generators(9, 3))
        for _ in range(2)
    )
    torch.testing.assert_close(first, second, **SAME)


def test_a_row_is_the_same_picture_in_any_batch_position(mini_decoder, embedding):
    together = mini_decoder.decode(embedding, options=FAST, generator=seeded_generators(9, 3))
    for row in range(3):
        alone = mini_decoder.decode(
            embedding[row : row + 1], options=FAST, generator=seeded_generators(9 + row, 1)
        )
        torch.testing.assert_close(together[row : row + 1], alone, **SAME)
    backwards = mini_decoder.decode(
        embedding.flip(0), options=FAST, generator=seeded_generators(9, 3)[::-1]
    )
    torch.testing.assert_close(together, backwards.flip(0), **SAME)


def test_rows_of_one_code_with_their_own_seeds_differ(mini_decoder, embedding):
    same = embedding[:1].expand(2, -1)
    first, second = mini_decoder.decode(same, options=FAST, generator=seeded_generators(0, 2))
    assert (first - second).abs().max() > 0.01


def test_one_generator_serves_the_rows_in_order(mini_decoder, embedding, make_generator):
    shared, twice = make_generator(4), make_generator(4)
    together = mini_decoder.decode(embedding[:2], options=FAST, generator=shared)
    apart = [mini_decoder.decode(embedding[row : row + 1], None, FAST, twice) for row in range(2)]
    torch.testing.assert_close(together, torch.cat(apart), **SAME)


def test_no_generator_is_one_seeded_with_0(mini_decoder, embedding, make_generator):
    implicit = mini_decoder.decode(embedding[:1], options=FAST)
    explicit = mini_decoder.decode(embedding[:1], options=FAST, generator=make_generator(0))
    torch.testing.assert_close(implicit, explicit, **SAME)


def test_decoding_twice_starts_from_a_fresh_scheduler(mini_decoder, embedding):
    """Schedulers keep the steps they took; a used one must not reach the next picture."""
    first = mini_decoder.decode(embedding[:1], options=FAST)
    mini_decoder.decode(embedding[:1], options=DecodeOptions(num_inference_steps=5))
    torch.testing.assert_close(mini_decoder.decode(embedding[:1], options=FAST), first, **SAME)


def test_a_negative_steers_the_picture(mini_decoder, embedding):
    plain = mini_decoder.decode(embedding[:1], options=FAST)
    steered = mini_decoder.decode(embedding[:1], embedding[1:2], options=FAST)
    assert (plain - steered).abs().max() > 0.05


def test_one_negative_serves_all_rows(mini_decoder, embedding):
    one = mini_decoder.decode(embedding[:2], embedding[2:], FAST, seeded_generators(0, 2))
    each = embedding[2:].expand(2, -1)
    torch.testing.assert_close(
        one, mini_decoder.decode(embedding[:2], each, FAST, seeded_generators(0, 2)), **SAME
    )


def test_noise_level_changes_the_picture(mini_decoder, embedding):
    noisy = DecodeOptions(num_inference_steps=3, guidance_scale=2.0, noise_level=800)
    plain = mini_decoder.decode(embedding[:1], options=FAST)
    assert (plain - mini_decoder.decode(embedding[:1], options=noisy)).abs().max() > 0.05


def test_without_a_number_guidance_is_the_decoders_own(mini_decoder, embedding):
    own = mini_decoder.decode(embedding[:1], options=DecodeOptions(num_inference_steps=3))
    torch.testing.assert_close(own, mini_decoder.decode(embedding[:1], options=FAST), **SAME)


@pytest.mark.parametrize(("width", "height"), [(128, 128), (64, 0), (0, 96), (192, 64)])
def test_width_and_height(mini_decoder, embedding, width, height):
    options = DecodeOptions(num_inference_steps=1, width=width, height=height)
    picture = mini_decoder.decode(embedding[:1], options=options)
    assert picture.shape == (1, 3, height or 128, width or 128)


def test_no_row_gives_no_picture(mini_decoder):
    assert mini_decoder.decode(torch.zeros(0, 256)).shape == (0, 3, 128, 128)


def test_steps_are_counted_over_all_rows(mini_decoder, embedding):
    seen = []
    mini_decoder.decode(
        embedding[:2], options=FAST, on_step=lambda done, total: seen.append((done, total))
    )
    assert seen == [(done, 6) for done in range(1, 7)]


class Interrupted(BaseException):
    """The host's interruption is no Exception in every version."""


def test_what_on_step_raises_passes_through_unharmed(mini_decoder, embedding):
    interruption, seen = Interrupted(), []

    def on_step(done, total):
        seen.append(done)
        if done == 2:
            raise interruption

    with pytest.raises(Interrupted) as caught:
        mini_decoder.decode(embedding, options=FAST, on_step=on_step)
    assert caught.value is interruption
    assert seen == [1, 2]


@pytest.fixture
def rescheduled(mini_decoder):
    """The bundled networks with other schedulers."""
    import diffusers

    def make(scheduler=mini_decoder.scheduler, noise_levels=1000):
        noising = diffusers.DDPMScheduler(noise_levels, beta_schedule="squaredcos_cap_v2")
        parts = mini_decoder.module, scheduler, noising
        return SeedDecoder(*parts, torch.device("cpu"), torch.float32)

    return make


def refused(decoder, embedding, options, message):
    """The options are refused before any network is called."""
    with pytest.raises(OptionError, match=message):
        decoder.decode(
            embedding[:1], options=options, on_step=lambda done, total: pytest.fail("computed")
        )


def test_more_steps_than_the_scheduler_has_are_refused(rescheduled, embedding):
    """SD 2.1 unCLIP's scheduler counts from 1, and so ends one step beyond its table of 1000."""
    import diffusers

    scheduler = diffusers.PNDMScheduler(1000, skip_prk_steps=True, steps_offset=1)
    most = DecodeOptions(num_inference_steps=1000)
    refused(rescheduled(scheduler), embedding, most, "1000 steps.*1000; use fewer")


def test_a_noise_level_beyond_the_decoders_table_is_refused(rescheduled, embedding):
    decoder = rescheduled(noise_levels=100)
    once = {"num_inference_steps": 1, "width": 64, "height": 64}
    refused(decoder, embedding, DecodeOptions(noise_level=100, **once), r"100.*0\.\.99")
    highest = decoder.decode(embedding[:1], options=DecodeOptions(noise_level=99, **once))
    assert highest.isfinite().all()


@pytest.mark.parametrize("shape", [(1, 1024), (256,), (1, 1, 256), (1, 77, 768)])
def test_embeddings_of_another_model_are_refused_with_both_widths(mini_decoder, shape):
    with pytest.raises(OptionError, match="256"):
        mini_decoder.decode(torch.zeros(shape))


def test_counts_that_do_not_match_are_refused_with_both_numbers(mini_decoder, embedding):
    with pytest.raises(OptionError, match="2 negative.*3"):
        mini_decoder.decode(embedding, embedding[:2], FAST)
    with pytest.raises(OptionError, match="2 generators.*3"):
        mini_decoder.decode(embedding, None, FAST, seeded_generators(0, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_nearly_the_same_picture(dtype, mini_decoder, embedding):
    """Noise is drawn in float32, so every precision starts from the same latents.

    One small step: a CPU takes seconds in float16.
    """
    once = DecodeOptions(num_inference_steps=1, guidance_scale=2.0, width=64, height=64)
    decoder = seed_core.load_decoder("seed-mini", dtype=dtype)
    assert {value.dtype for value in decoder.module.unet.parameters()} == {dtype}
    half = decoder.decode(embedding[:1], options=once)
    assert half.dtype == torch.float32
    assert (half - mini_decoder.decode(embedding[:1], options=once)).abs().mean() < 0.02


def test_loading_leaves_global_state_alone():
    """diffusers' constructors draw random weights; the conftest's watch sees whether ours let them."""
    seed_core.load_decoder("seed-mini", dtype=torch.bfloat16)


def test_a_loaded_decoder_needs_no_gradients(mini_decoder):
    assert not any(value.requires_grad for value in mini_decoder.module.parameters())
    assert not mini_decoder.module.unet.training
    assert not mini_decoder.module.vae.training


def test_the_memory_estimate_grows_with_the_picture(mini_decoder):
    own, double = mini_decoder.memory_required(0, 0), mini_decoder.memory_required(256, 128)
    assert own == mini_decoder.memory_required(128, 128)
    assert double == 2 * own > 0


def test_tiles_bound_the_memory_of_the_vae(mini_decoder):
    """Only the latents' share grows on."""
    whole, large, larger = (mini_decoder.memory_required(side, side) for side in (176, 512, 1024))
    assert large < 3 * whole
    assert larger == pytest.approx(4 * large, rel=0.5)


@pytest.mark.parametrize(("side", "most"), [(64, 2.0), (128, 2.0), (256, 3.0)])
def test_the_memory_estimate_is_above_what_a_picture_takes(
    side, most, mini_decoder, embedding, peak_memory
):
    """Not far above: on a card it also counts a captured UNet, which weighs most beside tiles."""
    options = DecodeOptions(num_inference_steps=2, guidance_scale=2.0, width=side, height=side)
    measured = peak_memory(lambda: mini_decoder.decode(embedding[:1], options=options))
    assert measured <= mini_decoder.memory_required(side, side) <= most * measured


def test_a_folder_anywhere_loads_alike(tmp_path, mini_folder, mini_decoder, embedding):
    folder = shutil.copytree(mini_folder / "decoder", tmp_path / "decoder")
    picture = seed_core.load_decoder(str(folder)).decode(embedding[:1], options=FAST)
    torch.testing.assert_close(picture, mini_decoder.decode(embedding[:1], options=FAST), **SAME)


@pytest.mark.parametrize(("width", "height"), [(176, 128), (128, 144), (136, 136)])
def test_a_size_that_the_networks_cannot_make_is_refused_with_the_step(
    mini_decoder, embedding, width, height
):
    """seed-mini's UNet halves twice and cannot double to an odd side."""
    options = DecodeOptions(num_inference_steps=1, width=width, height=height)
    with pytest.raises(OptionError, match=f"multiples of 32.*{width} x {height}"):
        mini_decoder.decode(embedding[:1], options=options)
