"""A part: a real ComfyUI on the card with random models of full size, used as an artist does.

    python -m card.comfyui --comfyui PATH --size full --device cuda --folder TEMP --findings FILE

Each step is on its own: one that fails becomes a finding, and the next one runs. The most telling
ones come first, for the time may be over before the last.
"""

import argparse
import importlib.util
import os
import re
import shlex
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import models
from .findings import LORA as LORA_WORKS
from .findings import MOST, MOVED, SAME_REPLY, SECOND_START, STOPPED, UNLOADED, Findings
from .helpers import TESTS, borrow
from .watch import CardMemory, ProcessMemory

GIB, MIB = 2**30, 2**20
PROBE = "seed-test-probe"
SETTLE = 2.0  # seconds in which memory may still be given back
STOP_WITHIN = 2.0  # seconds from the request to the host's word that it has stopped
MOVED_AT_MOST = 64 * MIB  # the embedding and the noise of a picture; its weights are 1.8 GiB
LEFT_AT_MOST = 1.5 * GIB  # of the libraries' own, once they have computed; the weights are 11 GiB
LONG = 900  # steps of a picture to be stopped; SD 2.1's scheduler has 1000
CODES = str([list(range(32))])
PROMPT = "Draw a red fox on a blue background."

Graph = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """How much work a step is.

    Attributes:
        sizes: of the models.
        steps: of a picture.
        turns: of Generate and Decode.
        is_full: whether figures mean anything.
    """

    sizes: models.Sizes
    steps: int
    turns: int
    is_full: bool


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """Return one node of an API-format prompt."""
    return {"class_type": class_type, "inputs": inputs}


def reply(seed: int, precision: str = "auto", lora: float = 0.0, **options: Any) -> Graph:
    """Return a graph that has the model draw, greedily, and shows the codes as text."""
    usual = {"reply": "image", "variations": 1, "max_new_tokens": 34, "temperature": 0.0}
    options = {**usual, "top_p": 0.5, "top_k": 50, "seed": seed, "prompt": PROMPT, **options}
    graph = {
        "llm": node("SEEDLLaMALoader", model=models.LLM, precision=precision),
        "generate": node("SEEDGenerate", llm=["llm", 0], **options),
        "text": node("SEEDCodesToText", codes=["generate", 1]),
        "read": node("PreviewAny", source=["text", 0]),
    }
    if lora:
        graph["lora"] = node("SEEDLoRALoader", llm=["llm", 0], lora=models.LORA, strength=lora)
        graph["generate"]["inputs"]["llm"] = ["lora", 0]
    return graph


def picture(seed: int, steps: int) -> Graph:
    """Return a graph that paints given codes."""
    return {
        "tokenizer": tokenizer_node(),
        "codes": node("SEEDTextToCodes", text=CODES, family="seed-2"),
        "decoder": node("SEEDDecoderLoader", decoder=models.DECODER, precision="auto"),
        "decode": node(
            "SEEDDecode",
            **{"tokenizer": ["tokenizer", 0], "decoder": ["decoder", 0], "codes": ["codes", 0]},
            **{"seed": seed, "steps": steps, "guidance_scale": 2.0, "noise_level": 0},
            **{"width": 0, "height": 0},
        ),
        "show": node("PreviewImage", images=["decode", 0]),
    }


def tokenizer_node() -> dict[str, Any]:
    """Return the tokenizer's loader."""
    return node("SEEDTokenizerLoader", tokenizer=models.TOKENIZER_FILE, precision="auto")


def encoding() -> Graph:
    """Return a graph that encodes a sample picture."""
    return {
        "tokenizer": tokenizer_node(),
        "picture": node("SEEDSamplePicture", picture="fox_on_yellow"),
        "encode": node(
            "SEEDEncode", tokenizer=["tokenizer", 0], image=["picture", 0], fit="stretch"
        ),
        "text": node("SEEDCodesToText", codes=["encode", 0]),
        "read": node("PreviewAny", source=["text", 0]),
    }


class Artist:
    """Sends prompts to a server, and notes how long they take and what memory they use.

    Args:
        server: it runs, with this pack and the probe of the tests.
        memory: of the device that it computes on.
        findings: where figures go.
        scale: how much work a step is.
    """

    def __init__(
        self, server: Any, memory: CardMemory | ProcessMemory, findings: Findings, scale: Scale
    ) -> None:
        self.server = server
        self.memory = memory
        self.findings = findings
        self.scale = scale
        self.at_start = memory.used()
        self.first_reply = ""
        self.most = 0
        self._seed = 100

    def new_seed(self) -> int:
        """Return one that no prompt had, so that the host computes it."""
        self._seed += 1
        return self._seed

    def run(self, name: str, graph: Graph) -> Any:
        """Run a prompt to its end, which has to be a good one."""
        start = time.monotonic()
        with self.memory.peak() as peak:
            run = self.server.run(graph, timeout=300)
        seconds = time.monotonic() - start
        if run.status != "execution_success":
            raise RuntimeError(f"{run.status}: {run.error.get('exception_message', '')}")
        self.most = max(self.most, peak.most)
        self.findings.add(name, seconds, "s", note=self._told(run), peak=peak.most / GIB)
        return run

    def _told(self, run: Any) -> str:
        """Return what the pack's line in the log says of a generation."""
        if "generate" not in run.executed:
            return ""
        lines = re.findall(r"SEED-LLaMA: \d+ tokens in [^\n]*", self.server.log())
        return str(lines[-1]).removeprefix("SEED-LLaMA: ") if lines else ""

    def text(self, run: Any) -> str:
        """Return what the node `read` shows."""
        return str(run.outputs["read"]["text"][0])

    def reply(self, name: str, precision: str = "auto", lora: float = 0.0) -> str:
        """Generate a picture's codes greedily."""
        return self.text(self.run(name, reply(self.new_seed(), precision, lora)))

    # --- steps ---

    def generate(self) -> None:
        """Twice: the first loads the model, both say the same."""
        self.first_reply = self.reply("first Generate, with loading")
        same = self.reply("second Generate") == self.first_reply
        self.findings.add(SAME_REPLY, ok=same)

    def encode(self) -> None:
        """Once, with loading."""
        self.run("Encode, with loading", encoding())

    def decode(self) -> None:
        """Three times: the first loads, the others have to start at once."""
        for count in ("first", "second", "third"):
            run = self.run(f"{count} Decode", picture(self.new_seed(), self.scale.steps))
            name = SECOND_START.replace("second", count)
            self.findings.add(name, to_first_step(run, "decode"), "s")

    def turns(self) -> None:
        """Generate and Decode in turns."""
        took: dict[str, list[float]] = {"Generate": [], "Decode": []}
        for _ in range(self.scale.turns):
            start = time.monotonic()
            self.reply("Generate, in turns")
            middle = time.monotonic()
            self.run("Decode, in turns", picture(self.new_seed(), self.scale.steps))
            took["Generate"].append(middle - start)
            took["Decode"].append(time.monotonic() - middle)
        for name, seconds in took.items():
            median = statistics.median(seconds)
            self.findings.add(f"{name}, in turns with the other, median", median, "s")

    def lora(self) -> None:
        """On, off, on: each says its own."""
        plain, changed = self.first_reply, self.reply("Generate with a LoRA", lora=1.0)
        off = self.reply("Generate without it again")
        on = self.reply("Generate with it again", lora=1.0)
        self.findings.add(LORA_WORKS, ok=(off, on) == (plain, changed) and plain != changed)

    def stop_reply(self) -> None:
        """Interrupt a long reply, then go on."""
        # Without cuts at temperature 2 an end token is one of 40,000.
        graph = reply(self.new_seed(), reply="text", temperature=2.0, top_p=1.0, top_k=0)
        graph["generate"]["inputs"] |= {"max_new_tokens": 1500, "variations": 8}
        self._stop("reply", "generate", graph)
        same = self.reply("Generate after Stop") == self.first_reply
        self.findings.add("a reply after Stop is the one before", ok=same)

    def stop_picture(self) -> None:
        """Interrupt a picture of many steps, then go on."""
        self._stop("picture", "decode", picture(self.new_seed(), LONG))
        self.run("Decode after Stop", picture(self.new_seed(), self.scale.steps))

    def _stop(self, what: str, name: str, graph: Graph) -> None:
        prompt_id = self.server.queue(graph)

        def is_moving(event: Any) -> bool:
            return event.type == "progress_state" and value_of(event, name) > 3

        def is_telling(event: Any) -> bool:
            return is_moving(event) or event.type in borrow("comfy_server.py").FINAL_EVENTS

        event = self.server.events.wait_until(prompt_id, is_telling, 60)
        if not is_moving(event):
            raise RuntimeError(f"{event.type}: {event.data.get('exception_message', '')}")
        pressed = time.monotonic()
        self.server.post_plain("/interrupt")
        end = self.server.wait(prompt_id, 60).events[-1]
        took = end.time - pressed
        is_good = end.type == "execution_interrupted" and took < STOP_WITHIN
        self.findings.add(STOPPED.format(what), took, "s", is_good, end.type)

    def unload(self) -> None:
        """Give all of the memory back."""
        start = time.monotonic()
        self.server.post_plain("/free", {"unload_models": True})
        self._settle(lambda state: not state["loaded"])
        self.server.post_plain("/free", {"unload_models": True, "free_memory": True})
        self._settle(lambda state: not state["alive"])
        self.findings.add("unloading", time.monotonic() - start, "s")
        left = self.memory.lowest_within(SETTLE) - self.at_start
        ok = left < LEFT_AT_MOST if self.scale.is_full else None
        self.findings.add(UNLOADED, left / GIB, "GiB", ok)

    def _settle(self, is_done: Callable[[Any], bool]) -> None:
        """Wait for the host, which frees between prompts."""
        deadline = time.monotonic() + 30
        while not is_done(state := self.server.get("/seed_test/state")):
            if time.monotonic() > deadline:
                raise TimeoutError(f"still loaded: {state['loaded']}, alive: {state['alive']}")
            time.sleep(0.1)

    def again(self) -> None:
        """Generate and Decode after unloading."""
        same = self.reply("Generate after unloading") == self.first_reply
        self.findings.add("a reply after unloading is the one before", ok=same)

    def count_moved(self) -> None:
        """Paint twice, and count what the second time moves to the card."""
        self.run("Decode, to be counted after", picture(self.new_seed(), self.scale.steps))
        self.server.post_plain("/seed_test/copies")
        try:
            self.run("Decode, counted, which slows it", picture(self.new_seed(), self.scale.steps))
        finally:
            copies = self.server.get("/seed_test/copies")
        if "why_not" in copies:
            self.findings.add(MOVED, note=f"not counted: {copies['why_not']}")
            return
        moved = copies["to_card"]
        note = f"{copies['copies']} copies; {copies['from_card'] / MIB:.1f} MiB came back"
        self.findings.add(MOVED, moved / MIB, "MiB", moved < MOVED_AT_MOST, note)

    def in_16_bits(self) -> None:
        """Generate with the same weights in bf16."""
        wanted = self.reply("first Generate in bf16, with loading", "bf16")
        same = self.reply("second Generate in bf16", "bf16") == wanted
        self.findings.add("second Generate in bf16 gives the same reply", ok=same)


def value_of(event: Any, name: str) -> float:
    """Return how far a node is, by an event of the host."""
    return float(event.data["nodes"].get(name, {}).get("value", 0))


def to_first_step(run: Any, name: str) -> float:
    """Return the seconds from a node's beginning to its first progress."""
    began = next(e.time for e in run.events if e.type == "executing" and e.data["node"] == name)
    steps = (e for e in run.events if e.type == "progress_state" and value_of(e, name) >= 1)
    return float(next(steps).time - began)


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


def look(args: argparse.Namespace, scale: Scale, findings: Findings, server: Any) -> None:
    """Write the models and take every step."""
    comfy = borrow("comfy_server.py")
    paints = can_paint(comfy.find_python(args.comfyui))
    if not paints:
        findings.add("everything that paints", note="not run: no diffusers")
    begin = time.monotonic()
    folder = args.folder / "models"
    size = models.write(folder, scale.sizes, args.device, paints, lambda x: print(x, flush=True))
    took = time.monotonic() - begin
    findings.add("writing the models", took, "s", note=f"{size / GIB:.2f} GiB in {folder}")
    on_card = args.device.type == "cuda"
    memory = CardMemory(args.device) if on_card else ProcessMemory(server)
    artist = Artist(server, memory, findings, scale)
    steps: list[tuple[Callable[[], None], bool]] = [
        (artist.generate, True),
        (artist.decode, paints),
        (artist.turns, paints),
        (artist.lora, True),
        (artist.stop_reply, True),
        (artist.stop_picture, paints),
        (artist.encode, True),
        (artist.unload, True),
        (artist.again, True),
        (artist.count_moved, paints),
        (artist.in_16_bits, True),
    ]
    for step, is_wanted in steps:
        if is_wanted and server.is_alive():
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
        scale = Scale(models.full(), 20, 3, is_full=True)
    else:
        scale = Scale(models.tiny(), 2, 1, is_full=False)
    findings = Findings(args.findings)
    server = start(args, findings)
    try:
        look(args, scale, findings, server)
    finally:
        server.stop()
        print("--- the end of ComfyUI's log ---", server.log()[-4000:], sep="\n")


if __name__ == "__main__":
    main()
