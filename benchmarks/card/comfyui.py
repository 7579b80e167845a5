"""A part of `on_a_card.py`: a real ComfyUI on the card with random models of full size.

    python -m card.comfyui --comfyui PATH --size full --device cuda --folder TEMP --findings FILE

Each step is on its own: one that fails becomes a finding, and the next one runs. The most telling
ones come first, for the time may be over before the last.
"""

import argparse
import importlib.util
import os
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from seed_core.bench.card.artist import GIB, Artist, Scale
from seed_core.bench.card.findings import MOST, Findings
from seed_core.bench.card.watch import CardMemory, ProcessMemory

from . import models
from .helpers import TESTS, borrow

PROBE = "seed-test-probe"


def start(args: argparse.Namespace, findings: Findings) -> Any:
    """Start the server; raise what its log says where it or the pack does not start."""
    comfy = borrow("comfy_server.py")
    packs = {comfy.PACK_NAME: comfy.PACK_ROOT, PROBE: TESTS / "host" / "probe"}
    arguments = comfy.ON_THE_PROCESSOR
    if args.device.type == "cuda":
        arguments = tuple(shlex.split(args.host_args))
        os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))  # as an artist's has
    server = comfy.ComfyServer(args.comfyui, args.folder, packs, arguments)
    began = time.monotonic()
    server.start()
    took = time.monotonic() - began
    version = server.get("/system_stats")["system"].get("comfyui_version", "of unknown version")
    findings.add("ComfyUI, to its first answer", took, "s", note=f"ComfyUI {version}")
    if "SEEDGenerate" not in server.get("/object_info"):
        server.stop()
        raise RuntimeError(f"ComfyUI did not load this pack:\n{server.log()[-3000:]}")
    return server


def can_paint(python: str) -> bool:
    """Tell whether the server's Python has diffusers, and this one too, which writes the decoder."""
    if importlib.util.find_spec("diffusers") is None:
        return False
    program = "import importlib.util as u, sys; sys.exit(u.find_spec('diffusers') is None)"
    return subprocess.run([python, "-c", program], check=False).returncode == 0


def look(
    args: argparse.Namespace, sizes: models.Sizes, scale: Scale, findings: Findings, server: Any
) -> None:
    """Write the models and take every step."""
    comfy = borrow("comfy_server.py")
    paints = can_paint(comfy.find_python(args.comfyui))
    if not paints:
        findings.add("everything that paints", note="not run: no diffusers")
    begin = time.monotonic()
    folder = args.folder / "models"
    size = models.write(folder, sizes, args.device, paints, lambda x: print(x, flush=True))
    took = time.monotonic() - begin
    findings.add("writing the models", took, "s", note=f"{size / GIB:.2f} GiB in {folder}")
    on_card = args.device.type == "cuda"
    memory = CardMemory(args.device) if on_card else ProcessMemory(server)
    artist = Artist(server, memory, findings, scale, comfy.FINAL_EVENTS)
    for step in artist.steps(paints):
        if server.is_alive():
            with findings.attempt(f"step {step.__name__}"):
                step()
    findings.add(MOST, artist.most / GIB, "GiB", note=f"{artist.at_start / GIB:.2f} GiB at start")
    if not server.is_alive():
        findings.add("ComfyUI", ok=False, note="it ended by itself")


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--size", choices=("tiny", "full"), default="full")
    parser.add_argument("--device", type=torch.device, default="cuda")
    parser.add_argument("--folder", type=Path, required=True, help="an empty one, for everything")
    parser.add_argument("--host-args", default="", help="ComfyUI's own arguments, on a card")
    parser.add_argument("--findings", type=Path, required=True)
    args = parser.parse_args()
    if args.size == "full":
        sizes, scale = models.full(), Scale(20, 3, is_full=True)
    else:
        sizes, scale = models.tiny(), Scale(2, 1, is_full=False)
    findings = Findings(args.findings)
    server = start(args, findings)
    try:
        look(args, sizes, scale, findings, server)
    finally:
        server.stop()
        print("--- the end of ComfyUI's log ---", server.log()[-4000:], sep="\n")


if __name__ == "__main__":
    main()
