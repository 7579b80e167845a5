"""What goes wrong between here and a server, each in one sentence that says what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import GenerationError, first_line, in_one_line
from ..waiting import after
from .server_file import ServerFile

BUSY = frozenset({429, 503})

_LONGEST_QUOTE = 300  # characters of what a server says


class Refusal(Exception):  # noqa: N818 - not one of ours: `explained` makes a sentence of it
    """An answer that is none."""

    def __init__(self, status: int, said: str, wait: float | None = None) -> None:
        super().__init__(status, said)
        self.status = status
        self.said = said  # by the server, in one line
        self.wait = wait  # seconds for which it asks to be left alone


class GarbageError(Exception):
    """An answer that is not what an engine sends."""


def message_in(body: bytes) -> str:
    """Return what the body of an answer says, in one short line."""
    text = body.decode("utf-8", "replace")
    try:
        found: Any = json.loads(text)
        for name in ("error", "message", "detail"):
            found = found.get(name, found) if isinstance(found, dict) else found
        text = found if isinstance(found, str) else json.dumps(found)
    except (ValueError, RecursionError):
        pass
    return quoted(text) or "no reason given"


def quoted(text: str) -> str:
    """Return words of a server as one short line, without characters that a console obeys."""
    line = in_one_line(" ".join(text.split()))
    return line if len(line) <= _LONGEST_QUOTE else line[:_LONGEST_QUOTE] + " ..."


@contextmanager
def explained(server: ServerFile) -> Iterator[None]:
    """Raise whatever is not one of ours as a `GenerationError` of one sentence."""
    import http.client

    try:
        yield
    except Refusal as error:
        raise GenerationError(_refusal(server, error)) from error
    except (GarbageError, RecursionError) as error:
        raise GenerationError(
            f"{server} sent something that is not the answer of {server.dialect.name} "
            f"({quoted(str(error))}): "
            "check the address, and any proxy on the way to it"
        ) from error
    except (http.client.IncompleteRead, ConnectionError) as error:
        raise GenerationError(_broken(server, error)) from error
    except http.client.HTTPException as error:
        raise GenerationError(
            f"{server} does not answer as a web server does ({_reason(error)}): check the address, "
            "and whether it begins with http or https"
        ) from error
    except OSError as error:
        raise GenerationError(_unreachable(server, error)) from error


def _broken(server: ServerFile, error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return (
            f"{server} refuses connections: it is off, it is still starting, which takes minutes, or "
            "the server file has the wrong port"
        )
    return (
        f"the connection to {server} broke before the reply was complete; run it again, and look at "
        "the engine's own messages if that happens again"
    )


def _unreachable(server: ServerFile, error: OSError) -> str:
    import socket
    import ssl

    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the certificate of {server} is not trusted ({error.verify_message}): if it is your own, "
            "name the file of its authority as certificate in the server file"
        )
    if isinstance(error, ssl.SSLError):
        return (
            f"{server} does not speak https ({_reason(error)}): write http into the server file if "
            "it has no certificate"
        )
    if isinstance(error, socket.gaierror):
        return f"the name {server.address.hostname} of {server} is not known: check the address"
    if isinstance(error, TimeoutError):
        return silent(server, "connection", server.connect_seconds, "connect_seconds")
    return f"{server} cannot be reached: {_reason(error)}"


def silent(server: ServerFile, lacks: str, seconds: float, field: str) -> str:
    """Return what to say when something has not come in time."""
    return (
        f"{server} gave no {lacks} within {seconds:g} seconds: it may be stopped, stuck or too busy; "
        f"{field} in the server file is how long to wait"
    )


def _refusal(server: ServerFile, error: Refusal) -> str:
    status, said = error.status, error.said
    if status in (401, 403):
        if server.key_variable or server.key_file:
            what = "refuses the key that the server file leads to"
        else:
            what = "wants a key, and the server file has neither key_variable nor key_file"
        return f"{server} {what} (answer {status})"
    if status == 404:
        return (
            f"{server} does not know the model {server.model!r}, or has nothing at this address "
            f"(answer 404): {said}"
        )
    if status in BUSY:
        when = "later" if error.wait is None else f"{after(error.wait)}, as it asks"
        return f"{server} is too busy (answer {status}): run it again {when}"
    if 300 <= status < 400:
        return (
            f"{server} redirects to another address (answer {status}), which is not followed: write the "
            "address of the engine itself into the server file"
        )
    if status >= 500:
        return f"{server} failed (answer {status}): {said}"
    return f"{server} refuses the request (answer {status}): {said}"


def _reason(error: Exception) -> str:
    return quoted(first_line(error))
