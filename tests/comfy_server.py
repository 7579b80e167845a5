"""A real ComfyUI server for the tests: found, started on its own folders, driven, stopped.

Nothing is written inside the checkout: models, input, output, temp, user folder, database and
custom nodes all live under `base_dir`. Standard library plus aiohttp (for the websocket).
"""

import asyncio
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PACK_ROOT = Path(__file__).resolve().parents[1]
PACK_NAME = "seed-llama"
ON_THE_PROCESSOR = ("--cpu",)  # of the host's own arguments
FINAL_EVENTS = ("execution_success", "execution_error", "execution_interrupted")
# A copied pack needs neither its tests nor its history.
NOT_COPIED = shutil.ignore_patterns(
    ".git", "tests", "benchmarks", "__pycache__", ".venv", "*.egg-info"
)


def find_checkout() -> Path | None:
    """The ComfyUI folder: COMFYUI_PATH, ~/comfy/ComfyUI, or the one this pack is installed in."""
    named = os.environ.get("COMFYUI_PATH")
    places = [Path(named)] if named else [Path.home() / "comfy" / "ComfyUI", PACK_ROOT.parents[1]]
    return next((p for p in places if (p / "main.py").is_file() and (p / "comfy").is_dir()), None)


def find_ipadapter() -> Path | None:
    """The third-party pack: IPADAPTER_PATH, or the one installed in the checkout."""
    if named := os.environ.get("IPADAPTER_PATH"):
        return Path(named)
    checkout = find_checkout()
    installed = (checkout / "custom_nodes").iterdir() if checkout else ()
    return next((p for p in installed if p.name.lower() == "comfyui_ipadapter_plus"), None)


def find_python(checkout: Path) -> str:
    """The checkout's own interpreter where it has one, else the one running the tests."""
    for folder in (".venv", "venv"):
        for relative in ("bin/python", "Scripts/python.exe"):
            if (checkout / folder / relative).is_file():
                return str(checkout / folder / relative)
    portable = checkout.parent / "python_embeded" / "python.exe"  # the Windows portable build
    return str(portable) if portable.is_file() else sys.executable


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def install(pack: Path, target: Path) -> None:
    """Link the pack into custom_nodes; copy it where links are not allowed (Windows)."""
    try:
        target.symlink_to(pack, target_is_directory=True)
    except OSError:
        shutil.copytree(pack, target, ignore=NOT_COPIED)


@dataclass
class Event:
    """One websocket message: `time` is the monotonic clock when it arrived."""

    time: float
    type: str
    data: dict[str, Any]


@dataclass
class Run:
    """What one prompt did."""

    prompt_id: str
    events: list[Event] = field(default_factory=list)
    history: dict[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> str:
        return self.events[-1].type if self.events else ""

    @property
    def outputs(self) -> dict[str, Any]:
        return self.history.get("outputs", {})

    @property
    def error(self) -> dict[str, Any]:
        """The execution_error message (node_id, exception_message, exception_type) or {}."""
        return next((e.data for e in self.events if e.type == "execution_error"), {})

    @property
    def executed(self) -> list[str]:
        """Ids of the nodes that really ran, in order (cached ones are not among them)."""
        return [e.data["node"] for e in self.events if e.type == "executing" and e.data.get("node")]

    @property
    def cached(self) -> set[str]:
        return {n for e in self.events if e.type == "execution_cached" for n in e.data["nodes"]}

    def texts(self) -> list[str]:
        return [e.data["text"] for e in self.events if e.type == "progress_text"]

    def previews(self) -> list[bytes]:
        """The JPEG files that were shown while nodes worked."""
        return [e.data["jpeg"] for e in self.events if e.type == "preview"]


class ComfyServer:
    """One running server. `start()` and `stop()` may be called once each.

    `args` are the host's own; without any it computes on the card. `settings` are of its environment.
    """

    def __init__(
        self,
        checkout: Path,
        base_dir: Path,
        packs: dict[str, Path] | None = None,
        args: tuple[str, ...] = ON_THE_PROCESSOR,
        settings: Mapping[str, str] | None = None,
    ):
        self.checkout = checkout
        self.base_dir = base_dir
        self.log_path = base_dir / "server.log"
        self.packs = {PACK_NAME: PACK_ROOT} if packs is None else packs
        self.args = args
        self.settings = dict(settings or {})
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.events = _EventStream(f"ws://127.0.0.1:{self.port}/ws")

    @property
    def client_id(self) -> str:
        return self.events.client_id

    def start(self, timeout: float = 180.0) -> "ComfyServer":
        for folder in ("custom_nodes", "models", "input", "output", "temp", "user"):
            (self.base_dir / folder).mkdir(parents=True, exist_ok=True)
        for name, pack in self.packs.items():
            install(pack, self.base_dir / "custom_nodes" / name)
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                self._command(),
                cwd=self.base_dir,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment() | self.settings,
            )
        self._wait_until_up(timeout)
        self.events.start()
        return self

    def stop(self) -> None:
        self.events.stop()
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        # A link is removed before pytest cleans the folder, so that cleaning can never follow it.
        for name in self.packs:
            link = self.base_dir / "custom_nodes" / name
            if link.is_symlink():
                link.unlink()

    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.base_url + path, timeout=60) as reply:
            return json.loads(reply.read())

    def get_bytes(self, path: str) -> bytes:
        with urllib.request.urlopen(self.base_url + path, timeout=60) as reply:
            return reply.read()

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and decoded reply; an HTTP error is a result here, not an exception."""
        request = urllib.request.Request(
            self.base_url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.status, json.loads(reply.read() or b"null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")

    def post_plain(self, path: str, body: dict[str, Any] | None = None) -> None:
        """Post to a route that answers with an empty page."""
        content = json.dumps(body or {}).encode()
        headers = {"Content-Type": "application/json"}
        urllib.request.urlopen(
            urllib.request.Request(self.base_url + path, content, headers), timeout=60
        ).close()

    def queue(self, prompt: dict[str, Any], **extra: Any) -> str:
        """Send an API-format prompt; returns its id. Refused prompts raise with the reply.

        What is `extra` the frontend sends beside the prompt, such as preview_method.
        """
        body = {"prompt": prompt, "client_id": self.client_id, "extra_data": extra}
        status, reply = self.post("/prompt", body)
        if status != 200:
            raise RefusedPromptError(reply)
        return reply["prompt_id"]

    def wait(self, prompt_id: str, timeout: float = 120.0) -> Run:
        events = self.events.until_finished(prompt_id, timeout)
        deadline = time.monotonic() + 10
        while prompt_id not in (history := self.get(f"/history/{prompt_id}")):
            # The host tells the client first and writes its history a moment later.
            if time.monotonic() > deadline:
                raise TimeoutError(f"prompt {prompt_id} ended but has no history")
            time.sleep(0.02)
        return Run(prompt_id, events, history[prompt_id])

    def run(self, prompt: dict[str, Any], timeout: float = 120.0) -> Run:
        """Queue a prompt and wait for its end."""
        return self.wait(self.queue(prompt), timeout)

    def picture(self, image: dict[str, str]) -> bytes:
        """Download one entry of a node's `images` output."""
        query = f"filename={image['filename']}&subfolder={image['subfolder']}&type={image['type']}"
        return self.get_bytes(f"/view?{query}")

    def _command(self) -> list[str]:
        database = (self.base_dir / "user" / "comfyui.db").as_posix()
        return [
            find_python(self.checkout),
            str(self.checkout / "main.py"),
            *("--listen", "127.0.0.1", "--port", str(self.port)),
            *("--base-directory", str(self.base_dir), "--database-url", f"sqlite:///{database}"),
            *("--disable-auto-launch", "--disable-api-nodes", *self.args),
        ]

    def _wait_until_up(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if not self.is_alive():
                raise RuntimeError(f"ComfyUI stopped while starting:\n{self.log()[-4000:]}")
            try:
                self.get("/system_stats")
                return
            except OSError:
                time.sleep(0.2)
        self.stop()
        raise RuntimeError(f"ComfyUI did not answer in {timeout:.0f} s:\n{self.log()[-4000:]}")


class RefusedPromptError(Exception):
    """The server did not accept a prompt; `reply` is its JSON answer."""

    def __init__(self, reply: dict[str, Any]):
        super().__init__(json.dumps(reply)[:2000])
        self.reply = reply

    def messages(self) -> str:
        """Every message of the reply in one string."""
        found = [self.reply["error"]["message"], self.reply["error"].get("details", "")]
        for node in self.reply.get("node_errors", {}).values():
            found += [f"{e['message']} {e['details']}" for e in node["errors"]]
        return "\n".join(found)


class _EventStream:
    """Reads the websocket in a thread, so that a test may itself run inside an event loop."""

    def __init__(self, url: str):
        self.client_id = uuid.uuid4().hex
        self._url = f"{url}?clientId={self.client_id}"
        self._events: list[Event] = []
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._connected = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._read()), daemon=True)

    def start(self) -> None:
        self._thread.start()
        if not self._connected.wait(30):
            raise RuntimeError("no websocket connection to ComfyUI")

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def until_finished(self, prompt_id: str, timeout: float) -> list[Event]:
        """All messages of one prompt, once its last one has arrived."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                mine = self._of_prompt(prompt_id)
                if mine and mine[-1].type in FINAL_EVENTS:
                    return mine
                if not self._changed.wait(deadline - time.monotonic()):
                    raise TimeoutError(f"prompt {prompt_id}: no end within {timeout:.0f} s")

    def wait_until(
        self, prompt_id: str, is_wanted: Callable[[Event], bool], timeout: float
    ) -> Event:
        """The first message of one prompt that is wanted."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                found = next(filter(is_wanted, self._of_prompt(prompt_id)), None)
                if found:
                    return found
                if not self._changed.wait(deadline - time.monotonic()):
                    raise TimeoutError(
                        f"prompt {prompt_id}: no such message within {timeout:.0f} s"
                    )

    def _of_prompt(self, prompt_id: str) -> list[Event]:
        """The prompt's messages up to its end (the host sends one more `executing` after it)."""
        mine: list[Event] = []
        running = ""
        for event in self._events:
            if event.type == "execution_start":
                running = event.data["prompt_id"]
            if event.data.get("prompt_id", running) == prompt_id:
                mine.append(event)
                if event.type in FINAL_EVENTS:
                    break
        return mine

    async def _read(self) -> None:
        import aiohttp

        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(self._url, max_msg_size=0) as socket,
        ):
            self._connected.set()
            while not self._stopping.is_set():
                try:
                    message = await socket.receive(timeout=0.2)
                except (asyncio.TimeoutError, TimeoutError):
                    continue
                if message.type == aiohttp.WSMsgType.TEXT:
                    content = json.loads(message.data)
                    self._add(content["type"], content.get("data") or {})
                elif message.type == aiohttp.WSMsgType.BINARY:
                    self._add_binary(message.data)
                else:
                    return

    def _add_binary(self, data: bytes) -> None:
        """Message 1 is a preview, as clients get it that do not ask for more: 1 for JPEG, the file.

        Message 3 is live text of a node: length of the node id, node id, text.
        """
        kind, more = struct.unpack(">II", data[:8])
        if (kind, more) == (1, 1):
            self._add("preview", {"jpeg": data[8:]})
        if kind != 3:
            return
        end = 8 + struct.unpack(">I", data[4:8])[0]
        self._add("progress_text", {"node": data[8:end].decode(), "text": data[end:].decode()})

    def _add(self, kind: str, data: dict[str, Any]) -> None:
        with self._changed:
            self._events.append(Event(time.monotonic(), kind, data))
            self._changed.notify_all()


def _environment() -> dict[str, str]:
    """Ours, without what could reach into the server: our import path, a proxy for localhost."""
    hidden = {"PYTHONPATH", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"}
    kept = {k: v for k, v in os.environ.items() if k not in hidden}
    # One thread: seed-mini is small, and where other processes are busy too (a browser, other
    # tests) threads that wait for one another make it ten times slower.
    kept.setdefault("OMP_NUM_THREADS", "1")
    local = "127.0.0.1,localhost"
    return kept | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "NO_PROXY": local}
