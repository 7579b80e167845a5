"""Previews: what a prediction leads to, whatever the scheduler, and its colours."""

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import avg_pool2d

from seed_core import DecodeOptions
from seed_core.decoder.preview import latents_at_the_end, rough_picture
from seed_core.decoder.runtime import SeedDecoder
from seed_core.models.names import sample_pictures

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
KINDS = ("epsilon", "sample", "v_prediction")


@pytest.mark.parametrize("timestep", [0, 500, 999])
@pytest.mark.parametrize("kind", KINDS)
def test_a_right_prediction_leads_to_the_answer(kind, timestep, generator):
    scheduler = diffusers.DDIMScheduler(prediction_type=kind, **NOISE)
    answer, noise = (torch.randn(1, 4, 8, 8, generator=generator) for _ in range(2))
    at = torch.tensor(timestep)
    sample = scheduler.add_noise(answer, noise, at)
    signal = scheduler.alphas_cumprod[timestep]
    velocity = signal.sqrt() * noise - (1 - signal).sqrt() * answer
    prediction = dict(zip(KINDS, (noise, answer, velocity), strict=True))[kind]
    found = latents_at_the_end(scheduler, sample, prediction, at)
    # In float32 the noise of 0.9953 beside a signal of 0.07 leaves some four digits of it.
    torch.testing.assert_close(found, answer, rtol=1e-3, atol=1e-4)


def test_with_no_signal_left_the_estimate_is_finite(generator):
    scheduler = diffusers.DDIMScheduler(rescale_betas_zero_snr=True, **NOISE)
    sample, prediction = (torch.randn(1, 4, 8, 8, generator=generator) for _ in range(2))
    assert latents_at_the_end(scheduler, sample, prediction, torch.tensor(999)).isfinite().all()


@pytest.fixture(scope="module")
def embedding(mini_tokenizer, sample_codes):
    return mini_tokenizer.embed(sample_codes[:2])


@pytest.mark.parametrize(
    "scheduler",
    [
        None,
        diffusers.PNDMScheduler(
            skip_prk_steps=True, steps_offset=1, prediction_type="v_prediction", **NOISE
        ),
        diffusers.EulerDiscreteScheduler(prediction_type="v_prediction", **NOISE),
    ],
    ids=["seed-mini's", "sd-2.1's", "euler"],
)
def test_previews_come_to_look_like_the_picture(mini_decoder, embedding, scheduler):
    """Of the picture in work, nearer and nearer, and the last one near."""
    decoder = mini_decoder
    if scheduler is not None:
        noising = mini_decoder.noising_scheduler
        decoder = SeedDecoder(
            mini_decoder.module, scheduler, noising, torch.device("cpu"), torch.float32, 2.0
        )
    seen = []
    pictures = decoder.decode(
        embedding,
        options=DecodeOptions(10),
        on_look=lambda look: seen.append(rough_picture(look(), decoder.colours)),
    )
    assert len(seen) in (20, 22)  # PNDM calls once more
    assert {preview.shape for preview in seen} == {(16, 16, 3)}
    small = avg_pool2d(pictures, 8).movedim(1, -1)
    half = len(seen) // 2
    for row, previews in enumerate((seen[:half], seen[half:])):
        errors = [float((preview - small[row]).abs().mean()) for preview in previews]
        assert errors[-1] < 0.12
        assert errors[-1] < errors[0]
        assert errors[-1] < float((previews[-1] - small[1 - row]).abs().mean())


def test_looking_changes_no_picture_and_need_not_happen(mini_decoder, embedding):
    options = DecodeOptions(3)
    plain = mini_decoder.decode(embedding, options=options)
    looked = mini_decoder.decode(embedding, options=options, on_look=lambda look: look().mul_(0))
    ignored = mini_decoder.decode(embedding, options=options, on_look=lambda look: None)
    assert torch.equal(plain, looked)
    assert torch.equal(plain, ignored)


def test_a_look_comes_before_its_step(mini_decoder, embedding):
    told = []
    mini_decoder.decode(
        embedding[:1],
        options=DecodeOptions(2),
        on_step=lambda done, total: told.append(done),
        on_look=lambda look: told.append("look"),
    )
    assert told == ["look", 1, "look", 2]


def test_seed_minis_colours_are_the_least_squares_of_its_samples(mini_decoder):
    vae = mini_decoder.module.vae
    opened = [Image.open(path).convert("RGB") for path in sample_pictures().values()]
    pixels = torch.from_numpy(np.stack([np.array(picture) for picture in opened]))
    pixels = pixels.movedim(-1, 1).float() / 127.5 - 1
    with torch.inference_mode():
        latents = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
    given, wanted = (x.movedim(1, -1).flatten(0, -2) for x in (latents, avg_pool2d(pixels, 8)))
    given = torch.cat((given, torch.ones(len(given), 1)), dim=1)
    fitted = torch.linalg.lstsq(given, wanted).solution
    # Written with four digits.
    torch.testing.assert_close(mini_decoder.colours, fitted, rtol=0, atol=1e-3)


def test_colours_are_clipped_to_a_picture():
    colours = torch.tensor([[9.0, 0, 0], [0, -9, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0.5]])
    picture = rough_picture(torch.ones(1, 4, 2, 3), colours)
    assert picture.shape == (2, 3, 3)
    assert torch.equal(picture[0, 0], torch.tensor([1.0, 0.0, 0.75]))
