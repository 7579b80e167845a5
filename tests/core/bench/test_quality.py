"""Perplexity, agreement, divergence: of a model with itself, in another precision, with noise."""

import copy
import math

import pytest
import torch

import seed_core
from seed_core import GenerationOptions
from seed_core.bench.quality import Question, divergences, measure_quality
from seed_core.compute import fp8
from seed_core.llm.cache import KVCache
from seed_core.models.convert import convert_model, plan_conversion
from seed_core.models.names import bundled


@pytest.fixture(scope="module")
def questions(sample_codes):
    codes = [sample_codes[row : row + 1] for row in range(3)]
    return [Question("What is this?", c) for c in codes] + [Question("a panda on blue")]


def test_a_model_agrees_with_itself(mini_llm, questions):
    quality = measure_quality(mini_llm, mini_llm, questions)
    assert quality.agreement == 1
    assert quality.divergence == 0
    assert quality.perplexity == quality.reference_perplexity
    assert 1 <= quality.perplexity < 3


def one_by_one(llm, token_ids):
    """Logits at each token of a short reply, every one from a prefix that is read anew."""
    prompt = llm.vocab.encode(["USER: What can you do?\nASSISTANT:"])
    rows = []
    for done in range(len(token_ids)):
        cache = KVCache(llm.config, 1, 100, llm.device, llm.dtype)
        read = torch.tensor([[*prompt, *token_ids[:done]]])
        with torch.inference_mode():
            rows.append(llm.module.prefill(read, cache)[0].float())
    return rows


def short_reply(llm):
    options = GenerationOptions(temperature=0, max_new_tokens=5)
    return llm.generate("What can you do?", options=options).token_ids


def with_noise(llm, generator):
    """A copy whose head is half noise."""
    noisy = copy.copy(llm)
    noisy.module = copy.deepcopy(llm.module)
    head = noisy.module.lm_head.weight
    head += head.std() * torch.randn(head.shape, generator=generator)
    return noisy


def test_perplexity_is_that_of_the_replies_tokens(mini_llm):
    """Against probabilities taken one step at a time, each from a new reply cut short."""
    quality = measure_quality(mini_llm, mini_llm, [Question("What can you do?")], max_new_tokens=5)
    tokens = short_reply(mini_llm)
    logits = one_by_one(mini_llm, tokens)
    losses = [-x.log_softmax(-1)[token] for x, token in zip(logits, tokens, strict=True)]
    assert quality.tokens == len(losses) == 5
    assert quality.perplexity == pytest.approx(float(torch.stack(losses).mean().exp()), rel=1e-4)


def test_divergence_is_that_of_the_other_model_from_the_reference(mini_llm, make_generator):
    """Summed in plain Python over the vocabulary, from logits taken one step at a time."""
    noisy = with_noise(mini_llm, make_generator(1))
    question = Question("What can you do?")
    quality = measure_quality(mini_llm, noisy, [question], max_new_tokens=5)
    tokens = short_reply(mini_llm)
    sums = []
    for ours, theirs in zip(*(one_by_one(x, tokens) for x in (mini_llm, noisy)), strict=True):
        p, q = ([math.exp(v - max(row)) for v in row] for row in (ours.tolist(), theirs.tolist()))
        total_p, total_q = sum(p), sum(q)
        sums.append(
            sum(
                a / total_p * (math.log(a / total_p) - math.log(b / total_q))
                for a, b in zip(p, q, strict=True)
            )
        )
    assert quality.divergence == pytest.approx(sum(sums) / len(sums), rel=1e-4)


def test_divergence_looks_at_every_token_not_only_at_the_likeliest():
    """Two distributions of three tokens, by hand: 1/2, 1/4, 1/4 and 1/2, 1/8, 3/8."""
    reference = torch.tensor([[0.5, 0.25, 0.25], [1.0, 1.0, 1.0]]).log()
    other = torch.tensor([[0.5, 0.125, 0.375], [1.0, 1.0, 1.0]]).log()
    expected = 0.25 * math.log(2) + 0.25 * math.log(2 / 3)
    assert divergences(reference, other).tolist() == pytest.approx([expected, 0], abs=1e-7)


def test_fp8_stays_close_and_noise_does_not(mini_llm, questions, tmp_path, make_generator):
    convert_model(plan_conversion(bundled("llm"), fp8.FP8), tmp_path / "mini.safetensors")
    quantised = seed_core.load_llm(tmp_path / "mini.safetensors", dtype=fp8.FP8)
    close = measure_quality(mini_llm, quantised, questions)
    assert close.agreement > 0.9
    assert close.perplexity < 1.05 * close.reference_perplexity
    far = measure_quality(mini_llm, with_noise(mini_llm, make_generator(1)), questions)
    assert far.agreement < close.agreement
    assert 0 < close.divergence < 0.05 < far.divergence
    assert far.perplexity > 1.5 * close.perplexity
