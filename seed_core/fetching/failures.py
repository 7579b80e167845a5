"""Errors of a connection, each turned into one message that says what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import DownloadError
from .downloads import Source, WebSource

_SETTINGS = (
    "HF_ENDPOINT",
    "HF_TOKEN",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "SSL_CERT_FILE",
)


class Listener:
    """What a caller wants to be told of a transfer; what it raises ends that and passes through."""

    def __init__(self, on_bytes: Callable[[int], None] = lambda _: None) -> None:
        self._on_bytes = on_bytes
        self.raised: BaseException | None = None

    def __call__(self, count: int = 0) -> None:
        """Tell how many bytes have arrived since it was last told."""
        try:
            self._on_bytes(count)
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
    from huggingface_hub import errors

    # The class of a broken connection depends on the HTTP client that the library was built on.
    broken: tuple[type[BaseException], ...] = (OSError, *errors.HfHubHTTPError.__bases__)
    if isinstance(error, KeyboardInterrupt):
        return "stopped; the same command goes on where this one ended"
    if isinstance(error, errors.HfHubHTTPError):
        return f"{_refusal(source, error)} {by_hand(source, folder)}"
    if isinstance(error, broken):
        return _broken(error, source, folder)
    # An address, a proxy or a token that the HTTP client cannot even read.
    if _settings() or isinstance(error, ValueError):
        return (
            f"{source.page} cannot be asked: {_reason(error)}. {_settings()}"
            f"{by_hand(source, folder)}"
        )
    return None


def _broken(error: BaseException, source: Source, folder: Path) -> str:
    if getattr(error, "errno", None) == errno.ENOSPC:
        return (
            f"the disk of {folder} is full. Make room, then run the same command again: it goes "
            "on where this one ended"
        )
    if getattr(error, "filename", None):
        return unusable(error, folder)
    return (
        f"no connection to {source.page} ({_reason(error)}). {_settings()}Run the same command "
        f"again when there is one: it goes on where this one ended. {by_hand(source, folder)}"
    )


def unusable(error: BaseException, folder: Path) -> str:
    """Return what to say of a file or folder that the system does not let us use."""
    return (
        f"{getattr(error, 'filename', folder)} cannot be used: {getattr(error, 'strerror', error)}. "
        f"{_settings()}If that is the disk of {folder}, choose another with --models"
    )


def _reason(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _settings() -> str:
    """Name the settings of this terminal that change how the library connects."""
    found = [name for name in _SETTINGS if os.environ.get(name) or os.environ.get(name.lower())]
    return f"This terminal sets {', '.join(found)}: check that they are right. " if found else ""


def check_online() -> None:
    """Check that the library starts with the settings of this terminal, and may go online.

    Raises:
        DownloadError: a setting is not what the library can read, or forbids downloads.
    """
    try:
        from huggingface_hub import constants
    except (ValueError, ImportError) as error:  # it reads them as it is imported
        raise DownloadError(
            f"huggingface_hub does not start here: {_reason(error)}. Check the settings of this "
            "terminal whose names begin with HF_"
        ) from error
    if constants.HF_HUB_OFFLINE:
        raise DownloadError(
            "HF_HUB_OFFLINE is set, which forbids every download: take it out of the environment of "
            "this terminal and run the same command again"
        )


def _refusal(source: Source, error: Any) -> str:
    from huggingface_hub import errors

    status = error.response.status_code
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{source.page} is given only to those who accept its terms (answer {status}). Sign in "
            "there and accept them, sign in here with `hf auth login`, and run the same command "
            "again."
        )
    if status in (401, 403):
        return (
            f"{source.page} is closed, or no longer there, or your token has expired (answer "
            f"{status}). {_settings()}".strip()
        )
    if status == 404:
        return f"{source.page} does not have this, or not at that revision (answer 404)."
    return f"{source.page} does not work at the moment (answer {status}); try again later."


def by_hand(source: Source, folder: Path) -> str:
    """Say how to get the files without this program."""
    if isinstance(source, WebSource):
        return f"By hand: save {source.page} into {folder}"
    return f"By hand: download {', '.join(source.files)} from {source.page}/tree/main into {folder}"
