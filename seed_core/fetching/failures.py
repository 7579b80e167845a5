"""Errors of a connection, each turned into one message that says what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import DownloadError
from .downloads import Source, WebSource


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
        if getattr(error, "filename", None):
            raise  # of the disk; it names its file
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise DownloadError(
                f"the disk of {folder} is full. Make room, then run the same command again: it goes "
                "on where this one ended"
            ) from error
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DownloadError(
            f"no connection to {source.page} ({reason}). Run the same command again when there is "
            f"one: it goes on where this one ended. {by_hand(source, folder)}"
        ) from error


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
        return f"{source.page} is closed, or no longer there (answer {status})."
    if status == 404:
        return f"{source.page} does not have this, or not at that revision (answer 404)."
    return f"{source.page} does not work at the moment (answer {status}); try again later."


def by_hand(source: Source, folder: Path) -> str:
    """Say how to get the files without this program."""
    if isinstance(source, WebSource):
        return f"By hand: save {source.page} into {folder}"
    return f"By hand: download {', '.join(source.files)} from {source.page}/tree/main into {folder}"
