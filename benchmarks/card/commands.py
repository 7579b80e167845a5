"""The parts of `on_a_card.py`: their commands, their time and what each needs."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

from seed_core.bench.card import goals
from seed_core.bench.card.parts import Part, Setting

from .helpers import TESTS

FP8_UNITS = [8, 9]  # compute capability from which on there are some


def gpu_tests(setting: Setting, folder: Path) -> list[str]:
    """Run the files that have such tests; others may need packages that are not there."""
    files = [str(path) for path in sorted(TESTS.rglob("test_*.py")) if has_gpu_tests(path)]
    options = ["-v", "-rs", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    report = f"--junitxml={folder / 'tests.xml'}"
    return [sys.executable, "-m", "pytest", "-m", "gpu", *options, report, *files]


def has_gpu_tests(path: Path) -> bool:
    """Tell by its text whether a test file marks a test so."""
    return re.search(r"\bmark\.gpu\b", path.read_text(encoding="utf-8")) is not None


def benchmark(
    only: str, precision: str, peers: str, size: str = "8b", repeat: int = 2
) -> Callable[[Setting, Path], list[str]]:
    """Return what makes the command of `python -m seed_core bench`."""

    def command(setting: Setting, folder: Path) -> list[str]:
        work = ["--size", size, "--precision", precision, "--repeat", str(repeat)]
        work += ["--tokens", "120" if size == "mini" else "96"]
        if not setting.is_full:
            work = ["--size", "mini", "--precision", "fp32", "--repeat", "1", "--tokens", "4"]
            work += ["--steps", "1"]
        options = ["--device", setting.device, "--only", only, "--peers", peers, *work]
        report = ["--json", str(folder / "bench.json")]
        return [sys.executable, "-m", "seed_core", "bench", *options, *report]

    return command


def little_memory(setting: Setting, folder: Path) -> list[str]:
    """See `card.little_memory`."""
    options = ["--device", setting.device, "--size", "300m" if setting.is_full else "mini"]
    findings = ["--findings", str(folder / "findings.jsonl")]
    return [sys.executable, "-m", "card.little_memory", *options, *findings]


def comfyui(setting: Setting, folder: Path) -> list[str]:
    """See `card.comfyui`."""
    options = ["--comfyui", str(setting.comfyui), "--folder", str(folder / "comfyui")]
    options += ["--size", setting.size, "--device", setting.device]
    options += [f"--host-args={setting.host_args}"]
    findings = ["--findings", str(folder / "findings.jsonl")]
    return [sys.executable, "-m", "card.comfyui", *options, *findings]


def no_card(setting: Setting) -> str:
    """Leave out what has no use on a processor."""
    return "" if setting.device == "cuda" else "no card"


def no_comfyui(setting: Setting) -> str:
    """Leave ComfyUI out if it was not found."""
    where = "give its folder with --comfyui or COMFYUI_PATH"
    return "" if setting.comfyui else f"no ComfyUI found; {where}"


def no_fp8(setting: Setting) -> str:
    """Leave fp8 out where a card computes it no faster, and where no model has it."""
    if not setting.is_full:
        return "seed-mini is not stored in fp8"
    capability = setting.facts.get("capability", [0, 0])
    return "" if capability >= FP8_UNITS else f"no units for fp8 (compute capability {capability})"


def not_nvidia(setting: Setting) -> str:
    """Leave out what is CUDA's own."""
    return no_card(setting) or ("this is not an NVIDIA card" if setting.facts.get("hip") else "")


# The most telling first: what is at the end may find no time left.
PARTS = (
    Part(goals.TESTS, 90, gpu_tests, ("pytest",), no_card),
    Part(goals.BF16, 130, benchmark("decode", "bf16", "eager"), ("transformers",)),
    Part(goals.COMFYUI, 210, comfyui, ("aiohttp",), no_comfyui),
    Part(goals.MEMORY, 60, little_memory),
    Part(
        goals.MEMORY_ASYNC,
        60,
        little_memory,
        why_not=not_nvidia,
        environment={
            "PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync",
            "PYTORCH_ALLOC_CONF": "backend:cudaMallocAsync",  # its name in newer torch
        },
    ),
    Part(goals.FP8, 90, benchmark("decode,quality", "fp8", "none"), why_not=no_fp8),
    Part(
        goals.SMALL,
        60,
        benchmark("decode", "fp32", "eager", "mini", repeat=1),
        ("transformers",),
        no_card,
    ),
    Part(goals.ENCODE, 60, benchmark("encode", "fp16", "eager"), ("transformers",)),
    Part(
        goals.DRAW,
        100,
        benchmark("draw", "fp16", "eager", repeat=1),
        ("transformers", "diffusers"),
    ),
)
