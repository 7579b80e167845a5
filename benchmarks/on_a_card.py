"""Everything that only a card can tell, in one command.

    python benchmarks/on_a_card.py [--parts NAMES] [--limit SECONDS] [--comfyui PATH] [--json FILE]

Each part runs in a process of its own and for a time of its own, the most telling ones first, so
that one which crashes, hangs or runs out of memory takes no other with it. What is not there is
named and left out: ComfyUI, diffusers, units for fp8, a package. Nothing is downloaded. On a
processor everything runs in tiny sizes, which shows that this program works and nothing else.
"""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from card.commands import PARTS
from card.helpers import ROOT, borrow

from seed_core.bench.card import goals
from seed_core.bench.card.goals import Outcome
from seed_core.bench.card.parts import FULL, TINY, Part, Setting, run_all
from seed_core.bench.card.report import is_bad, save, tell

ASK_THE_CARD = """
import json, platform, torch
facts = {"torch": torch.__version__, "python": platform.python_version(), "device": None}
if torch.cuda.is_available():
    gpu = torch.cuda.get_device_properties(0)
    facts |= {"device": gpu.name, "capability": [gpu.major, gpu.minor], "memory": gpu.total_memory}
    facts |= {"cuda": torch.version.cuda, "hip": torch.version.hip}
print(json.dumps(facts))
"""


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
        sys.exit(f"{named} is not a ComfyUI: it lacks main.py or the folder comfy")
    return found


def choose_parts(names: str) -> list[Part]:
    """Return the parts that are named; all for an empty text."""
    known = {part.name: part for part in PARTS}
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in known]:
        sys.exit(f"unknown part: {', '.join(unknown)}; the parts are: {', '.join(known)}")
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
        sys.exit(f"the folder for {args.json} does not exist")
    signal.signal(signal.SIGTERM, stop)
    forbid_core_files()
    parts, facts, host = choose_parts(args.parts), ask_the_card(), find_comfyui(args.comfyui)
    device = "cuda" if facts["device"] else "cpu"
    size = args.size or (FULL if facts["device"] else TINY)
    said = facts["device"] or "no card, so this says nothing of speed"
    print(f"{said}; torch {facts['torch']}, Python {facts['python']}, sizes: {size}")
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory(dir=args.folder, ignore_cleanup_errors=True) as folder:
        setting = Setting(size, device, facts, host, Path(folder), ROOT, args.host_args)
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


if __name__ == "__main__":
    sys.exit(main())
