"""A decoder's folder: copies of the bundled one, older and damaged, and a tiny text encoder."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import seed_core
from seed_core.errors import CheckpointError
from seed_core.models.convert import plan_conversion
from seed_core.models.diffusers_networks import build_network
from seed_core.models.unclip import load_decoder

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path, mini_folder):
    copy = tmp_path / "decoder"
    shutil.copytree(mini_folder / "decoder", copy)
    return copy


def read(folder):
    return load_decoder(folder)


def change_tensors(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def equal(module, other):
    state, expected = module.state_dict(), other.state_dict()
    return state.keys() == expected.keys() and all(
        torch.equal(state[key], expected[key]) for key in state
    )


# --- networks ---


def test_files_of_the_half_precision_variant_are_found(folder, mini_decoder):
    for part in ("unet", "vae"):
        file = folder / part / WEIGHTS
        file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert equal(read(folder).module, mini_decoder.module)


class Network(torch.nn.Module):
    """With a table, a layer, and a parameter that is drawn."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.tensor([1.0, 3.0]).outer(torch.arange(2.0) + 1))
        self.layer = torch.nn.Conv2d(2, 3, 1)
        self.norm = torch.nn.GroupNorm(1, 3)
        self.drawn = torch.nn.Parameter(torch.randn(4) * 3)

    @classmethod
    def from_config(cls, config):
        return cls()


def test_a_network_is_built_without_weights_but_with_its_tables():
    """The conftest's watch sees whether numbers are drawn for it."""
    network = build_network(Network, {})
    assert {parameter.is_meta for parameter in network.parameters()} == {True}
    assert network.table.tolist() == [[1, 2], [3, 6]]


def test_attention_names_of_old_files_are_read(folder, mini_decoder):
    """SD 2.1's VAE was saved before diffusers renamed its attention layers."""
    file = folder / "vae" / WEIGHTS
    tensors = load_file(file)
    olds = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for key, tensor in tensors.items():
        for new_name, old_name in olds.items():
            key = key.replace(f".{new_name}.", f".{old_name}.")
        old[key] = tensor
    assert old.keys() != tensors.keys()  # this VAE has attention
    save_file(old, file)
    assert equal(read(folder).module, mini_decoder.module)


def test_a_missing_weight_is_named(folder):
    change_tensors(folder / "unet" / WEIGHTS, lambda tensors: tensors.pop("conv_in.weight"))
    with pytest.raises(CheckpointError, match=r"conv_in\.weight"):
        read(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "image_normalizer"])
def test_a_truncated_file_is_one_clear_error(folder, part):
    file = folder / part / WEIGHTS
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=WEIGHTS):
        read(folder)


# --- numbers ---


@pytest.mark.parametrize("name", ["mean", "std"])
def test_a_normaliser_without_one_of_its_numbers_is_refused_by_name(folder, name):
    change_tensors(folder / "image_normalizer" / WEIGHTS, lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=f"image_normalizer lacks '{name}'"):
        read(folder)


def test_a_normaliser_of_another_decoder_is_refused_with_both_widths(folder):
    """The bundled UNet's label is 512 wide: an embedding of 256, and its noise level."""

    def cut(tensors):
        tensors.update({name: value[:, :100].clone() for name, value in tensors.items()})

    change_tensors(folder / "image_normalizer" / WEIGHTS, cut)
    with pytest.raises(CheckpointError, match="labels 512 wide.*100, so 200"):
        read(folder)


# --- files ---


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "unet/config.json",
        f"unet/{WEIGHTS}",
        "vae/config.json",
        f"vae/{WEIGHTS}",
        "scheduler/scheduler_config.json",
        "image_noising_scheduler/scheduler_config.json",
        f"image_normalizer/{WEIGHTS}",
    ],
)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError) as caught:
        read(folder)
    for part in name.split("/"):
        assert part in str(caught.value)


def test_a_missing_folder_is_named_with_its_address(tmp_path):
    with pytest.raises(CheckpointError, match="no-such-decoder.*https://"):
        read(tmp_path / "no-such-decoder")


def test_another_pipeline_is_refused_by_name(folder):
    index = {"_class_name": "StableDiffusionPipeline"}
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(CheckpointError, match="StableDiffusionPipeline"):
        read(folder)


def write_guidance(folder, **number):
    file = folder / "model_index.json"
    index = json.loads(file.read_text("utf-8"))
    index.pop("_guidance_scale")
    file.write_text(json.dumps(index | number), encoding="utf-8")


def test_the_bundled_decoders_own_guidance_is_2(folder):
    assert read(folder).guidance_scale == 2


def test_a_decoder_that_names_no_guidance_has_the_references(folder):
    write_guidance(folder)
    assert read(folder).guidance_scale == 10


@pytest.mark.parametrize("number", [0, 7.5, 1000])
def test_a_decoder_can_name_its_own_guidance(folder, number):
    write_guidance(folder, _guidance_scale=number)
    assert read(folder).guidance_scale == number


@pytest.mark.parametrize("wrong", [-1, 1001, "2", None, [2], True, float("nan"), 10**400])
def test_guidance_that_is_no_number_in_range_is_refused(folder, wrong):
    write_guidance(folder, _guidance_scale=wrong)
    with pytest.raises(CheckpointError, match=r"_guidance_scale in model_index\.json.*0\.\.1000"):
        read(folder)


def write_colours(folder, colours):
    file = folder / "vae" / "config.json"
    config = json.loads(file.read_text("utf-8"))
    del config["_latent_colours"]
    file.write_text(json.dumps(config | colours), encoding="utf-8")


def test_a_vae_need_not_say_what_colours_its_latents_have(folder):
    write_colours(folder, {})
    assert read(folder).colours is None


@pytest.mark.parametrize(
    "wrong", [[], [[0.0] * 3] * 4, [[0.0] * 2] * 5, 3, "abcde", [0, 0, 0, 0, 0], [["1"] * 3] * 5]
)
def test_colours_that_are_no_table_are_refused(folder, wrong):
    write_colours(folder, {"_latent_colours": wrong})
    with pytest.raises(CheckpointError, match=r"_latent_colours in vae/config\.json.* 5 rows"):
        read(folder)


@pytest.mark.parametrize("part", ["scheduler", "image_noising_scheduler"])
@pytest.mark.parametrize("name", ["os", "NoSuchScheduler", None])
def test_an_unknown_scheduler_is_refused_by_name(folder, part, name):
    file = folder / part / "scheduler_config.json"
    file.write_text(json.dumps({"_class_name": name}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"{part}/.* names the scheduler '{name}'"):
        read(folder)


# --- the empty prompt ---


@pytest.fixture
def text_folder(folder, isolated_random_state):
    """The folder with a text encoder of 12 tokens, as wide as the bundled UNet wants it.

    transformers fills what a file lacks with random numbers of the global generator.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=4,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=12,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    words, pairs = folder / "tokenizer" / "vocab.json", folder / "tokenizer" / "merges.txt"
    words.parent.mkdir()
    ids = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "a": 3}
    words.write_text(json.dumps(ids), encoding="utf-8")
    pairs.write_text("#version: 0.2\n", encoding="utf-8")
    (words.parent / "tokenizer_config.json").write_text('{"model_max_length": 12}')
    return folder


def test_without_a_text_encoder_the_empty_prompt_is_zeros(folder):
    assert torch.equal(read(folder).module.text, torch.zeros(1, 1, 32))


@pytest.mark.parametrize("lost", ["text_encoder/config.json", "text_encoder"])
def test_a_text_encoder_that_the_pipeline_lists_must_be_there(text_folder, lost):
    """Pictures would be painted from zeros instead, without a word."""
    file = text_folder / "model_index.json"
    index = json.loads(file.read_text("utf-8"))
    file.write_text(
        json.dumps(index | {"text_encoder": ["transformers", "CLIPTextModel"]}), "utf-8"
    )
    shutil.move(text_folder / lost, text_folder / "elsewhere")
    with pytest.raises(CheckpointError, match=r"decoder lacks text_encoder/config\.json"):
        read(text_folder)


def test_the_empty_prompt_is_what_the_text_encoder_makes_of_it(text_folder):
    """One begin token, then nothing but end tokens."""
    from transformers import CLIPTextModel

    encoder = CLIPTextModel.from_pretrained(text_folder / "text_encoder")
    with torch.inference_mode():
        expected = encoder(torch.tensor([[0] + [1] * 11])).last_hidden_state
    # A few products of two layers: rounding alone.
    torch.testing.assert_close(read(text_folder).module.text, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_text_encoder_is_one_clear_error(text_folder, share):
    file = text_folder / "text_encoder" / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="text_encoder"):
        read(text_folder)


@pytest.mark.parametrize("part", ["token_embedding", "layers.1.mlp.fc2", "final_layer_norm"])
def test_an_incomplete_text_encoder_is_refused_by_what_it_lacks(text_folder, part):
    """transformers would fill the gap with random numbers and a warning."""

    def drop(tensors):
        for key in [key for key in tensors if part in key]:
            del tensors[key]

    change_tensors(text_folder / "text_encoder" / "model.safetensors", drop)
    with pytest.raises(CheckpointError, match=f"text_encoder.*{part}.*missing"):
        read(text_folder)


def test_a_vocabulary_without_the_tokens_of_the_prompt_is_refused(text_folder):
    """transformers would add them under other ids."""
    file = text_folder / "tokenizer" / "vocab.json"
    file.write_text('{"a</w>": 0, "a": 1}', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"vocab\.json lacks <\|startoftext\|>"):
        read(text_folder)


def test_a_text_encoder_without_its_vocabulary_is_refused(text_folder):
    """transformers would make an empty vocabulary, and every picture would be a little wrong."""
    for name in ("vocab.json", "merges.txt"):
        (text_folder / "tokenizer" / name).unlink()
    with pytest.raises(CheckpointError, match=r"vocab\.json"):
        read(text_folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text_encoder/config.json", "[]"),
        ("text_encoder/config.json", '{"hidden_size": "wide"}'),
        ("tokenizer/vocab.json", '{"<|start'),
        ("tokenizer/vocab.json", '{"<|startoftext|>": 900, "<|endoftext|>": 901}'),
        ("tokenizer/tokenizer_config.json", "{}"),
    ],
)
def test_damage_around_the_text_encoder_is_one_clear_error(text_folder, name, content):
    """Every one of these is another kind of exception in transformers."""
    (text_folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match="text_encoder"):
        read(text_folder)


def test_a_text_encoder_of_another_width_is_refused_with_both(text_folder):
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig.from_pretrained(text_folder / "text_encoder")
    config.hidden_size = 24
    CLIPTextModel(config).save_pretrained(text_folder / "text_encoder")
    with pytest.raises(CheckpointError, match="24 wide.*32"):
        read(text_folder)


# --- numbers in configs ---


def change_json(file, **fields):
    content = {**json.loads(file.read_text(encoding="utf-8")), **fields}
    file.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("part", "fields"),
    [
        ("unet", {"layers_per_block": 10**9}),
        ("unet", {"transformer_layers_per_block": [1, 10**9, 1]}),
        ("unet", {"reverse_transformer_layers_per_block": [[1, [10**6]]]}),
        ("unet", {"block_out_channels": [64, 10**9, 112]}),
        ("unet", {"block_out_channels": [64] * 1000}),
        ("unet", {"down_block_types": ["DownBlock2D"] * 1000}),
        ("unet", {"block_out_channels": "64"}),
        ("unet", {"sample_size": None}),
        ("unet", {"sample_size": 10**5}),
        ("unet", {"sample_size": [16, 16]}),
        ("unet", {"cross_attention_dim": [32, 32, 32]}),
        ("unet", {"cross_attention_dim": None}),
        ("unet", {"norm_eps": float("nan")}),
        ("vae", {"layers_per_block": 10**9}),
        ("vae", {"scaling_factor": 0}),
        ("vae", {"scaling_factor": float("inf")}),
        ("vae", {"scaling_factor": None}),
        ("vae", {"latent_channels": -(10**9)}),
    ],
)
def test_a_number_that_no_network_has_is_refused_with_its_file(folder, part, fields):
    change_json(folder / part / "config.json", **fields)
    with pytest.raises(CheckpointError) as caught:
        read(folder)
    (field,) = fields
    assert field in str(caught.value)
    assert f"{part}/config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("part", "fields"),
    [
        ("unet", {"down_block_types": ["NoSuchBlock"] * 3}),
        ("unet", {"norm_num_groups": 7}),
        ("unet", {"in_channels": "four"}),
        ("unet", {"act_fn": "no-such-function"}),
        ("unet", {"class_embed_type": "no-such-type"}),
        ("vae", {"up_block_types": [None] * 4}),
        ("vae", {"latent_channels": 0}),
        ("vae", {"act_fn": {}}),
    ],
)
def test_what_diffusers_cannot_build_is_one_clear_error(folder, part, fields):
    change_json(folder / part / "config.json", **fields)
    with pytest.raises(
        CheckpointError, match=r"diffusers cannot make|holds|missing|class_embed_type|latents of 4"
    ):
        read(folder)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"shift_factor": 0.1}, "shift_factor"),
        ({"latents_mean": [0.1] * 4, "latents_std": [2.0] * 4}, "latents_mean, latents_std"),
    ],
)
def test_a_vae_that_moves_its_latents_is_of_another_kind(folder, fields, named):
    """It would load, and paint in other colours."""
    change_json(folder / "vae" / "config.json", **fields)
    with pytest.raises(CheckpointError, match=f"vae/config.json of .* sets {named}, which"):
        read(folder)


@pytest.mark.parametrize("part", ["scheduler", "image_noising_scheduler"])
@pytest.mark.parametrize(
    "fields",
    [
        {"num_train_timesteps": 10**9},
        {"num_train_timesteps": 0},
        {"num_train_timesteps": "1000"},
        {"beta_schedule": "no-such-schedule"},
        {"beta_start": "low", "beta_schedule": "linear"},
        {"beta_start": float("nan")},
        {"trained_betas": ["a"]},
        {"_class_name": "FlaxDDIMScheduler"},
    ],
)
def test_a_scheduler_that_diffusers_cannot_make_is_one_clear_error(folder, part, fields):
    change_json(folder / part / "scheduler_config.json", **fields)
    with pytest.raises(CheckpointError, match=part):
        read(folder)


def test_a_unet_that_takes_no_embedding_is_refused(folder):
    """It would load, and paint without looking at the picture."""
    change_json(folder / "unet" / "config.json", class_embed_type=None)
    with pytest.raises(CheckpointError, match="takes no image embedding"):
        read(folder)


@pytest.mark.parametrize("numbers", [0.0, -1.0, torch.nan, torch.inf])
def test_a_normaliser_that_cannot_divide_is_refused(folder, numbers):
    file = folder / "image_normalizer" / WEIGHTS
    change_tensors(file, lambda tensors: tensors["std"].view(-1)[3].fill_(numbers))
    with pytest.raises(CheckpointError, match="deviations above 0|NaN or infinity"):
        read(folder)


def test_a_text_encoder_without_end_is_not_built(text_folder):
    change_json(text_folder / "text_encoder" / "config.json", num_hidden_layers=10**9)
    with pytest.raises(CheckpointError, match=r"num_hidden_layers in text_encoder/config\.json"):
        read(text_folder)


def test_a_packed_text_encoder_is_refused(text_folder):
    import zipfile

    file = text_folder / "text_encoder" / "model.safetensors"
    torch.save(load_file(file), file.with_name("raw.bin"))
    file.unlink()
    with (
        zipfile.ZipFile(file.with_name("raw.bin")) as archive,
        zipfile.ZipFile(file.with_name("pytorch_model.bin"), "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for info in archive.infolist():
            packed.writestr(info.filename, archive.read(info))
    file.with_name("raw.bin").unlink()
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin was refused"):
        read(text_folder)


def test_a_decoder_of_nothing_but_half_precision_files_loads_as_its_check_says(text_folder):
    expected = seed_core.load_decoder(text_folder).module
    for file in text_folder.rglob("*.safetensors"):
        file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))
    plan_conversion(text_folder, torch.float16)
    half = seed_core.load_decoder(text_folder).module
    assert equal(half, expected)
    assert torch.equal(half.text, expected.text)
