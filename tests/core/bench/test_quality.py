"""Perplexity and agreement: of a model with itself, with another precision, with noise."""

import copy

import pytest
import torch

import seed_core
from seed_core import GenerationOptions
from seed_core.bench.quality import Question, measure_quality
from seed_core.compute import fp8
from seed_core.models.convert import convert_model, plan_conversion
from seed_core.models.names import bundled


@pytest.fixture(scope="module")
def questions(sample_codes):
    codes = [sample_codes[row : row + 1] for row in range(3)]
    return [Question("What is this?", c) for c in codes] + [Question("a panda on blue")]


def test_a_model_agrees_with_itself(mini_llm, questions):
    quality = measure_quality(mini_llm, mini_llm, questions)
    assert quality.agreement == 1
    assert quality.perplexity == quality.reference_perplexity
    assert 1 <= quality.perplexity < 3


def test_perplexity_is_that_of_the_replies_tokens(mini_llm):
    """Against probabilities taken one step at a time, each from a new reply cut short."""
    quality = measure_quality(mini_llm, mini_llm, [Question("What can you do?")], max_new_tokens=5)
    options = GenerationOptions(temperature=0, max_new_tokens=5)
    reply = mini_llm.generate("What can you do?", options=options)
    prompt = mini_llm.vocab.encode(["USER: What can you do?\nASSISTANT:"])
    losses = []
    for done, token_id in enumerate(reply.token_ids):
        cache = seed_core.llm.cache.KVCache(
            mini_llm.config, 1, 100, mini_llm.device, mini_llm.dtype
        )
        token_ids = torch.tensor([[*prompt, *reply.token_ids[:done]]])
        with torch.inference_mode():
            losses.append(-mini_llm.module.prefill(token_ids, cache).log_softmax(-1)[0, token_id])
    assert quality.tokens == len(losses) == 5
    assert quality.perplexity == pytest.approx(float(torch.stack(losses).mean().exp()), rel=1e-4)


def test_fp8_stays_close_and_noise_does_not(mini_llm, questions, tmp_path, make_generator):
    convert_model(plan_conversion(bundled("llm"), fp8.FP8), tmp_path / "mini.safetensors")
    quantised = seed_core.load_llm(tmp_path / "mini.safetensors", dtype=fp8.FP8)
    close = measure_quality(mini_llm, quantised, questions)
    assert close.agreement > 0.9
    assert close.perplexity < 1.05 * close.reference_perplexity
    noisy = copy.copy(mini_llm)
    noisy.module = copy.deepcopy(mini_llm.module)
    head = noisy.module.lm_head.weight
    head += head.std() * torch.randn(head.shape, generator=make_generator(1))
    far = measure_quality(mini_llm, noisy, questions)
    assert far.agreement < close.agreement
    assert far.perplexity > 1.5 * close.perplexity
