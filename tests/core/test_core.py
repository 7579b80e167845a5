"""What every loaded model has for a host to place it by."""

import pytest
import torch

import seed_core


@pytest.fixture(params=["tokenizer", "llm", "decoder"])
def core(request, mini_tokenizer, mini_llm, mini_decoder):
    return {"tokenizer": mini_tokenizer, "llm": mini_llm, "decoder": mini_decoder}[request.param]


def test_its_networks_are_all_of_its_weights_once(core):
    held = [parameter for network in core.networks for parameter in network.parameters()]
    assert len(held) > 10
    assert sorted(map(id, held)) == sorted(map(id, core.module.parameters()))


def test_it_says_where_and_how_it_computes(core):
    assert core.device == torch.device("cpu")
    assert core.dtype == torch.float32
    assert {parameter.dtype for parameter in core.module.parameters()} == {core.dtype}


def test_what_speaks_codes_names_their_family(mini_tokenizer, mini_llm):
    for core in (mini_tokenizer, mini_llm):
        assert (core.family, core.codebook_size) == ("seed-mini", 512)
        assert seed_core.CODEBOOK_SIZES[core.family] == core.codebook_size
