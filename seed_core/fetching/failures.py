"""Errors of a connection, each turned into one message that says what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
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


@contextmanager
def explained(source: Source, folder: Path) -> Iterator[None]:
    """Raise each error of a connection as one `DownloadError`.

    Raises:
        DownloadError: the connection broke, the server refused, the disk is full, or the user
            stopped it.
    """
    from huggingface_hub import errors

    # The class of a broken connection depends on the HTTP client that the library was built on.
    broken: tuple[type[BaseException], ...] = (OSError, *errors.HfHubHTTPError.__bases__)
    try:
        yield
    except DownloadError:
        raise
    except KeyboardInterrupt as stop:
        raise DownloadError("stopped; the same command goes on where this one ended") from stop
    except errors.HfHubHTTPError as error:
        raise DownloadError(f"{_refusal(source, error)} {by_hand(source, folder)}") from error
    except broken as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise DownloadError(
                f"the disk of {folder} is full. Make room, then run the same command again: it goes "
                "on where this one ended"
            ) from error
        if name := getattr(error, "filename", None):
            raise DownloadError(
                f"{name} cannot be used: {getattr(error, 'strerror', error)}. {_settings()}If that "
                f"is the disk of {folder}, choose another with --models"
            ) from error
        raise DownloadError(
            f"no connection to {source.page} ({_reason(error)}). {_settings()}Run the same command "
            f"again when there is one: it goes on where this one ended. {by_hand(source, folder)}"
        ) from error
    except Exception as error:
        # An address, a proxy or a token that the HTTP client cannot even read.
        if not (_settings() or isinstance(error, ValueError)):
            raise
        raise DownloadError(
            f"{source.page} cannot be asked: {_reason(error)}. {_settings()}"
            f"{by_hand(source, folder)}"
        ) from error


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
