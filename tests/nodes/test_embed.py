"""SEEDCodesToEmbedding: a list of the host's own objects, honest about what they lack."""

import copy

import pytest
import torch


@pytest.fixture(scope="module")
def embedded(pack, run, mini, fox_codes):
    values = torch.cat((fox_codes.values, (fox_codes.values + 3) % 512))
    codes = pack.seed_core.SeedCodes(values, "seed-mini", 512)
    return codes, run("SEEDCodesToEmbedding", tokenizer=mini.tokenizer, codes=codes)[0]


def test_one_object_a_picture_with_cores_embedding(mini, embedded):
    """One [1, D] each: the host sums the rows of one object into one condition."""
    codes, outputs = embedded
    assert [o.image_embeds.shape for o in outputs] == [(1, 256)] * 2
    assert all(o.image_embeds.dtype == torch.float32 for o in outputs)
    wanted = mini.tokenizer.core.embed(codes)
    torch.testing.assert_close(torch.cat([o.image_embeds for o in outputs]), wanted)


def test_it_is_the_hosts_own_type(pack, embedded):
    for output in embedded[1]:
        assert isinstance(output, pack.host.comfy.clip_vision.Output)
        assert output["image_embeds"] is output.image_embeds


@pytest.mark.parametrize(
    "name", ["last_hidden_state", "penultimate_hidden_states", "mm_projected", "all_hidden_states"]
)
def test_hidden_states_are_refused_with_what_would_fit(embedded, name):
    output = embedded[1][0]
    assert not hasattr(output, name)
    with pytest.raises(AttributeError, match=rf"SEED codes.*256.*no {name}.*unCLIP"):
        output[name]


def test_it_can_be_copied(embedded):
    """Other packs copy conditioning, and with it what lies inside."""
    output = embedded[1][0]
    assert torch.equal(copy.deepcopy(output).image_embeds, output.image_embeds)


def test_no_codes_is_one_sentence(pack, run, mini):
    codes = pack.seed_core.SeedCodes.empty("seed-mini", 512)
    with pytest.raises(pack.seed_core.CodesError, match="no picture in these codes"):
        run("SEEDCodesToEmbedding", tokenizer=mini.tokenizer, codes=codes)
