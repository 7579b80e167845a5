"""Quantised files that were not made here: what is understood, and what is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import seed_core
from seed_core.compute.fp8 import FP8, scale_of
from seed_core.errors import CheckpointError, OptionError
from seed_core.models.convert import convert_model, plan_conversion
from seed_core.models.llm import open_llm

UP = "model.layers.1.mlp.up_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"
COMMAND = "convert FOLDER -o NEW_FILE.safetensors --precision fp8"


@pytest.fixture
def make_folder(llm_folder, tmp_path):
    """A folder in fp8 with some tensors replaced, or left out where they are None."""
    folder = shutil.copytree(llm_folder, tmp_path / "fp8")
    (folder / "model.safetensors").unlink()
    convert_model(plan_conversion(llm_folder, FP8), folder / "model.safetensors")

    def make(tensors):
        file = tmp_path / "fp8" / "model.safetensors"
        changed = {**load_file(file), **tensors}
        save_file({key: t for key, t in changed.items() if t is not None}, file)
        return tmp_path / "fp8"

    return make


def test_a_folder_tells_whether_its_weights_are_in_fp8(make_folder, llm_folder):
    assert open_llm(make_folder({})).is_quantised
    assert open_llm(make_folder({}) / "config.json").is_quantised
    assert not open_llm(llm_folder).is_quantised
    assert not open_llm("seed-mini").is_quantised
    file = llm_folder / "model.safetensors"
    torch.save(load_file(file), llm_folder / "pytorch_model.bin")
    file.unlink()
    assert not open_llm(llm_folder).is_quantised


@pytest.mark.parametrize("dtype", [FP8, torch.bfloat16])
def test_fp8_without_a_scale_is_refused_by_name(make_folder, dtype):
    folder = make_folder({f"{DOWN}_scale": None})
    with pytest.raises(
        CheckpointError, match=rf"{DOWN} as float8_e4m3fn without a scale"
    ) as caught:
        seed_core.load_llm(folder, dtype=dtype)
    assert COMMAND in str(caught.value)


def test_fp8_of_the_other_kind_is_refused_by_name(make_folder):
    folder = make_folder({DOWN: torch.zeros(32, 48, dtype=torch.float8_e5m2)})
    with pytest.raises(CheckpointError, match=f"{DOWN} as float8_e5m2 with a scale"):
        seed_core.load_llm(folder)


def test_a_scale_beside_a_plain_weight_is_refused(make_folder):
    with pytest.raises(CheckpointError, match=f"{DOWN} as bfloat16 with a scale"):
        seed_core.load_llm(make_folder({DOWN: torch.zeros(32, 48, dtype=torch.bfloat16)}))


def test_a_scale_a_row_is_refused_by_name(make_folder):
    with pytest.raises(CheckpointError, match=rf"32 scales for one tensor \({DOWN}_scale\)"):
        seed_core.load_llm(make_folder({f"{DOWN}_scale": torch.ones(32)}))


@pytest.mark.parametrize("change", ["another scale", "no fp8"])
def test_tensors_that_are_joined_need_one_scale(make_folder, change):
    """Other programs quantise each tensor by itself."""
    new = {f"{UP}_scale": scale_of(100.0)}
    if change == "no fp8":
        new = {f"{UP}_scale": None, UP: torch.zeros(48, 32, dtype=torch.bfloat16)}
    folder = make_folder(new)
    with pytest.raises(CheckpointError, match=f"gate_proj.weight, {UP} have different") as caught:
        seed_core.load_llm(folder, dtype=FP8)
    assert COMMAND in str(caught.value)


def test_scales_of_each_tensor_do_for_another_precision_and_for_converting(make_folder, tmp_path):
    folder = make_folder({f"{UP}_scale": scale_of(100.0)})
    up = load_file(folder / "model.safetensors")[UP].float() * scale_of(100.0)
    state = seed_core.load_llm(folder).module.state_dict()
    assert torch.equal(state[UP.replace("up_proj", "gate_up_proj")][48:], up)
    convert_model(plan_conversion(folder, FP8), tmp_path / "again.safetensors")
    assert seed_core.load_llm(tmp_path / "again.safetensors", dtype=FP8).dtype == torch.bfloat16


@pytest.mark.parametrize("is_reversed", [False, True])
def test_old_scales_never_take_the_place_of_new_ones(make_folder, tmp_path, is_reversed):
    """Whatever the order in which a file lists them."""
    file = make_folder({f"{UP}_scale": scale_of(100.0)}) / "model.safetensors"
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    fields = json.loads(content[8:end])
    ordered = dict(sorted(fields.items(), reverse=is_reversed))
    file.write_bytes(
        content[:8]
        + json.dumps(ordered, separators=(",", ":")).encode().ljust(end - 8)
        + content[end:]
    )
    convert_model(plan_conversion(file.parent, FP8), tmp_path / "again.safetensors")
    made = load_file(tmp_path / "again.safetensors")
    assert made[f"{UP}_scale"] == made[f"{UP.replace('up_proj', 'gate_proj')}_scale"]
    assert made[f"{UP}_scale"] > 0.1


def test_a_scale_may_have_a_dimension(make_folder):
    folder = make_folder({})
    scale = load_file(folder / "model.safetensors")[f"{DOWN}_scale"]
    expected = seed_core.load_llm(folder, dtype=FP8).module.state_dict()[f"{DOWN}_scale"]
    state = seed_core.load_llm(make_folder({f"{DOWN}_scale": scale[None]}), dtype=FP8).module
    assert torch.equal(state.state_dict()[f"{DOWN}_scale"], expected)


def test_an_embedding_in_fp8_becomes_a_plain_one(make_folder):
    """There is no layer for it; products of other programs may well include the head."""
    table = torch.ones(1538, 32).to(FP8)
    new = {}
    for name in ("model.embed_tokens", "lm_head"):
        new |= {f"{name}.weight": table.clone(), f"{name}.weight_scale": scale_of(224.0)}
    state = seed_core.load_llm(make_folder(new), dtype=FP8).module.state_dict()
    assert state["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert (state["model.embed_tokens.weight"] == 0.5).all()
    assert state["lm_head.weight"].dtype == FP8


@pytest.mark.parametrize("source", ["a folder", "seed-mini"])
def test_fp8_asked_of_other_weights_is_refused_with_the_command(llm_folder, source):
    path = llm_folder if source == "a folder" else source
    with pytest.raises(OptionError, match="needs weights that were converted") as caught:
        seed_core.load_llm(path, dtype=FP8)
    assert COMMAND in str(caught.value)
