"""SEEDDecode: rows of codes become pictures; what does not fit together is refused in words."""

import importlib
from types import SimpleNamespace

import pytest
import torch

QUICK = {"steps": 2, "guidance_scale": 1.0}


@pytest.fixture
def models(mini):
    return {"tokenizer": mini.tokenizer, "decoder": mini.decoder}


def test_the_picture_is_cores_in_the_hosts_layout(pack, run, mini, models, fox_codes):
    (image,) = run("SEEDDecode", **models, codes=fox_codes, seed=4, steps=2, guidance_scale=2.0)
    options = pack.seed_core.DecodeOptions(num_inference_steps=2, guidance_scale=2.0)
    wanted = mini.decoder.core.decode(
        mini.tokenizer.core.embed(fox_codes),
        options=options,
        generator=torch.Generator().manual_seed(4),
    )
    assert image.shape == (1, 128, 128, 3)
    assert image.dtype == torch.float32
    assert image.is_contiguous()
    torch.testing.assert_close(image, wanted.movedim(1, -1))


def test_row_i_uses_seed_plus_i_whatever_else_is_in_the_batch(pack, run, models, fox_codes):
    pair = pack.seed_core.SeedCodes(fox_codes.values.expand(2, -1), "seed-mini", 512)
    (both,) = run("SEEDDecode", **models, codes=pair, seed=8, **QUICK)
    (second,) = run("SEEDDecode", **models, codes=fox_codes, seed=9, **QUICK)
    assert torch.equal(both[1:], second)
    assert not torch.equal(both[0], both[1])


def test_a_negative_changes_the_picture(pack, run, models, fox_codes):
    owl = pack.seed_core.SeedCodes((fox_codes.values + 7) % 512, "seed-mini", 512)
    guided = {"steps": 2, "guidance_scale": 3.0, "seed": 1}
    (plain,) = run("SEEDDecode", **models, codes=fox_codes, **guided)
    (steered,) = run("SEEDDecode", **models, codes=fox_codes, negative_codes=owl, **guided)
    assert not torch.equal(plain, steered)


def test_width_and_height_are_the_pictures(run, models, fox_codes):
    (image,) = run("SEEDDecode", **models, codes=fox_codes, width=96, height=64, **QUICK)
    assert image.shape == (1, 64, 96, 3)


def test_a_picture_to_steer_away_from_has_to_be_one(pack, run, models, fox_codes):
    codes = pack.seed_core.SeedCodes.empty("seed-mini", 512)
    with pytest.raises(pack.seed_core.CodesError, match=r"negative_codes holds 0 pictures"):
        run("SEEDDecode", **models, codes=fox_codes, negative_codes=codes)


def test_codes_of_another_family_are_refused_by_both_names(pack, run, models):
    codes = pack.seed_core.SeedCodes(torch.zeros(1, 32, dtype=torch.int64), "seed-2", 8192)
    with pytest.raises(pack.seed_core.CodesError, match=r"seed-mini.*seed-2"):
        run("SEEDDecode", **models, codes=codes)


def test_a_decoder_of_another_width_is_refused_by_both_numbers(pack, run, mini, fox_codes):
    other = SimpleNamespace(core=SimpleNamespace(embedding_dim=1024))
    with pytest.raises(pack.seed_core.CodesError, match=r"1024.*seed-mini.*256"):
        run("SEEDDecode", tokenizer=mini.tokenizer, decoder=other, codes=fox_codes)


def test_a_seed_1_tokenizer_is_sent_to_its_own_node(pack, run, mini, seed_1, seed_1_codes):
    with pytest.raises(pack.seed_core.EmbeddingError, match=r"seed-1.*SEED Codes to Conditioning"):
        run("SEEDDecode", tokenizer=seed_1, decoder=mini.decoder, codes=seed_1_codes)


def test_negatives_must_be_one_or_as_many(pack, run, models, fox_codes):
    two = pack.seed_core.SeedCodes(fox_codes.values.expand(2, -1), "seed-mini", 512)
    with pytest.raises(pack.seed_core.CodesError, match=r"holds 2 pictures and codes 1"):
        run("SEEDDecode", **models, codes=fox_codes, negative_codes=two)


def test_an_odd_size_is_told_before_anything_runs(pack):
    node = pack.nodes_by_id["SEEDDecode"]
    assert "width must be" in node.validate_inputs(width=100, height=0)
    assert "height must be" in node.validate_inputs(height=4104)
    assert node.validate_inputs(width=96, height=64) is True
    assert node.validate_inputs() is True  # both come by wire


def test_an_odd_size_is_refused(pack, run, models, fox_codes):
    with pytest.raises(pack.seed_core.OptionError, match="multiple of 8"):
        run("SEEDDecode", **models, codes=fox_codes, width=100)


# --- a card with less room than the decoder takes ---

META = torch.device("meta")  # stands for a card, as torch computes on no two devices at once there


@pytest.fixture
def networks(pack, run):
    module = run("SEEDDecoderLoader")[0].core.module
    assert module.text.device.type == "cpu"
    return module


def test_every_layer_of_the_decoder_is_the_hosts(pack, networks):
    operations = pack.host.cast_operations()
    for network in (networks.unet, networks.vae):
        for layer in network.modules():
            if list(layer.parameters(recurse=False)):
                assert type(layer) is getattr(operations, type(layer).__name__)


def test_a_small_card_streams_the_decoder_instead_of_crashing(networks):
    """Every weight lies in main memory, everything that is computed on the card."""
    with torch.inference_mode():
        predicted = networks.unet(
            torch.empty(2, networks.unet.config.in_channels, 16, 16, device=META),
            torch.tensor(7, device=META),
            encoder_hidden_states=networks.text.to(META).expand(2, -1, -1),
            class_labels=torch.empty(2, 512, device=META),
        ).sample
        pixels = networks.vae.decode(predicted[:1]).sample
        tiled = networks.vae.tiled_decode(predicted[:1]).sample
    assert predicted.device == pixels.device == tiled.device == META
    assert {parameter.device.type for parameter in networks.parameters()} == {"cpu"}


def test_graphs_are_not_captured_of_weights_that_lie_elsewhere(pack, networks):
    graphs = importlib.import_module(f"{pack.seed_core.__name__}.compute.graphs")
    assert not graphs.can_capture(networks.unet, torch.device("cuda"))


def test_the_hosts_layers_paint_the_librarys_picture(pack, run, models, fox_codes):
    (image,) = run("SEEDDecode", **models, codes=fox_codes, seed=4, **QUICK)
    wanted = pack.seed_core.load_decoder("seed-mini").decode(
        models["tokenizer"].core.embed(fox_codes),
        options=pack.seed_core.DecodeOptions(num_inference_steps=2, guidance_scale=1.0),
        generator=torch.Generator().manual_seed(4),
    )
    torch.testing.assert_close(image, wanted.movedim(1, -1), rtol=0, atol=0)


def test_a_picture_that_overflows_has_room_made_and_is_painted_again(
    pack, run, models, fox_codes, management, monkeypatch
):
    decoder = run("SEEDDecoderLoader", precision="fp16")[0]
    with torch.inference_mode():
        for parameter in decoder.core.module.vae.decoder.conv_in.parameters():
            parameter.mul_(1e4)
    asked, load = [], management.load_models_gpu

    def watched(patchers, memory_required=0, **more):
        asked.append(memory_required)
        return load(patchers, memory_required=memory_required, **more)

    monkeypatch.setattr(management, "load_models_gpu", watched)
    small = {"steps": 1, "guidance_scale": 1.0, "width": 64, "height": 64}
    (image,) = run("SEEDDecode", **{**models, "decoder": decoder}, codes=fox_codes, **small)
    assert image.isfinite().all()
    assert image.std() > 0.02
    assert len(asked) == 3  # embedding, picture, and the picture in 32 bits
    layer = decoder.core.module.vae.decoder.conv_out
    assert layer.weight.dtype == torch.float16
    assert type(layer) is pack.host.cast_operations().Conv2d


# --- guidance_scale: a number keeps its meaning, below 0 is the decoder's own ---


@pytest.fixture
def scale_of(pack, run, models, fox_codes, monkeypatch):
    """The scale that the networks are called with, by the number on the widget."""
    runtime = importlib.import_module(f"{pack.seed_core.__name__}.decoder.runtime")
    seen, denoiser = [], runtime.Denoiser

    def watched(unet, scheduler, text, labels, latents, guidance_scale):
        seen.append((labels.shape[1], guidance_scale))
        return denoiser(unet, scheduler, text, labels, latents, guidance_scale)

    monkeypatch.setattr(runtime, "Denoiser", watched)

    def find(decoder=models["decoder"], **number):
        run("SEEDDecode", **{**models, "decoder": decoder}, codes=fox_codes, steps=1, **number)
        return seen[-1]

    return find


@pytest.mark.parametrize("number", [10.0, 2.0, 1.5, 50.0])
def test_a_saved_number_is_the_scale(scale_of, number):
    assert scale_of(guidance_scale=number) == (2, number)


@pytest.mark.parametrize("number", [0.0, 0.5, 1.0])
def test_up_to_one_there_is_no_guidance(scale_of, number):
    assert scale_of(guidance_scale=number)[0] == 1


@pytest.mark.parametrize("number", [{}, {"guidance_scale": -1}, {"guidance_scale": -0.1}])
def test_below_0_is_the_decoders_own(scale_of, number):
    assert scale_of(**number) == (2, 2.0)


def test_another_decoder_has_another_number_of_its_own(scale_of, models, monkeypatch):
    monkeypatch.setattr(models["decoder"].core, "guidance_scale", 7.0)
    assert scale_of() == (2, 7.0)


def test_a_saved_graph_paints_the_very_same_picture(pack, run, mini, models, fox_codes):
    """Every widget as the first release saved it, 10 among them."""
    saved = {"seed": 3, "steps": 2, "guidance_scale": 10, "noise_level": 0, "width": 0, "height": 0}
    (image,) = run("SEEDDecode", **models, codes=fox_codes, **saved)
    wanted = mini.decoder.core.decode(
        mini.tokenizer.core.embed(fox_codes),
        options=pack.seed_core.DecodeOptions(2, 10.0),
        generator=torch.Generator().manual_seed(3),
    )
    assert torch.equal(image, wanted.movedim(1, -1))
    (own,) = run("SEEDDecode", **models, codes=fox_codes, **{**saved, "guidance_scale": -1})
    assert not torch.equal(image, own)


# --- previews while it paints ---


@pytest.fixture
def bar(pack, monkeypatch):
    """The progress bar's calls: done, total, and the picture if one came with it."""
    calls = []

    class Bar:
        def __init__(self, total):
            pass

        def update_absolute(self, done, total, preview=None):
            calls.append((done, total, preview))

    monkeypatch.setattr(pack.host.progress.comfy.utils, "ProgressBar", Bar)
    return calls


@pytest.fixture
def previews(pack, monkeypatch):
    """Switches them on or off, as the host's settings do for each job."""
    progress = pack.host.progress
    methods = {False: progress.LatentPreviewMethod.NoPreviews}
    methods[True] = progress.LatentPreviewMethod.Auto

    def switch(is_on):
        monkeypatch.setattr(progress.args, "preview_method", methods[is_on])

    return switch


def test_without_previews_there_are_none(run, models, fox_codes, bar, previews):
    previews(False)
    run("SEEDDecode", **models, codes=fox_codes, steps=4)
    assert [call[2] for call in bar] == [None] * 4


def test_previews_come_with_the_steps(pack, run, models, fox_codes, bar, previews, monkeypatch):
    monkeypatch.setattr(pack.host.progress, "PREVIEW_INTERVAL", 0)
    previews(True)
    run("SEEDDecode", **models, codes=fox_codes, steps=4)
    assert [call[:2] for call in bar] == [(i, 4) for i in (1, 2, 3, 4)]
    for form, picture, largest in (call[2] for call in bar):
        assert (form, picture.mode, picture.size) == ("JPEG", "RGB", (16, 16))
        assert largest == pack.host.progress.args.preview_size
    first, last = bar[0][2][1], bar[-1][2][1]
    assert first.tobytes() != last.tobytes()


def test_previews_come_a_few_times_a_second_at_most(run, models, fox_codes, bar, previews, pack):
    """However fast the steps are, and however slow: the clock stands still here."""
    previews(True)
    pack.host.progress.time = SimpleNamespace(monotonic=lambda: 5.0)
    try:
        run("SEEDDecode", **models, codes=fox_codes, steps=4)
    finally:
        pack.host.progress.time = importlib.import_module("time")
    assert [call[2] is not None for call in bar] == [True, False, False, False]


def test_previews_change_no_picture(pack, run, models, fox_codes, previews, monkeypatch):
    monkeypatch.setattr(pack.host.progress, "PREVIEW_INTERVAL", 0)
    made = []
    for is_on in (False, True):
        previews(is_on)
        made += run("SEEDDecode", **models, codes=fox_codes, steps=3)
    assert torch.equal(*made)


def test_the_colours_are_the_decoders_or_the_hosts_or_unknown(pack, models, previews):
    def colours(own, scaling_factor):
        config = SimpleNamespace(scaling_factor=scaling_factor)
        module = SimpleNamespace(vae=SimpleNamespace(config=config))
        return pack.host.latent_colours(SimpleNamespace(module=module, colours=own))

    previews(True)
    own = models["decoder"].core.colours
    assert pack.host.latent_colours(models["decoder"].core) is own
    assert colours(own, 0.18215) is own
    assert colours(None, 0.18215).shape == (5, 3)
    assert colours(None, 0.5) is None
    previews(False)
    assert colours(own, 0.18215) is None


def test_sketches_of_a_conversation_are_seen_coming_too(pack, models, fox_codes, bar, previews):
    previews(True)
    chat = pack.seed_core.SeedChat("seed-mini", 512).answer((tuple(fox_codes.values[0].tolist()),))
    with torch.inference_mode():
        pack.nodes_by_id["SEEDChatView"].execute(chat=chat, **models)
    assert bar[0][2] is not None
