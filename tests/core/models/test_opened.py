"""Opening a model: whatever is refused when it is loaded is refused before a tensor is read."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from seed_core.errors import CheckpointError
from seed_core.files import safetensors
from seed_core.models.llm import load_llm, open_llm
from seed_core.models.tokenizer import load_tokenizer, open_tokenizer
from seed_core.models.unclip import load_decoder, open_decoder

OPEN = {"tokenizer": open_tokenizer, "llm": open_llm, "decoder": open_decoder}
LOAD = {"tokenizer": load_tokenizer, "llm": load_llm, "decoder": load_decoder}
FILES = {
    "tokenizer": "model.safetensors",
    "llm": "model.safetensors",
    "decoder": "unet/diffusion_pytorch_model.safetensors",
}


@pytest.fixture
def copy(mini_folder, tmp_path):
    """A copy of a bundled model, and its largest weight file."""

    def make(kind):
        folder = shutil.copytree(mini_folder / kind, tmp_path / kind)
        return folder, folder / FILES[kind]

    return make


def largest_key(tensors):
    return max(tensors, key=lambda key: tensors[key].numel())


def drop(tensors, key):
    del tensors[key]


def cut(tensors, key):
    tensors[key] = tensors[key][:-1].clone()


def make_whole_numbers(tensors, key):
    tensors[key] = tensors[key].to(torch.int8)


def make_float8(tensors, key):
    tensors[key] = tensors[key].to(torch.float8_e4m3fn)


@pytest.mark.parametrize("kind", OPEN)
@pytest.mark.parametrize("damage", [drop, cut, make_whole_numbers])
def test_what_opening_refuses_is_what_loading_refuses(copy, kind, damage):
    folder, file = copy(kind)
    tensors = load_file(file)
    damage(tensors, largest_key(tensors))
    save_file(tensors, file)
    with pytest.raises(CheckpointError) as opened:
        OPEN[kind](folder)
    with pytest.raises(CheckpointError) as loaded:
        LOAD[kind](folder)
    assert str(opened.value) == str(loaded.value)


def test_float8_without_a_scale_is_refused_when_it_is_opened(copy):
    folder, file = copy("llm")
    tensors = load_file(file)
    make_float8(tensors, "model.layers.0.mlp.down_proj.weight")
    save_file(tensors, file)
    with pytest.raises(
        CheckpointError, match=r"down_proj\.weight as float8_e4m3fn without a scale"
    ):
        open_llm(folder)


def test_a_tensor_in_two_files_is_refused_when_the_model_is_opened(copy):
    folder, file = copy("llm")
    tensors = load_file(file)
    key = largest_key(tensors)
    file.unlink()
    save_file(tensors, folder / "a.safetensors")
    save_file({key: tensors[key]}, folder / "b.safetensors")
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(CheckpointError, match="and so does another file"):
        open_llm(folder)


@pytest.mark.parametrize("kind", OPEN)
def test_opening_reads_no_weights(copy, kind, monkeypatch):
    folder, _ = copy(kind)
    read = []
    mapped = safetensors._map

    def watch(file, fields, start):
        read.extend(fields)
        return mapped(file, fields, start)

    monkeypatch.setattr(safetensors, "_map", watch)
    opened = OPEN[kind](folder)
    assert read == []
    assert len(list(opened.tensors())) > 30
    assert len(read) > 30


def test_opening_a_pickled_model_leaves_nothing_of_it_in_memory(copy):
    folder, file = copy("tokenizer")
    path = folder / "seed_quantizer.pt"
    torch.save(load_file(file), path)
    file.unlink()
    opened = open_tokenizer(folder)
    assert opened.weights == (path,)
    assert all(tensor.is_meta for _, tensor in opened.stand_ins())
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(path) not in maps.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", OPEN)
def test_the_layout_is_that_of_the_tensors(copy, kind):
    folder, _ = copy(kind)
    opened = OPEN[kind](folder)
    shapes = {key: tuple(tensor.shape) for key, tensor in opened.tensors()}
    layout = opened.layout()
    assert {key: entry.shape for key, entry in layout.items()} == shapes
    assert {entry.dtype for entry in layout.values()} == {torch.float32}


def test_a_pickled_model_with_scales_of_fp8_is_read_like_any_other(copy):
    folder, file = copy("llm")
    tensors = load_file(file)
    key = "model.layers.0.mlp.down_proj.weight"
    make_float8(tensors, key)
    tensors[f"{key}_scale"] = torch.tensor(0.5)
    torch.save(tensors, folder / "pytorch_model.bin")
    file.unlink()
    opened = open_llm(folder)
    assert opened.is_quantised
    state = opened.load(torch.device("cpu")).state_dict()
    assert torch.equal(state[key], tensors[key].float() * 0.5)
