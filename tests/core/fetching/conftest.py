"""A server of this machine that answers as the Hub does."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest

RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class Handler(BaseHTTPRequestHandler):
    """Lists and serves ``server.files``; `cut_after` bytes it breaks off, once."""

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((path, self.headers.get("Range")))
        if self.server.refusal:
            self._answer(*self.server.refusal)
        elif path.startswith("/api/models/"):
            self._answer(200, {}, json.dumps(self._listing()).encode())
        else:
            self._serve(path)

    def _listing(self):
        siblings = [
            {
                "rfilename": name,
                "size": self.server.announced.get(name, len(content)),
                "lfs": {
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "size": len(content),
                    "pointerSize": 1,
                },
            }
            for name, content in self.server.files.items()
        ]
        return {"id": "owner/model", "sha": self.server.commit, "siblings": siblings}

    def _serve(self, path):
        name = re.sub(r"^(/owner/model/resolve/\w+)?/", "", path)
        content = self.server.sent.get(name, self.server.files.get(name, self.server.web.get(name)))
        if content is None:
            return self._answer(404, {"X-Error-Code": "EntryNotFound"})
        wanted = RANGE.fullmatch(self.headers.get("Range") or "")
        if not (wanted and self.server.sends_parts):
            return self._answer(200, {}, content)
        start, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
        headers = {"Content-Range": f"bytes {start}-{last}/{len(content)}"}
        return self._answer(206, headers, content[start : last + 1])

    def _answer(self, status, headers, content=b""):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if (cut := self.server.cut_after) and len(content) > cut:
            content, self.server.cut_after = content[:cut], None
            self.server.refusal = (503, {})
        half = len(content) // 2
        self.wfile.write(content[:half])
        if content and self.server.silence is not None:
            self.wfile.flush()
            self.server.silence.wait()
        self.wfile.write(content[half:])

    def log_message(self, *_):
        """A test's output is its own."""


class Hub(ThreadingHTTPServer):
    """The server, and what it is to do.

    Attributes:
        files: of the repository owner/model.
        web: files that have addresses of their own.
        sent: what is sent in place of a file.
        announced: sizes that are told in place of those of the files.
        asked: paths and ranges of all requests.
        refusal: status and headers that answer everything.
        cut_after: bytes of an answer after which the connection ends, once; then comes a refusal.
        sends_parts: whether it heeds ranges.
        silence: what it waits for in the middle of each answer.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.web, self.sent, self.announced = {}, {}, {}, {}
        self.asked, self.refusal, self.cut_after = [], None, None
        self.sends_parts = True
        self.silence = None
        self.commit = "a" * 40
        self.url = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def hub(monkeypatch):
    """A server that huggingface_hub asks in place of the Hub."""
    from huggingface_hub import constants, file_download

    server = Hub()
    address = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    for module in (constants, file_download):  # the latter holds a copy before 1.0
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", address, raising=False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what is lost when it breaks off
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("time.sleep", lambda _: None)  # the library's pause before a new attempt
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
