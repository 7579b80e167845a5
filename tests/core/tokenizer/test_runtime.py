"""SeedTokenizer on the bundled model: codes, embeddings, precision, refusals."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

import seed_core
from seed_core import SeedCodes
from seed_core.codes.familiarity import FAMILIAR_DISTANCE
from seed_core.errors import CodesError, PictureError
from seed_core.models import names
from seed_core.tokenizer import runtime
from seed_core.tokenizer.config import TokenizerConfig
from seed_core.tokenizer.network import TokenizerModel
from seed_core.tokenizer.runtime import SeedTokenizer


@pytest.fixture(scope="module")
def pictures():
    return [Image.open(path) for path in names.sample_pictures().values()]


@pytest.fixture(scope="module")
def pixels(mini_tokenizer, pictures):
    return mini_tokenizer.preprocess(pictures)


@pytest.fixture(scope="module")
def codes(mini_tokenizer, pixels):
    return mini_tokenizer.encode(pixels)


def test_codes_are_int64_in_range(codes, pixels):
    assert codes.shape == (len(pixels), 32)
    assert codes.dtype == torch.int64
    assert codes.min() >= 0
    assert codes.max() < 512


def test_different_pictures_have_different_codes(codes):
    assert len({tuple(row) for row in codes.tolist()}) == len(codes)


def test_the_codes_of_a_bundled_picture_never_drift(sample_codes):
    """Recorded with the bundled weights in float32: the fox on yellow."""
    expected = [355, 298, 195, 187, 122, 355, 164, 355, 187, 25, 44, 337, 433, 489]
    assert sample_codes[0, :14].tolist() == expected


@pytest.mark.parametrize("at_once", [1, 5, 64])
def test_encoding_does_not_depend_on_the_batch(at_once, mini_tokenizer, pixels, codes, monkeypatch):
    """Also across the chunks that a large batch is cut into, which a CPU has of one picture only."""
    one_by_one = torch.cat([mini_tokenizer.encode(row[None]) for row in pixels])
    assert torch.equal(one_by_one, codes)
    monkeypatch.setattr(SeedTokenizer, "pictures_at_once", at_once)
    assert torch.equal(mini_tokenizer.encode(pixels), codes)
    assert torch.equal(mini_tokenizer.encode(pixels.flip(0)), codes.flip(0))


@pytest.mark.parametrize(
    ("at_once", "steps"), [(1, [(1, 3), (2, 3), (3, 3)]), (2, [(2, 3), (3, 3)]), (64, [(3, 3)])]
)
def test_every_chunk_of_pictures_is_a_step(at_once, steps, mini_tokenizer, pixels, monkeypatch):
    monkeypatch.setattr(SeedTokenizer, "pictures_at_once", at_once)
    seen = []
    mini_tokenizer.encode_with_distances(pixels[:3], on_step=lambda *step: seen.append(step))
    assert seen == steps


def test_what_a_step_raises_ends_the_work(mini_tokenizer, monkeypatch):
    """A host stops so. The pictures of later chunks are not even resized."""
    resized, preprocess = [], runtime.preprocess

    def count(images, *rest):
        resized.append(len(images))
        return preprocess(images, *rest)

    def stop(done, total):
        raise KeyboardInterrupt

    monkeypatch.setattr(runtime, "preprocess", count)
    monkeypatch.setattr(SeedTokenizer, "pictures_at_once", 2)
    with pytest.raises(KeyboardInterrupt):
        mini_tokenizer.encode_pictures(torch.zeros(5, 3, 16, 16), on_step=stop)
    assert resized == [2]


@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_pictures_are_prepared_and_encoded_in_one_call(fit, mini_tokenizer, monkeypatch):
    monkeypatch.setattr(SeedTokenizer, "pictures_at_once", 2)
    pictures = torch.rand(3, 3, 20, 50, generator=torch.Generator().manual_seed(1))
    expected = mini_tokenizer.encode_with_distances(mini_tokenizer.preprocess(pictures, fit))
    for found, wanted in zip(mini_tokenizer.encode_pictures(pictures, fit), expected, strict=True):
        assert torch.equal(found, wanted)


def test_distances_are_those_to_the_chosen_codes(mini_tokenizer, pixels, codes):
    """Recomputed from the networks; no other code is nearer."""
    found, distances = mini_tokenizer.encode_with_distances(pixels)
    assert torch.equal(found, codes)
    model = mini_tokenizer.module
    with torch.inference_mode():
        seen = model.encoder.encode_head(
            model.encoder.qformer(model.encoder.image_norm(model.encoder.visual_encoder(pixels)))
        )
        to_all = torch.cdist(seen, model.embedder.quantizer.codebook[None])  # [B, 32, K]
    assert distances.dtype == torch.float32
    torch.testing.assert_close(distances, to_all.amin(-1), rtol=1e-3, atol=1e-4)


def test_pictures_outside_its_world_are_far_from_its_codes(mini_tokenizer, pixels, photograph):
    """The limit tells an artist when seed-mini is out of its depth."""
    photographs = [photograph(name) for name in ("astronaut", "chelsea", "coffee", "camera")]
    photographs = mini_tokenizer.preprocess(photographs)
    own, others = (
        mini_tokenizer.encode_with_distances(each)[1].mean(1) for each in (pixels, photographs)
    )
    assert own.max() < FAMILIAR_DISTANCE["seed-mini"] < others.min()


def test_a_card_takes_many_pictures_at_once_and_a_cpu_one(mini_tokenizer):
    parts = mini_tokenizer.config, mini_tokenizer.module
    on_a_card = SeedTokenizer(*parts, torch.device("cuda"), torch.float16)
    assert mini_tokenizer.pictures_at_once == 1
    assert on_a_card.pictures_at_once >= 16
    asked = on_a_card.memory_required(on_a_card.pictures_at_once)
    assert asked == on_a_card.memory_required(1000)


def test_embedding_has_the_models_width_in_float32(mini_tokenizer, codes):
    embedding = mini_tokenizer.embed(codes)
    assert embedding.shape == (len(codes), 256)
    assert embedding.dtype == torch.float32
    assert mini_tokenizer.embedding_shape == (256,)


def test_embedding_does_not_depend_on_the_batch(mini_tokenizer, codes):
    """Bit for bit: a last bit here is one 8-bit level in some pixel of the decoded picture.

    One product over a whole batch sums in another order than over one row, which once made row 1 of
    three differ from the same codes decoded alone with the same seed.
    """
    one_by_one = torch.cat([mini_tokenizer.embed(row[None]) for row in codes])
    assert torch.equal(one_by_one, mini_tokenizer.embed(codes))
    assert torch.equal(mini_tokenizer.embed(codes.flip(0)), one_by_one.flip(0))


def test_seed_codes_and_their_values_embed_alike(mini_tokenizer, codes):
    wrapped = SeedCodes(codes, "seed-mini", 512)
    assert torch.equal(mini_tokenizer.embed(wrapped), mini_tokenizer.embed(codes))


def test_every_code_counts(mini_tokenizer, codes):
    """Changing any one of the 32 changes the embedding."""
    before = mini_tokenizer.embed(codes[:1])
    changed = codes[:1].repeat(32, 1)
    changed[range(32), range(32)] = (changed[range(32), range(32)] + 1) % 512
    moved = (mini_tokenizer.embed(changed) - before).abs().amax(-1)
    assert (moved > 1e-3).all()


def test_nothing_in_gives_nothing_out(mini_tokenizer):
    assert mini_tokenizer.encode(torch.zeros(0, 3, 128, 128)).shape == (0, 32)
    empty = SeedCodes.empty("seed-mini", 512)
    assert mini_tokenizer.embed(empty).shape == (0, 256)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_nearly_the_same_codes(dtype, mini_tokenizer, pixels, codes):
    """Rounding moves a vector across a border now and then; most codes stay."""
    tokenizer = seed_core.load_tokenizer("seed-mini", dtype=dtype)
    assert tokenizer.dtype == dtype
    half = tokenizer.encode(pixels)
    assert (half == codes).float().mean() > 0.9
    embedding = tokenizer.embed(codes)
    assert embedding.dtype == torch.float32
    expected = mini_tokenizer.embed(codes)
    assert (embedding - expected).norm() / expected.norm() < 0.02


@pytest.mark.parametrize("shape", [(1, 3, 224, 224), (3, 128, 128), (1, 1, 128, 128)])
def test_pixels_of_another_shape_are_refused_with_both(mini_tokenizer, shape):
    with pytest.raises(PictureError, match="128, 128"):
        mini_tokenizer.encode(torch.zeros(shape))


def test_codes_of_another_family_are_refused_with_both_names(mini_tokenizer):
    with pytest.raises(CodesError, match="seed-mini.*seed-2"):
        mini_tokenizer.embed(SeedCodes(torch.zeros(1, 32, dtype=torch.int64), "seed-2", 8192))


def test_codes_out_of_range_are_refused(mini_tokenizer):
    with pytest.raises(CodesError, match=r"0\.\.511; got 8191 at row 0, position 31"):
        mini_tokenizer.embed(torch.tensor([[0] * 31 + [8191]]))


def test_31_codes_are_refused(mini_tokenizer):
    with pytest.raises(CodesError, match="exactly 32"):
        mini_tokenizer.embed(torch.zeros(1, 31, dtype=torch.int64))


def test_the_family_of_the_bundled_model(mini_tokenizer):
    assert (mini_tokenizer.family, mini_tokenizer.codebook_size) == ("seed-mini", 512)


def test_the_published_sizes_are_the_defaults():
    config = TokenizerConfig.seed_2()
    assert (config.family, config.codebook_size, config.codebook_dim) == ("seed-2", 8192, 32)
    assert (config.decode_depth, config.decode_heads, config.embedding_dim) == (4, 12, 1024)
    assert config.image_down == (256, 128, 32)
    # Three different epsilons; at full size a wrong one hides below every tolerance.
    assert config.vision.norm_eps == config.decode_norm_eps == 1e-6
    assert (config.image_norm_eps, config.qformer.norm_eps) == (1e-5, 1e-12)


def test_the_memory_estimate_grows_and_then_stays(mini_tokenizer):
    """Large batches are cut, so memory is that of one chunk."""
    one, many, more = (mini_tokenizer.memory_required(count) for count in (1, 64, 640))
    assert 0 < one < many == more


@pytest.mark.parametrize("count", [1, 8])
def test_the_memory_estimate_is_above_what_encoding_takes(
    count, mini_tokenizer, pixels, peak_memory, monkeypatch
):
    monkeypatch.setattr(SeedTokenizer, "pictures_at_once", 64)
    measured = peak_memory(lambda: mini_tokenizer.encode(pixels[:count]))
    assert measured <= mini_tokenizer.memory_required(count) <= 2 * measured


def test_the_memory_estimate_holds_at_the_width_of_seed_2(make_generator, peak_memory):
    """One block stands for all: they are alike, and what one takes the next takes again."""
    config = TokenizerConfig.seed_2()
    vision, qformer = (replace(part, depth=1) for part in (config.vision, config.qformer))
    config = replace(config, vision=vision, qformer=qformer, decode_depth=1)
    module = TokenizerModel(config, device="meta").to_empty(device="cpu").requires_grad_(False)
    for parameter in module.parameters():
        parameter.normal_(std=0.02, generator=make_generator())
    tokenizer = SeedTokenizer(config, module, torch.device("cpu"), torch.float32)
    measured = peak_memory(lambda: tokenizer.encode(torch.zeros(1, 3, 224, 224)))
    assert measured <= tokenizer.memory_required(1) <= 2 * measured


def test_loading_and_encoding_leave_global_state_alone():
    """The conftest's watch compares before and after every test; this one gives it a load to see."""
    tokenizer = seed_core.load_tokenizer("seed-mini", dtype=torch.bfloat16)
    tokenizer.embed(tokenizer.encode(torch.zeros(1, 3, 128, 128)))
