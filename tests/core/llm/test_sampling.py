"""How a token is chosen: against brute force, and the options."""

import pytest
import torch

from seed_core.errors import OptionError
from seed_core.llm.sampling import GenerationOptions, sample

VOCAB = 92


def brute_force(logits, temperature, top_k, top_p, uniform):
    """Temperature, then top-k, then top-p, then the inverse of the cumulative distribution."""
    ranked = sorted(range(len(logits)), key=lambda i: -float(logits[i]))
    if top_k:
        ranked = ranked[:top_k]
    weights = (logits[ranked].double() / temperature).softmax(0).tolist()
    kept, total = [], 0.0
    for token_id, weight in zip(ranked, weights, strict=True):
        if total >= top_p:
            break
        kept.append((token_id, weight))
        total += weight
    target, reached = uniform * total, 0.0
    for token_id, weight in kept:
        reached += weight
        if target < reached:
            return token_id
    return kept[-1][0]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [0, 1, 5, 50, 1000])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 1.0])
def test_sampling_equals_brute_force(temperature, top_k, top_p, make_generator):
    random = make_generator(11)
    logits = 3 * torch.randn(64, VOCAB, generator=random)
    uniform = torch.rand(64, generator=random)
    options = GenerationOptions(temperature=temperature, top_k=top_k, top_p=top_p)
    expected = [
        brute_force(row, temperature, top_k, top_p, float(u))
        for row, u in zip(logits, uniform, strict=True)
    ]
    assert sample(logits, options, uniform).tolist() == expected


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1.0 - 2**-24])
def test_a_tiny_top_p_always_keeps_the_likeliest(uniform):
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    options = GenerationOptions(top_p=1e-9, top_k=0)
    assert sample(logits, options, torch.tensor([uniform])).tolist() == [1]


@pytest.mark.parametrize("uniform", [0.0, 0.25, 0.999, 1.0 - 2**-24])
def test_a_forbidden_token_is_never_drawn(uniform):
    logits = torch.full((1, VOCAB), -torch.inf)
    logits[0, [7, 30]] = 0.0
    options = GenerationOptions(top_p=1.0, top_k=0, temperature=100)
    assert sample(logits, options, torch.tensor([uniform])).item() in (7, 30)


def test_top_p_keeps_the_token_that_crosses_it():
    """Probabilities 0.5, 0.3, 0.2 and top_p 0.6: the second is still in, the third is not."""
    logits = torch.tensor([0.5, 0.3, 0.2]).log()[None].expand(100, -1)
    options = GenerationOptions(top_p=0.6, top_k=0)
    drawn = sample(logits, options, torch.linspace(0, 0.999, 100))
    assert set(drawn.tolist()) == {0, 1}


def test_top_k_comes_before_top_p():
    """Of 0.4, 0.3, 0.2, 0.1 top-k 2 leaves 0.57 and 0.43, so top-p 0.5 leaves the first alone.

    The other way round top-p 0.5 would have left two.
    """
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()[None].expand(50, -1)
    drawn = sample(logits, GenerationOptions(top_p=0.5, top_k=2), torch.linspace(0, 0.999, 50))
    assert set(drawn.tolist()) == {0}


def test_frequencies_follow_the_distribution(make_generator):
    logits = torch.tensor([0.5, 0.3, 0.2]).log()[None].expand(20_000, -1)
    uniform = torch.rand(20_000, generator=make_generator(1))
    drawn = sample(logits, GenerationOptions(top_p=1.0, top_k=0), uniform)
    shares = torch.bincount(drawn, minlength=3) / 20_000
    # Four standard deviations of a share near one half over 20,000 draws.
    assert (shares - torch.tensor([0.5, 0.3, 0.2])).abs().max() < 0.015


def test_temperature_0_takes_the_likeliest_whatever_is_drawn(make_generator):
    logits = torch.randn(20, VOCAB, generator=make_generator(2))
    drawn = sample(
        logits, GenerationOptions(temperature=0), torch.rand(20, generator=make_generator())
    )
    assert torch.equal(drawn, logits.argmax(-1))


# --- options ---


@pytest.mark.parametrize(
    "wrong",
    [
        {"reply": "picture"},
        {"max_new_tokens": 0},
        {"max_new_tokens": -5},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0},
        {"top_p": 1.01},
        {"top_p": float("nan")},
        {"top_k": -1},
    ],
    ids=str,
)
def test_an_option_out_of_range_is_named_with_its_value(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(OptionError, match=f"{name}.*{value}"):
        GenerationOptions(**wrong)


def test_the_defaults_are_the_reference_scripts():
    options = GenerationOptions()
    assert (options.temperature, options.top_p, options.top_k) == (1.0, 0.5, 50)
    assert (options.max_new_tokens, options.reply) == (512, "auto")
