"""Denoiser: the steps are those of a plain loop, and their UNet calls could be replayed by a card."""

import copy
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding

import seed_core
from seed_core import DecodeOptions, seeded_generators
from seed_core.decoder.runtime import SeedDecoder

CPU = torch.device("cpu")

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SD_NOISE = {**NOISE, "prediction_type": "v_prediction"}
SCHEDULERS = {
    "pndm": diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1, **SD_NOISE),
    "ddim": diffusers.DDIMScheduler(**SD_NOISE),
    "euler ancestral": diffusers.EulerAncestralDiscreteScheduler(**SD_NOISE),
    "dpm++": diffusers.DPMSolverMultistepScheduler(**SD_NOISE),
}
"""SD 2.1 unCLIP's, seed-mini's, one that draws at each step, one that keeps predictions."""


@pytest.fixture(params=SCHEDULERS)
def decoder(request, mini_decoder):
    scheduler, noising = SCHEDULERS[request.param], mini_decoder.noising_scheduler
    return SeedDecoder(mini_decoder.module, scheduler, noising, CPU, torch.float32)


@pytest.fixture(scope="module")
def embedding(mini_tokenizer, sample_codes):
    return mini_tokenizer.embed(sample_codes[:2])


GUIDED = DecodeOptions(5, guidance_scale=3.0, noise_level=200, width=64, height=64)
PLAIN = DecodeOptions(5, guidance_scale=1.0, width=96, height=64)


def decode_plainly(decoder, embedding, negative, options, generator):
    """One picture, spelled out from the reference's pipeline with nothing kept or shared."""

    def randn(*shape):
        return torch.randn(shape, generator=generator)

    def label_of(row):
        level = torch.tensor([options.noise_level])
        noise = randn(*row.shape)
        mean, std = decoder.module.mean, decoder.module.std
        noised = decoder.noising_scheduler.add_noise((row - mean) / std, noise, level)
        embedded = get_timestep_embedding(level, row.shape[1], True, 0)
        return torch.cat((noised * std + mean, embedded), 1)

    positive = label_of(embedding)
    other = torch.zeros_like(positive) if negative is None else label_of(negative)
    is_guided = options.guidance_scale > 1
    label = torch.cat((other, positive)) if is_guided else positive
    width, height = options.width or decoder.size, options.height or decoder.size
    scheduler = copy.deepcopy(decoder.scheduler)
    scheduler.set_timesteps(options.num_inference_steps)
    latents = randn(1, 4, height // 8, width // 8) * scheduler.init_noise_sigma
    draws = {"generator": generator} if "Ancestral" in type(scheduler).__name__ else {}
    for timestep in scheduler.timesteps:
        sample = torch.cat([scheduler.scale_model_input(latents, timestep)] * len(label))
        text = decoder.module.text.expand(len(label), -1, -1)
        made = decoder.module.unet(sample, timestep, text, label).sample
        if is_guided:
            made = made[:1] + options.guidance_scale * (made[1:] - made[:1])
        latents = scheduler.step(made, timestep, latents, **draws).prev_sample
    vae = decoder.module.vae
    return (vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("options", [GUIDED, PLAIN], ids=["guided", "plain"])
@pytest.mark.parametrize("has_negatives", [False, True], ids=["alone", "negatives"])
def test_every_row_is_bit_for_bit_that_of_a_plain_loop(decoder, embedding, options, has_negatives):
    negatives = embedding.flip(0) if has_negatives else None
    made = decoder.decode(embedding, negatives, options, seeded_generators(6, 2))
    for row, generator in enumerate(seeded_generators(6, 2)):
        negative = negatives[row : row + 1] if has_negatives else None
        with torch.inference_mode():
            plain = decode_plainly(decoder, embedding[row : row + 1], negative, options, generator)
        assert torch.equal(made[row : row + 1], plain)


class Replays:
    """In GraphedCalls' place: keeps the first function for good."""

    made = []

    def __init__(self, device, enabled):
        self.keys, self.function, self.is_closed = [], None, False
        Replays.made.append(self)

    def __call__(self, key, function):
        self.keys.append(key)
        self.function = self.function or function
        self.function()

    def close(self):
        self.is_closed = True


@pytest.fixture
def replays(monkeypatch):
    monkeypatch.setattr(Replays, "made", [])
    monkeypatch.setattr(seed_core.decoder.denoiser, "GraphedCalls", Replays)
    return Replays.made


@pytest.mark.parametrize("options", [GUIDED, PLAIN], ids=["guided", "plain"])
def test_replays_of_one_capture_serve_all_steps_of_all_rows(
    decoder, embedding, options, replays, monkeypatch
):
    replayed = decoder.decode(embedding, None, options, seeded_generators(2, 2))
    (calls,) = replays
    assert set(calls.keys) == {"unet"}
    assert len(calls.keys) >= 10
    assert calls.is_closed
    monkeypatch.undo()
    assert torch.equal(replayed, decoder.decode(embedding, None, options, seeded_generators(2, 2)))


def test_stop_lets_go_of_what_was_captured(mini_decoder, embedding, replays):
    class StopError(Exception):
        pass

    def on_step(done, total):
        raise StopError

    with pytest.raises(StopError):
        mini_decoder.decode(embedding, options=GUIDED, on_step=on_step)
    assert replays[0].is_closed


def test_the_inputs_of_the_network_stay_where_they_are(decoder, embedding, monkeypatch):
    """A captured call reads the addresses that it read when it was captured."""
    seen, forward = [], decoder.module.unet.forward

    def watched(sample, timestep, encoder_hidden_states, class_labels):
        inputs = sample, timestep, encoder_hidden_states, class_labels
        seen.append(SimpleNamespace(where=[x.data_ptr() for x in inputs], step=float(timestep)))
        return forward(*inputs)

    monkeypatch.setattr(decoder.module.unet, "forward", watched)
    decoder.decode(embedding, options=GUIDED, generator=seeded_generators(0, 2))
    assert all(call.where == seen[0].where for call in seen)
    assert len({call.step for call in seen}) > 3
    half = len(seen) // 2
    assert [call.step for call in seen[:half]] == [call.step for call in seen[half:]]


@pytest.mark.gpu
def test_graphs_give_the_pictures_of_plain_calls(embedding, monkeypatch):
    decoder = seed_core.load_decoder("seed-mini", device="cuda")
    graphed = decoder.decode(embedding, options=GUIDED, generator=seeded_generators(0, 2))
    monkeypatch.setattr(seed_core.decoder.denoiser, "can_capture", lambda module, device: False)
    plain = decoder.decode(embedding, options=GUIDED, generator=seeded_generators(0, 2))
    torch.testing.assert_close(graphed, plain, rtol=0, atol=1e-5)
