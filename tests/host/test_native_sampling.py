"""Our codes in the host's own sampling graphs: full-size networks of random weights, two steps.

Random weights paint noise, but noise that depends on all the networks are given; what they are
given is read where the UNet is called and compared with diffusers.
"""

import io
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import seed_core
from seed_core.codes.value import codes_to_text
from seed_core.decoder.network import UnclipModel
from seed_core.decoder.options import DecodeOptions
from seed_core.decoder.runtime import SeedDecoder
from seed_core.models.convert import convert_model, plan_conversion
from seed_core.models.names import sample_pictures

pytestmark = pytest.mark.host

SEED = 50
SIDE = 32  # pixels
ONE, ANOTHER = list(range(32)), list(range(4000, 4032))


@pytest.fixture(scope="module")
def painter(comfy, tmp_path_factory):
    """A server of its own: gone, with gigabytes of files, when this module is."""
    packs = {
        comfy.PACK_NAME: comfy.PACK_ROOT,
        "seed-test-probe": Path(__file__).with_name("probe"),
    }
    if ipadapter := comfy.find_ipadapter():
        packs["ComfyUI_IPAdapter_plus"] = ipadapter
    base = tmp_path_factory.mktemp("painter")
    server = comfy.ComfyServer(comfy.find_checkout(), base, packs)
    try:
        yield server.start()
    finally:
        server.stop()
        shutil.rmtree(base / "models")


@pytest.fixture(scope="module")
def models(painter):
    return painter.base_dir / "models"


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def painting(checkpoint):
    """A graph that samples from the nodes `positive` and `negative`; the empty prompt by default."""
    return {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        "watch": node("SEEDTestWatchUnet", model=["checkpoint", 0]),
        "positive": node("CLIPTextEncode", text="", clip=["checkpoint", 1]),
        "negative": node("CLIPTextEncode", text="", clip=["checkpoint", 1]),
        "latent": node("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=1),
        "sample": node(
            "KSampler",
            model=["watch", 0],
            positive=["positive", 0],
            negative=["negative", 0],
            latent_image=["latent", 0],
            seed=SEED,
            steps=2,
            cfg=4.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        ),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["checkpoint", 2]),
        "show": node("PreviewImage", images=["decode", 0]),
    }


def codes_nodes(family, codes, name="codes"):
    """The nodes of a tokenizer and of codes as an artist would paste them."""
    file = f"{family}/model.safetensors"
    return {
        "tokenizer": node("SEEDTokenizerLoader", tokenizer=file, precision="fp32"),
        name: node("SEEDTextToCodes", text=codes, family=family),
    }


def paint(server, graph):
    """Run a graph: its pictures, float [B, H, W, 3] in 0..255, and what its UNet was given."""
    run = server.run(graph, timeout=300)
    assert run.status == "execution_success", run.error.get("exception_message")
    assert "sample" in run.executed  # not served from the cache
    pictures = [
        np.asarray(Image.open(io.BytesIO(server.picture(shown))).convert("RGB"), dtype=float)
        for shown in run.outputs["show"]["images"]
    ]
    seen = safetensors.torch.load(server.get_bytes("/seed_test/unet"))
    return SimpleNamespace(pictures=np.stack(pictures), **by_side(seen))


def by_side(seen):
    """{"positive.label": ...} as positive.label and so on."""
    sides = {"positive": SimpleNamespace(), "negative": SimpleNamespace()}
    for name, tensor in seen.items():
        side, _, what = name.partition(".")
        setattr(sides[side], what, tensor)
    return sides


def differs(a, b):
    """Visibly, not by rounding: by one step of 255 in the mean."""
    return np.abs(a.pictures - b.pictures).mean() > 1


def embed(tokenizer, *codes):
    return tokenizer.embed(torch.tensor(codes))


# --- SD 2.1 unCLIP-H ---


@pytest.fixture(scope="module")
def seed_2(models, mini_folder, random_checkpoints):
    """A tokenizer with SEED-2's codebook and embedding, from the folder where the server finds it."""
    folder = models / "seed_tokenizer" / "seed-2"
    sizes = {"family": "seed-2", "n_embed": 8192, "image_features_dim": 1024}
    random_checkpoints.write_tokenizer(mini_folder / "tokenizer", folder, **sizes)
    return seed_core.load_tokenizer(folder)


@pytest.fixture(scope="module")
def unclip(painter, models, seed_2, random_checkpoints):
    """Paints codes with a random SD 2.1 unCLIP-H."""
    random_checkpoints.write_unclip_h(models / "checkpoints" / "unclip.safetensors")

    def run(codes, negative=None, noise_augmentation=0.0):
        return paint(painter, unclip_graph(codes, negative, noise_augmentation))

    return run


def unclip_graph(codes, negative=None, noise_augmentation=0.0):
    graph = painting("unclip.safetensors")
    for side, text in (("positive", codes), ("negative", negative)):
        if text is not None:
            add_unclip(graph, side, text, noise_augmentation)
    return graph


def add_unclip(graph, side, codes, noise_augmentation):
    """Condition one side on codes."""
    graph |= codes_nodes("seed-2", codes, f"{side} codes")
    graph[f"{side} embedding"] = node(
        "SEEDCodesToEmbedding", tokenizer=["tokenizer", 0], codes=[f"{side} codes", 0]
    )
    graph[f"{side} text"] = graph[side]
    graph[side] = node(
        "unCLIPConditioning",
        conditioning=[f"{side} text", 0],
        clip_vision_output=[f"{side} embedding", 0],
        strength=1.0,
        noise_augmentation=noise_augmentation,
    )


@pytest.fixture(scope="module")
def painted(unclip):
    return unclip(str(ONE))


def test_the_host_knows_the_unclip_checkpoint_and_all_of_it(painter, painted):
    log = painter.log()
    assert "Requested to load SD21UNCLIP" in log
    assert "V_PREDICTION" in log
    assert complaints(log) == []
    assert painted.pictures.shape == (1, SIDE, SIDE, 3)
    assert 10 < painted.pictures.std() < 120  # neither flat nor black and white


def complaints(log):
    """What the host says of keys that a checkpoint lacks, or has and should not."""
    keys = re.compile(
        r"(unet|clip|vae).*(missing|unexpected)|(missing|leftover) vae", re.IGNORECASE
    )
    return [line for line in log.splitlines() if keys.search(line)]


def test_other_codes_paint_another_picture(unclip, painted):
    assert differs(unclip(str(ANOTHER)), painted)


def test_the_same_codes_paint_the_same_picture(unclip, painted):
    """Written in another form, so that the host samples again."""
    again = unclip(codes_to_text(ONE))
    assert (again.pictures == painted.pictures).all()
    assert torch.equal(again.positive.label, painted.positive.label)


def test_each_picture_of_a_batch_is_painted_by_itself_and_in_order(unclip, painted):
    two = unclip(str([ANOTHER, ONE]))
    assert two.pictures.shape == (2, SIDE, SIDE, 3)
    assert (two.pictures[1:] == painted.pictures).all()
    assert np.abs(two.pictures[0] - two.pictures[1]).mean() > 1


def test_negative_codes_change_the_picture(unclip, painted, seed_2):
    assert not painted.negative.label.any()  # without them: zeros, as in diffusers
    against = unclip(str(ONE), negative=str(ANOTHER))
    assert torch.equal(against.positive.label, painted.positive.label)
    assert_same_label(against.negative.label, diffusers_label(seed_2, ANOTHER))
    assert differs(against, painted)


# --- the label ---


def host_noise():
    """The noise of an embedding as the host draws it: for both sides alike, ten below the seed."""
    return torch.randn(1, 1024, generator=host_generator())


def host_generator():
    return torch.Generator().manual_seed(SEED - 10)


def diffusers_label(tokenizer, codes, noise_level=0):
    """What diffusers' own pipeline makes of our embedding and the host's noise.

    The host normalises embeddings with mean 0 and spread 1, as unCLIP-H was trained (Stability-AI's
    v2-1-stable-unclip-h-inference.yaml names no statistics), and so does a new normaliser here.
    """
    from diffusers import StableUnCLIPImg2ImgPipeline
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
        StableUnCLIPImageNormalizer,
    )

    normalizer = StableUnCLIPImageNormalizer(embedding_dim=1024).requires_grad_(False)
    parts = SimpleNamespace(image_normalizer=normalizer, image_noising_scheduler=noising())
    return StableUnCLIPImg2ImgPipeline.noise_image_embeddings(
        parts, embed(tokenizer, codes), noise_level, host_noise()
    )


def noising():
    from diffusers import DDPMScheduler

    return DDPMScheduler(beta_schedule="squaredcos_cap_v2")


def assert_same_label(label, expected):
    assert label.shape == expected.shape
    # The host computes its noise schedule in float64, diffusers in float32: at level 0 that moves
    # the label by 6e-6, while the trace of noise there is 2e-2.
    error = (label - expected).abs().max().item()
    print(f"the labels differ by {error:.1e}")
    assert error < 2e-5


def test_the_label_equals_diffusers(painted, seed_2):
    assert_same_label(painted.positive.label, diffusers_label(seed_2, ONE))


def test_the_label_equals_that_of_our_decoder(painted, seed_2):
    assert_same_label(painted.positive.label, decoder_label(embed(seed_2, ONE)))


def decoder_label(embedding):
    """The label that reaches the UNet of SEED Decode."""
    import diffusers

    with torch.random.fork_rng(devices=[]):
        unet = diffusers.UNet2DConditionModel(
            sample_size=4,
            block_out_channels=(8,),
            down_block_types=("DownBlock2D",),
            mid_block_type=None,
            up_block_types=("UpBlock2D",),
            norm_num_groups=4,
            cross_attention_dim=8,
            class_embed_type="projection",
            projection_class_embeddings_input_dim=2048,
        )
        vae = diffusers.AutoencoderKL(norm_num_groups=4, block_out_channels=(8,))
    module = UnclipModel(
        unet, vae, torch.zeros(1, 1024), torch.ones(1, 1024), torch.zeros(1, 1, 8)
    ).requires_grad_(False)
    scheduler = diffusers.DDIMScheduler()
    decoder = SeedDecoder(module, scheduler, noising(), torch.device("cpu"), torch.float32)
    labels = []
    unet.register_forward_pre_hook(
        lambda unet, args, kwargs: labels.append(kwargs["class_labels"]), with_kwargs=True
    )
    options = DecodeOptions(num_inference_steps=1, guidance_scale=1.0)
    decoder.decode(embedding, options=options, generator=host_generator())
    (label,) = labels
    return label


def test_the_label_equals_diffusers_at_any_noise(unclip, seed_2):
    noisy = unclip(str(ONE), noise_augmentation=0.25)
    assert_same_label(noisy.positive.label, diffusers_label(seed_2, ONE, noise_level=250))


# --- the same checkpoint, converted ---


@pytest.fixture(scope="module")
def converted(unclip, models, tmp_path_factory):
    """The single file as a decoder of our own."""
    output = tmp_path_factory.mktemp("converted") / "decoder.safetensors"
    plan = plan_conversion(models / "checkpoints" / "unclip.safetensors", torch.float16)
    convert_model(plan, output)
    yield seed_core.load_decoder(output)
    output.unlink()


def test_a_converted_single_file_holds_what_the_host_makes_of_an_empty_prompt(converted, painted):
    """The text encoder is gone, its one result is kept: that of the last but one layer."""
    assert_same_context(converted.module.text, painted.positive.context)


def test_a_converted_single_file_is_the_published_decoder(converted, seed_2):
    """Every weight is in its place as far as sizes tell, and a picture comes out."""
    assert (converted.size, converted.embedding_dim) == (768, 1024)
    assert (converted.module.mean == 0).all()
    assert (converted.module.std == 1).all()
    options = DecodeOptions(num_inference_steps=1, guidance_scale=1.0, width=SIDE, height=SIDE)
    picture = converted.decode(embed(seed_2, ONE), options=options)
    assert picture.shape == (1, 3, SIDE, SIDE)
    assert 0.05 < picture.std() < 0.5


# --- SD 1.5 ---


@pytest.fixture(scope="module")
def sd15(painter, models, random_checkpoints):
    """Paints any graph; its checkpoint is sd15.safetensors, with random weights."""
    # Both full-size models at once would take 12 GB.
    painter.post_plain("/free", {"unload_models": True, "free_memory": True})
    random_checkpoints.write_sd15(models / "checkpoints" / "sd15.safetensors")
    return lambda graph: paint(painter, graph)


@pytest.fixture(scope="module")
def seed_1(models, seed_1_folder, random_checkpoints):
    folder = models / "seed_tokenizer" / "seed-1"
    random_checkpoints.write_tokenizer(seed_1_folder, folder, n_embed=8192)
    return seed_core.load_tokenizer(folder)


@pytest.fixture(scope="module")
def prompted(sd15, seed_1):
    """Paints from codes in the place of a prompt."""

    def run(codes, pictures=1):
        graph = painting("sd15.safetensors") | codes_nodes("seed-1", codes)
        graph["latent"]["inputs"]["batch_size"] = pictures
        graph["positive"] = node(
            "SEEDCodesToConditioning", tokenizer=["tokenizer", 0], codes=["codes", 0]
        )
        return sd15(graph)

    return run


@pytest.fixture(scope="module")
def painted_from_prompt(prompted):
    return prompted(str(ONE))


def test_the_host_knows_the_sd15_checkpoint_and_all_of_it(painter, painted_from_prompt):
    log = painter.log()
    assert "Requested to load BaseModel" in log
    assert complaints(log) == []


def test_codes_take_the_place_of_the_text(painted_from_prompt, seed_1, sd15):
    assert_same_context(painted_from_prompt.positive.context, embed(seed_1, ONE))
    # The unconditional stays what it is without us: the checkpoint's own encoding of "".
    plain = sd15(painting("sd15.safetensors"))
    assert_same_context(painted_from_prompt.negative.context, plain.negative.context)


def assert_same_context(context, expected):
    assert context.shape == expected.shape
    # To the last bits, in which two builds of torch may differ.
    assert (context - expected).abs().max() < 1e-5 * expected.abs().max()


def test_other_codes_prompt_another_picture(prompted, painted_from_prompt):
    assert differs(prompted(str(ANOTHER)), painted_from_prompt)


def test_the_same_codes_prompt_the_same_picture(prompted, painted_from_prompt):
    again = prompted(codes_to_text(ONE))
    assert (again.pictures == painted_from_prompt.pictures).all()


def test_each_of_two_pictures_guides_its_own_latent(prompted, seed_1):
    two = prompted(str([ANOTHER, ONE]), pictures=2)
    assert_same_context(two.positive.context, embed(seed_1, ANOTHER, ONE))
    assert two.pictures.shape == (2, SIDE, SIDE, 3)


# --- templates that end in an artist's own checkpoint ---

WORKFLOWS = Path(__file__).parents[2] / "workflows"
CONTRACT = Path(__file__).parents[1] / "workflows" / "contract.py"


@pytest.fixture(scope="module")
def switched_on(sd15, models, painter, load_helper, random_checkpoints):
    """Runs a template with all its steps on but for some nodes; the picture at its end, 64 x 64.

    What it is run with goes by the title of a node, or by its type where it has none.
    """
    contract = load_helper(CONTRACT)
    table = contract.nodes(list(sample_pictures()))
    random_checkpoints.write_controlnet_sd15(models / "controlnet" / "canny.safetensors")
    always = {
        "CheckpointLoaderSimple": {"ckpt_name": "sd15.safetensors"},
        "ControlNetLoader": {"control_net_name": "canny.safetensors"},
        "To your model's size": {"width": 64, "height": 64},
    }

    def run(name, *left_off, **inputs):
        workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
        for saved in workflow["nodes"]:
            saved["mode"] = contract.BYPASSED if saved["type"] in left_off else 0
        graph = contract.to_api(workflow, table)
        keys = {
            saved.get("title") or saved["type"]: str(saved["id"]) for saved in workflow["nodes"]
        }
        for title, changed in (always | inputs).items():
            if keys.get(title) in graph:
                graph[keys[title]]["inputs"] |= changed
        done = painter.run(graph, timeout=300)
        assert done.status == "execution_success", done.error.get("exception_message")
        (shown,) = done.outputs[keys["Your model's picture"]]["images"]
        picture = Image.open(io.BytesIO(painter.picture(shown))).convert("RGB")
        assert picture.size == (64, 64)
        return np.asarray(picture, dtype=float)

    return run


LINES = ("ControlNetLoader", "Canny", "ControlNetApplyAdvanced")
FROM_NOISE = {"steps": 2, "denoise": 1}


def visibly_differ(a, b):
    return np.abs(a - b).mean() > 1


@pytest.mark.parametrize(
    ("name", "off"), [("draft_then_your_model", ()), ("keep_the_layout", LINES)]
)
def test_denoise_says_how_much_of_the_picture_stays(name, off, switched_on):
    """At 0 all of it, as the checkpoint's autoencoder gives it back."""

    def painted(**sampling):
        return switched_on(name, *off, KSampler={"steps": 2, **sampling})

    as_it_was = painted(denoise=0)
    assert (painted(denoise=0, seed=2) == as_it_was).all(), "nothing is left to chance"
    assert visibly_differ(painted(denoise=0.5), as_it_was)


def test_the_caption_of_the_draft_is_the_prompt(switched_on):
    """From noise alone nothing else tells the model what to paint."""
    name = "draft_then_your_model"
    told = switched_on(name, KSampler=FROM_NOISE)
    other = {"Describe the draft": {"prompt": "What color is the background?"}}
    assert visibly_differ(told, switched_on(name, KSampler=FROM_NOISE, **other))


def test_the_lines_of_the_original_guide_the_sampler_where_they_are_on(switched_on):
    name = "keep_the_layout"
    guided = switched_on(name, KSampler=FROM_NOISE)
    assert visibly_differ(guided, switched_on(name, *LINES, KSampler=FROM_NOISE))


# --- IP-Adapter ---

IP_ADAPTER = "ip-adapter_sd15.safetensors"
WITHOUT_THE_MIDDLE = "ip-adapter_sd15_without_the_middle.safetensors"


@pytest.fixture(scope="module")
def ip_adapter(models, random_checkpoints):
    """A random one, and the same with nothing to read in the middle of the UNet."""
    folder = models / "ipadapter"
    random_checkpoints.write_ip_adapter_sd15(folder / IP_ADAPTER)
    tensors = safetensors.torch.load_file(folder / IP_ADAPTER)
    tensors["ip_adapter.31.to_v_ip.weight"].zero_()
    safetensors.torch.save_file(tensors, folder / WITHOUT_THE_MIDDLE)


def guided_graph(codes, guide, **nodes):
    """The graph of an empty prompt on a model that a node guides by codes."""
    graph = painting("sd15.safetensors") | codes_nodes("seed-2", codes) | nodes
    graph["guide"] = guide
    graph["watch"]["inputs"]["model"] = ["guide", 0]
    return graph


@pytest.fixture(scope="module")
def guided_by_ours(sd15, seed_2, ip_adapter):
    """Paints from an empty prompt, guided by codes through SEED IP-Adapter."""

    def run(codes, pictures=1, file=IP_ADAPTER, **widgets):
        guide = node(
            "SEEDIPAdapter",
            model=["checkpoint", 0],
            ipadapter=file,
            tokenizer=["tokenizer", 0],
            codes=["codes", 0],
            **{"weight": 1.0, "start_at": 0.0, "end_at": 1.0} | widgets,
        )
        graph = guided_graph(codes, guide)
        graph["latent"]["inputs"]["batch_size"] = pictures
        return sd15(graph)

    return run


def test_our_ip_adapter_paints_by_codes(guided_by_ours, sd15):
    one = guided_by_ours(str(ONE))
    assert differs(one, guided_by_ours(str(ANOTHER)))
    assert (guided_by_ours(codes_to_text(ONE)).pictures == one.pictures).all()
    plain = sd15(painting("sd15.safetensors"))
    assert differs(one, plain)
    assert (guided_by_ours(str(ONE), weight=0.0).pictures == plain.pictures).all()


def test_our_ip_adapter_gives_each_latent_its_own_picture(guided_by_ours):
    two = guided_by_ours(str([ANOTHER, ONE]), pictures=2)
    assert two.pictures.shape == (2, SIDE, SIDE, 3)
    same = guided_by_ours(str([ONE, ONE]), pictures=2)
    assert (two.pictures[1] == same.pictures[1]).all()
    assert np.abs(two.pictures[0] - same.pictures[0]).mean() > 1


@pytest.fixture(scope="module")
def guided(comfy, sd15, seed_2, ip_adapter):
    """Paints from an empty prompt, guided by codes through the third-party pack."""
    if comfy.find_ipadapter() is None:
        pytest.skip(
            "no ComfyUI_IPAdapter_plus in the checkout's custom_nodes: install it there, or set "
            "IPADAPTER_PATH to its folder"
        )

    def run(codes, file=IP_ADAPTER):
        loader = node("IPAdapterModelLoader", ipadapter_file=file)
        embeds = node("SEEDCodesToIPAdapter", tokenizer=["tokenizer", 0], codes=["codes", 0])
        guide = node(
            "IPAdapterEmbeds",
            model=["checkpoint", 0],
            ipadapter=["ipadapter", 0],
            pos_embed=["embeds", 0],
            neg_embed=["embeds", 1],
            weight=1.0,
            weight_type="linear",
            start_at=0.0,
            end_at=1.0,
            embeds_scaling="V only",
        )
        return sd15(guided_graph(codes, guide, ipadapter=loader, embeds=embeds))

    return run


def test_ipadapter_takes_our_embeddings_and_paints_by_them(guided, sd15):
    one = guided(str(ONE))
    assert differs(one, guided(str(ANOTHER)))
    assert (guided(codes_to_text(ONE)).pictures == one.pictures).all()
    assert differs(one, sd15(painting("sd15.safetensors")))


def test_our_ip_adapter_paints_what_the_pack_paints(guided, guided_by_ours):
    """Up to what an adapter says in the middle: the pack puts its patch where no host asks for it."""
    apart = {}
    for file in (WITHOUT_THE_MIDDLE, IP_ADAPTER):
        ours, theirs = (
            paint(str(ONE), file=file).pictures.astype(int) for paint in (guided_by_ours, guided)
        )
        apart[file] = np.abs(ours - theirs)
        print(f"{file}: {apart[file].mean():.3f} of 255 apart, {apart[file].max()} at most")
    assert apart[IP_ADAPTER].mean() < 0.5
    assert apart[WITHOUT_THE_MIDDLE].mean() < 0.05
    assert apart[WITHOUT_THE_MIDDLE].max() <= 1
