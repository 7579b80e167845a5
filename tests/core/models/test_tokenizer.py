"""SEED-1's files: two tables under "model" with the tower beside them, and what they lack."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import seed_core
from seed_core.errors import CheckpointError
from seed_core.tokenizer.preprocess import preprocess

TOWER = "visual_encoder."
FIRST = ("query_tokens", "Qformer.", "ln_vision.")


@pytest.fixture
def published(tmp_path, seed_1_folder):
    """The tiny SEED-1 in the pieces in which it is published; returns the file that is chosen."""
    tensors = load_file(seed_1_folder / "model.safetensors")
    tower = {k.removeprefix(TOWER): v for k, v in tensors.items() if k.startswith(TOWER)}
    rest = {k: v for k, v in tensors.items() if not k.startswith(TOWER)}
    first = {k: v for k, v in rest.items() if k.startswith(FIRST)}
    second = {k: v for k, v in rest.items() if k not in first}
    # The first file comes from another stage of training: it has parts and values of its own.
    first |= {"temp": torch.tensor(0.07), "encode_task_layer.0.bias": torch.full((48,), 9.0)}
    torch.save(tower, tmp_path / "eva_vit_g.pth")
    torch.save({"model": first, "epoch": 3}, tmp_path / "causal_qformer.pth")
    torch.save({"model": second}, tmp_path / "seed_tokenizer.pth")
    shutil.copy(seed_1_folder / "config.json", tmp_path)
    return tmp_path / "seed_tokenizer.pth"


@pytest.fixture(scope="module")
def merged(seed_1_folder):
    return seed_core.load_tokenizer(seed_1_folder)


def weights(tokenizer):
    return {name: value.tolist() for name, value in tokenizer.module.state_dict().items()}


def test_the_published_files_equal_the_merged_one(published, merged):
    """Where both files hold a tensor, the second's counts, as in the reference."""
    assert weights(seed_core.load_tokenizer(published)) == weights(merged)
    assert weights(seed_core.load_tokenizer(published.parent)) == weights(merged)


def test_codes_become_a_text_condition(merged, make_generator):
    assert (merged.family, merged.embedding_shape) == ("seed-1", (77, 768))
    codes = torch.randint(64, (2, 32), generator=make_generator())
    condition = merged.embed(codes)
    assert condition.shape == (2, 77, 768)
    assert condition.dtype == torch.float32
    assert torch.equal(merged.embed(codes[1:]), condition[1:])
    assert merged.embed(codes[:0]).shape == (0, 77, 768)


def test_pictures_are_resized_as_the_family_was_trained(merged, mini_tokenizer, generator):
    picture = torch.rand(1, 3, 60, 90, generator=generator)
    for tokenizer, own, other in (
        (merged, "bicubic", "bilinear"),
        (mini_tokenizer, "bilinear", "bicubic"),
    ):
        pixels, size = tokenizer.preprocess(picture), tokenizer.image_size
        assert torch.equal(pixels, preprocess(picture, size, interpolation=own))
        assert not torch.equal(pixels, preprocess(picture, size, interpolation=other))


@pytest.mark.parametrize(
    ("file", "link"),
    [("causal_qformer.pth", "github.com"), ("eva_vit_g.pth", "storage.googleapis.com")],
)
def test_a_missing_piece_is_named_with_its_folder_and_where_to_get_it(published, file, link):
    (published.parent / file).unlink()
    with pytest.raises(CheckpointError, match=file) as caught:
        seed_core.load_tokenizer(published)
    assert str(published.parent) in str(caught.value)
    assert link in str(caught.value)


def test_the_first_file_alone_is_only_a_part(published):
    (published.parent / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"causal_qformer.pth.*not a whole SEED tokenizer"):
        seed_core.load_tokenizer(published.with_name("causal_qformer.pth"))


def test_weights_under_the_config_of_another_family_are_refused(published, mini_folder):
    """Both ways round: the config decides on the sizes, so it must be of the same model."""
    mini = mini_folder / "tokenizer"
    for weights_file, config in (
        (mini / "model.safetensors", published.with_name("config.json").read_bytes()),
        (published, (mini / "config.json").read_bytes()),
    ):
        folder = published.parent / f"beside {weights_file.stem}"
        folder.mkdir()
        (folder / "config.json").write_bytes(config)
        with pytest.raises(CheckpointError, match="config.json says"):
            seed_core.load_tokenizer(shutil.copy(weights_file, folder))


def test_an_unknown_interpolation_is_refused(published):
    path = published.parent / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"interpolation": "lanczos"}
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match="'lanczos'; known: bilinear, bicubic"):
        seed_core.load_tokenizer(published)


@pytest.mark.parametrize("has_config", [True, False])
def test_remains_of_a_text_branch_make_no_seed_1(tiny_tensors, tiny_config, has_config):
    """The published SEED-2 file holds 146 tensors that its model does not use."""
    remains = ("blocks_text.0.norm1.weight", "pos_embed_text", "distill_text_proj.weight")
    tensors = tiny_tensors | {key: torch.zeros(24) for key in remains}
    save_file(tensors, tiny_config / "model.safetensors")
    if has_config:
        assert seed_core.load_tokenizer(tiny_config).family == "seed-2"
    else:
        (tiny_config / "config.json").unlink()
        with pytest.raises(CheckpointError, match="another size"):  # than SEED-2 is published in
            seed_core.load_tokenizer(tiny_config)


def test_only_the_tower_of_seed_1_is_halved(seed_1_folder, merged, make_generator):
    """As in the reference, which keeps the Q-Former and the heads in float32."""
    half = seed_core.load_tokenizer(seed_1_folder, dtype=torch.float16)
    kinds = {}
    for name, tensor in half.module.state_dict().items():
        kinds.setdefault(tensor.dtype, set()).add(name.split(".")[1])
    assert kinds.pop(torch.float16) == {"visual_encoder", "image_norm"}
    assert kinds.keys() == {torch.float32}
    codes = torch.randint(64, (2, 32), generator=make_generator())
    assert torch.equal(half.embed(codes), merged.embed(codes))
    pixels = merged.preprocess(torch.rand(4, 3, 60, 60, generator=make_generator()))
    assert (half.encode(pixels) == merged.encode(pixels)).float().mean() > 0.8
