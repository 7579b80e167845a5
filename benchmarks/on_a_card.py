"""Everything that only a card can tell, in one command.

    python benchmarks/on_a_card.py [--parts NAMES] [--limit SECONDS] [--comfyui PATH] [--json FILE]

Each part runs in a process of its own and for a time of its own, the most telling ones first, so
that one which crashes, hangs or runs out of memory takes no other with it. What is not there is
named and left out: ComfyUI, diffusers, units for fp8, a package. Nothing is downloaded. On a
processor everything runs in tiny sizes, which shows that this program works and nothing else.
"""

import argparse
import dataclasses
import importlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from card import findings, goals, processes
from card.findings import Finding
from card.goals import Outcome
from card.helpers import ROOT, TESTS, borrow

BASE = ("torch", "numpy", "PIL", "safetensors", "sentencepiece")
FULL, TINY = "full", "tiny"
LEAST = 10  # seconds with which a part is still begun
ASK_THE_CARD = """
import json, platform, torch
facts = {"torch": torch.__version__, "python": platform.python_version(), "device": None}
if torch.cuda.is_available():
    gpu = torch.cuda.get_device_properties(0)
    facts |= {"device": gpu.name, "capability": [gpu.major, gpu.minor], "memory": gpu.total_memory}
    facts |= {"cuda": torch.version.cuda, "hip": torch.version.hip}
print(json.dumps(facts))
"""
FP8_UNITS = [8, 9]  # compute capability from which on there are some


@dataclass(frozen=True)
class Setting:
    """Where everything runs.

    Attributes:
        size: full or tiny.
        device: cuda or cpu.
        facts: what torch says of itself and of the card.
        comfyui: the checkout; None where there is none.
        host_args: of ComfyUI on a card.
        folder: for large files; everything in it is removed.
    """

    size: str
    device: str
    facts: Mapping[str, Any]
    comfyui: Path | None
    folder: Path
    host_args: str = ""

    @property
    def is_full(self) -> bool:
        """Whether the models have their published sizes."""
        return self.size == FULL


@dataclass(frozen=True)
class Part:
    """One process.

    Attributes:
        name: as on the command line and in the table.
        limit: seconds it may take, where so many are left.
        command: makes the command from the setting and the part's own folder.
        needs: packages.
        why_not: says why it cannot run here; an empty text where it can.
        environment: set for the process.
    """

    name: str
    limit: int
    command: Callable[[Setting, Path], list[str]]
    needs: tuple[str, ...] = ()
    why_not: Callable[[Setting], str] = lambda setting: ""
    environment: Mapping[str, str] = field(default_factory=dict)


# --- the parts ---------------------------------------------------------------------------------


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
    """Leave ComfyUI out where there is none."""
    where = "give its folder with --comfyui or COMFYUI_PATH"
    return "" if setting.comfyui else f"no ComfyUI found; {where}"


def no_fp8(setting: Setting) -> str:
    """Leave fp8 out where a card computes it no faster, and where no model has it."""
    if not setting.is_full:
        return "seed-mini is no fp8 model"
    capability = setting.facts.get("capability", [0, 0])
    return "" if capability >= FP8_UNITS else f"no units for fp8 (compute capability {capability})"


def not_nvidia(setting: Setting) -> str:
    """Leave out what is CUDA's own."""
    return no_card(setting) or ("this is no NVIDIA card" if setting.facts.get("hip") else "")


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


# --- running them ------------------------------------------------------------------------------


def why_not(part: Part, setting: Setting, seconds_left: float) -> str:
    """Say why a part cannot run; an empty text where it can."""
    missing = [name for name in (*BASE, *part.needs) if importlib.util.find_spec(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if reason := part.why_not(setting):
        return reason
    return "" if seconds_left >= LEAST else f"{max(seconds_left, 0):.0f} s were left"


def run_part(part: Part, setting: Setting, limit: float, folder: Path) -> Outcome:
    """Run a part and read what it left behind, however it ended."""
    folder.mkdir(parents=True)
    log = folder / "log.txt"
    places = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    environment = {"PYTHONPATH": places, "HF_HUB_OFFLINE": "1", **part.environment}
    command = part.command(setting, folder)
    ended = processes.run(command, log, limit, ROOT, environment)
    rows, found = read_rows(folder), [*findings.read(folder / "findings.jsonl")]
    found += read_tests(folder / "tests.xml")
    if ended.code is None:
        status, note = "out of time", f"ended after {ended.seconds:.0f} s"
    elif ended.code:
        status, note = "failed", last_words(log) or f"exit status {ended.code}"
    else:
        status, note = "ended", ""
    is_well = status == "ended" and all(finding.ok is not False for finding in found)
    lines = [] if is_well else processes.tail(log)
    return Outcome(status, note, ended.seconds, found, rows, lines)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the table of a benchmark that came to its end."""
    path = folder / "bench.json"
    if not path.is_file():
        return []
    return list(json.loads(path.read_text(encoding="utf-8"))["rows"])


def read_tests(path: Path) -> list[Finding]:
    """Return what pytest's report says: how many passed, and each that did not."""
    if not path.is_file():
        return []
    cases = list(ET.parse(path).getroot().iter("testcase"))
    bad = {case: [*case.iter("failure"), *case.iter("error")] for case in cases}
    failed = [case for case in cases if bad[case]]
    skipped = [case for case in cases if case.find("skipped") is not None]
    passed = len(cases) - len(failed) - len(skipped)
    note = f"{len(failed)} failed, {len(skipped)} skipped"
    is_good = passed > 0 and not failed
    total = Finding(goals.TESTS, passed, "passed", is_good, note)
    return [total] + [
        Finding(
            f"{case.get('classname')}.{case.get('name')}",
            ok=False,
            note=str(bad[case][0].get("message"))[:500],
        )
        for case in failed
    ]


def last_words(log: Path) -> str:
    """Return the last line of a log that says something."""
    lines = processes.tail(log)
    return lines[-1].strip()[:200] if lines else ""


def run_all(
    parts: Sequence[Part], setting: Setting, deadline: float
) -> Iterator[tuple[str, Outcome]]:
    """Run parts one after the other until a time; yield what became of each."""
    for number, part in enumerate(parts):
        left = deadline - time.monotonic()
        limit = min(part.limit, left)
        if reason := why_not(part, setting, left):
            yield part.name, Outcome("not run", reason)
            continue
        print(f"--- {part.name}: at most {limit:.0f} s", flush=True)
        folder = setting.folder / f"{number}"
        try:
            yield part.name, run_part(part, setting, limit, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # models of many gigabytes, for one


# --- the report --------------------------------------------------------------------------------


def tell(name: str, outcome: Outcome) -> None:
    """Print what became of a part."""
    print(f"{name}: {': '.join(filter(None, (outcome.status, outcome.note)))}")
    if outcome.seconds:
        print(f"  {outcome.seconds:.0f} s")
    for finding in outcome.found:
        print(f"  {finding}")
    for row in outcome.rows:
        print(f"  {row['measure']}, {row['who']}: {row_words(row)}")
    for line in outcome.log:
        print(f"  | {line}")
    sys.stdout.flush()


def row_words(row: Mapping[str, Any]) -> str:
    """Return a row of the benchmark in words."""
    if not row["figure"]:
        return f"none ({row['note']})"
    median, unit = row["figure"]["median"], row["figure"]["unit"]
    ratio = f", ours is {row['ratio']:.2f} x" if row["ratio"] else ""
    return f"{findings.short(median)} {unit}{ratio} {row['note']}".strip()


def save(path: Path, setting: Setting, outcomes: Mapping[str, Outcome]) -> None:
    """Write everything found so far."""
    parts = {name: dataclasses.asdict(outcome) for name, outcome in outcomes.items()}
    table = [
        {"what": goal.name, "goal": goal.wanted, "found": text, "met": met}
        for goal in goals.GOALS
        for text, met in [goals.cells(goal, outcomes.get(goal.part), setting.is_full)]
    ]
    facts = {"size": setting.size, "facts": dict(setting.facts)}
    report = {**facts, "table": table, "parts": parts}
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


# --- the command line --------------------------------------------------------------------------


def ask_the_card() -> dict[str, Any]:
    """Ask torch in a process of its own: a card that was looked at has less free memory."""
    asked = subprocess.run(
        [sys.executable, "-c", ASK_THE_CARD],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if asked.returncode:
        sys.exit(f"torch does not run here: {asked.stderr.strip()[-500:]}")
    return dict(json.loads(asked.stdout.splitlines()[-1]))


def find_comfyui(named: Path | None) -> Path | None:
    """Return the ComfyUI to use: the one named, or where the tests look for one."""
    if named:
        os.environ["COMFYUI_PATH"] = str(named.resolve())
    found: Path | None = borrow("comfy_server.py").find_checkout()
    if named and found is None:
        sys.exit(f"{named} is no ComfyUI: it has no main.py or no comfy")
    return found


def choose_parts(names: str) -> list[Part]:
    """Return the parts that are named; all for an empty text."""
    known = {part.name: part for part in PARTS}
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in known]:
        sys.exit(f"there is no part {', '.join(unknown)}; there are: {', '.join(known)}")
    return [known[name] for name in wanted or known]


def parse() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--parts", default="", help=f"some of: {', '.join(part.name for part in PARTS)}"
    )
    parser.add_argument("--limit", type=float, default=480, help="seconds for everything")
    parser.add_argument("--size", choices=(TINY, FULL), help="full on a card, tiny elsewhere")
    parser.add_argument("--comfyui", type=Path, help="a checkout of ComfyUI")
    parser.add_argument("--host-args", default="", help="of ComfyUI on a card, such as --novram")
    parser.add_argument("--folder", type=Path, help="where there is room for 12 GiB; is left empty")
    parser.add_argument("--json", type=Path, default=Path("on-a-card.json"))
    return parser.parse_args()


def stop(number: int, frame: object) -> None:
    """End as on Ctrl+C, so that processes and files are removed."""
    raise KeyboardInterrupt


def forbid_core_files() -> None:
    """Keep parts that crash from writing gigabytes of memory to the disk."""
    if os.name == "posix":
        resource = importlib.import_module("resource")
        most = resource.getrlimit(resource.RLIMIT_CORE)[1]
        resource.setrlimit(resource.RLIMIT_CORE, (0, most))


def main() -> int:
    """Run what was asked for; 1 if something is not as it has to be."""
    start, code = time.monotonic(), 0
    args = parse()
    if not args.json.absolute().parent.is_dir():
        sys.exit(f"there is no folder for {args.json}")
    signal.signal(signal.SIGTERM, stop)
    forbid_core_files()
    parts, facts, host = choose_parts(args.parts), ask_the_card(), find_comfyui(args.comfyui)
    device = "cuda" if facts["device"] else "cpu"
    size = args.size or (FULL if facts["device"] else TINY)
    said = facts["device"] or "no card, so this says nothing of speed"
    print(f"{said}; torch {facts['torch']}, Python {facts['python']}, sizes: {size}")
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory(dir=args.folder, ignore_cleanup_errors=True) as folder:
        setting = Setting(size, device, facts, host, Path(folder), args.host_args)
        try:
            for name, outcome in run_all(parts, setting, start + args.limit):
                outcomes[name] = outcome
                tell(name, outcome)
                save(args.json, setting, outcomes)
        except KeyboardInterrupt:
            print("stopped; what was found until then:")
            code = 130
    print(f"\n{time.monotonic() - start:.0f} s; everything is in {args.json}\n")
    print("\n".join(goals.table(outcomes, size == FULL)))
    return code or int(any(is_bad(outcome) for outcome in outcomes.values()))


def is_bad(outcome: Outcome) -> bool:
    """Tell whether a part did not end well or found something wrong."""
    wrong = any(finding.ok is False for finding in outcome.found)
    return wrong or outcome.status in ("failed", "out of time")


if __name__ == "__main__":
    sys.exit(main())
