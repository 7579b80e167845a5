"""Reading adapters: into memory of their own, in any number format, and never more than they may be."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from seed_core import CheckpointError, load_llm, merge_lora, read_lora
from seed_core.__main__ import main
from seed_core.files import safetensors, weights

BASE = "base_model.model."
UP = f"{BASE}model.layers.1.mlp.up_proj"


def products(adapter):
    return {
        (p.part.weight, p.part.rows): p.scale * p.up.float() @ p.down.float()
        for p in adapter.products
    }


def as_pickle(folder, **options):
    """The same adapter as torch saves it."""
    file = folder / "adapter_model.safetensors"
    torch.save(load_file(file), folder / "adapter_model.bin", **options)
    file.unlink()
    return folder / "adapter_model.bin"


# --- files that change meanwhile ---

CUT_AFTERWARDS = """
import os, sys
from pathlib import Path
from seed_core import load_llm, merge_lora, read_lora
llm = load_llm(sys.argv[1])
for folder in sys.argv[2:]:
    adapter = read_lora(folder, llm.config)
    for file in Path(folder).glob("adapter_model.*"):
        os.truncate(file, 10)
    merge_lora(llm.module, adapter)
"""


def test_an_adapter_cut_short_after_it_was_read_is_used_as_it_was(
    llm_folder, tensors, save_adapter
):
    """In a process of its own: one that maps the file is ended by the system."""
    folders = [save_adapter(tensors, name) for name in ("one", "two", "three")]
    as_pickle(folders[1])
    as_pickle(folders[2], _use_new_zipfile_serialization=False)
    command = [sys.executable, "-c", CUT_AFTERWARDS, str(llm_folder), *map(str, folders)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_an_adapter_cut_short_while_it_is_read_is_one_sentence(
    llm, tensors, save_adapter, monkeypatch
):
    folder = save_adapter(tensors)
    file = folder / "adapter_model.safetensors"
    read = weights.read_copied

    def cut_meanwhile(path, names):
        for number, pair in enumerate(read(path, names)):
            if number == 3:
                with file.open("r+b") as opened:
                    opened.truncate(file.stat().st_size // 2)
            yield pair

    monkeypatch.setattr(weights, "read_copied", cut_meanwhile)
    with pytest.raises(CheckpointError, match="adapter_model.safetensors .*it ends inside"):
        read_lora(folder, llm.config)


def test_an_adapter_that_is_exchanged_while_it_is_read_is_checked_again(
    llm, tensors, save_adapter, monkeypatch
):
    folder = save_adapter(tensors)
    wider = {key: torch.zeros(*x.shape[:-1], x.shape[-1] + 1) for key, x in tensors.items()}
    look = weights.copied_stand_ins

    def exchanged(path):
        looks = list(look(path))
        save_file(wider, path)
        return looks

    monkeypatch.setattr(weights, "copied_stand_ins", exchanged)
    with pytest.raises(CheckpointError, match="do not fit each other"):
        read_lora(folder, llm.config)


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_nothing_of_an_adapter_is_mapped(llm, tensors, save_adapter, monkeypatch, form):
    folder = save_adapter(tensors)
    expected = products(read_lora(folder, llm.config))
    if form != "safetensors":
        as_pickle(folder, _use_new_zipfile_serialization=form == "zip")

    def refuse(*arguments, **named):
        raise AssertionError("mapped")

    load = torch.load
    monkeypatch.setattr(safetensors.mmap, "mmap", refuse)
    monkeypatch.setattr(torch, "load", lambda *a, mmap, **n: refuse() if mmap else load(*a, **n))
    found = products(read_lora(folder, llm.config))
    assert all(torch.equal(found[key], product) for key, product in expected.items())


# --- number formats ---

FORMATS = {
    torch.float64: 0,
    torch.float16: 2**-10,
    torch.bfloat16: 2**-7,
    torch.float8_e4m3fn: 2**-3,
    torch.float8_e5m2: 2**-2,
}


@pytest.mark.parametrize("form", ["safetensors", "pickle"])
@pytest.mark.parametrize("dtype", FORMATS)
def test_every_format_of_floats_is_read_as_the_numbers_it_holds(
    llm, tensors, save_adapter, dtype, form
):
    stored = {key: x.to(dtype) for key, x in tensors.items()}
    folder = save_adapter(stored)
    if form == "pickle":
        as_pickle(folder)
    expected = products(
        read_lora(save_adapter({k: x.float() for k, x in stored.items()}, "same"), llm.config)
    )
    found = products(read_lora(folder, llm.config))
    assert all(torch.equal(found[key], product) for key, product in expected.items())
    merge_lora(llm.module, read_lora(folder, llm.config))


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64]
)
def test_other_formats_are_refused_by_their_names(llm, tensors, save_adapter, dtype):
    folder = save_adapter(tensors | {f"{UP}.lora_A.weight": torch.ones(4, 32).to(dtype)})
    with pytest.raises(CheckpointError, match=f"up_proj.lora_A.* as {str(dtype)[6:]}: another"):
        read_lora(folder, llm.config)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.float8_e5m2, torch.float8_e4m3fn]
)
def test_numbers_that_are_none_are_refused_in_every_format(llm, tensors, save_adapter, dtype):
    broken = torch.full((4, 32), torch.nan).to(dtype)
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        read_lora(save_adapter(tensors | {f"{UP}.lora_A.weight": broken}), llm.config)


def test_numbers_too_large_for_any_weight_are_refused(llm, tensors, save_adapter):
    huge = {
        f"{UP}.lora_A.weight": torch.full((4, 32), 1e30),
        f"{UP}.lora_B.weight": torch.full((48, 4), 1e30),
    }
    with pytest.raises(CheckpointError, match=r"up_proj hold numbers whose product is too large"):
        read_lora(save_adapter(tensors | huge), llm.config)
    wide = {f"{UP}.lora_A.weight": torch.full((4, 32), 1e300, dtype=torch.float64)}
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        read_lora(save_adapter(tensors | wide), llm.config)


# --- sizes ---


def test_matrices_that_are_turned_are_told_so(llm, tensors, save_adapter):
    """As mlx has them, by whatever names; blamed on the model they would send people in circles."""
    turned = {key: x.T.contiguous() for key, x in tensors.items()}
    with pytest.raises(CheckpointError, match=r"\[48, 4\] and \[4, 32\], .*the other way round"):
        read_lora(save_adapter(turned), llm.config)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (4, 0), (4, 32, 1), (1, 4, 32)])
def test_matrices_of_other_dimensions_are_refused(llm, tensors, save_adapter, shape):
    for key in (f"{UP}.lora_A.weight", f"{UP}.lora_B.weight"):
        with pytest.raises(CheckpointError, match="do not fit each other|another language model"):
            read_lora(save_adapter(tensors | {key: torch.zeros(shape)}), llm.config)


def header_only(shapes):
    """A safetensors file whose data is a hole: it takes no room on the disk."""
    fields, end = {}, 0
    for key, shape in shapes.items():
        size = 4 * torch.Size(shape).numel()
        fields[key] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(fields).encode()
    return len(text).to_bytes(8, "little") + text, 8 + len(text) + end


@pytest.mark.parametrize(
    ("rank", "named"),
    [(10**6, "far too many for an adapter"), (2000, "rank 2,000 .*than it takes")],
)
def test_absurd_ranks_are_refused_before_memory_is_taken(
    llm, tensors, save_adapter, peak_memory, rank, named
):
    folder = save_adapter(tensors, r=rank)
    start, size = header_only(
        {f"{UP}.lora_A.weight": (rank, 32), f"{UP}.lora_B.weight": (48, rank)}
    )
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write(start)
        file.truncate(size)

    def read():
        with pytest.raises(CheckpointError, match=named):
            read_lora(folder, llm.config)

    assert peak_memory(read) < 100_000


def test_a_language_model_in_place_of_an_adapter_is_not_read(llm, tensors, save_adapter):
    folder = save_adapter(tensors)
    with (folder / "adapter_model.safetensors").open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(CheckpointError, match="1,099,511,627,776 bytes, far too many"):
        read_lora(folder, llm.config)


def test_many_names_of_one_storage_take_its_memory_once(llm, tensors, save_adapter, make_generator):
    """A small pickle whose names ask for far more than it holds."""
    storage = torch.randn(2000 * 48, generator=make_generator(1))
    shared = {key: storage[: x.numel()].view(x.shape) for key, x in tensors.items()}
    folder = save_adapter(tensors)
    (folder / "adapter_model.safetensors").unlink()
    torch.save(shared, folder / "adapter_model.bin")
    adapter = read_lora(folder, llm.config)
    places = {p.down.untyped_storage().data_ptr() for p in adapter.products}
    assert len(places) == 1


def test_millions_of_names_in_the_config_are_no_work(llm, tensors, save_adapter):
    """Of modules that the model lacks, as of other models."""
    names = [f"some.module.{number}" for number in range(300_000)]
    seven = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    fields = {
        "target_modules": [*names, *seven],
        "exclude_modules": names,
        "modules_to_save": names,
    }
    fields["layers_to_transform"] = list(range(300_000))
    assert read_lora(save_adapter(tensors, **fields), llm.config).products


def test_a_name_that_is_there_twice_is_found_among_many_at_once(llm, tensors, save_adapter):
    """Each counted in turn they would take hours."""
    folder = save_adapter(tensors)
    names = ", ".join(f'"{number}": 1' for number in [*range(500_000), 499_999])
    (folder / "adapter_config.json").write_text(f"{{{names}}}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="'499999' occurs twice"):
        read_lora(folder, llm.config)


YEARS = [".*" * 11 + "x", ".*" * 400 + "x", "(a|a|.)?" * 100 + "x"]


@pytest.mark.parametrize("text", YEARS)
@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_patterns_that_python_takes_years_over_are_refused(llm, tensors, save_adapter, field, text):
    folder = save_adapter(tensors, **{field: {text: 4}})
    with pytest.raises(CheckpointError, match=f"{field}.*too much work"):
        read_lora(folder, llm.config)


@pytest.mark.parametrize("text", YEARS)
@pytest.mark.parametrize("field", ["target_modules", "exclude_modules"])
def test_such_patterns_of_modules_are_not_held_against_the_file(
    llm, tensors, save_adapter, field, text
):
    assert read_lora(save_adapter(tensors, **{field: text}), llm.config).products


# --- damaged headers ---


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dtype", 3),
        ("dtype", "F16"),
        ("shape", "4"),
        ("shape", [4, -32]),
        ("shape", [4.0, 32]),
        ("shape", [True, 128]),
        ("shape", [2**62, 2**62, 0]),
        ("shape", [2**40, 2**40]),
        ("data_offsets", [0]),
        ("data_offsets", [0, 10**30]),
        ("data_offsets", [512, 0]),
        ("data_offsets", [8, 520]),
    ],
)
def test_a_header_that_lies_is_one_sentence(llm, save_adapter, field, value):
    folder = save_adapter({f"{UP}.lora_A.weight": torch.zeros(4, 32)})
    content = save({f"{UP}.lora_A.weight": torch.zeros(4, 32)})
    length = int.from_bytes(content[:8], "little")
    fields = json.loads(content[8 : 8 + length])
    fields[f"{UP}.lora_A.weight"][field] = value
    text = json.dumps(fields).encode()
    (folder / "adapter_model.safetensors").write_bytes(
        len(text).to_bytes(8, "little") + text + content[8 + length :]
    )
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors .*It is damaged"):
        read_lora(folder, llm.config)


@pytest.mark.parametrize(
    "change", [b"", b"\0", b"\xff" * 8, b"<!DOCTYPE html><html>", "cut", "longer"]
)
def test_other_content_is_one_sentence(llm, tensors, save_adapter, change):
    file = save_adapter(tensors) / "adapter_model.safetensors"
    content = file.read_bytes()
    whole = {"cut": content[:-1], "longer": content + b"\0"}
    file.write_bytes(whole.get(change, change) if isinstance(change, str) else change)
    with pytest.raises(CheckpointError, match="adapter_model.safetensors"):
        read_lora(file.parent, llm.config)


# --- folders ---


def test_safetensors_come_before_the_pickle_beside_them(llm, tensors, save_adapter):
    folder = save_adapter(tensors)
    torch.save(
        {key: torch.zeros_like(x) for key, x in tensors.items()}, folder / "adapter_model.bin"
    )
    expected = products(read_lora(save_adapter(tensors, "alone"), llm.config))
    found = products(read_lora(folder, llm.config))
    assert all(torch.equal(found[key], product) for key, product in expected.items())


def test_shards_that_hold_the_same_tensor_are_refused(llm, tensors, save_adapter):
    folder = save_adapter(tensors)
    for number in (1, 2):
        shutil.copy(folder / "adapter_model.safetensors", folder / f"part-{number}.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    table = {key: f"part-{number % 2 + 1}.safetensors" for number, key in enumerate(tensors)}
    index = folder / "adapter_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": table}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="and so does another file"):
        read_lora(folder, llm.config)


def test_a_run_with_nothing_but_checkpoints_names_them(llm, tensors, save_adapter, tmp_path):
    for step in (500, 1000):
        save_adapter(tensors, f"run/checkpoint-{step}")
    with pytest.raises(
        CheckpointError, match="in its folders checkpoint-1000, checkpoint-500: choose"
    ):
        read_lora(tmp_path / "run", llm.config)


@pytest.mark.parametrize("name", ["adapters.safetensors", "lora-f16.gguf", "mine.bin"])
def test_a_folder_with_files_of_other_names_says_which(llm, tensors, save_adapter, name):
    folder = save_adapter(tensors)
    (folder / "adapter_model.safetensors").rename(folder / name)
    with pytest.raises(CheckpointError, match=rf"[^.]\. It has {name}: one that"):
        read_lora(folder, llm.config)


def test_tokens_that_were_trained_alone_are_merged_into_a_file_too(
    llm, llm_folder, tensors, save_adapter, make_generator, tmp_path
):
    rows = torch.randn(2, 32, generator=make_generator(6))
    key = f"{BASE}model.embed_tokens.token_adapter.trainable_tokens_delta"
    ids = [900, 3]
    folder = save_adapter(tensors | {key: rows}, trainable_token_indices=ids)
    merge_lora(llm.module, read_lora(folder, llm.config), 0.4)
    output = tmp_path / "merged.safetensors"
    asked = ["convert", str(llm_folder), "-o", str(output), "--precision", "fp32"]
    assert main([*asked, "--lora", f"{folder}:0.4"]) == 0
    merged = load_llm(output).module.state_dict()
    for name, tensor in llm.module.state_dict().items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-6, atol=1e-6)


def test_new_tokens_alone_do_not_make_a_larger_table(
    ancestor, tensors, save_adapter, capsys, tmp_path
):
    """A few rows are not a row for each token that a smaller model lacks."""
    rows = {
        f"{BASE}{name}.token_adapter.trainable_tokens_delta": torch.zeros(1, 32)
        for name in ("model.embed_tokens", "lm_head")
    }
    ids = {"embed_tokens": [1500], "lm_head": [1500]}
    folder = save_adapter(tensors | rows, trainable_token_indices=ids)
    output = tmp_path / "merged.safetensors"
    assert main(["convert", str(ancestor), "-o", str(output), "--lora", str(folder)]) == 1
    assert "no adapter has all of model.embed_tokens.weight" in capsys.readouterr().err


def test_the_command_line_takes_a_checkpoint_of_a_run(
    mini_llm, peft_adapter, make_generator, tmp_path, capsys
):
    tensors = peft_adapter.random_tensors(mini_llm.config, make_generator(4), size=0.5)
    folder = peft_adapter.save(tmp_path / "run" / "checkpoint-500", tensors)
    shutil.copy(folder / "adapter_config.json", tmp_path / "run")
    asked = [
        "chat",
        "Draw a fox.",
        "--reply",
        "text",
        "--temperature",
        "0",
        "--max-new-tokens",
        "8",
    ]
    said = []
    for options in (
        [],
        ["--lora", str(folder)],
        ["--lora", str(folder / "adapter_model.safetensors")],
    ):
        assert main([*asked, *options]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] != said[1] == said[2]
    assert main([*asked, "--lora", str(tmp_path / "run")]) == 1
    assert "checkpoint-500: choose one" in capsys.readouterr().err
