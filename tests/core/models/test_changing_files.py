"""Model files that are cut short or exchanged while they are read or in use."""

import mmap
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from seed_core.compute import fp8
from seed_core.errors import CheckpointError
from seed_core.files import weights
from seed_core.models.convert import convert_model, plan_conversion
from seed_core.models.llm import load_llm, open_llm
from seed_core.models.tokenizer import load_tokenizer, open_tokenizer
from seed_core.models.unclip import load_decoder, open_decoder

OPEN = {"tokenizer": open_tokenizer, "llm": open_llm, "decoder": open_decoder}
LOAD = {"tokenizer": load_tokenizer, "llm": load_llm, "decoder": load_decoder}
FORMS = ("safetensors", "zip", "legacy")
# As each kind of model may be called in the form of a pickled file.
PICKLED = {"tokenizer": "seed_quantizer.pt", "llm": "pytorch_model.bin"}


@pytest.fixture
def saved(mini_folder, tmp_path):
    """A copy of a bundled model in one of the forms."""

    def make(kind, form="safetensors"):
        folder = shutil.copytree(mini_folder / kind, tmp_path / f"{kind}-{form}")
        for file in folder.rglob("*.safetensors") if form != "safetensors" else ():
            pickled = file.with_name(PICKLED.get(kind, f"{file.stem}.bin"))
            torch.save(load_file(file), pickled, _use_new_zipfile_serialization=form == "zip")
            file.unlink()
        return folder

    return make


@pytest.fixture
def forbid_maps(monkeypatch):
    """From its call on maps are an error, but for one of torch's that is not read."""

    def refuse(*arguments, **named):
        raise AssertionError("mapped")

    return lambda: monkeypatch.setattr(mmap, "mmap", refuse)


CUT_AFTERWARDS = """
import os, sys
from pathlib import Path
import seed_core
how, *models = sys.argv[1:]
for kind, folder in zip(models[::2], models[1::2]):
    load = {"tokenizer": seed_core.load_tokenizer, "llm": seed_core.load_llm,
            "decoder": seed_core.load_decoder}[kind]
    model = load(folder, is_mapped=how == "mapped")
    for file in Path(folder).rglob("*"):
        if file.suffix in (".safetensors", ".bin", ".pt"):
            os.truncate(file, 10)
    print(sum(float(x.float().sum()) for x in model.module.state_dict().values()))
"""


def cut_afterwards(how, *models):
    """In a process of its own: one that reads such a map is ended by the system."""
    words = [str(word) for model in models for word in model]
    command = [sys.executable, "-c", CUT_AFTERWARDS, how, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_model_that_was_read_without_a_map_outlives_its_files(saved):
    forms = [*((kind, "safetensors") for kind in LOAD), ("llm", "zip"), ("llm", "legacy")]
    models = [(kind, saved(kind, form)) for kind, form in forms]
    states = [LOAD[kind](folder).module.state_dict() for kind, folder in models]
    result = cut_afterwards("copied", *models)
    assert (result.returncode, result.stderr) == (0, "")
    totals = [sum(float(x.float().sum()) for x in state.values()) for state in states]
    assert [float(line) for line in result.stdout.split()] == pytest.approx(totals)


@pytest.mark.skipif(sys.platform == "win32", reason="there a file in use cannot be cut short")
def test_a_model_that_was_mapped_does_not_outlive_its_file(saved):
    """So that the test above shows something. ComfyUI's own models end the same way."""
    folder = saved("llm")
    tensors = load_file(folder / "model.safetensors")
    save_file({key: x.float() for key, x in tensors.items()}, folder / "model.safetensors")
    assert cut_afterwards("mapped", ("llm", folder)).returncode == -signal.SIGBUS


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", LOAD)
def test_without_a_map_the_same_model_is_read(saved, kind, form, forbid_maps, monkeypatch):
    folder = saved(kind, form)
    expected = LOAD[kind](folder).module.state_dict()
    forbid_maps()
    opened = OPEN[kind](folder)
    load, mapped = torch.load, []

    def watch(*arguments, **named):
        mapped.append(named["mmap"])
        return load(*arguments, **named)

    monkeypatch.setattr(torch, "load", watch)
    found = opened.load(torch.device("cpu"), is_mapped=False).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    assert not any(mapped)
    assert bool(mapped) == (form != "safetensors")


@pytest.mark.parametrize("kind", OPEN)
def test_opening_a_model_maps_nothing(saved, kind, forbid_maps):
    folder = saved(kind)
    forbid_maps()
    OPEN[kind](folder)


def test_opening_a_converted_model_maps_nothing(mini_folder, tmp_path, forbid_maps):
    """Scales, small files and the encoded prompt lie in one file with the weights."""
    files = {kind: tmp_path / f"{kind}.safetensors" for kind in ("llm", "decoder")}
    for kind, dtype in (("llm", fp8.FP8), ("decoder", torch.float16)):
        convert_model(plan_conversion(mini_folder / kind, dtype), files[kind])
    forbid_maps()
    for kind, file in files.items():
        OPEN[kind](file)


def test_opening_a_pickled_model_reads_nothing_of_its_map(saved, tmp_path):
    """The map is there when the file is cut short, and whoever reads it is ended."""
    script = """
import os, sys, torch
from pathlib import Path
from seed_core.files.weights import read_stand_ins
load = torch.load
def cut(path, **named):
    content = load(path, **named)
    os.truncate(path, 10)
    return content
torch.load = cut
print(len(list(read_stand_ins(Path(sys.argv[1])))))
"""
    file = saved("llm", "zip") / "pytorch_model.bin"
    count = len(list(weights.read_stand_ins(file)))
    command = [sys.executable, "-c", script, str(file)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, str(count), "")


@pytest.mark.parametrize("is_mapped", [True, False])
def test_a_file_cut_short_between_two_tensors_is_one_clear_error(tmp_path, is_mapped):
    path = tmp_path / "model.safetensors"
    save_file({f"{number}": torch.ones(2**18) for number in range(8)}, path)
    reader = weights.read_tensors(path, is_mapped=is_mapped)
    next(reader)
    with path.open("r+b") as file:
        file.truncate(3 * 2**20)
    with pytest.raises(CheckpointError, match=r"model\.safetensors .*download it again"):
        list(reader)


def test_tensors_without_a_map_have_memory_of_their_own(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3), "b": torch.zeros(2).half(), "c": torch.zeros(0)}, path)
    found = dict(weights.read_tensors(path, is_mapped=False))
    save_file({"a": torch.zeros(3), "b": torch.ones(2).half(), "c": torch.zeros(0)}, path)
    assert torch.equal(found["a"], torch.ones(3))
    assert torch.equal(found["b"], torch.zeros(2).half())
    assert found["c"].shape == (0,)
