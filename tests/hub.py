"""A server of this machine that answers as the Hub does, or badly in ways that are asked for.

It needs nothing but Python. `python tests/hub.py FOLDER` serves FOLDER/owner/name as repositories to
whoever is given its address in HF_ENDPOINT.

Source: what huggingface_hub 0.26 to 2.4 asks and reads; https://huggingface.co/docs/hub/api
"""

import argparse
import hashlib
import io
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

RANGE = re.compile(r"bytes=(\d+)-(\d*)")
API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?(?:/.*)?")
RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
# What the Hub keeps beside git, with a hash of its own and on a server of its own.
LARGE = {".bin", ".ckpt", ".model", ".onnx", ".pt", ".pth", ".safetensors"}
BLOCK = 2**20


Content = bytes | Path  # a large file of holes takes no room on the disk


def size_of(content: Content) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)


def blocks(content: Content, begin: int = 0, end: int | None = None) -> Iterator[bytes]:
    """What is from one place to another, without more than a block in memory."""
    end = size_of(content) if end is None else end
    with content.open("rb") if isinstance(content, Path) else io.BytesIO(content) as stream:
        stream.seek(begin)
        for at in range(begin, end, BLOCK):
            yield stream.read(min(BLOCK, end - at))


@dataclass
class Repository:
    """Files, and the commits, branches and tags under which they are found."""

    files: dict[str, Content] = field(default_factory=dict)
    commit: str = "a" * 40
    branches: set[str] = field(default_factory=lambda: {"main"})


@dataclass
class Fault:
    """What is wrong with the answers to some requests."""

    path: str = ""  # a pattern, found anywhere in what is asked for
    times: int | None = None  # of that many requests; None: of all
    after: int = 0  # that many good answers
    status: int | None = None  # in place of the right answer, with `headers` and `body`
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: int | None = None  # the connection ends after so many bytes of the answer
    length: int | str = 0  # added to Content-Length; or "missing", or "chunked"
    pause: float = 0  # seconds after each 1000 bytes
    silence: threading.Event | None = None  # waited for before anything is answered

    @property
    def chunked(self) -> bool:
        return self.length == "chunked"

    def takes(self, path: str) -> bool:
        """Whether it concerns this request; counts."""
        if self.times == 0 or not re.search(self.path, path):
            return False
        if self.after:
            self.after -= 1
            return False
        if self.times:
            self.times -= 1
        return True


class Hub:
    """The server, and what it is to do.

    Attributes:
        repositories: by owner/name.
        files: of the repository owner/model.
        commit: of it.
        web: files that have addresses of their own.
        sent: what is sent in place of a file.
        announced: sizes that are told in place of those of the files.
        change_info: changes what is told of a repository before it is sent.
        asked: paths and ranges of all requests.
        requests: their methods, paths and headers.
        served: of each answer the file's name, where it begins, and how many bytes were sent.
        large: what is at addresses that are redirected to, by hash.
        faults: what goes wrong; the first that takes a request counts.
        refusal: status and headers that answer everything.
        cut_after: bytes of an answer after which the connection ends, once; then comes a refusal.
        sends_parts: whether it heeds ranges.
        silence: what it waits for in the middle of each answer.
        redirects: where the bytes of large files are: "elsewhere" (on a second server, as the Hub
            has them), "here" (an address without a host), or None.
    """

    def __init__(self, port: int = 0):
        self._servers = [self._listen(port), self._listen(0)]
        self.url, self.elsewhere = (
            f"http://127.0.0.1:{server.server_port}" for server in self._servers
        )
        self.repositories = {"owner/model": Repository()}
        self.web: dict[str, Content] = {}
        self.sent: dict[str, Content] = {}
        self.announced: dict[str, int] = {}
        self.change_info: Callable[[dict[str, Any]], Any] = lambda info: info
        self.asked: list[tuple[str, str | None]] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.served: list[list[Any]] = []
        self.faults: list[Fault] = []
        self.refusal: tuple[int, dict[str, str]] | None = None
        self.cut_after: int | None = None
        self.sends_parts = True
        self.silence: threading.Event | None = None
        self.redirects: str | None = "elsewhere"
        self.large: dict[str, tuple[str, Content]] = {}
        self._hashes: dict[Any, str] = {}
        self._threads = [
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            for server in self._servers
        ]

    def _listen(self, port: int) -> ThreadingHTTPServer:
        server = _Server(("127.0.0.1", port), Handler)
        server.hub = self
        return server

    def __enter__(self) -> "Hub":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()

    @property
    def files(self) -> dict[str, Content]:
        return self.repositories["owner/model"].files

    @files.setter
    def files(self, files: dict[str, Content]) -> None:
        self.repositories["owner/model"].files = files

    @property
    def commit(self) -> str:
        return self.repositories["owner/model"].commit

    @commit.setter
    def commit(self, commit: str) -> None:
        self.repositories["owner/model"].commit = commit

    def serve_folder(self, folder: Path) -> None:
        """Add owner/name for each folder of that kind."""
        for place in sorted(path for path in folder.glob("*/*") if path.is_dir()):
            files = {
                path.relative_to(place).as_posix(): path
                for path in sorted(place.rglob("*"))
                if path.is_file()
            }
            self.repositories[place.relative_to(folder).as_posix()] = Repository(dict(files))

    def sha256(self, content: Content) -> str:
        """The hash of a file; of one that takes long, computed once."""
        key = (content, content.stat().st_mtime_ns) if isinstance(content, Path) else content
        if key not in self._hashes:
            digest = hashlib.sha256()
            for block in blocks(content):
                digest.update(block)
            self._hashes[key] = digest.hexdigest()
        return self._hashes[key]

    def entry(self, name: str, content: Content) -> dict[str, Any]:
        """What git knows of a file."""
        size = self.announced.get(name, size_of(content))
        if Path(name).suffix not in LARGE:
            blob = hashlib.sha1(b"blob %d\0" % size_of(content))
            for block in blocks(content):
                blob.update(block)
            return {"oid": blob.hexdigest(), "size": size}
        digest = self.sha256(content)
        pointer = hashlib.sha1(digest.encode()).hexdigest()
        return {
            "oid": pointer,
            "size": size,
            "lfs": {"sha256": digest, "size": size, "pointerSize": 1},
        }

    def take_fault(self, path: str, name: str, is_redirect: bool) -> Fault:
        """What is wrong with the answer to a request."""
        faults = [each for each in self.faults if "resolve" in each.path or not is_redirect]
        return next((fault for fault in faults if fault.takes(f"{path} {name}")), Fault())


@dataclass
class Answer:
    """A status, headers, and what follows them: a file from one place to another, or all of it."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    content: Content = b""
    begin: int = 0
    end: int | None = None
    name: str = ""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: Hub

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # who asked has gone
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub: Hub = self.server.hub
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((path, self.headers.get("Range")))
        self.hub.requests.append((self.command, path, dict(self.headers)))
        answer = self._answer(path)
        # What is wrong with a file is wrong where its bytes are, unless it is asked for otherwise.
        fault = self.hub.take_fault(path, answer.name, is_redirect=answer.status == 302)
        if fault.silence:
            fault.silence.wait()
        if fault.status:
            answer = Answer(fault.status, fault.headers, fault.body)
        elif self.hub.refusal:
            answer = Answer(*self.hub.refusal)
        try:
            self._send(answer, fault)
        except OSError:  # who asked has gone
            self.close_connection = True

    def _answer(self, path: str) -> Answer:
        if found := API.fullmatch(path):
            return self._listing(*found.groups())
        if found := RESOLVE.fullmatch(path):
            return self._resolve(*found.groups())
        name = path.lstrip("/")
        if path.startswith("/large/"):
            name, content = self.hub.large.get(path.rpartition("/")[2], (name, None))
        else:
            content = self.hub.web.get(name)
        return Answer(404) if content is None else self._file(name, content, {})

    def _find(self, repo: str, revision: str | None) -> Repository | Answer:
        repository = self.hub.repositories.get(repo)
        if repository is None:
            return Answer(401, {"X-Error-Code": "RepoNotFound"})
        if revision not in {None, repository.commit, *repository.branches}:
            return Answer(404, {"X-Error-Code": "RevisionNotFound"})
        return repository

    def _listing(self, repo: str, kind: str | None, revision: str | None) -> Answer:
        found = self._find(repo, revision)
        if isinstance(found, Answer):
            return found
        entries = {name: self.hub.entry(name, content) for name, content in found.files.items()}
        if kind == "tree":
            listed: Any = [{"type": "file", "path": name, **entries[name]} for name in entries]
        else:
            siblings = [
                {"rfilename": name, "blobId": entry.pop("oid"), **entry}
                for name, entry in entries.items()
            ]
            listed = self.hub.change_info({"id": repo, "sha": found.commit, "siblings": siblings})
        content = json.dumps(listed).encode()
        return Answer(200, {"Content-Type": "application/json; charset=utf-8"}, content)

    def _resolve(self, repo: str, revision: str, name: str) -> Answer:
        found = self._find(repo, revision)
        if isinstance(found, Answer):
            return found
        if name not in found.files:
            return Answer(404, {"X-Error-Code": "EntryNotFound"})
        content = found.files[name]
        entry = self.hub.entry(name, content)
        headers = {"X-Repo-Commit": found.commit}
        if "lfs" not in entry or self.hub.redirects is None:
            etag = entry.get("lfs", {}).get("sha256", entry["oid"])
            return self._file(name, content, {**headers, "ETag": f'"{etag}"'})
        digest = entry["lfs"]["sha256"]
        self.hub.large[digest] = (name, content)
        place = self.hub.elsewhere if self.hub.redirects == "elsewhere" else ""
        headers |= {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(entry["size"])}
        return Answer(302, {**headers, "Location": f"{place}/large/{digest}"})

    def _file(self, name: str, content: Content, headers: dict[str, str]) -> Answer:
        content = self.hub.sent.get(name, content)
        size = size_of(content)
        headers = {**headers, "Accept-Ranges": "bytes", "Content-Type": "binary/octet-stream"}
        wanted = RANGE.fullmatch(self.headers.get("Range") or "")
        if not (wanted and self.hub.sends_parts):
            return Answer(200, headers, content, 0, size, name)
        begin, end = int(wanted[1]), min(int(wanted[2] or size - 1) + 1, size)
        if begin >= size:
            return Answer(416, {"Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        return Answer(206, headers, content, begin, end, name)

    def _send(self, answer: Answer, fault: Fault) -> None:
        begin = answer.begin
        end = size_of(answer.content) if answer.end is None else answer.end
        self.send_response(answer.status)
        for header in answer.headers.items():
            self.send_header(*header)
        if fault.length == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        elif fault.length != "missing":
            self.send_header("Content-Length", str(end - begin + int(fault.length)))
        if fault.length and fault.length != "chunked":
            self.close_connection = True
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = fault.cut
        if cut is None and self.hub.cut_after and end - begin > self.hub.cut_after:
            cut, self.hub.cut_after = self.hub.cut_after, None
            self.hub.refusal = (503, {})
        if cut is not None:
            self.close_connection = True
            end = min(end, begin + cut)
        record = [answer.name, begin, 0]
        self.hub.served.append(record)
        for piece in self._pieces(answer.content, begin, end, fault):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if fault.chunked else piece)
            record[2] += len(piece)
        if fault.chunked and cut is None:
            self.wfile.write(b"0\r\n\r\n")

    def _pieces(self, content: Content, begin: int, end: int, fault: Fault) -> Iterator[bytes]:
        """The bytes of an answer, as slowly as they are to come."""
        for block in blocks(content, begin, end):
            size = 1000 if fault.pause else len(block) // 2 + 1
            for at in range(0, len(block), size):
                if at and self.hub.silence:
                    self.hub.silence.wait()
                time.sleep(fault.pause)
                yield block[at : at + size]

    def log_message(self, *_: object) -> None:
        """A test's output is its own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="holds FOLDER/owner/name")
    parser.add_argument("--port", type=int, default=0)
    args = parser.parse_args()
    with Hub(args.port) as hub:
        hub.serve_folder(args.folder)
        sys.stdout.write(f"HF_ENDPOINT={hub.url}\n")
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    main()
