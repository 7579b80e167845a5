"""The file that says where a server is and what it serves: ``name.server.json``.

No address and no key ever comes from anywhere else, and the key is not in the file either: it tells
an environment variable, or another file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from ..errors import CheckpointError, GenerationError
from ..files.side_files import decoded, read_json
from ..models.names import SEED_MINI, bundled
from .dialects import DIALECTS, Dialect

SERVER_SUFFIX = ".server.json"

_PORTS = {"http": 80, "https": 443}
_LONGEST_LIMIT = 86_400.0  # seconds

_TEXTS = {  # the fields that are text, and what each is
    "address": "where the server is, such as http://192.168.0.5:8000",
    "model": "the name under which the server offers the model",
    "vocabulary": "the folder with config.json, tokenizer.model and added_tokens.json of that model",
    "dialect": f"the engine, {' or '.join(DIALECTS)}",
    "key_variable": "the name of the environment variable that holds the key",
    "key_file": "the name of the file that holds the key",
    "certificate": "a file of certificates to trust besides the system's",
}
_NEEDED = ("address", "model", "vocabulary")
_LIMITS = {"connect_seconds": 5.0, "first_token_seconds": 120.0, "gap_seconds": 60.0}


@dataclass(frozen=True)
class ServerFile:
    """What a server file says, checked. Relative names in it are beside it."""

    path: Path
    address: SplitResult  # its path ends without a slash, and without /v1
    model: str
    vocabulary: str
    dialect: Dialect
    key_variable: str | None
    key_file: Path | None
    certificate: Path | None
    connect_seconds: float
    first_token_seconds: float
    gap_seconds: float

    def __str__(self) -> str:
        """Return what messages call the server."""
        return f"the server {self.address.geturl()} of {self.path.name}"

    @property
    def port(self) -> int:
        """The port, which an address need not tell."""
        return self.address.port or _PORTS[self.address.scheme]

    def key(self) -> str | None:
        """Return the key, read anew each time; None if the server needs none.

        Raises:
            GenerationError: there is no key where the file says, or what is there is not one.
        """
        if self.key_variable is not None:
            where = f"the environment variable {self.key_variable}"
            key = os.environ.get(self.key_variable, "")
        elif self.key_file is not None:
            where = f"the file {self.key_file}"
            try:
                key = decoded(self.key_file.read_bytes())
            except (OSError, ValueError) as error:
                raise GenerationError(
                    f"{self.path.name} says that the key is in {where}, which cannot be read: {error}"
                ) from error
        else:
            return None
        key = key.strip()
        if not key:
            raise GenerationError(
                f"{self.path.name} says that the key is in {where}, and there is none: put it there, "
                "and restart the program if it is a variable"
            )
        if not all("!" <= c <= "~" for c in key):
            raise GenerationError(
                f"{where}, where {self.path.name} says that the key is, holds something else: a key "
                "is one word of plain letters, digits and signs"
            )
        return key

    def vocabulary_place(self, find: Callable[[str], Path | None] | None = None) -> Path:
        """Return where the vocabulary is: beside the file, where ``find`` says, or bundled.

        Raises:
            CheckpointError: it is nowhere.
        """
        beside = self.path.parent / self.vocabulary
        if beside.exists():
            return beside
        if found := find(self.vocabulary) if find is not None else None:
            return found
        if self.vocabulary == SEED_MINI:
            return bundled("llm")
        raise CheckpointError(
            f"{self.path}: its vocabulary {self.vocabulary!r} is not there: {beside} does not exist. "
            f"Put {_TEXTS['vocabulary']} there; weights are not needed."
        )


def read_server_file(path: str | Path) -> ServerFile:
    """Read what a server file says.

    Raises:
        CheckpointError: the file is missing or not JSON, or a field of it is missing, unknown or
            wrong; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no server file {path}")
    fields = read_json(path)
    _check_names(path, fields)
    texts = {name: _text(path, fields, name) for name in _TEXTS}
    if texts["key_variable"] and texts["key_file"]:
        raise CheckpointError(f"{path} has key_variable and key_file; leave one of them out")
    address = _address(path, texts["address"] or "")
    if texts["certificate"] and address.scheme != "https":
        raise CheckpointError(
            f"{path} has a certificate, which is of no use over http: let the address begin with https"
        )
    dialect = texts["dialect"] or "vllm"
    if dialect not in DIALECTS:
        raise CheckpointError(
            f"{path}: dialect must be one of {', '.join(DIALECTS)}; got {dialect!r:.80}"
        )
    return ServerFile(
        path=path,
        address=address,
        model=texts["model"] or "",
        vocabulary=texts["vocabulary"] or "",
        dialect=DIALECTS[dialect],
        key_variable=texts["key_variable"],
        key_file=_beside(path, texts["key_file"]),
        certificate=_beside(path, texts["certificate"]),
        **{name: _seconds(path, fields, name) for name in _LIMITS},
    )


def _check_names(path: Path, fields: Mapping[str, Any]) -> None:
    known = [*_TEXTS, *_LIMITS]
    for name in fields:
        if "key" in name.lower() and name not in known:
            raise CheckpointError(
                f"{path} has a field {name!r:.80}: a key does not belong in this file. Write the name "
                "of an environment variable that holds it as key_variable, or that of a file as "
                "key_file."
            )
        if name not in known:
            raise CheckpointError(
                f"{path} has a field {name!r:.80}, and only these are known: {', '.join(known)}"
            )
    for name in _NEEDED:
        if name not in fields:
            raise CheckpointError(f"{path} lacks the field {name}: {_TEXTS[name]}")


def _text(path: Path, fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if name not in fields or (value is None and name not in _NEEDED):
        return None
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise CheckpointError(f"{path}: {name} must be {_TEXTS[name]}; got {value!r:.80}")
    return value


def _seconds(path: Path, fields: Mapping[str, Any], name: str) -> float:
    value = fields.get(name, _LIMITS[name])
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 < value <= _LONGEST_LIMIT:
        raise CheckpointError(
            f"{path}: {name} must be a number of seconds above 0 and at most {_LONGEST_LIMIT:.0f}; got "
            f"{value!r:.80}"
        )
    return float(value)


def _beside(path: Path, name: str | None) -> Path | None:
    return None if name is None else path.parent / name


def _address(path: Path, text: str) -> SplitResult:
    """Return the parts of an address that has a scheme, a host, and at most a port and a path."""
    wrong = CheckpointError(f"{path}: address must be {_TEXTS['address']}; got {text!r:.80}")
    try:
        parts = urlsplit(text)
        port = parts.port
        (parts.hostname or "").encode("idna")  # refuses two dots in a row, as the connection would
    except ValueError as error:
        raise wrong from error
    if "@" in parts.netloc:
        raise CheckpointError(
            f"{path}: the address holds a name or a password; write the name of an environment "
            "variable with the key as key_variable instead"
        )
    is_plain = text.isascii() and " " not in text and not parts.query and not parts.fragment
    if parts.scheme not in _PORTS or not parts.hostname or not is_plain or port == 0:
        raise wrong
    return parts._replace(path=parts.path.rstrip("/").removesuffix("/v1"))
