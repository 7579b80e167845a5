"""Several clients at once on one ComfyUI: they keep its queue full, and misbehave at random.

`Load` first runs each prompt alone and keeps what it gave, then lets its clients queue the same
prompts together while they interrupt, break off connections, delete and unload. It judges nothing:
what became of every prompt, the memory and the events are kept for the tests to look at.

Every prompt's history is read the moment it has left the queue. The host keeps only its latest
10,000 (MAXIMUM_HISTORY_SIZE in its execution.py), so asking at the end could miss some.
"""

import asyncio
import collections
import copy
import io
import json
import random
import socket
import statistics
import struct
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FINAL_EVENTS = ("execution_success", "execution_error", "execution_interrupted")
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
LOOK_EVERY = 0.4  # seconds between two looks of a client at the queue
MEASURE_EVERY = 0.5  # seconds between two samples of the server's memory
HEAR_WITHIN = 30.0  # seconds from a prompt's history to its client's websocket message, at most
# Parts of the time under load, in fractions of it: memory is compared between them. Before, all
# kinds of prompts have run, models have come and gone, and the allocator has found its size.
EARLY = (1 / 3, 1 / 2)
LATE = (5 / 6, 1)
# What the clients do besides, and how often each in a round.
TROUBLE = {
    "interrupt": 5,  # the prompt that runs, by its id
    "interrupt_all": 1,  # whatever runs, as older frontends ask
    "break_off": 3,  # the connection, to come back under the same id
    "break_off_and_rename": 2,  # and to come back as another client
    "delete": 2,  # a prompt that waits
    "unload": 1,  # the host's "Unload Models"
    "unload_and_forget": 1,  # and its "Free Model and Node Cache"
}

Results = dict[str, Any]  # "node.kind[number]" -> pixels, bytes of a file, or a JSON value


# --- what a prompt gave ------------------------------------------------------------------------


def results_of(server: Any, outputs: dict[str, dict[str, Any]]) -> Results:
    """The outputs of a history by content: names of files differ from run to run."""
    return {
        f"{node}.{kind}[{number}]": _content(server, item)
        for node, shown in outputs.items()
        for kind, items in shown.items()
        for number, item in enumerate(items)
    }


def _content(server: Any, item: Any) -> Any:
    if not (isinstance(item, dict) and "filename" in item):
        return item
    content = server.picture(item)
    suffix = Path(item["filename"]).suffix
    if suffix in PICTURES:
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    if suffix == ".safetensors":  # its header's keys come in any order
        end = 8 + int.from_bytes(content[:8], "little")
        return json.loads(content[8:end]), content[end:]
    return content


def differences(quiet: Results, now: Results) -> Iterator[str]:
    """What of a prompt's results is not exactly as it was in the quiet run."""
    if missing := sorted(quiet.keys() - now.keys()):
        yield f"missing {missing}"
    if added := sorted(now.keys() - quiet.keys()):
        yield f"not there before: {added}"
    for name in sorted(quiet.keys() & now.keys()):
        before, after = quiet[name], now[name]
        if isinstance(before, np.ndarray) and getattr(after, "shape", None) == before.shape:
            apart = np.abs(before.astype(int) - after.astype(int))
            if apart.any():
                yield f"{name}: {(apart > 0).sum()} of {apart.size} values by up to {apart.max()}"
        elif type(before) is not type(after) or before != after:
            yield f"{name}: {str(after)[:200]!r}, not {str(before)[:200]!r}"


def with_random_seed(prompt: dict[str, Any], number: int) -> dict[str, Any]:
    """The prompt with every random seed moved by a number."""
    changed = copy.deepcopy(prompt)
    for node in changed.values():
        if "seed" in node["inputs"]:
            node["inputs"]["seed"] += number
    return changed


def with_fewer_steps(prompt: dict[str, Any], steps: int) -> dict[str, Any]:
    """The prompt with quicker pictures: under load the number of prompts counts."""
    changed = copy.deepcopy(prompt)
    for node in changed.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = steps
    return changed


# --- a client's ear ----------------------------------------------------------------------------


class Connection:
    """One websocket connection: hears the ends of its client's prompts, and can break off."""

    def __init__(self, server: Any, client_id: str):
        self.client_id = client_id
        self.ends: dict[str, list[str]] = collections.defaultdict(list)
        self.was_lost = False  # the server ended it
        self._url = f"ws://127.0.0.1:{server.port}/ws?clientId={client_id}"
        self._how_to_leave = ""
        self._changed = threading.Condition()
        self._is_open = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._read()), daemon=True)

    def open(self) -> "Connection":
        self._thread.start()
        if not self._is_open.wait(60):
            raise TimeoutError("no websocket connection to ComfyUI within 60 s")
        return self

    def leave(self, how: str = "close") -> None:
        """End it: "close" says so to the server, "reset" does not."""
        self._how_to_leave = how
        self._thread.join(30)
        if self._thread.is_alive():
            raise TimeoutError("the websocket's thread did not end within 30 s")

    def has_heard_the_end_of(self, prompt_id: str) -> bool:
        """Wait for it, for a while."""
        with self._changed:
            return self._changed.wait_for(lambda: prompt_id in self.ends, HEAR_WITHIN)

    async def _read(self) -> None:
        import aiohttp

        async with aiohttp.ClientSession() as session:
            websocket = await session.ws_connect(self._url, max_msg_size=0)
            self._is_open.set()
            while not self._how_to_leave:
                try:
                    message = await websocket.receive(timeout=0.2)
                except (asyncio.TimeoutError, TimeoutError):
                    continue
                if message.type == aiohttp.WSMsgType.TEXT:
                    self._note(json.loads(message.data))
                elif message.type != aiohttp.WSMsgType.BINARY:
                    self.was_lost = True
                    return
            if self._how_to_leave == "close":
                await websocket.close()
            else:
                # Closed with no time to linger, a socket is reset: the server reads no last frame.
                link = websocket.get_extra_info("socket")
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _note(self, message: dict[str, Any]) -> None:
        if message["type"] in FINAL_EVENTS:
            with self._changed:
                self.ends[message["data"]["prompt_id"]].append(message["type"])
                self._changed.notify_all()


# --- the fate of a prompt ------------------------------------------------------------------------


@dataclass
class Ticket:
    """A prompt that was queued, and what became of it."""

    prompt_id: str
    name: str
    connection: Connection  # its client's when it was queued
    is_asked_to_go: bool = False  # a client asked the host to delete it
    is_deleted: bool = False  # it has left the queue without a trace, as asked
    history: dict[str, Any] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)
    is_unheard: bool = False  # its client stayed connected and was not told of its end

    @property
    def events(self) -> dict[str, list[dict[str, Any]]]:
        """The messages of its history by type."""
        found: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
        for kind, data in self.history.get("status", {}).get("messages", []):
            found[kind].append(data)
        return found

    @property
    def end(self) -> str:
        """How it ended: one of FINAL_EVENTS, or "" for a prompt without history."""
        return next((kind for kind in self.events if kind in FINAL_EVENTS), "")

    @property
    def is_from_cache(self) -> bool:
        """Whether no node ran: the prompt before it was the same."""
        cached = {node for data in self.events["execution_cached"] for node in data["nodes"]}
        return bool(self.history) and cached >= self.history["prompt"][2].keys()

    @property
    def ran(self) -> tuple[float, float]:
        """When it ran, in seconds since 1970 by the clock of this machine."""
        stamps = [d["timestamp"] / 1000 for found in self.events.values() for d in found]
        return min(stamps), max(stamps)


@dataclass
class Interrupt:
    """One request to interrupt: of the prompt with this id or, without one, of whatever runs."""

    prompt_id: str | None
    sent: float
    answered: float

    def may_have_hit(self, ticket: Ticket) -> bool:
        """Whether it explains that the prompt was interrupted.

        The host looks for the prompt's id first and raises its flag then, so the one that starts
        in between can be hit instead.
        """
        started, ended = ticket.ran
        if self.prompt_id is None:
            return started <= self.answered + 0.01 and self.sent <= ended + 0.01
        return self.prompt_id == ticket.prompt_id or self.sent - 0.01 <= started <= self.answered


# --- the clients -------------------------------------------------------------------------------


class Client:
    """One of several: keeps its share of the queue full, collects its results, makes trouble."""

    def __init__(self, load: "Load", share: int, random_seed: float):
        self.load = load
        self.server = load.server
        self.share = share
        self.random = random.Random(random_seed)
        self.tickets: dict[str, Ticket] = {}  # queued and not yet collected
        self.connections: list[Connection] = []
        self._next_trouble = 0.0

    def work(self, until: float, drain_within: float) -> None:
        """Queue prompts until a time of the monotonic clock, then wait for those that are left."""
        self._connect(uuid.uuid4().hex)
        self._plan_trouble()
        while not self.load.is_over.is_set():
            while len(self.tickets) < self.share and time.monotonic() < until:
                self._queue()
            self._collect()
            if not self.tickets and time.monotonic() >= until:
                break
            if time.monotonic() > until + drain_within:
                raise TimeoutError(
                    f"{len(self.tickets)} prompts still wait {drain_within:.0f} s after the last"
                )
            self._make_trouble()
            self.load.is_over.wait(LOOK_EVERY)
        self.connections[-1].leave()

    def _connect(self, client_id: str) -> None:
        self.connections.append(Connection(self.server, client_id).open())

    def _queue(self) -> None:
        name = self.load.names.deal()
        connection = self.connections[-1]
        body = {"prompt": self.load.prompts[name], "client_id": connection.client_id}
        status, reply = self.server.post("/prompt", body)
        if status != 200:
            raise RuntimeError(f"{name} was refused: {reply}")
        ticket = Ticket(reply["prompt_id"], name, connection)
        self.tickets[ticket.prompt_id] = self.load.tickets[ticket.prompt_id] = ticket

    def _collect(self) -> None:
        """Look up the history of all that have left the queue since the last look.

        The host moves a prompt from its queue to its history under one lock: there is no moment
        at which it is in neither, unless it was deleted.
        """
        running, pending = self.load.queue()
        for prompt_id in self.tickets.keys() - {*running, *pending}:
            ticket = self.tickets.pop(prompt_id)
            found = self.server.get(f"/history/{prompt_id}")
            if prompt_id in found:
                self._take(ticket, found[prompt_id])
            else:
                ticket.is_deleted = ticket.is_asked_to_go

    def _take(self, ticket: Ticket, history: dict[str, Any]) -> None:
        ticket.history = history
        if ticket.end == "execution_success":
            now = results_of(self.server, history["outputs"])
            ticket.differences = list(differences(self.load.quiet[ticket.name], now))
        if ticket.connection is self.connections[-1]:
            ticket.is_unheard = not ticket.connection.has_heard_the_end_of(ticket.prompt_id)

    def _plan_trouble(self) -> None:
        """About as often as `trouble_every` says, but never on the beat."""
        wait = self.random.expovariate(1 / self.load.trouble_every)
        self._next_trouble = time.monotonic() + min(wait, 3 * self.load.trouble_every)

    def _make_trouble(self) -> None:
        if time.monotonic() >= self._next_trouble:
            getattr(self, f"_{self.load.troubles.deal()}")()
            self._plan_trouble()

    def _interrupt(self) -> None:
        running, _ = self.load.queue()
        for prompt_id in running:  # one, or none between two prompts
            self._ask_to_interrupt(prompt_id)

    def _interrupt_all(self) -> None:
        self._ask_to_interrupt(None)

    def _ask_to_interrupt(self, prompt_id: str | None) -> None:
        sent = time.time()
        self.server.post_plain("/interrupt", {"prompt_id": prompt_id} if prompt_id else {})
        self.load.interrupts.append(Interrupt(prompt_id, sent, time.time()))

    def _break_off(self) -> None:
        self._come_back_as(self.connections[-1].client_id)

    def _break_off_and_rename(self) -> None:
        self._come_back_as(uuid.uuid4().hex)

    def _come_back_as(self, client_id: str) -> None:
        self.connections[-1].leave("reset")
        self.load.is_over.wait(self.random.uniform(0.2, 1.0))
        self._connect(client_id)

    def _delete(self) -> None:
        if self.tickets:
            ticket = self.random.choice(list(self.tickets.values()))
            ticket.is_asked_to_go = True
            self.server.post_plain("/queue", {"delete": [ticket.prompt_id]})

    def _unload(self) -> None:
        self.server.post_plain("/free", {"unload_models": True})

    def _unload_and_forget(self) -> None:
        self.server.post_plain("/free", {"unload_models": True, "free_memory": True})


# --- the whole ---------------------------------------------------------------------------------


class Pack:
    """Cards in random order, dealt to all clients: in a short time each has its turn."""

    def __init__(self, cards: list[str], random_seed: float):
        self.dealt: collections.Counter[str] = collections.Counter()
        self._all = cards
        self._left: list[str] = []
        self._random = random.Random(random_seed)
        self._lock = threading.Lock()

    def deal(self) -> str:
        """The next card; after the last the pack is shuffled again."""
        with self._lock:
            if not self._left:
                self._left = self._random.sample(self._all, len(self._all))
            self.dealt[self._left[-1]] += 1
            return self._left.pop()


@dataclass
class Sample:
    """The server at one moment: seconds since the load began, MiB, prompts in its queue."""

    time: float
    rss: float
    queued: int


@dataclass
class Rest:
    """The server with nothing to do and everything unloaded."""

    rss: float  # MiB
    tensors: int
    tensor_mib: float
    models: list[str]  # of this pack, still alive


class Load:
    """A quiet run, then many clients for some time; what happened is in its attributes."""

    early, late = EARLY, LATE
    final_events = FINAL_EVENTS
    possible_troubles = tuple(TROUBLE)

    def __init__(
        self,
        server: Any,
        prompts: dict[str, dict[str, Any]],
        minutes: float,
        random_seed: int,
        clients: int = 4,
        queued: int = 50,
        trouble_every: float = 8.0,
    ):
        self.server = server
        self.prompts = prompts
        self.seconds = minutes * 60
        self.queued = queued
        self.trouble_every = trouble_every  # seconds, for each client
        chance = random.Random(random_seed)
        self.names = Pack(list(prompts), chance.random())
        self.troubles = Pack(
            [k for k, count in TROUBLE.items() for _ in range(count)], chance.random()
        )
        shares = [queued // clients + (i < queued % clients) for i in range(clients)]
        self.clients = [Client(self, share, chance.random()) for share in shares]
        self.quiet: dict[str, Results] = {}
        self.quiet_again: dict[str, list[str]] = {}  # differences after the load, by prompt
        self.tickets: dict[str, Ticket] = {}
        self.interrupts: list[Interrupt] = []
        self.samples: list[Sample] = []
        self.slowest_answer = 0.0  # seconds, of /system_stats
        self.rests: list[Rest] = []  # before and after
        self.drained_after = 0.0  # seconds from the last prompt queued to the last one done
        self.history_at_the_end: set[str] = set()
        self.runs_in_the_log = 0
        self.log = ""
        self.is_over = threading.Event()

    def run(self, drain_within: float) -> "Load":
        """Everything, in order. A client that fails ends it, with its exception."""
        for name, prompt in self.prompts.items():
            self.quiet[name] = self._alone(name, prompt)
        self.rests.append(self._rest())
        start = len(self.server.log())
        self._under_load(drain_within)
        self.history_at_the_end = set(self.server.get("/history"))
        self.runs_in_the_log = self.server.log()[start:].count("Prompt executed in")
        self.rests.append(self._rest())
        for name in list(self.prompts)[:: len(self.prompts) // 3]:
            now = self._alone(name, self.prompts[name])
            self.quiet_again[name] = list(differences(self.quiet[name], now))
        self.log = self.server.log()
        return self

    def queue(self) -> tuple[list[str], list[str]]:
        """The ids of the prompts that run and that wait."""
        reply = self.server.get("/queue")
        return tuple([item[1] for item in reply[k]] for k in ("queue_running", "queue_pending"))

    def window(self, start: float, end: float) -> list[Sample]:
        """The samples of a part of the time with prompts in the queue, in fractions of it."""
        busy = [sample for sample in self.samples if sample.queued]
        return busy[int(start * len(busy)) : int(end * len(busy))]

    def rss(self, start: float, end: float) -> float:
        """The median of the server's memory in a part of that time, MiB."""
        return statistics.median(sample.rss for sample in self.window(start, end))

    @property
    def kept_by_the_host(self) -> list[Ticket]:
        """Those whose history the host has not yet dropped for its limit of 10,000."""
        return [ticket for ticket in self.tickets.values() if ticket.history][-9000:]

    def ended(self, kind: str) -> list[Ticket]:
        """The prompts that ended in one way."""
        return [ticket for ticket in self.tickets.values() if ticket.end == kind]

    def summary(self) -> str:
        """The figures of the run."""
        done = self.ended("execution_success")
        names = collections.Counter(ticket.name.partition(",")[0] for ticket in done)
        early, late = self.rss(*EARLY), self.rss(*LATE)
        queued = statistics.median(s.queued for s in self.samples if s.time < self.seconds)
        before, after = self.rests
        return "\n".join(
            (
                f"{self.seconds:.0f} s full and {self.drained_after:.0f} s to the last result",
                f"{len(self.tickets)} queued, {len(done)} done, "
                f"{sum(t.is_from_cache for t in done)} of them from the cache: {dict(names)}",
                f"{len(self.ended('execution_interrupted'))} interrupted by "
                f"{len(self.interrupts)} requests, "
                f"{sum(t.is_deleted for t in self.tickets.values())} deleted, "
                f"{len(self.ended('execution_error'))} errors, trouble: {dict(self.troubles.dealt)}",
                f"queue: median {queued:.0f}; slowest answer {self.slowest_answer:.2f} s",
                f"RSS under load: {early:.1f} to {late:.1f} MiB, {late / early - 1:+.2%}",
                "RSS by sixths of the time: "
                + ", ".join(f"{self.rss(i / 6, (i + 1) / 6):.0f}" for i in range(6)),
                f"at rest: {before.rss:.0f} to {after.rss:.0f} MiB; tensors {before.tensors} to "
                f"{after.tensors}, {before.tensor_mib:.3f} to {after.tensor_mib:.3f} MiB",
            )
        )

    def _alone(self, name: str, prompt: dict[str, Any]) -> Results:
        run = self.server.run(prompt, 300)
        if run.status != "execution_success":
            raise RuntimeError(f"{name} failed in the quiet run: {run.error}")
        return results_of(self.server, run.outputs)

    def _under_load(self, drain_within: float) -> None:
        start = time.monotonic()
        until = start + self.seconds
        with ThreadPoolExecutor(len(self.clients) + 1) as pool:
            watching = pool.submit(self._watch, start)
            working = [pool.submit(c.work, until, drain_within) for c in self.clients]
            try:
                for future in working:
                    future.result(self.seconds + drain_within + 120)
                self.drained_after = time.monotonic() - until
            finally:
                self.is_over.set()
            watching.result(120)

    def _watch(self, start: float) -> None:
        while not self.is_over.wait(MEASURE_EVERY):
            asked = time.monotonic()
            self.server.get("/system_stats")
            self.slowest_answer = max(self.slowest_answer, time.monotonic() - asked)
            queued = self.server.get("/prompt")["exec_info"]["queue_remaining"]
            rss = self.server.get("/seed_test/memory")["rss"] / 2**20
            self.samples.append(Sample(time.monotonic() - start, rss, queued))

    def _rest(self) -> Rest:
        """Ask the host to let go of everything and wait until it has."""
        self.server.post_plain("/free", {"unload_models": True, "free_memory": True})
        deadline = time.monotonic() + 60
        while (state := self.server.get("/seed_test/state"))["alive"] or state["loaded"]:
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
        time.sleep(1)
        state = self.server.get("/seed_test/state")
        held = self.server.get("/seed_test/tensors")
        rss = self.server.get("/seed_test/memory")["rss"] / 2**20
        return Rest(rss, held["tensors"], held["bytes"] / 2**20, state["alive"] + state["loaded"])
