"""An artist's session with a ComfyUI: each step sends prompts and notes what they took.

The server is given, so nothing here imports the host.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from .findings import LORA as LORA_WORKS
from .findings import MOVED, SAME_REPLY, SECOND_START, STOPPED, UNLOADED, Findings
from .graphs import Graph, encoding, picture, reply
from .watch import CardMemory, ProcessMemory

GIB, MIB = 2**30, 2**20
SETTLE = 2.0  # seconds in which memory may still be given back
STOP_WITHIN = 2.0  # seconds from the request to the host's word that it has stopped
MOVED_AT_MOST = 64 * MIB  # the embedding and the noise of a picture; its weights are 1.8 GiB
LEFT_AT_MOST = 1.5 * GIB  # of the libraries' own, once they have computed; the weights are 11 GiB
LONG = 900  # steps of a picture to be stopped; SD 2.1's scheduler has 1000


@dataclass(frozen=True)
class Scale:
    """How much work a step is.

    Attributes:
        steps: of a picture.
        turns: of Generate and Decode.
        is_full: whether figures mean anything.
    """

    steps: int
    turns: int
    is_full: bool


class Artist:
    """Sends prompts to a server, and notes how long they take and what memory they use.

    Args:
        server: it runs, with this pack and the probe of the tests; see tests/comfy_server.py.
        memory: of the device that it computes on.
        findings: where figures go.
        scale: how much work a step is.
        final_events: with one of them the server ends a prompt.
    """

    def __init__(
        self,
        server: Any,
        memory: CardMemory | ProcessMemory,
        findings: Findings,
        scale: Scale,
        final_events: Collection[str],
    ) -> None:
        self.server = server
        self.memory = memory
        self.findings = findings
        self.scale = scale
        self.final_events = final_events
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

    def steps(self, paints: bool) -> list[Callable[[], None]]:
        """Return all steps, the most telling first; without diffusers, those that do not paint."""
        steps = [
            (self.generate, True),
            (self.decode, paints),
            (self.turns, paints),
            (self.lora, True),
            (self.stop_reply, True),
            (self.stop_picture, paints),
            (self.encode, True),
            (self.unload, True),
            (self.again, True),
            (self.count_moved, paints),
            (self.in_16_bits, True),
        ]
        return [step for step, is_wanted in steps if is_wanted]

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
            return is_moving(event) or event.type in self.final_events

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
