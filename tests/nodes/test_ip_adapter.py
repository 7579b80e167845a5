"""SEEDIPAdapter on the real host's UNets: small ones, with the layers of SD 1.5 and SDXL.

Held to diffusers' IP-Adapter on the same random weights. diffusers counts the cross attentions of a
UNet as IP-Adapter files do, and the host's own table says which of its weights are which of diffusers'.
"""

import shutil
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

FILE = "ip-adapter.safetensors"
SIDE = 8  # of a latent
TOKENS, CONTEXT, DIM = 4, 24, 1024
CPU = torch.device("cpu")
SD15 = {
    "model_channels": 32,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "num_heads": 8,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
}
SDXL = {
    "model_channels": 32,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
    "num_head_channels": 64,
    "use_linear_in_transformer": True,
    "adm_in_channels": 96,
    "num_classes": "sequential",
}
IN_DIFFUSERS = {
    "sd15": {
        "block_out_channels": (32, 64, 128, 128),
        "attention_head_dim": 8,
    },
    "sdxl": {
        "block_out_channels": (32, 64, 128),
        "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
        "up_block_types": (*("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
        "attention_head_dim": (1, 1, 2),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 96,
    },
}
LAYERS = {"sd15": 16, "sdxl": 70}
each_base = pytest.mark.parametrize("base", ["sd15", "sdxl"])


@pytest.fixture(scope="module", autouse=True)
def on_comfyui(host_name):
    if host_name != "comfyui":
        pytest.skip("the double has no UNet")


@pytest.fixture(scope="module")
def folder(pack):
    """models/ipadapter, gone after."""
    folder = Path(pack.folder_paths.models_dir) / "ipadapter"
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder)


def random_like(state, number):
    random = torch.Generator().manual_seed(number)
    return {
        key: torch.randn(tensor.shape, generator=random) / max(tensor[0].numel(), 4) ** 0.5
        if tensor.dim() > 1
        else torch.ones_like(tensor) + torch.randn(tensor.shape, generator=random) / 10
        for key, tensor in state.items()
    }


@pytest.fixture(scope="module")
def references():
    """diffusers' UNets; the one that is asked for has no adapter in it."""
    import diffusers

    made = {}

    def make(base):
        if base not in made:
            config = {"layers_per_block": 2, "cross_attention_dim": CONTEXT, "sample_size": SIDE}
            with torch.random.fork_rng(devices=[]):
                made[base] = diffusers.UNet2DConditionModel(**config, **IN_DIFFUSERS[base])
            made[base].load_state_dict(random_like(made[base].state_dict(), 1))
        return made[base].requires_grad_(False).eval()

    return make


@pytest.fixture(scope="module")
def models(pack, references):
    """MODELs of the host with the weights of diffusers' UNets."""
    made = {}

    def make(base, dtype=torch.float32, computing=None):
        if (base, dtype) not in made:
            made[base, dtype] = model_of(pack, base, references(base), dtype, computing)
        return made[base, dtype]

    return make


def model_of(pack, base, reference, dtype, computing):
    supported = import_module("comfy.supported_models")
    config = {"image_size": 32, "in_channels": 4, "out_channels": 4, "legacy": False}
    config |= {"use_spatial_transformer": True, "context_dim": CONTEXT, "dtype": dtype}
    config |= {"sd15": SD15, "sdxl": SDXL}[base]
    names = import_module("comfy.utils").unet_to_diffusers(config)
    settings = {"sd15": supported.SD15, "sdxl": supported.SDXL}[base](config)
    settings.set_inference_dtype(dtype, computing)
    with torch.random.fork_rng(devices=[]):
        model = settings.get_model({}, "", device=CPU)
    theirs = reference.state_dict()
    assert names.keys() >= theirs.keys()
    state = {names[key]: tensor.to(dtype) for key, tensor in theirs.items()}
    model.diffusion_model.load_state_dict(state)
    model.requires_grad_(False).eval()
    return pack.comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)


def layers_of(unet):
    """diffusers' cross attentions, as its attn_processors lists them."""
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    return [unet.get_submodule(name) for name in names if name.endswith("attn2")]


@pytest.fixture(scope="module")
def tensors(references):
    """The tensors of a random IP-Adapter for a base."""

    def make(base, number=2):
        rows = TOKENS * CONTEXT
        shapes = {"image_proj.proj.weight": (rows, DIM), "image_proj.proj.bias": (rows,)}
        shapes |= {"image_proj.norm.weight": (CONTEXT,), "image_proj.norm.bias": (CONTEXT,)}
        for i, layer in enumerate(layers_of(references(base))):
            for part in ("to_k_ip", "to_v_ip"):
                name = f"ip_adapter.{2 * i + 1}.{part}.weight"
                shapes[name] = (layer.to_k.out_features, CONTEXT)
        return random_like({key: torch.zeros(shape) for key, shape in shapes.items()}, number)

    return make


@pytest.fixture(scope="module")
def save(folder, tensors):
    """Writes a random IP-Adapter and returns its name in the node's list."""

    def save(base, number=2):
        name = f"{base}_{number}.safetensors"
        if not (folder / name).exists():
            save_file(tensors(base, number), folder / name)
        return name

    return save


@pytest.fixture(scope="module")
def table():
    """Embeddings of pictures 0, 1, 2, ...; of pictures whose first code is that number."""
    return torch.randn(8, DIM, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def tokenizer(table):
    """A tokenizer as wide as SEED-2's, without its weights."""
    core = SimpleNamespace(
        family="seed-2",
        codebook_size=8192,
        embedding_shape=(DIM,),
        memory_required=lambda pictures: 0,
        embed=lambda codes: table[codes.values[:, 0]],
        module=SimpleNamespace(embedder=None),
    )
    return SimpleNamespace(core=core, ready=lambda memory_required, only: core)


@pytest.fixture(scope="module")
def codes(pack):
    """Codes of these pictures of the table."""

    def make(*pictures):
        values = torch.zeros(len(pictures), 32, dtype=torch.int64)
        values[:, 0] = torch.tensor(pictures, dtype=torch.int64)
        return pack.seed_core.SeedCodes(values, "seed-2", 8192)

    return make


@pytest.fixture(scope="module")
def guide(run, models, save, tokenizer, codes):
    """A model that is guided by pictures of the table."""

    def guide(model, *pictures, number=2, negative=None, **widgets):
        base = "sdxl" if model.model.model_config.unet_config["adm_in_channels"] else "sd15"
        against = None if negative is None else codes(*negative)
        return run(
            "SEEDIPAdapter",
            model=model,
            ipadapter=save(base, number),
            tokenizer=tokenizer,
            codes=codes(*pictures),
            negative_codes=against,
            **widgets,
        )[0]

    return guide


def inputs_of(base, rows):
    random = torch.Generator().manual_seed(9)
    given = {
        "x": torch.randn(rows, 4, SIDE, SIDE, generator=random),
        "context": torch.randn(rows, 5, CONTEXT, generator=random),
        "time": torch.full((rows,), 500.0),
    }
    if base == "sdxl":
        given["text"] = torch.randn(rows, 48, generator=random)
        given["sizes"] = torch.arange(6.0).expand(rows, -1)
    return given


def seen_at(modules, call):
    """What a call returns, and what each of the modules did on the way."""
    seen = {}
    hooks = [
        module.register_forward_hook(lambda _, __, out, i=i: seen.__setitem__(i, out))
        for i, module in enumerate(modules)
    ]
    try:
        return call(), [seen[i] for i in range(len(modules))]
    finally:
        for hook in hooks:
            hook.remove()


def run_unet(model, base, sides=(0,), rows=1, sigma=7.0):
    """The host's UNet with the patches of a model, and its cross attentions in the order of files."""
    given = inputs_of(base, rows * len(sides))
    network = model.model.diffusion_model
    for name in ("x", "context"):
        given[name] = given[name].to(model.model.get_dtype_inference())
    blocks = [*network.input_blocks, *network.output_blocks, network.middle_block]
    parts = [part for block in blocks for part in block]
    layers = [each for part in parts for each in getattr(part, "transformer_blocks", ())]
    options = model.model_options["transformer_options"] | {
        "cond_or_uncond": list(sides),
        "sigmas": torch.tensor(sigma).expand(rows),
    }
    label = None
    if base == "sdxl":
        label = torch.cat((given["text"], embedded_sizes(given["sizes"])), dim=1)
    with torch.inference_mode():
        return seen_at(
            [layer.attn2.to_out for layer in layers],
            lambda: network(
                given["x"], given["time"], given["context"], y=label, transformer_options=options
            ),
        )


def embedded_sizes(sizes):
    """As diffusers gives them to its UNet."""
    from diffusers.models.embeddings import get_timestep_embedding

    flat = get_timestep_embedding(sizes.flatten(), 8, flip_sin_to_cos=True, downscale_freq_shift=0)
    return flat.view(len(sizes), -1)


def run_diffusers(references, base, adapters, embeddings, rows=1, change=None):
    """A copy of diffusers' UNet with adapters, each (tensors, weight), and embeddings of each row.

    A change is the name of a weight and what is added to it.
    """
    import copy

    unet = copy.deepcopy(references(base))
    if change is not None:
        name, difference = change
        unet.get_parameter(name).add_(difference)
    halves = [
        {
            part: {k.removeprefix(f"{part}."): v for k, v in one.items() if k.startswith(part)}
            for part in ("image_proj", "ip_adapter")
        }
        for one, _ in adapters
    ]
    with torch.random.fork_rng(devices=[]):
        unet._load_ip_adapter_weights(halves)
    for processor in unet.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [weight for _, weight in adapters]
    given = inputs_of(base, rows)
    added = {"image_embeds": [embeddings[:, None]] * len(adapters)}
    if base == "sdxl":
        added |= {"text_embeds": given["text"], "time_ids": given["sizes"]}
    with torch.inference_mode():
        return seen_at(
            [layer.to_out[0] for layer in layers_of(unet)],
            lambda: (
                unet(given["x"], given["time"], given["context"], added_cond_kwargs=added).sample
            ),
        )


def assert_same(ours, theirs, base):
    (out, layers), (their_out, their_layers) = ours, theirs
    assert len(layers) == len(their_layers) == LAYERS[base]
    worst = max((a - b).abs().max().item() for a, b in zip(layers, their_layers, strict=True))
    scale = max(b.abs().max().item() for b in their_layers)
    off = ((out - their_out).abs().max() / their_out.abs().max()).item()
    print(
        f"{base}: attention outputs differ by {worst:.1e} (largest {scale:.1f}), the UNet by {off:.1e}"
    )
    assert worst < 1e-5
    assert off < 1e-5


@each_base
def test_without_an_adapter_both_unets_are_the_same(base, models, references):
    ours = run_unet(models(base), base)
    unet = references(base)
    given = inputs_of(base, 1)
    added = {"text_embeds": given.get("text"), "time_ids": given.get("sizes")}
    theirs = seen_at(
        [layer.to_out[0] for layer in layers_of(unet)],
        lambda: unet(given["x"], given["time"], given["context"], added_cond_kwargs=added).sample,
    )
    assert_same(ours, theirs, base)


@each_base
def test_every_attention_and_the_unet_equal_diffusers(
    base, models, references, guide, tensors, table
):
    ours = run_unet(guide(models(base), 3, weight=0.8), base)
    theirs = run_diffusers(references, base, [(tensors(base), 0.8)], table[3:4])
    assert_same(ours, theirs, base)
    plain, _ = run_unet(models(base), base)
    assert (ours[0] - plain).abs().max() > 0.01 * plain.abs().max()


def test_what_several_read_is_summed(models, references, guide, tensors, table):
    twice = guide(guide(models("sd15"), 3, weight=0.8), 3, number=4, weight=-0.5)
    adapters = [(tensors("sd15"), 0.8), (tensors("sd15", 4), -0.5)]
    theirs = run_diffusers(references, "sd15", adapters, table[3:4])
    assert_same(run_unet(twice, "sd15"), theirs, "sd15")


@pytest.mark.parametrize(
    ("pictures", "negative", "rows"),
    [
        ((3, 1), None, ("3", "1", "none", "none")),  # each its own latent, in order
        ((3,), None, ("3", "3", "none", "none")),  # one for all
        ((3, 1), (5,), ("3", "1", "5", "5")),
        ((3, 1), (5, 6), ("3", "1", "5", "6")),
    ],
)
def test_picture_i_is_for_latent_i_on_either_side(
    pictures, negative, rows, models, references, guide, tensors, table
):
    """The host gives the latents once for each side; 0 is what it steers to."""
    none = torch.zeros(DIM)
    embeddings = torch.stack([none if row == "none" else table[int(row)] for row in rows])
    guided = guide(models("sd15"), *pictures, negative=negative, weight=0.8)
    theirs = run_diffusers(references, "sd15", [(tensors("sd15"), 0.8)], embeddings, rows=4)
    assert_same(run_unet(guided, "sd15", sides=(0, 1), rows=2), theirs, "sd15")
    out, _ = run_unet(guided, "sd15", sides=(1, 0), rows=2)
    turned, _ = run_diffusers(
        references, "sd15", [(tensors("sd15"), 0.8)], embeddings[[2, 3, 0, 1]], rows=4
    )
    assert (out - turned).abs().max() < 1e-5 * turned.abs().max()


def test_more_pictures_than_latents_are_refused(pack, models, guide):
    guided = guide(models("sd15"), 1, 2, 3)
    with pytest.raises(pack.seed_core.errors.OptionError, match="3 pictures.* 2 latents"):
        run_unet(guided, "sd15", rows=2)


def test_negative_codes_are_one_for_all_or_one_for_each(pack, models, guide):
    with pytest.raises(pack.seed_core.CodesError, match="2 pictures and codes 3"):
        guide(models("sd15"), 1, 2, 3, negative=(4, 5))


def test_codes_guide_between_their_start_and_end(pack, models, guide):
    """A sampler goes from the most noise to the least."""
    model = models("sd15")
    plain, _ = run_unet(model, "sd15")
    sampling = model.get_model_object("model_sampling")
    guided = guide(model, 3, start_at=0.25, end_at=0.75)
    for part, counts in ((0.1, False), (0.3, True), (0.7, True), (0.9, False)):
        out, _ = run_unet(guided, "sd15", sigma=float(sampling.percent_to_sigma(part)))
        assert torch.equal(out, plain) is not counts, part
    for end in (0.2, 0.8):
        with pytest.raises(pack.seed_core.errors.OptionError, match="start_at"):
            guide(model, 3, start_at=0.8, end_at=end)


def test_rows_of_other_noise_each_have_their_own_start_and_end(models, guide):
    """The host may give latents of unlike noise in one batch, once for each side."""
    model = models("sd15")
    sampling = model.get_model_object("model_sampling")
    guided = guide(model, 3, start_at=0.25, end_at=0.75)
    sigmas = [float(sampling.percent_to_sigma(part)) for part in (0.5, 0.9)]
    together, _ = run_unet(guided, "sd15", sides=(0, 1), rows=2, sigma=sigmas)
    always, never = (
        run_unet(each, "sd15", sides=(0, 1), rows=2)[0] for each in (guide(model, 3), model)
    )
    for row, counts in enumerate((True, False, True, False)):
        wanted = (always if counts else never)[row]
        assert (together[row] - wanted).abs().max() < 1e-5 * wanted.abs().max(), row


def test_the_model_that_was_connected_stays_as_it_is(models, guide):
    model = models("sd15")
    before, _ = run_unet(model, "sd15")
    assert guide(model, 3, weight=0.0) is model
    guide(model, 3)
    after, _ = run_unet(model, "sd15")
    assert torch.equal(after, before)


def test_models_that_are_guided_one_after_another_do_not_know_of_each_other(models, guide):
    """The host moves what is on a model to the device before each run, and away after it."""
    model = models("sd15")
    every = (guide(model, 3), guide(model, 1, weight=0.5), model)
    alone = [run_unet(each, "sd15")[0] for each in every]
    assert (alone[0] - alone[1]).abs().max() > 0.01 * alone[0].abs().max()
    for _ in range(2):
        for each, expected in zip(every, alone, strict=True):
            each.model_patches_to(CPU)
            each.model_patches_to(torch.float8_e4m3fn)  # the format of a model's weights
            out, _ = run_unet(each, "sd15")
            each.model_patches_to(CPU)
            assert (out - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_run_that_has_begun_finds_the_pictures_on_its_device(models, guide):
    """The host copies a model's options first, and then moves what is on the model."""
    guided = guide(models("sd15"), 3)
    patcher = import_module("comfy.model_patcher")
    options = patcher.create_model_options_clone(guided.model_options)
    patches = list(options["transformer_options"]["patches_replace"]["attn2"].values())
    here = [(patch.positive, patch.negative) for patch in patches]
    guided.model_patches_to(torch.device("meta"))
    moved = [part.device.type for patch in patches for part in (*patch.positive, *patch.negative)]
    for patch, sides in zip(patches, here, strict=True):
        patch.positive, patch.negative = sides  # numbers do not come back from there
    assert moved == 4 * LAYERS["sd15"] * ["meta"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_a_model_of_fewer_bits_is_guided_as_by_full_ones(dtype, models, guide):
    """What the codes change is the same up to the rounding of the model's numbers."""
    few = models("sd15", dtype, torch.bfloat16)
    out, plain = (run_unet(each, "sd15")[0].float() for each in (guide(few, 3), few))
    full = models("sd15")
    wanted, without = (run_unet(each, "sd15")[0] for each in (guide(full, 3), full))
    change, expected = (out - plain).flatten(), (wanted - without).flatten()
    assert torch.cosine_similarity(change, expected, dim=0) > 0.9
    assert 0.8 < change.norm() / expected.norm() < 1.25


def test_a_lora_before_or_after_the_codes_is_the_same(models, references, guide, tensors, table):
    model = models("sd15")
    place = "attentions.0.transformer_blocks.0.attn2.to_q.weight"
    ours = "diffusion_model.input_blocks.1.1." + place.partition("0.")[2]
    shape = model.model.get_parameter(ours).shape
    difference = torch.randn(shape, generator=torch.Generator().manual_seed(7)) / 4

    def adapted(model):
        changed = model.clone()
        assert changed.add_patches({ours: ("diff", (difference,))}, 0.5) == [ours]
        return changed

    theirs = run_diffusers(
        *(references, "sd15", [(tensors("sd15"), 0.8)], table[3:4]),
        change=(f"down_blocks.0.{place}", 0.5 * difference),
    )
    plain = run_diffusers(references, "sd15", [(tensors("sd15"), 0.8)], table[3:4])
    assert (theirs[0] - plain[0]).abs().max() > 1e-3 * plain[0].abs().max()
    for each in (guide(adapted(model), 3, weight=0.8), adapted(guide(model, 3, weight=0.8))):
        each.patch_model(CPU)
        try:
            assert_same(run_unet(each, "sd15"), theirs, "sd15")
        finally:
            each.unpatch_model(CPU)


@pytest.mark.parametrize("place", [("input", 1), ("input", 1, 0)], ids=["block", "layer"])
def test_what_another_patch_reads_in_the_text_is_kept(place, models, guide):
    """It has the first cross attention, where both models meet the same pictures."""
    model = models("sd15")
    patched = model.clone()
    patched.set_model_attn2_replace(lambda q, k, v, options: q / 2, *place)
    both, theirs, ours, neither = (
        run_unet(each, "sd15")[1][0]
        for each in (guide(patched, 3), patched, guide(model, 3), model)
    )
    # The layer's last step is linear, so what is added before it is added after it.
    assert (both - (theirs + ours - neither)).abs().max() < 1e-5
    assert (theirs - neither).abs().max() > 0.01
    assert (ours - neither).abs().max() > 0.01


def test_the_patch_before_hears_what_the_host_says(models, guide):
    heard = []

    class Patch:
        def __call__(self, q, k, v, options):
            heard.append("called")
            return q

        def to(self, device):
            heard.append(device)
            return self

        def models(self):
            return ["a model"]

        def cleanup(self):
            heard.append("cleanup")

    patched = models("sd15").clone()
    patched.set_model_attn2_replace(Patch(), "input", 1)
    guided = guide(patched, 3)
    guided.model_patches_to(CPU)
    guided.model_patches_to(torch.float16)
    assert guided.model_patches_models() == ["a model"]
    run_unet(guided, "sd15")
    guided.model_patches_call_function("cleanup")
    assert heard == [CPU, torch.float16, "called", "cleanup"]


def test_a_node_of_the_other_pack_after_it_is_told_to_come_before(pack, models, guide):
    """It adds itself to whatever patch it finds on a cross attention."""
    replaced = guide(models("sd15"), 3).model_options["transformer_options"]["patches_replace"]
    with pytest.raises(pack.seed_core.errors.OptionError, match="connect it after"):
        replaced["attn2"]["input", 1].add(lambda *given: None, weight=1.0)


def test_a_patch_on_keys_and_values_of_the_text_leaves_the_pictures(models, guide):
    """Nodes that couple prompts make the text longer."""
    model = models("sd15")

    def longer(q, k, v, options):
        return q, torch.cat((k, k), dim=1), torch.cat((v, v), dim=1)

    patched = model.clone()
    patched.set_model_attn2_patch(longer)
    # Attention to the same keys twice reads the same.
    (out, layers), (wanted, wanted_layers) = (
        run_unet(guide(each, 3), "sd15") for each in (patched, model)
    )
    assert (out - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert (layers[0] - wanted_layers[0]).abs().max() < 1e-5


def test_a_file_for_the_other_base_is_refused(pack, run, models, save, tokenizer, codes):
    """Here both read tokens of one width, so the layers tell them apart."""
    with pytest.raises(pack.seed_core.errors.OptionError, match="70 layers.*16"):
        run(
            "SEEDIPAdapter",
            model=models("sd15"),
            ipadapter=save("sdxl"),
            tokenizer=tokenizer,
            codes=codes(1),
        )


def test_a_model_of_another_kind_is_refused_by_name(pack, run, save, tokenizer, codes):
    other = SimpleNamespace(model=type("Flux", (), {"diffusion_model": torch.nn.Identity()})())
    with pytest.raises(pack.seed_core.errors.OptionError, match="is a Flux"):
        run(
            "SEEDIPAdapter",
            model=other,
            ipadapter=save("sd15"),
            tokenizer=tokenizer,
            codes=codes(1),
        )


@pytest.mark.parametrize(
    ("width", "heads", "context", "places"),
    [
        *((320, 8, 768, 4096), (640, 8, 768, 1024), (1280, 8, 768, 256)),  # of SD 1.5
        *((640, 10, 2048, 4096), (1280, 20, 2048, 1024)),  # of SDXL
    ],
)
def test_attention_of_the_published_widths_equals_diffusers(
    pack, models, folder, width, heads, context, places
):
    """One cross attention, with the keys and values that an adapter file gives it."""
    from diffusers.models.attention_processor import Attention, IPAdapterAttnProcessor2_0

    random = torch.Generator().manual_seed(6)

    def draw(*shape):
        return torch.randn(shape, generator=random) / shape[-1] ** 0.5

    rows = TOKENS * context
    table = {"image_proj.proj.weight": draw(rows, DIM), "image_proj.proj.bias": draw(rows)}
    table |= {f"image_proj.norm.{part}": 1 + draw(context) for part in ("weight", "bias")}
    table |= {f"ip_adapter.1.to_{part}_ip.weight": draw(width, context) for part in "kv"}
    save_file(table, folder / FILE)
    embedding = torch.randn(2, DIM, generator=random)
    x, text = torch.randn(2, places, width, generator=random), draw(2, 77, context)

    of_host = import_module("comfy.ldm.modules.attention").CrossAttention
    with torch.random.fork_rng(devices=[]):
        theirs = Attention(width, context, heads, dim_head=width // heads)
        theirs.set_processor(IPAdapterAttnProcessor2_0(width, context, (TOKENS,), scale=0.8))
        ours = of_host(width, context, heads, width // heads)
    state = {name: draw(*tensor.shape) for name, tensor in ours.state_dict().items()}
    ours.load_state_dict(state)
    added = {f"to_{part}_ip.0.weight": table[f"ip_adapter.1.to_{part}_ip.weight"] for part in "kv"}
    theirs.load_state_dict(state | {f"processor.{name}": weight for name, weight in added.items()})

    adapter = pack.seed_core.open_ip_adapter(folder / FILE)
    sides = [each.split(1, 1) for each in adapter.keys_and_values(embedding)]
    layer = pack.host.attention.CrossAttention(("input", 1, 0), True, width, context)
    guided = pack.host.add_pictures(
        models("sd15"), [layer], *zip(*sides, strict=True), 0.8, 0.0, 1.0
    )
    patch = guided.model_options["transformer_options"]["patches_replace"]["attn2"]["input", 1]
    options = {"n_heads": heads, "attn_precision": None, "cond_or_uncond": [0, 1]}

    flat = embedding @ table["image_proj.proj.weight"].T + table["image_proj.proj.bias"]
    norm = table["image_proj.norm.weight"], table["image_proj.norm.bias"]
    tokens = torch.nn.functional.layer_norm(flat.view(2, TOKENS, context), (context,), *norm)
    with torch.inference_mode():
        found = ours.to_out(patch(ours.to_q(x), ours.to_k(text), ours.to_v(text), options))
        wanted = theirs(x, (text, [tokens[:, None]]))
        without = ours(x, text)
    worst = (found - wanted).abs().max().item()
    print(f"{width} wide, text {context}: {worst:.1e} apart (largest {wanted.abs().max():.1f})")
    assert worst < 1e-5
    assert (found - without).abs().max() > 0.01
