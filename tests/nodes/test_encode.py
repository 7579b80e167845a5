"""SEEDSamplePicture and SEEDEncode: a core call and a change of layout."""

import pytest
import torch


def test_a_sample_picture_is_an_image_of_the_host(fox):
    assert fox.shape == (1, 128, 128, 3)
    assert fox.dtype == torch.float32
    assert 0 <= fox.min() < fox.max() <= 1


def test_all_sample_pictures_are_a_batch_in_the_order_of_the_list(pack, run):
    names = sorted(pack.seed_core.models.names.sample_pictures())
    (batch,) = run("SEEDSamplePicture", picture="all of them")
    singles = [run("SEEDSamplePicture", picture=name)[0] for name in names]
    assert torch.equal(batch, torch.cat(singles))


def test_codes_are_those_of_core(pack, mini, fox, fox_codes):
    core = pack.seed_core.load_tokenizer("seed-mini")
    wanted = core.encode(core.preprocess(fox.movedim(-1, 1)))
    assert isinstance(fox_codes, pack.seed_core.SeedCodes)
    assert (fox_codes.family, fox_codes.codebook_size) == ("seed-mini", 512)
    assert torch.equal(fox_codes.values, wanted)


def test_one_row_a_picture_in_order(run, mini, fox, fox_codes):
    owl = run("SEEDSamplePicture", picture="owl_on_red")[0]
    (codes,) = run("SEEDEncode", tokenizer=mini.tokenizer, image=torch.cat((owl, fox, owl)))
    assert len(codes) == 3
    assert torch.equal(codes.values[1:2], fox_codes.values)
    assert torch.equal(codes.values[0], codes.values[2])
    assert not torch.equal(codes.values[0], codes.values[1])


def test_a_batch_goes_through_in_the_tokenizers_chunks(
    pack, run, mini, fox, fox_codes, management, monkeypatch
):
    """Room is asked for once; progress and Stop come after each chunk."""
    asked, shown = [], []
    monkeypatch.setattr(type(mini.tokenizer.core), "pictures_at_once", 2)
    monkeypatch.setattr(management, "load_models_gpu", lambda m, memory_required: asked.append(m))
    monkeypatch.setattr(pack.host.Progress, "step", lambda self, *step: shown.append(step))
    batch = fox.expand(5, -1, -1, -1)
    (codes,) = run("SEEDEncode", tokenizer=mini.tokenizer, image=batch)
    assert torch.equal(codes.values, fox_codes.values.expand(5, -1))
    assert shown == [(2, 5), (4, 5), (5, 5)]
    assert len(asked) == 1


def test_numbers_outside_the_range_are_cut_off(run, mini, fox, fox_codes):
    """Upscalers overshoot."""
    image = torch.where(fox == 1, 1.4, fox)
    (codes,) = run("SEEDEncode", tokenizer=mini.tokenizer, image=image)
    assert torch.equal(codes.values, fox_codes.values)


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_fit_reaches_core(pack, run, mini, fox, fit):
    wide = torch.cat((fox, fox.flip(1)), dim=2)
    core = mini.tokenizer.core
    wanted = core.encode(core.preprocess(wide.movedim(-1, 1), fit))
    (codes,) = run("SEEDEncode", tokenizer=mini.tokenizer, image=wide, fit=fit)
    assert torch.equal(codes.values, wanted)


def test_alpha_is_dropped_and_grey_is_repeated(run, mini, fox, fox_codes):
    rgba = torch.cat((fox, torch.full((1, 128, 128, 1), 0.3)), dim=-1)
    (codes,) = run("SEEDEncode", tokenizer=mini.tokenizer, image=rgba)
    assert torch.equal(codes.values, fox_codes.values)
    grey = fox[..., :1]
    (from_grey,) = run("SEEDEncode", tokenizer=mini.tokenizer, image=grey)
    (from_rgb,) = run("SEEDEncode", tokenizer=mini.tokenizer, image=grey.expand(1, 128, 128, 3))
    assert torch.equal(from_grey.values, from_rgb.values)


def test_how_well_the_codes_fit_is_told_on_the_node(pack, run, mini, fox, monkeypatch):
    """At every run, as the frontend keeps the last words. seed-mini does not know a fox in negative."""
    said = []
    monkeypatch.setattr(pack.host.progress, "show_text", said.append)
    for image in (1 - fox, fox, torch.cat((fox, 1 - fox))):
        (codes,) = run("SEEDEncode", tokenizer=mini.tokenizer, image=image)
        assert codes.distances.shape == (len(image), 32)
    assert "This picture is of a kind that seed-mini does not know" in said[0]
    assert "choose the SEED-2 models in all loaders" in said[0]
    assert "fetch seed-tokenizer-2" in said[0]
    assert said[1].startswith("One picture of the kind that seed-mini knows")
    assert "SEED-2" not in said[1]
    assert said[2].startswith("1 of these 2 pictures (2) is of a kind that seed-mini does not know")


def test_it_stays_on_the_node(pack, run_node, mini, fox, monkeypatch):
    said = []
    monkeypatch.setattr(pack.host.progress, "show_text", said.append)
    output = run_node("SEEDEncode", tokenizer=mini.tokenizer, image=fox)
    assert output.ui == {"text": said}


def test_a_batch_of_no_pictures_is_refused(pack, run, mini):
    with pytest.raises(pack.seed_core.PictureError, match="expected pictures"):
        run("SEEDEncode", tokenizer=mini.tokenizer, image=torch.zeros(0, 8, 8, 3))


def test_every_run_asks_the_host_for_room(run, mini, fox, management, monkeypatch):
    asked = []

    def load(models, memory_required=0):
        asked.append((models, memory_required))

    monkeypatch.setattr(management, "load_models_gpu", load)
    for _ in range(2):
        run("SEEDEncode", tokenizer=mini.tokenizer, image=fox)
    assert [models for models, _ in asked] == [mini.tokenizer.patchers] * 2
    assert all(memory > 0 for _, memory in asked)


class Stopped(BaseException):
    """Like the host's interruption: not an Exception."""


@pytest.fixture
def stop_after(management, monkeypatch):
    """Press Stop at the n-th check."""

    def press(checks):
        left = iter(range(checks))

        def check():
            if next(left, None) is None:
                raise Stopped

        monkeypatch.setattr(management, "throw_exception_if_processing_interrupted", check)

    return press


def test_stop_ends_encoding(run, mini, fox, stop_after):
    stop_after(1)
    with pytest.raises(Stopped):
        run("SEEDEncode", tokenizer=mini.tokenizer, image=fox.expand(3, -1, -1, -1))


def test_stop_ends_generation(run, mini, stop_after):
    stop_after(1)
    with pytest.raises(Stopped):
        run("SEEDGenerate", llm=mini.llm, prompt="Tell me.", max_new_tokens=50)


def test_stop_ends_decoding(run, mini, fox_codes, stop_after):
    stop_after(1)
    models = {"tokenizer": mini.tokenizer, "decoder": mini.decoder}
    with pytest.raises(Stopped):
        run("SEEDDecode", **models, codes=fox_codes, steps=50, guidance_scale=1.0)
