"""A server of this machine that answers completions as vLLM does, or badly in ways that are asked for.

The pack's own network computes, and the grammar of each request is read and kept to, so a wrong one
gives wrong replies. Source: what vLLM 0.32 and SGLang 0.5.23 take and send.
"""

import json
import re
import select
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from seed_core.llm.cache import KVCache, attended_length
from seed_core.llm.runtime import SeedLLM
from seed_core.llm.sampling import GenerationOptions, sample

CPU = torch.device("cpu")

# --- grammars ---------------------------------------------------------------------------------

WORD = re.compile(r"\s*(::=|\w+|[(){}|*,])")


class Grammar:
    """An EBNF over token ids, of sequences, alternatives, repetitions, Token and ExcludeToken."""

    def __init__(self, text: str, size: int):
        self._size = size
        self._rules: dict[str, Any] = {}
        for line in text.splitlines():
            name, _, rule = line.partition("::=")
            self._words = WORD.findall(rule)
            if "".join(self._words) != "".join(rule.split()):
                raise ValueError(f"cannot read {rule}")
            self._rules[name.strip()] = self._alternatives()
            if self._words:
                raise ValueError(f"cannot read {self._words}")
        self.start = frozenset({(("rule", "root"),)})
        self._allowed: dict[Any, Any] = {}

    def _alternatives(self) -> Any:
        found = [self._sequence()]
        while self._words and self._words[0] == "|":
            self._words.pop(0)
            found.append(self._sequence())
        return ("alternatives", tuple(found))

    def _sequence(self) -> Any:
        found = []
        while self._words and self._words[0] not in "|)":
            found.append(self._item())
        return ("sequence", tuple(found))

    def _item(self) -> Any:
        word = self._words.pop(0)
        if word == "(":
            item = self._alternatives()
            self._expect(")")
        elif word in ("Token", "ExcludeToken"):
            self._expect("(")
            ids = [int(self._words.pop(0))]
            while self._words[0] == ",":
                self._words.pop(0)
                ids.append(int(self._words.pop(0)))
            self._expect(")")
            listed = torch.zeros(self._size, dtype=torch.bool)
            listed[ids] = True
            item = ("tokens", id(listed), listed if word == "Token" else ~listed)
        else:
            item = ("rule", word)
        if self._words and self._words[0] == "*":
            self._words.pop(0)
            return ("star", item)
        if self._words and self._words[0] == "{":
            self._words.pop(0)
            count = int(self._words.pop(0))
            self._expect("}")
            return ("sequence", (item,) * count)
        return item

    def _expect(self, word: str) -> None:
        if self._words.pop(0) != word:
            raise ValueError(f"{word} is missing")

    def _open(self, stack: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        """The stacks that begin with tokens, or are empty, that one stands for."""
        if not stack or stack[0][0] == "tokens":
            yield stack
            return
        (kind, *content), rest = stack[0], stack[1:]
        if kind == "rule":
            yield from self._open((self._rules[content[0]], *rest))
        elif kind == "sequence":
            yield from self._open((*content[0], *rest))
        elif kind == "alternatives":
            for each in content[0]:
                yield from self._open((each, *rest))
        else:
            yield from self._open(rest)
            yield from self._open((content[0], stack[0], *rest))

    def allowed(self, stacks: frozenset[Any], eos: int) -> torch.Tensor:
        """Which token ids may come next; the end where everything may end."""
        mask = torch.zeros(self._size, dtype=torch.bool)
        for stack in stacks:
            for opened in self._open(stack):
                if opened:
                    mask |= opened[0][2]
                else:
                    mask[eos] = True
        return mask

    def advance(self, stacks: frozenset[Any], token_id: int) -> frozenset[Any]:
        opened = (each for stack in stacks for each in self._open(stack))
        kept = [each[1:] for each in opened if each and bool(each[0][2][token_id])]
        return frozenset(kept)


# --- the server -------------------------------------------------------------------------------


@dataclass
class Faults:
    """What goes wrong; as it is made, nothing does."""

    refusals: list[tuple[str, int, dict[str, str], bytes]] = field(default_factory=list)
    # Of the answers to paths that hold a text: status, headers, body. One is used up by a request,
    # unless `refuses_always`.
    refuses_always: bool = False
    silence: str | None = None  # "headers", "first token", or the number of tokens after which
    pings: bool = False  # in silence comments are sent, as some proxies do
    cut: int | None = None  # tokens after which the connection ends
    instead: tuple[str, bytes] | None = None  # content type and body in place of a stream
    mangle: Callable[[dict[str, Any]], Any] = lambda event: event  # each event before it is sent
    ignores_grammar: bool = False
    ignores_length: bool = False
    strips_end: bool = False  # the token that ends a reply is left out
    models: Any = None  # in place of the list of models
    detokenized: Any = None  # in place of what token ids are called
    lacks: tuple[str, ...] = ()  # paths that are not there


class Engine:
    """The server.

    Attributes:
        faults: what goes wrong.
        bodies: of the requests for completions, as they came.
        paths: of all requests.
        keys: the Authorization of all requests.
        running: how many completions are under way.
        aborted: how many clients have left before the end.
        released: ends all silences.
    """

    def __init__(
        self,
        llm: SeedLLM,
        name: str = "seed-mini",
        key: str | None = None,
        context: int | None = 512,
        wrap: Callable[[socket.socket], socket.socket] = lambda plain: plain,
    ):
        self.llm, self.name, self.key, self.context = llm, name, key, context
        self.faults = Faults()
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.keys: list[str | None] = []
        self.running = self.aborted = self.served = 0
        self.changed = threading.Condition()
        self.released = threading.Event()
        self.computing = threading.Lock()
        self._grammars: dict[str, Grammar] = {}
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.engine = self
        self.port = self._server.server_port
        self._server.socket = wrap(self._server.socket)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> "Engine":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def count(self, running: int = 0, aborted: int = 0, served: int = 0) -> None:
        with self.changed:
            self.running += running
            self.aborted += aborted
            self.served += served
            self.changed.notify_all()

    def wait_until(self, condition: Callable[["Engine"], bool], seconds: float = 30.0) -> bool:
        """Whether something comes true; nothing here takes nearly as long."""
        with self.changed:
            return self.changed.wait_for(lambda: condition(self), seconds)

    def grammar(self, text: str) -> Grammar:
        if text not in self._grammars:
            self._grammars[text] = Grammar(text, self.llm.vocab.size)
        return self._grammars[text]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    engine: Engine

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # who asked has gone
            super().handle_error(request, client_address)


class RefusedError(Exception):
    """An answer of status and message."""


class Reply:
    """One reply of a request, made token by token."""

    def __init__(self, engine: Engine, body: dict[str, Any], index: int):
        self._llm, self._body = engine.llm, body
        ebnf = body.get("structured_outputs", {}).get("grammar") or body.get("ebnf")
        self._grammar = None if engine.faults.ignores_grammar or not ebnf else engine.grammar(ebnf)
        self._stacks = self._grammar.start if self._grammar else frozenset()
        # Without a grammar any token may come: seed-mini would keep to it by itself.
        temperature = body["temperature"] * (50 if engine.faults.ignores_grammar else 1)
        self._options = GenerationOptions(
            "auto", 1, temperature, body["top_p"], max(body["top_k"], 0)
        )
        self._length = body["max_tokens"] + 64 * engine.faults.ignores_length
        self._generator = torch.Generator().manual_seed(body["seed"] + index)
        self._prompt = body["prompt"]
        config = engine.llm.config
        room = min(self._length + len(self._prompt), config.max_position_embeddings)
        self._length = room - len(self._prompt)
        self._cache = KVCache(config, 1, room, CPU, torch.float32)
        self._logits: torch.Tensor | None = None
        self.done = 0
        self.reason: str | None = None

    @torch.inference_mode()
    def step(self) -> int:
        module = self._llm.module
        if self._logits is None:
            self._logits = module.prefill(torch.tensor([self._prompt]), self._cache)
        logits = self._logits
        if self._grammar is not None:
            allowed = self._grammar.allowed(self._stacks, self._llm.vocab.eos)
            logits = logits.masked_fill(~allowed, -torch.inf)
        uniform = torch.rand(1, generator=self._generator)
        token_id = int(sample(logits, self._options, uniform))
        self.done += 1
        ends = {self._llm.vocab.eos, *self._body["stop_token_ids"]}
        if token_id in ends:
            self.reason = "stop"
        elif self.done == self._length:
            self.reason = "length"
        else:
            if self._grammar is not None:
                self._stacks = self._grammar.advance(self._stacks, token_id)
            position = torch.tensor([len(self._prompt) + self.done - 1])
            length = attended_length(len(self._prompt) + self.done)
            self._logits = module.decode(torch.tensor([token_id]), self._cache, position, length)
        return token_id


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._handle(None)

    def do_POST(self) -> None:
        self._handle(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _handle(self, body: Any) -> None:
        self.engine: Engine = self.server.engine
        self.engine.paths.append(self.path)
        self.engine.keys.append(self.headers.get("Authorization"))
        try:
            self._answer(body)
        except RefusedError as error:
            status, message = error.args
            self._send(status, {}, json.dumps({"error": {"message": message, "code": status}}))
        except OSError:
            self.close_connection = True

    def _answer(self, body: Any) -> None:
        engine = self.engine
        if engine.key and self.headers.get("Authorization") != f"Bearer {engine.key}":
            self._send(401, {}, '{"error":"Unauthorized"}')
            return
        for refusal in engine.faults.refusals:
            path, status, headers, content = refusal
            if path in self.path:
                if not engine.faults.refuses_always:
                    engine.faults.refusals.remove(refusal)
                self._send(status, headers, content)
                return
        if self.path in engine.faults.lacks:
            raise RefusedError(404, "Not Found")
        if self.path == "/v1/models":
            card = {"id": engine.name, "max_model_len": engine.context}
            self._send_json(engine.faults.models or {"object": "list", "data": [card]})
        elif self.path == "/detokenize":
            names = "" if body.get("skip_special_tokens", True) else self._names(body["tokens"])
            self._send_json(engine.faults.detokenized or {"prompt": names})
        elif self.path == "/v1/completions":
            self._complete(body)
        else:
            raise RefusedError(404, "Not Found")

    def _names(self, token_ids: list[int]) -> str:
        vocab = self.engine.llm.vocab
        names = {vocab.begin_image: "<img>", vocab.end_image: "</img>"}
        names |= {vocab.first_code + i: f"<img_{i:05d}>" for i in range(vocab.codebook_size)}
        return "".join(names.get(token_id, "?") for token_id in token_ids)

    def _complete(self, body: dict[str, Any]) -> None:
        engine = self.engine
        engine.bodies.append(body)
        self._check(body)
        if engine.faults.instead:
            kind, content = engine.faults.instead
            self._send(200, {"Content-Type": kind}, content)
            return
        engine.count(running=1)
        try:
            self._stream(body)
        except OSError:
            engine.count(aborted=1)
            self.close_connection = True
        else:
            engine.count(served=1)
        finally:
            engine.count(running=-1)

    def _check(self, body: dict[str, Any]) -> None:
        limit = self.engine.llm.config.max_position_embeddings
        limit = min(limit, self.engine.context or limit)
        if body["model"] != self.engine.name:
            raise RefusedError(404, f"The model `{body['model']}` does not exist.")
        if len(body["prompt"]) + body["max_tokens"] > limit:
            raise RefusedError(
                400, f"This model's maximum context length is {limit} tokens, however you want more"
            )
        if max(body["prompt"]) >= self.engine.llm.vocab.size:
            raise RefusedError(400, f"Token id {max(body['prompt'])} is out of vocabulary")
        if body["temperature"] == 0 and body["n"] > 1:
            raise RefusedError(400, "n must be 1 when using greedy sampling")
        if body["temperature"] > 2:
            raise RefusedError(400, "temperature must be in [0, 2]")

    def _stream(self, body: dict[str, Any]) -> None:
        faults, sent = self.engine.faults, 0
        if faults.silence == "headers":
            self._be_silent()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Connection", "close")
        self.close_connection = True
        self.end_headers()
        if faults.silence == "first token":
            self._be_silent()
        with self.engine.computing:
            replies = [Reply(self.engine, body, index) for index in range(body["n"])]
        while any(reply.reason is None for reply in replies):
            for index, reply in enumerate(replies):
                if reply.reason is None:
                    with self.engine.computing:
                        token_id = reply.step()
                    self._event(index, reply, token_id)
            sent += 1
            if faults.cut == sent:
                raise ConnectionError("cut")
            if faults.silence == sent:
                self._be_silent()
        with suppress(OSError):  # who has all replies need not wait for it
            self._chunk(b"data: [DONE]\n\n")
            self._chunk(b"")

    def _event(self, index: int, reply: Reply, token_id: int) -> None:
        stripped = self.engine.faults.strips_end and reply.reason == "stop"
        choice = {
            "index": index,
            "text": "",
            "finish_reason": reply.reason,
            "stop_reason": None,
            "token_ids": [] if stripped else [token_id],
        }
        event = self.engine.faults.mangle({"choices": [choice]})
        text = event if isinstance(event, bytes) else b"data: " + json.dumps(event).encode()
        self._chunk(text + b"\n\n")

    def _be_silent(self) -> None:
        while not self.engine.released.wait(0.01):
            if self.engine.faults.pings:
                self._chunk(b": still here\n\n")
            if select.select([self.connection], [], [], 0)[0] and not self.connection.recv(1):
                raise ConnectionError("the client has gone")
        raise ConnectionError("released")

    def _chunk(self, content: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(content), content))

    def _send_json(self, content: Any) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(content))

    def _send(self, status: int, headers: dict[str, str], content: str | bytes) -> None:
        content = content.encode() if isinstance(content, str) else content
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:  # else the answer is cut
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """A test's output is its own."""
