"""A SEED-LLaMA's folder on tiny random weights: what is read from it, and what is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from seed_core.codes.value import image_token
from seed_core.errors import CheckpointError
from seed_core.llm.prompt import LLAMA_2, VICUNA
from seed_core.models.llm import VOCABULARY_LINK, load_llm

TEXT_TOKENS = 1024  # of seed-mini's tokenizer.model
WIDTH, MLP = 8, 12


def write_json(file, fields):
    file.write_text(json.dumps(fields), encoding="utf-8")


def change_json(file, **changes):
    write_json(file, {**json.loads(file.read_text(encoding="utf-8")), **changes})


def published_shapes(vocab_size, layers):
    """Every tensor of a LLaMA by the name that Hugging Face's files give it."""
    table, square, norm = (vocab_size, WIDTH), (WIDTH, WIDTH), (WIDTH,)
    shapes = {"model.embed_tokens.weight": table, "model.norm.weight": norm}
    shapes |= {"lm_head.weight": table}
    for i in range(layers):
        name = f"model.layers.{i}"
        shapes |= {f"{name}.self_attn.{part}_proj.weight": square for part in "qkvo"}
        shapes |= {f"{name}.mlp.{part}_proj.weight": (MLP, WIDTH) for part in ("gate", "up")}
        shapes |= {f"{name}.mlp.down_proj.weight": (WIDTH, MLP)}
        shapes |= {f"{name}.{part}_layernorm.weight": norm for part in ("input", "post_attention")}
    return shapes


@pytest.fixture
def make_folder(tmp_path, mini_folder, make_generator):
    """A folder as they are published, with any number of layers and of codes."""

    def make(layers=2, codes=512):
        begin = TEXT_TOKENS + codes
        added = {image_token(code): TEXT_TOKENS + code for code in range(codes)}
        write_json(tmp_path / "added_tokens.json", {**added, "<img>": begin, "</img>": begin + 1})
        shutil.copy(mini_folder / "llm" / "tokenizer.model", tmp_path)
        fields = {
            "model_type": "llama",
            "vocab_size": begin + 2,
            "hidden_size": WIDTH,
            "intermediate_size": MLP,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "max_position_embeddings": 64,
            "rms_norm_eps": 1e-5,
        }
        write_json(tmp_path / "config.json", fields)
        random = make_generator(13)
        shapes = published_shapes(begin + 2, layers)
        tensors = {key: torch.randn(shape, generator=random) for key, shape in shapes.items()}
        save_file(tensors, tmp_path / "model.safetensors")
        return tmp_path

    return make


@pytest.fixture
def folder(make_folder):
    return make_folder()


def read(folder):
    return load_llm(folder)


def equal(module, other):
    state, expected = module.state_dict(), other.state_dict()
    return state.keys() == expected.keys() and all(
        torch.equal(state[key], expected[key]) for key in state
    )


@pytest.mark.parametrize(
    ("layers", "template"), [(2, VICUNA), (32, VICUNA), (40, LLAMA_2)], ids=["2", "32", "40"]
)
def test_only_the_published_model_of_40_layers_has_the_llama_2_template(
    make_folder, layers, template
):
    assert read(make_folder(layers)).template is template


@pytest.mark.parametrize(("codes", "family"), [(512, "seed-mini"), (8192, "seed-2")])
def test_the_number_of_codes_tells_the_family(make_folder, codes, family):
    parts = read(make_folder(codes=codes))
    assert (parts.family, parts.vocab.codebook_size) == (family, codes)


def test_a_number_of_codes_that_no_family_has_is_refused(make_folder):
    with pytest.raises(CheckpointError, match="100 image codes.*8192.*512"):
        read(make_folder(codes=100))


# --- end tokens ---


@pytest.mark.parametrize(
    ("in_config", "in_generation_config", "end_ids"),
    [
        (1, 2, {1, 2}),
        (1, None, {1, 2}),
        (None, [7, 9], {2, 7, 9}),
        ([5, 7], [7, 9], {2, 5, 7, 9}),
        (-1, ["</s>", None], {2}),
    ],
)
def test_every_listed_end_token_counts(folder, in_config, in_generation_config, end_ids):
    """SEED-LLaMA-8B's config says 1 where its vocabulary and training say 2."""
    change_json(folder / "config.json", eos_token_id=in_config)
    write_json(folder / "generation_config.json", {"eos_token_id": in_generation_config})
    assert read(folder).end_ids == end_ids


def test_without_any_listed_the_vocabularys_end_token_counts(folder):
    assert read(folder).end_ids == {2}


# --- weights ---


def test_tied_embeddings_need_no_head_in_the_file(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["lm_head.weight"]
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        read(folder)
    change_json(folder / "config.json", tie_word_embeddings=True)
    state = read(folder).module.state_dict()
    assert torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"])


def shard(folder, suffix):
    """Split the weights in three as Hugging Face does, with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    table, names = {}, sorted(tensors)
    for part in range(3):
        name = f"{stem}-{part + 1:05d}-of-00003.{suffix}"
        chosen = {key: tensors[key] for key in names[part::3]}
        if suffix == "safetensors":
            save_file(chosen, folder / name)
        else:
            torch.save(chosen, folder / name)
        table |= dict.fromkeys(chosen, name)
    index = folder / f"{stem}.{suffix}.index.json"
    write_json(index, {"metadata": {}, "weight_map": table})
    return index


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_sharded_weights_load_like_one_file(folder, suffix):
    whole = read(folder).module
    shard(folder, suffix)
    assert equal(read(folder).module, whole)


def test_a_missing_shard_is_named(folder):
    shard(folder, "safetensors")
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00003.safetensors"):
        read(folder)


def test_an_index_that_points_outside_its_folder_is_refused(folder):
    index = shard(folder, "safetensors")
    change_json(index, weight_map={"a": "../elsewhere.safetensors"})
    with pytest.raises(CheckpointError, match="outside"):
        read(folder)


def test_a_missing_weight_is_named(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        read(folder)


# --- files ---


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        read(folder)


@pytest.mark.parametrize(
    "names",
    [["tokenizer.model"], ["added_tokens.json"], ["tokenizer.model", "added_tokens.json"]],
    ids="+".join,
)
def test_missing_vocabulary_files_are_named_with_their_address(folder, names):
    """The published folders of SEED-LLaMA have none; they come from another page."""
    for name in names:
        (folder / name).unlink()
    with pytest.raises(CheckpointError) as caught:
        read(folder)
    assert f"lacks {' and '.join(names)}; copy" in str(caught.value)
    assert VOCABULARY_LINK in str(caught.value)


def test_a_damaged_generation_config_is_named(folder):
    (folder / "generation_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        read(folder)


def test_a_missing_folder_is_named_with_its_address(tmp_path):
    with pytest.raises(CheckpointError, match="no-such-model.*https://"):
        read(tmp_path / "no-such-model")


def test_a_vocabulary_of_another_model_is_refused_with_both_sizes(folder):
    change_json(folder / "config.json", vocab_size=40194)
    with pytest.raises(CheckpointError, match="1538 token ids.*40194"):
        read(folder)


def test_a_config_of_something_else_is_named_with_its_folder(folder):
    (folder / "config.json").write_text('{"do_sample": true}', encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"config\.json of {folder}: model_type is missing"):
        load_llm(folder)


def test_a_weight_file_beside_the_models_own_is_not_taken_for_it(folder):
    """The folder's own would be loaded in its place."""
    other = shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    with pytest.raises(CheckpointError, match="other.safetensors is not what .* that is model"):
        load_llm(other)
    for name in ("model.safetensors", "config.json"):
        assert equal(load_llm(folder / name).module, read(folder).module)
