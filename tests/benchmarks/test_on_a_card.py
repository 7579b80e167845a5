"""The command for whoever has a card: nothing takes it down, and on a processor all of it runs."""

import contextlib
import dataclasses
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from seed_core import GenerationOptions, load_llm
from seed_core.models.convert import plan_conversion

ROOT = Path(__file__).parents[2]
COMMAND = ROOT / "benchmarks" / "on_a_card.py"


@pytest.fixture(scope="module")
def card():
    """The command as a module; the parts' package is beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(COMMAND.parent))
        yield importlib.import_module("on_a_card")


@pytest.fixture
def setting(card, tmp_path):
    return card.Setting(card.TINY, "cpu", {"device": None}, None, tmp_path / "work")


def part(card, name, program, limit=60, **options):
    """A part that runs a program of a few lines; FINDINGS in it is its file."""

    def command(setting, folder):
        text = program.replace("FINDINGS", repr(str(folder / "findings.jsonl")))
        return [sys.executable, "-c", text]

    return card.Part(name, limit, command, **options)


def outcomes(card, setting, *parts, seconds=60):
    return dict(card.run_all(parts, setting, time.monotonic() + seconds))


FOUND = """
from pathlib import Path
from card.findings import Findings
Findings(Path(FINDINGS)).add("speed", 3.0, "tokens/s", True)
"""


def test_a_part_that_crashes_or_hangs_takes_no_other_with_it(card, setting):
    found = outcomes(
        card,
        setting,
        part(card, "crash", FOUND + "import os; os.kill(os.getpid(), 9)"),
        part(card, "error", FOUND + "raise MemoryError('no room')"),
        part(card, "hang", FOUND + "import time\ndef asleep(): time.sleep(99)\nasleep()", limit=3),
        part(card, "good", FOUND),
    )
    statuses = {name: outcome.status for name, outcome in found.items()}
    assert statuses == {
        "crash": "failed",
        "error": "failed",
        "hang": "out of time",
        "good": "ended",
    }
    for outcome in found.values():  # what was found before counts
        assert [str(finding) for finding in outcome.found] == ["speed: 3 tokens/s, ok"]
    assert found["error"].note == "MemoryError: no room"
    assert found["error"].log[-1] == "MemoryError: no room"
    assert any("in asleep" in line for line in found["hang"].log)
    assert not list(setting.folder.iterdir())


def test_what_a_part_has_started_ends_with_it(card, tmp_path):
    """A server, say, that a part leaves behind when its time is over."""
    alive = tmp_path / "alive"
    child = f"import pathlib, time\nfor i in range(99): pathlib.Path({str(alive)!r}).touch(); time.sleep(.05)"
    program = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(99)"
    start = time.monotonic()
    ended = card.processes.run([sys.executable, "-c", program], tmp_path / "log", 2, tmp_path, {})
    assert ended.code is None
    assert time.monotonic() - start < 30
    assert alive.exists()
    alive.unlink()
    time.sleep(0.5)
    assert not alive.exists()


def test_parts_share_the_time_that_is_left(card, setting, monkeypatch):
    limits = {}

    def run(command, log, limit, *rest):
        limits[log.parent.name] = limit
        monkeypatch.setattr(card.time, "monotonic", lambda: before() + 30 * len(limits))
        return card.processes.Ended(30.0, 0)

    before = time.monotonic
    monkeypatch.setattr(card.processes, "run", run)
    parts = [part(card, str(number), "", limit=40) for number in range(3)]
    found = outcomes(card, setting, *parts, seconds=65)
    assert limits["0"] == 40
    assert 30 < limits["1"] < 36
    assert found["2"].status == "not run"
    assert "s were left" in found["2"].note


def test_what_is_missing_is_named(card, setting):
    parts = [part(card, "a", "", needs=("no_such_package",)), *card.PARTS]
    bare = dataclasses.replace(setting, size=card.FULL)
    why = {p.name: card.why_not(p, bare, 100) for p in parts}
    assert why["a"] == "not installed: no_such_package"
    assert why["gpu tests"] == "no card"
    assert why["comfyui"].startswith("no ComfyUI found")
    assert why["decode fp8"].startswith("no units for fp8")
    on_card = dataclasses.replace(bare, device="cuda", facts={"capability": [9, 0]})
    assert [p.name for p in card.PARTS if card.why_not(p, on_card, 100)] == ["comfyui"]


def test_every_test_for_a_card_is_run(card, setting):
    files = [Path(name).name for name in card.gpu_tests(setting, Path()) if name.endswith(".py")]
    assert {"test_graphs.py", "test_fp8.py", "test_denoiser.py"} <= set(files)
    assert Path(__file__).name not in files


def test_a_failed_gpu_test_is_told_by_its_name(card, tmp_path):
    (tmp_path / "test_it.py").write_text("def test_a(): pass\ndef test_b(): assert 1 == 2\n")
    command = [sys.executable, "-m", "pytest", "-q", "--junitxml=tests.xml", "test_it.py"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    total, failed = card.read_tests(tmp_path / "tests.xml")
    assert (total.figure, total.ok, total.note) == (1, False, "1 failed, 0 skipped")
    assert (failed.name, failed.ok) == ("test_it.test_b", False)
    assert "assert 1 == 2" in failed.note


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


# --- the table ---


def row(measure, who, median, note="", ratio=None):
    figure = {"median": median, "unit": "tokens/s"}
    return {"measure": measure, "who": who, "figure": figure, "note": note, "ratio": ratio}


def lines(card, **outcomes):
    table = card.goals.table({name.replace("_", " "): x for name, x in outcomes.items()})
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]
    return {name: (found, met) for name, _, found, met in cells}


@pytest.mark.parametrize(("theirs", "eight", "met"), [(100, 960, "yes"), (140, 600, "**no**")])
def test_the_table_judges_by_the_goals(card, theirs, eight, met):
    rows = [row("decode, 1 variation", "ours", 160), row("decode, 8 variations", "ours", eight)]
    rows += [row("decode, 1 variation", "transformers", theirs)]
    rows += [row("decode, 1 variation", "limit", 320)]
    rows += [row("equal greedy tokens", "transformers", 384, "of 384")]
    table = lines(card, decode_bf16=card.Outcome("ended", rows=rows))
    assert table["8B in bf16, 1 variation"][1] == met
    assert table["8B in bf16, 8 variations"][1] == met
    assert table["8B in bf16, share of what the memory allows"] == ("50% (160 tokens/s)", "")
    assert table["greedy tokens as transformers', 8B in bf16"] == ("384 of 384", "yes")


def test_one_wrong_finding_of_several_fails_a_goal(card):
    names, finding = card.findings, card.findings.Finding
    found = [
        finding(names.EQUAL_SHORT, 300, "tokens", True, "of 300"),
        finding(names.EQUAL_SHORT, 12, "tokens", False, "of 300"),
        finding(names.EQUAL_SHORT, 300, "tokens", True, "of 300"),
        finding(names.LEAKED, 0.0, "MiB", True),
    ]
    table = lines(card, little_memory=card.Outcome("ended", found=found))
    assert table["a reply with under 300 MB of free memory on the card"][1] == "**no**"
    good = [one for one in found if one.ok]
    table = lines(card, little_memory=card.Outcome("ended", found=good))
    assert table["a reply with under 300 MB of free memory on the card"][1] == "yes"
    # A part that died before it looked at everything has not met the goal.
    table = lines(card, little_memory=card.Outcome("failed", "no room", found=good[:1]))
    assert table["a reply with under 300 MB of free memory on the card"] == ("failed: no room", "")


def test_the_published_goals_are_the_commands(card):
    text = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    assert "\n".join(card.goals.table({})) in text


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


# --- little memory ---


@pytest.fixture
def memory(card, monkeypatch):
    """The part on a card that does not exist: its free memory, and how the last reply goes wrong."""
    part = importlib.import_module("card.little_memory")
    state = SimpleNamespace(part=part, free=[2**30] * 2, wrong_from=None, is_full=False)

    @contextlib.contextmanager
    def filled(device):
        state.is_full = True
        yield 250e6
        state.is_full = False

    def tokens(*arguments, use_graphs):
        reply = list(range(100))
        if state.is_full and state.wrong_from is not None:
            reply[state.wrong_from :] = [0] * (100 - state.wrong_from)
        return reply

    monkeypatch.setattr(part, "our_tokens", tokens)
    monkeypatch.setattr(part, "filled", filled)
    monkeypatch.setattr(part, "free_memory", lambda device: state.free.pop(0))
    return state


@pytest.mark.parametrize(
    ("wrong_from", "gone", "met"), [(None, 0, "yes"), (40, 0, "**no**"), (None, 2**28, "**no**")]
)
def test_wrong_tokens_and_a_leak_are_found(card, memory, tmp_path, wrong_from, gone, met):
    memory.wrong_from = wrong_from
    memory.free[1] -= gone
    subject = SimpleNamespace(llama=lambda: None, device=torch.device("cuda"))
    memory.part.look(subject, card.findings.Findings(tmp_path / "it"), 100)
    outcome = card.Outcome("ended", found=card.findings.read(tmp_path / "it"))
    table = lines(card, little_memory=outcome)
    assert table["a reply with under 300 MB of free memory on the card"][1] == met
    assert table["greedy tokens with graphs as without"] == ("100 tokens of 100", "yes")


def test_a_card_is_filled_in_pieces_and_given_back(card, monkeypatch):
    """Whatever the largest piece is that it still has."""
    part = importlib.import_module("card.little_memory")
    sizes, total, largest = [], 80 * 2**30, 30 * 2**30

    def take(size, **options):
        if size > min(largest, total - sum(sizes)):
            raise part.torch.cuda.OutOfMemoryError
        sizes.append(size)
        return size

    cuda = SimpleNamespace(
        OutOfMemoryError=torch.cuda.OutOfMemoryError,
        mem_get_info=lambda device: (total - sum(sizes), total),
        synchronize=lambda *device: None,
        empty_cache=lambda: None,
    )
    monkeypatch.setattr(part, "torch", SimpleNamespace(cuda=cuda, empty=take, uint8=torch.uint8))
    with part.filled(torch.device("cuda")) as left:
        assert part.LEAVE <= left <= 300e6
    assert len(sizes) > 2


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
    assert [x.kind for x in (llm, tokenizer, decoder)] == ["llm", "tokenizer", "decoder"]
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
