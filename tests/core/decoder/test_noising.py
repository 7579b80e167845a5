"""The label: noise added to normalised embeddings, and its level beside them."""

import diffusers
import pytest
import torch

from seed_core.decoder.noising import noised_labels

WIDTH = 8


@pytest.fixture
def schedule():
    return diffusers.DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2")


@pytest.fixture
def given(make_generator):
    """Embeddings, noise, mean and standard deviation."""
    random = make_generator(1)
    embeddings, noise = torch.randn(2, 3, WIDTH, generator=random)
    mean, std = torch.randn(1, WIDTH, generator=random), 1 + torch.rand(1, WIDTH, generator=random)
    return embeddings, noise, mean, std


def test_noise_is_added_to_normalised_embeddings(given, schedule):
    embeddings, noise, mean, std = given
    level = torch.tensor([0, 400, 999])
    labels = noised_labels(embeddings, noise, level, mean, std, schedule)
    signal = schedule.alphas_cumprod[level][:, None]
    normalised = signal.sqrt() * (embeddings - mean) / std + (1 - signal).sqrt() * noise
    torch.testing.assert_close(labels[:, :WIDTH], normalised * std + mean)
    assert labels.shape == (3, 2 * WIDTH)
    assert len(labels[:, WIDTH:].unique(dim=0)) == 3


def test_one_level_for_all_rows_is_that_level_for_each(given, schedule):
    embeddings, noise, mean, std = given
    one, each = (
        noised_labels(embeddings, noise, torch.tensor(level), mean, std, schedule)
        for level in ([300], [300] * 3)
    )
    assert torch.equal(one, each)
