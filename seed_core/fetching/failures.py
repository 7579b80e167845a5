"""Errors of a connection, each turned into one message that says what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import DownloadError, first_line
from ..waiting import after, seconds_asked
from .downloads import Source, WebSource

# Settings of the environment: which server answers, and what else a connection depends on.
_PLACES = ("HF_ENDPOINT", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_CONNECTION = (*_PLACES, "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
_SETTINGS = (*_CONNECTION, "HF_TOKEN")

BUSY = frozenset({408, 429, 500, 502, 503, 504})
"""Answers of a server that may do what was asked a little later."""

OnBytes = Callable[[int, int], None]
"""Told how many bytes of the published files have come by now, and how many of them in this run."""


class Listener:
    """What a caller wants to be told of a transfer; what it raises ends that and passes through."""

    def __init__(self, on_bytes: OnBytes = lambda here, fetched: None) -> None:
        self._on_bytes = on_bytes
        self._found = self._fetched = 0
        self.raised: BaseException | None = None

    def found(self, count: int) -> None:
        """Count bytes that an earlier run has brought; they are told with the next that arrive."""
        self._found += count

    def __call__(self, count: int = 0) -> None:
        """Tell that so many more bytes have arrived; fewer where a server had to begin anew."""
        self._fetched += count
        try:
            self._on_bytes(self._found + self._fetched, self._fetched)
        except BaseException as error:
            self.raised = error
            raise


@contextmanager
def explained(source: Source, folder: Path, listener: Listener | None = None) -> Iterator[None]:
    """Raise each error of a connection as one `DownloadError`; those of a listener stay as they are.

    Raises:
        DownloadError: the connection broke, the server refused, the disk is full, or the user
            stopped it.
    """
    try:
        yield
    except DownloadError:
        raise
    except (Exception, KeyboardInterrupt) as error:
        if listener is not None and error is listener.raised:
            raise
        message = _message(error, source, folder)
        if message is None:
            raise
        raise DownloadError(message) from error


def _message(error: BaseException, source: Source, folder: Path) -> str | None:
    """Return what to say of an error; None of one that has nothing to do with a connection."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped; the next run goes on where this one ended"
    if (status := status_of(error)) is not None:
        return f"{_refusal(source, error, status)} {by_hand(source, folder)}"
    if isinstance(error, _broken_classes()):
        return _broken(error, source, folder)
    # An address, a proxy or a token that the HTTP client cannot even read.
    if _settings() or isinstance(error, ValueError):
        return (
            f"{source.page} cannot be asked: {first_line(error)}. {_settings()}"
            f"{by_hand(source, folder)}"
        )
    return None


def _broken_classes() -> tuple[type[BaseException], ...]:
    from huggingface_hub import errors

    # They depend on the HTTP client that the library was built on.
    return (OSError, *errors.HfHubHTTPError.__bases__)


def is_broken_connection(error: BaseException) -> bool:
    """Tell a broken connection from what this computer itself refuses."""
    return isinstance(error, _broken_classes()) and getattr(error, "errno", None) is None


def status_of(error: BaseException) -> int | None:
    """Return the status of an answer that refuses; None of an error of another kind."""
    from huggingface_hub import errors

    return error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None


def asked_to_wait(error: Any) -> float | None:
    """Return the seconds for which a server asks to be left alone, as a number or until a time."""
    return seconds_asked(error.response.headers.get("Retry-After", ""))


def _broken(error: BaseException, source: Source, folder: Path) -> str:
    if getattr(error, "errno", None) == errno.ENOSPC:
        return (
            f"the disk of {folder} is full. Make room, then run it again: the next run goes on "
            "where this one ended"
        )
    if getattr(error, "filename", None):
        return unusable(error, folder)
    return (
        f"no connection to {source.page} ({first_line(error)}). {_settings(_CONNECTION)}The next run goes "
        f"on where this one ended. {by_hand(source, folder)}"
    )


def unusable(error: BaseException, folder: Path) -> str:
    """Return what to say of a file or folder that the system does not let us use."""
    name = getattr(error, "filename", None) or folder
    settings = _settings(each for each in _CONNECTION if os.environ.get(each) == str(name))
    return (
        f"{name} cannot be used: {getattr(error, 'strerror', None) or error}. {settings}If that is "
        f"the disk of {folder}, name another folder in ComfyUI's extra_model_paths.yaml"
    )


def _settings(names: Iterable[str] = _SETTINGS) -> str:
    """Name the settings of the environment that change how the library connects."""
    found = [name for name in names if os.environ.get(name) or os.environ.get(name.lower())]
    return f"The environment sets {', '.join(found)}: check that they are right. " if found else ""


def check_online() -> None:
    """Check that the library starts with the settings of the environment, and may go online.

    Raises:
        DownloadError: a setting is not what the library can read, or forbids downloads.
    """
    try:
        from huggingface_hub import constants
    except (ValueError, ImportError) as error:  # it reads them as it is imported
        raise DownloadError(
            f"huggingface_hub does not start here: {first_line(error)}. Check the settings of the "
            "environment whose names begin with HF_"
        ) from error
    if constants.HF_HUB_OFFLINE:
        raise DownloadError(
            "HF_HUB_OFFLINE is set, which forbids every download: take it out of the environment, "
            "start Python or ComfyUI anew and run it again"
        )


def _refusal(source: Source, error: Any, status: int) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return (
            f"{source.page} is given only to those who accept its terms (answer {status}). Sign in "
            "there and accept them, sign in on this computer with `hf auth login`, and run it again."
        )
    if status in (401, 403):
        return (
            f"{source.page} is closed, or no longer there, or your token has expired (answer "
            f"{status}). {_settings((*_PLACES, 'HF_TOKEN'))}".strip()
        )
    if status == 404:
        return f"{source.page} does not have this, or not at that revision (answer 404)."
    if status not in BUSY:
        return f"{source.page} refuses this, and does not say why (answer {status})."
    wait = asked_to_wait(error)
    again = "run it again later" if wait is None else f"run it again {after(wait)}, as it asks"
    return f"{source.page} is too busy, or does not work at the moment (answer {status}): {again}."


def something_else(source: Source, name: str, what: str) -> str:
    """Return what to say where a server sends another thing than was asked for."""
    return (
        f"asked for {name} of {source.page}, a server sent {what}. It may be the page where this "
        f"network wants you to sign in, or a proxy. Open {source.page} in a browser; when that "
        f"works, run it again. {_settings(_PLACES)}".strip()
    )


def by_hand(source: Source, folder: Path) -> str:
    """Say how to get the files without this program."""
    if isinstance(source, WebSource):
        return f"By hand: save {source.page} into {folder}"
    return f"By hand: download {', '.join(source.files)} from {source.page}/tree/main into {folder}"
