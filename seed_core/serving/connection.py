"""One request to a server and its answer, which can be ended from outside at any time.

The standard library's client asks nobody but the address in the server file: it reads no proxies
and passwords from the environment, follows no redirects, and gives its socket to who wants to close
it. Nothing of it is imported before a connection is made.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ..errors import GenerationError
from ..waiting import seconds_asked
from .failures import BUSY, GarbageError, Refusal, message_in, silent
from .server_file import ServerFile

if TYPE_CHECKING:
    from http.client import HTTPConnection, HTTPResponse
    from socket import socket

_CHUNK = 64 * 2**10  # bytes
_LONGEST_LINE = 4 * 2**20  # bytes of one event
_LONGEST_BODY = 2**20  # bytes of an answer that is not a stream
_SHORTEST_WAIT = 1.0  # seconds between two requests to a busy server
_OK = 200


class Patience:
    """How long the server may be silent at the moment; whoever waits for it asks."""

    def __init__(self, server: ServerFile) -> None:
        self._server = server
        self._expected: tuple[float, str] | None = None

    def expect(self, lacks: str, field: str, more: float = 0.0) -> None:
        """Begin to wait for something, as long as a field of the server file says.

        Args:
            lacks: what, for the message.
            field: which time limit counts.
            more: seconds beyond it.
        """
        seconds = getattr(self._server, field)
        sentence = silent(self._server, lacks, seconds, field)
        self._expected = time.monotonic() + seconds + more, sentence

    def end(self) -> None:
        """Wait for nothing any more."""
        self._expected = None

    def check(self) -> None:
        """Raise a `GenerationError` once the time is over."""
        if (expected := self._expected) is not None:
            until, sentence = expected
            if time.monotonic() > until:
                raise GenerationError(sentence)


class Connection:
    """What is said to a server for one generation, one request after the other."""

    def __init__(self, server: ServerFile, patience: Patience) -> None:
        self._server = server
        self._patience = patience
        self._stopped = threading.Event()
        self._socket: socket | None = None
        self._key = server.key()

    def close(self) -> None:
        """End the request that is under way; whoever reads its answer wakes up. From any thread."""
        from socket import SHUT_RDWR, socket

        self._stopped.set()
        if (held := self._socket) is not None:
            with suppress(OSError):  # where it is closed already
                # The plain socket's: TLS would take its leave first, of a server that may be silent.
                socket.shutdown(held, SHUT_RDWR)

    def ask(self, path: str, content: dict[str, Any] | None = None) -> Any:
        """Return the answer to a question, which is JSON.

        Raises:
            Refusal: the server refuses it.
            GarbageError: it is not JSON.
        """
        with self._answer(path, content, "gap_seconds") as response:
            body = response.read(_LONGEST_BODY)
            if response.length and len(body) < _LONGEST_BODY:
                raise ConnectionError("an answer has no end")
        try:
            return json.loads(body)
        except ValueError as error:
            raise GarbageError(f"{path}: {message_in(body)}") from error

    def events(self, path: str, content: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
        """Yield the events of a stream as they come, until the server is done or has gone.

        Raises:
            Refusal: the server refuses the request, or tells of an error in the stream.
            GarbageError: it is not a stream of events.
        """
        with self._answer(path, content, "first_token_seconds") as response:
            kind = response.getheader("Content-Type", "")
            if not kind.lower().startswith("text/event-stream"):
                raise GarbageError(f"{kind or 'something unnamed'} in place of a stream")
            for line in _lines(response):
                data = line.removeprefix(b"data:").strip()
                if data == b"[DONE]":
                    return
                if line.startswith(b"data:"):
                    yield _event(data)
                elif data and not line.startswith((b":", b"event:", b"id:", b"retry:")):
                    raise GarbageError(message_in(line))

    @contextmanager
    def _answer(
        self, path: str, content: dict[str, Any] | None, limit: str
    ) -> Iterator[HTTPResponse]:
        """Give the answer, open; ask again when a busy server says after how long."""
        until = time.monotonic() + self._server.first_token_seconds
        while True:
            with self._sent(path, content, limit) as response:
                if response.status == _OK:
                    yield response
                    return
                refusal = _refusal(response)
            if refusal.status not in BUSY or refusal.wait is None:
                raise refusal
            wait = max(refusal.wait, _SHORTEST_WAIT)
            if time.monotonic() + wait > until:
                raise refusal
            self._patience.expect("answer", "gap_seconds", more=wait)
            if self._stopped.wait(wait):
                raise refusal

    def _open(self) -> HTTPConnection:
        from http.client import HTTPConnection, HTTPSConnection

        server = self._server
        host, port, seconds = server.address.hostname or "", server.port, server.connect_seconds
        if server.address.scheme == "http":
            return HTTPConnection(host, port, timeout=seconds)
        import ssl

        context = ssl.create_default_context()
        if server.certificate is not None:
            try:
                context.load_verify_locations(server.certificate)
            except OSError as error:
                raise GenerationError(
                    f"{server.certificate}, the certificate of {server}, cannot be used: {error}"
                ) from error
        return HTTPSConnection(host, port, timeout=seconds, context=context)

    @contextmanager
    def _sent(
        self, path: str, content: dict[str, Any] | None, limit: str
    ) -> Iterator[HTTPResponse]:
        headers = {"Accept": "application/json, text/event-stream", "Connection": "close"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        body = None
        if content is not None:
            headers["Content-Type"] = "application/json"
            body = json.dumps(content).encode()
        self._patience.expect("connection", "connect_seconds")
        with closing(self._open()) as connection:
            method = "GET" if body is None else "POST"
            connection.request(method, self._server.address.path + path, body, headers)
            self._socket = connection.sock
            self._socket.settimeout(None)  # who waits sees to the time, and closes it
            if self._stopped.is_set():
                raise ConnectionError("stopped")
            what = "token" if limit == "first_token_seconds" else "answer"
            self._patience.expect(what, limit)
            try:
                with closing(connection.getresponse()) as response:
                    yield response
            finally:
                self._socket = None


def _refusal(response: HTTPResponse) -> Refusal:
    wait = seconds_asked(response.getheader("Retry-After", ""))
    return Refusal(response.status, message_in(response.read(_LONGEST_BODY)), wait)


def _lines(response: HTTPResponse) -> Iterator[bytes]:
    rest = b""
    while piece := response.read1(_CHUNK):
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
        if len(rest) > _LONGEST_LINE:
            raise GarbageError("a line without an end")
    if rest:
        yield rest


def _event(data: bytes) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError as error:
        raise GarbageError(message_in(data)) from error
    if not isinstance(event, dict):
        raise GarbageError(message_in(data))
    if (fields := event.get("error")) is not None:
        status = fields.get("code") if isinstance(fields, dict) else None
        if type(status) is not int or not 400 <= status < 600:
            status = 500
        raise Refusal(status, message_in(data))
    return event
