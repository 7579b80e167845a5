"""The command for whoever has a card: on a processor all of it runs, in tiny sizes."""

import dataclasses
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from seed_core import GenerationOptions, load_llm
from seed_core.bench.card import goals, parts
from seed_core.models.convert import plan_conversion

ROOT = Path(__file__).parents[2]
COMMAND = ROOT / "benchmarks" / "on_a_card.py"


@pytest.fixture(scope="module")
def card():
    """The command as a module; the parts' package is beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(COMMAND.parent))
        yield importlib.import_module("on_a_card")


@pytest.fixture(scope="module")
def commands(card):
    return importlib.import_module("card.commands")


@pytest.fixture
def setting(tmp_path):
    return parts.Setting(parts.TINY, "cpu", {"device": None}, None, tmp_path / "work", ROOT)


def test_what_is_missing_is_named(card, setting):
    none = parts.Part("a", 60, lambda setting, folder: [], needs=("no_such_package",))
    bare = dataclasses.replace(setting, size=parts.FULL)
    why = {p.name: parts.why_not(p, bare, 100) for p in [none, *card.PARTS]}
    assert why["a"] == "not installed: no_such_package"
    assert why["gpu tests"] == "no card"
    assert why["comfyui"].startswith("no ComfyUI found")
    assert why["decode fp8"].startswith("no units for fp8")
    on_card = dataclasses.replace(bare, device="cuda", facts={"capability": [9, 0]})
    assert [p.name for p in card.PARTS if parts.why_not(p, on_card, 100)] == ["comfyui"]


def test_every_test_for_a_card_is_run(commands, setting):
    files = [Path(name).name for name in commands.gpu_tests(setting, Path())]
    files = {name for name in files if name.endswith(".py")}
    assert {"test_graphs.py", "test_fp8.py", "test_denoiser.py"} <= files
    assert Path(__file__).name not in files


def test_stopping_it_ends_its_parts_and_still_tells_what_was_found(tmp_path):
    """A machine that is lent for a time says so with SIGTERM."""
    options = ["--parts", "little memory,encode", "--size", "tiny", "--folder", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, str(COMMAND), "--json", str(tmp_path / "it.json"), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        text=True,
    )
    said = []
    while not (said and said[-1].startswith("--- encode")):
        said.append(process.stdout.readline())
        assert said[-1], said
    process.terminate()
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert "stopped" in rest
    assert "| what | goal | found | met |" in rest
    assert [path.name for path in tmp_path.iterdir()] == ["it.json"]
    report = json.loads((tmp_path / "it.json").read_text(encoding="utf-8"))
    assert list(report["parts"]) == ["little memory"]


def test_the_published_goals_are_the_commands():
    text = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    assert "\n".join(goals.table({})) in text


def test_copies_to_and_from_the_card_are_told_apart(load_helper):
    """As torch's profiler writes them down, those within the card among them."""

    def event(category, name, size=0):
        return {"ph": "X", "cat": category, "name": name, "args": {"bytes": size}}

    count = load_helper(ROOT / "tests/host/probe/copies.py").count_copies
    copies = [
        event("gpu_memcpy", "Memcpy HtoD (Pageable -> Device)", 100),
        event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 20),
        event("gpu_memcpy", "Memcpy DtoH (Device -> Pageable)", 3),
        event("gpu_memcpy", "Memcpy DtoD (Device -> Device)", 4000),
    ]
    assert "why_not" in count([*copies, {"ph": "M", "name": "process_name"}])
    found = count([*copies, event("kernel", "gemm"), {"ph": "M", "name": "process_name"}])
    assert found == {"to_card": 120, "from_card": 3, "copies": 4, "kernels": 1}


# --- the models ---


@pytest.fixture(scope="module")
def models(card):
    return importlib.import_module("card.models")


@pytest.mark.skipif(os.name != "posix", reason="files with holes take no room on POSIX systems")
def test_models_of_full_size_are_those_that_are_published(models, tmp_path):
    """Names, shapes, vocabulary and all small files, of weights that are holes."""
    sizes = models.full()
    files = [models.language_model(sizes.llm), models.tokenizer(sizes.tokenizer)]
    files += models.decoder(sizes)
    for file in files:
        path = tmp_path / file.path
        make = dict.fromkeys(file.forms, torch.empty(0)).__getitem__
        models._writers().write_tensors(path, file.forms, make, file.metadata)
        os.truncate(path, path.stat().st_size + file.nbytes)
        for name, content in file.beside.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
    files[-1].write(tmp_path, torch.device("cpu"))  # whose numbers are looked at
    llm = plan_conversion(tmp_path / "seed_llm" / models.LLM, torch.bfloat16)
    tokenizer = plan_conversion(tmp_path / "seed_tokenizer" / models.TOKENIZER_FILE, torch.float16)
    decoder = plan_conversion(tmp_path / "seed_decoder" / models.DECODER, torch.float16)
    for folder in tmp_path.iterdir():
        shutil.rmtree(folder)
    assert [x.opened.kind for x in (llm, tokenizer, decoder)] == ["llm", "tokenizer", "decoder"]
    assert [round(x.nbytes / 2**30, 1) for x in (llm, tokenizer, decoder)] == [12.7, 2.1, 1.8]
    assert models.language_model(sizes.llm).nbytes < 7 * 2**30


def test_the_one_language_model_is_loaded_in_fp8_and_in_16_bits(models, tmp_path):
    file = models.language_model(models.tiny().llm)
    file.write(tmp_path, torch.device("cpu"))
    replies = []
    for dtype in (torch.float8_e4m3fn, torch.bfloat16):
        llm = load_llm(tmp_path / file.path, dtype=dtype)
        assert llm.family == "seed-2"
        assert llm.module.model.layers[0].mlp.down_proj.weight.dtype == dtype
        options = GenerationOptions("image", 34, temperature=0)
        (codes,) = llm.generate("Draw a red fox.", options=options).codes.tolist()
        assert len(set(codes)) > 8, "the same code again and again tells little"
        replies.append(codes)
    assert sum(a == b for a, b in zip(*replies, strict=True)) > 8


def test_a_disk_with_too_little_room_is_refused_before_anything_is_written(
    models, tmp_path, monkeypatch
):
    usage = namedtuple("usage", "free")(2**30)
    monkeypatch.setattr(models.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match=r"1\.0 GiB left.*--folder"):
        models.write(tmp_path, models.tiny(), torch.device("cpu"), False, print)
    assert not list(tmp_path.iterdir())


# --- the whole command, on a processor ---


def run(tmp_path, parts, **environment):
    """Run the command; return its exit status, what it said and its JSON file."""
    work = tmp_path / "work"
    work.mkdir()
    options = ["--parts", parts, "--json", str(tmp_path / "it.json"), "--folder", str(work)]
    ran = subprocess.run(
        [sys.executable, str(COMMAND), "--size", "tiny", *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert not list(work.iterdir())
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout, json.loads((tmp_path / "it.json").read_text(encoding="utf-8"))


def test_the_command_runs_on_a_processor(tmp_path):
    said, report = run(tmp_path, "gpu tests, decode bf16, little memory")
    assert "no card" in said
    assert "| tests that need a card | all pass | not run: no card |  |" in said
    decode, memory = (report["parts"][name] for name in ("decode bf16", "little memory"))
    assert {r["who"] for r in decode["rows"]} == {"ours", "limit", "transformers"}
    assert [f["ok"] for f in memory["found"]] == [None, None, None, True]
    assert {goal["what"]: goal["found"] for goal in report["table"]}[
        "8B in bf16, 1 variation"
    ] == "not told: tiny sizes"


@pytest.mark.host
def test_an_artists_session_in_comfyui_goes_well(tmp_path, comfy):
    environment = {"COMFYUI_PATH": str(comfy.find_checkout())}
    said, report = run(tmp_path, "comfyui", **environment)
    part = report["parts"]["comfyui"]
    assert part["status"] == "ended", said
    verdicts = {f["name"]: f["ok"] for f in part["found"] if f["ok"] is not None}
    assert all(verdicts.values()), said
    assert set(verdicts) == {
        "second Generate gives the same reply",
        "a LoRA changes the reply, and none gives the old one back",
        "Stop in the middle of a reply, to its end",
        "a reply after Stop is the one before",
        "Stop in the middle of a picture, to its end",
        "a reply after unloading is the one before",
        "second Generate in bf16 gives the same reply",
    }
    assert "| second SEED Generate | the same reply | yes | yes |" in said


def test_a_server_of_the_tests_computes_on_the_processor_unless_told_otherwise(comfy, tmp_path):
    """Each argument is the host's own."""
    assert "--cpu" in comfy.ComfyServer(tmp_path, tmp_path)._command()
    on_card = comfy.ComfyServer(tmp_path, tmp_path, args=("--lowvram",))._command()
    assert "--cpu" not in on_card
    assert on_card[-1] == "--lowvram"
