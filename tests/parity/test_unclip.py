"""The decoder against the reference's pipeline (recorded) and against stock diffusers on seed-mini."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import seed_core
from seed_core.decoder import runtime as decoder_module
from seed_core.decoder.network import UnclipModel
from seed_core.decoder.options import DecodeOptions
from seed_core.decoder.runtime import SeedDecoder

CASES = ["default", "negative", "no_guidance", "scale5_steps10"]

# Labels and latents come from a few dozen float32 operations in the same order; a step of rounding
# more or less in one of them is 1e-7, a missing noise or a wrong alpha is 1e-2.
TOLERANCE = 1e-5


class ClosedFormUnet(nn.Module):
    """The golden's UNet: a formula of latents, label and time step. Keeps what it was called with."""

    config = SimpleNamespace(in_channels=4, sample_size=8, up_block_types=("UpBlock2D",))

    def __init__(self):
        super().__init__()
        self.labels, self.timesteps, self.batches = [], [], []

    def forward(self, sample, timestep, encoder_hidden_states=None, class_labels=None):
        assert len(encoder_hidden_states) == len(sample)
        self.labels.append(class_labels.clone())
        self.timesteps.append(int(timestep))
        self.batches.append(len(sample))
        spread = 0.05 * class_labels[:, 0:4] + 0.02 * class_labels[:, 1024:1028]
        value = 0.3 * sample + spread[:, :, None, None] + 0.0001 * timestep
        return SimpleNamespace(sample=value)


class LatentsOut(nn.Module):
    """In the VAE's place: keeps the latents it is given."""

    config = SimpleNamespace(block_out_channels=(1, 1, 1, 1), scaling_factor=0.18215)

    def decode(self, latents):
        self.latents = latents * self.config.scaling_factor
        return SimpleNamespace(sample=F.interpolate(latents[:, :3], scale_factor=8))


@pytest.fixture(scope="module")
def golden(read_golden):
    golden = read_golden("golden_unclip")
    golden.arrays = {key: torch.from_numpy(value) for key, value in golden.arrays.items()}
    return golden


@pytest.fixture
def decoder(golden):
    import diffusers

    noising = golden.facts["image_noising_scheduler"]
    module = UnclipModel(
        ClosedFormUnet(),
        LatentsOut(),
        golden.arrays["normalizer_mean"],
        golden.arrays["normalizer_std"],
        torch.zeros(1, 77, 1024),
    )
    return SeedDecoder(
        module,
        diffusers.PNDMScheduler(**golden.facts["scheduler"]),
        diffusers.DDPMScheduler(
            num_train_timesteps=noising["num_train_timesteps"],
            beta_schedule=noising["beta_schedule"],
        ),
        torch.device("cpu"),
        torch.float32,
    )


@pytest.fixture(params=CASES)
def run(request, golden, decoder, monkeypatch):
    """One decode with the golden's draws: noise of the positive, of the negative, then latents."""
    facts, arrays = golden.facts["cases"][request.param], golden.arrays
    negative = arrays["negative"] if request.param == "negative" else None
    draws = [arrays["noise"][0], arrays["noise"][1], arrays["latents"]]
    if negative is None:
        del draws[1]

    def recorded(shape, generator):
        drawn = draws.pop(0)
        assert tuple(shape) == tuple(drawn.shape)
        return drawn.clone()

    monkeypatch.setattr(decoder_module, "_randn", recorded)
    decoder.decode(arrays["positive"], negative, DecodeOptions(**facts["arguments"]))
    assert draws == []
    return SimpleNamespace(
        name=request.param,
        facts=facts,
        arrays=arrays,
        unet=decoder.module.unet,
        vae=decoder.module.vae,
    )


def test_a_generator_gives_the_golden_noise_in_its_order(golden):
    """The reference drew positive then negative from seed 1234, as our decoder draws."""
    generator = torch.Generator().manual_seed(1234)
    for row in golden.arrays["noise"]:
        drawn = decoder_module._randn(tuple(row.shape), generator)
        assert torch.equal(drawn, row)


def test_labels_equal_the_reference(run, relative_error):
    expected = run.arrays[f"{run.name}__class_labels"]
    assert relative_error(run.unet.labels[0], expected) <= TOLERANCE


def test_labels_are_constant_over_the_steps(run):
    assert all(torch.equal(labels, run.unet.labels[0]) for labels in run.unet.labels)


def test_time_steps_equal_the_reference(run):
    assert run.unet.timesteps == run.facts["timesteps"]
    assert run.unet.batches == [run.facts["unet_batch"]] * run.facts["unet_calls"]


def test_final_latents_equal_the_reference(run, relative_error):
    expected = run.arrays[f"{run.name}__final_latents"]
    assert relative_error(run.vae.latents, expected) <= TOLERANCE


def test_the_noising_schedule_starts_where_the_reference_does(golden, decoder):
    first = float(decoder.noising_scheduler.alphas_cumprod[0])
    assert first == pytest.approx(golden.facts["image_noising_scheduler"]["alphas_cumprod[0]"])


# --- seed-mini against the stock pipeline ---

# The same networks in the same order on the same pair of latents; kernels may still differ by the
# batch they are compiled for, and 20 steps of guidance carry that on. One 8-bit level is 4e-3.
PICTURE_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def stock(open_stock_decoder):
    """The stock pipeline, with the reference's one change: a negative image embedding."""
    from diffusers import StableUnCLIPImg2ImgPipeline

    class WithNegative(StableUnCLIPImg2ImgPipeline):
        negative = None

        def _encode_image(self, **arguments):
            labels = super()._encode_image(**arguments)
            if self.negative is not None:
                labels[:1] = self.noise_image_embeddings(
                    self.negative,
                    int(arguments["noise_level"]),
                    generator=arguments["generator"],
                )
            return labels

    return open_stock_decoder(WithNegative)


def stock_picture(stock, embedding, negative, generator, **options):
    stock.negative = negative
    return stock(
        image_embeds=embedding,
        prompt_embeds=torch.zeros(1, 1, 32),
        negative_prompt_embeds=torch.zeros(1, 1, 32),
        generator=generator,
        output_type="pt",
        **options,
    ).images


@pytest.mark.parametrize("has_negative", [False, True], ids=["plain", "negative"])
@pytest.mark.parametrize("noise_level", [0, 300])
def test_seed_mini_picture_equals_stock_diffusers(
    has_negative, noise_level, stock, mini_tokenizer, mini_decoder, sample_codes, make_generator
):
    embedding = mini_tokenizer.embed(sample_codes)
    negative = embedding[1:2] if has_negative else None
    options = {"num_inference_steps": 20, "guidance_scale": 2.0, "noise_level": noise_level}
    theirs = stock_picture(stock, embedding[:1], negative, make_generator(7), **options)
    ours = mini_decoder.decode(embedding[:1], negative, DecodeOptions(**options), make_generator(7))
    assert ours.shape == (1, 3, 128, 128)
    assert (ours - theirs).abs().max() <= PICTURE_TOLERANCE
    assert ours.std() > 0.1  # a picture, not a flat colour


def test_another_generator_gives_another_picture(
    mini_tokenizer, mini_decoder, sample_codes, make_generator
):
    """So that the comparison above cannot pass on pictures that ignore their noise."""
    embedding = mini_tokenizer.embed(sample_codes[:1])
    options = DecodeOptions(num_inference_steps=4, guidance_scale=2.0)
    first, second = (
        mini_decoder.decode(embedding, None, options, make_generator(seed)) for seed in (7, 8)
    )
    assert (first - second).abs().max() > 100 * PICTURE_TOLERANCE


def test_a_wide_picture_equals_stock_diffusers(
    stock, mini_tokenizer, mini_decoder, sample_codes, make_generator
):
    embedding = mini_tokenizer.embed(sample_codes[:1])
    options = {"num_inference_steps": 3, "guidance_scale": 2.0, "width": 192, "height": 96}
    theirs = stock_picture(stock, embedding, None, make_generator(1), **options)
    ours = mini_decoder.decode(embedding, None, DecodeOptions(**options), make_generator(1))
    assert ours.shape == (1, 3, 96, 192)
    assert (ours - theirs).abs().max() <= PICTURE_TOLERANCE


def test_without_guidance_equals_stock_diffusers(
    stock, mini_tokenizer, mini_decoder, sample_codes, make_generator
):
    embedding = mini_tokenizer.embed(sample_codes[:1])
    options = {"num_inference_steps": 3, "guidance_scale": 1.0}
    theirs = stock_picture(stock, embedding, None, make_generator(1), **options)
    ours = mini_decoder.decode(embedding, None, DecodeOptions(**options), make_generator(1))
    assert (ours - theirs).abs().max() <= PICTURE_TOLERANCE


# --- a folder with a text encoder, as the full-size one has ---


@pytest.fixture(scope="module")
def text_pipeline(tmp_path_factory):
    """A tiny random unCLIP pipeline of stock parts, text encoder and tokenizer included, saved."""
    import diffusers
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
        StableUnCLIPImageNormalizer,
    )
    from transformers import (
        CLIPImageProcessor,
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTokenizer,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    folder = tmp_path_factory.mktemp("unclip")
    words = ["<|startoftext|>", "<|endoftext|>", "a</w>", "a"]
    (folder / "vocab.json").write_text(
        "{" + ", ".join(f'"{word}": {i}' for i, word in enumerate(words)) + "}", encoding="utf-8"
    )
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(3)
        unet = diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=4,
            cross_attention_dim=24,
            class_embed_type="projection",
            projection_class_embeddings_input_dim=64,
        )
        vae = diffusers.AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
        )
        text = CLIPTextConfig(
            vocab_size=4,
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=12,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
        vision = CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            projection_dim=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=8,
            patch_size=4,
        )
        pipeline = diffusers.StableUnCLIPImg2ImgPipeline(
            feature_extractor=CLIPImageProcessor(),
            image_encoder=CLIPVisionModelWithProjection(vision),
            image_normalizer=StableUnCLIPImageNormalizer(embedding_dim=32),
            image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
            tokenizer=CLIPTokenizer(
                str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=12
            ),
            text_encoder=CLIPTextModel(text),
            unet=unet,
            scheduler=diffusers.PNDMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                prediction_type="v_prediction",
                set_alpha_to_one=False,
                skip_prk_steps=True,
                steps_offset=1,
            ),
            vae=vae,
        )
        pipeline.save_pretrained(folder / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    return SimpleNamespace(pipeline=pipeline, folder=folder / "pipeline")


def test_a_folder_with_a_text_encoder_equals_stock_diffusers(text_pipeline, make_generator):
    """The empty prompt's encoding reaches the UNet; a UNet with cross-attention feels it."""
    embedding = torch.randn(1, 32, generator=make_generator(4))
    options = {"num_inference_steps": 5, "guidance_scale": 4.0}
    theirs = text_pipeline.pipeline(
        prompt="", image_embeds=embedding, generator=make_generator(5), output_type="pt", **options
    ).images
    decoder = seed_core.load_decoder(text_pipeline.folder)
    ours = decoder.decode(embedding, None, DecodeOptions(**options), make_generator(5))
    assert (ours - theirs).abs().max() <= PICTURE_TOLERANCE
    decoder.module.text = torch.zeros_like(decoder.module.text)
    without = decoder.decode(embedding, None, DecodeOptions(**options), make_generator(5))
    assert (without - theirs).abs().max() > PICTURE_TOLERANCE
