"""Embeddings on wires: the host's own objects, honest about what they lack; IPAdapter's; blends."""

import copy
from types import SimpleNamespace

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
        assert isinstance(output, pack.comfy.clip_vision.Output)
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


@pytest.mark.parametrize("node", ["SEEDCodesToEmbedding", "SEEDCodesToIPAdapter"])
def test_seed_1_has_no_image_embedding(pack, run, seed_1, seed_1_codes, node):
    wanted = r"seed-1.*77 x 768.*SEED Codes to Conditioning"
    with pytest.raises(pack.seed_core.EmbeddingError, match=wanted):
        run(node, tokenizer=seed_1, codes=seed_1_codes)


# --- SEEDCodesToIPAdapter ---


@pytest.fixture
def wide(generator):
    """A tokenizer as wide as SEED-2's, without its weights."""
    table = torch.randn(2, 1024, generator=generator)
    core = SimpleNamespace(
        family="seed-2",
        codebook_size=8192,
        embedding_shape=(1024,),
        memory_required=lambda pictures: 0,
        embed=lambda codes: table[: len(codes)],
        module=SimpleNamespace(embedder=None),
    )
    return SimpleNamespace(core=core, ready=lambda memory_required, only: core), table


def test_ip_adapter_gets_plain_tensors_and_zeros(pack, run, wide, management):
    tokenizer, table = wide
    codes = pack.seed_core.SeedCodes(torch.zeros(2, 32, dtype=torch.int64), "seed-2", 8192)
    positive, negative = run("SEEDCodesToIPAdapter", tokenizer=tokenizer, codes=codes)
    assert torch.equal(positive, table)
    assert torch.equal(negative, torch.zeros(2, 1024))
    for tensor in (positive, negative):
        assert tensor.dtype == torch.float32
        assert tensor.device == management.intermediate_device()


def test_ip_adapter_cannot_read_seed_mini(pack, run, mini, fox_codes):
    """It would fail itself, at sampling, on the shapes of a product."""
    with pytest.raises(pack.seed_core.EmbeddingError, match=r"1024.*seed-mini.*256.*sd15"):
        run("SEEDCodesToIPAdapter", tokenizer=mini.tokenizer, codes=fox_codes)


# --- SEEDCodesToConditioning ---


def test_conditioning_is_cores_condition_as_a_text_encoder_gives_it(
    pack, run, seed_1, seed_1_codes, management
):
    """One entry for all pictures: the host pairs row i with latent i."""
    (conditioning,) = run("SEEDCodesToConditioning", tokenizer=seed_1, codes=seed_1_codes)
    ((condition, extras),) = conditioning
    assert condition.shape == (2, 77, 768)
    assert condition.dtype == torch.float32
    assert condition.device == management.intermediate_device()
    assert extras == {}
    torch.testing.assert_close(condition, seed_1.core.embed(seed_1_codes))
    assert not torch.allclose(condition[0], condition[1])


def test_conditioning_needs_seed_1(pack, run, mini, fox_codes):
    with pytest.raises(pack.seed_core.EmbeddingError, match=r"only the SEED-1.*seed-mini.*256"):
        run("SEEDCodesToConditioning", tokenizer=mini.tokenizer, codes=fox_codes)


# --- SEEDBlendEmbeddings ---


@pytest.fixture
def hosts_own(pack, generator):
    """What CLIP Vision Encode makes, in the precision of its model."""
    output = pack.comfy.clip_vision.Output()
    output.image_embeds = torch.randn(1, 256, generator=generator).half()
    output.last_hidden_state = torch.zeros(1, 257, 8)
    return output


@pytest.mark.parametrize("mode", ["linear", "spherical"])
def test_a_blend_is_cores_in_our_own_kind(pack, run, embedded, hosts_own, mode):
    ours = embedded[1][0]
    (blend,) = run("SEEDBlendEmbeddings", a=ours, b=hosts_own, factor=0.3, mode=mode)
    assert isinstance(blend, pack.host.SeedClipVisionOutput)
    assert blend.image_embeds.dtype == torch.float32
    blend_embeddings = pack.seed_core.decoder.embeddings.blend_embeddings
    wanted = blend_embeddings(ours.image_embeds, hosts_own.image_embeds, 0.3, mode)
    torch.testing.assert_close(blend.image_embeds, wanted)


def test_factor_goes_from_a_to_b(run, embedded):
    a, b = embedded[1]
    for factor, end in ((0.0, a), (1.0, b)):
        (blend,) = run("SEEDBlendEmbeddings", a=a, b=b, factor=factor, mode="spherical")
        assert torch.equal(blend.image_embeds, end.image_embeds)


def test_embeddings_of_different_models_are_refused_with_both_shapes(pack, run, embedded):
    other = pack.host.SeedClipVisionOutput(torch.zeros(1, 1024))
    with pytest.raises(pack.seed_core.EmbeddingError, match=r"\[1, 256\].*\[1, 1024\]"):
        run("SEEDBlendEmbeddings", a=embedded[1][0], b=other)
