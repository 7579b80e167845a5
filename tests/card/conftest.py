"""Plays nodes on invented cards, in ComfyUI's own Python, and hands their records to the tests.

A test is parametrised by what it wants played, "CARD --ARGUMENTS: PLAY"; all that the selected
tests want is played together, two at a time, and each test waits for its own.
"""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

INVENTED = Path(__file__).with_name("invented")
OWNER = "played"


@pytest.fixture(scope="session")
def invented() -> ModuleType:
    """The package beside this file, of which cards and plays need neither torch nor the host."""
    spec = importlib.util.spec_from_file_location(
        "tests_invented", INVENTED / "__init__.py", submodule_search_locations=[str(INVENTED)]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = package
    spec.loader.exec_module(package)
    for name in ("cards", "plays"):
        importlib.import_module(f"{spec.name}.{name}")
    return package


class Theatre:
    """Everything that is wanted, and what has been played of it."""

    def __init__(
        self, wanted: list[str], comfy: ModuleType, invented: ModuleType, folder: Path
    ) -> None:
        self._wanted, self._invented = wanted, invented
        self._log = folder / "log.txt"
        checkout = comfy.find_checkout()
        command = [comfy.find_python(checkout), INVENTED / "zygote.py", checkout, comfy.PACK_ROOT]
        hidden = {"PYTHONPATH", "CUDA_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF"}
        kept = {key: value for key, value in os.environ.items() if key not in hidden}
        self._process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log.open("w", encoding="utf-8"),
            cwd=folder,
            env=kept | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        requests = [self._request(text) for text in wanted]
        self._process.stdin.write(json.dumps(requests))
        self._process.stdin.close()
        self._answers: dict[str, dict[str, Any]] = {}

    def _request(self, text: str) -> dict[str, Any]:
        row, _, play = text.partition(": ")
        self._invented.cards.Row.parse(row)  # says early what is written wrong
        return {"row": row, "script": self._invented.plays.PLAYS[play]}

    def records(self, text: str) -> list[Any]:
        """What each action of a play did."""
        while text not in self._answers:
            line = self._process.stdout.readline()
            if not line:
                log = self._log.read_text(encoding="utf-8", errors="replace")
                raise RuntimeError(f"the invented host ended early:\n{log[-4000:]}")
            answer = json.loads(line)
            self._answers[self._wanted[answer["index"]]] = answer
        answer = self._answers[text]
        if "traceback" in answer:
            raise RuntimeError(answer["traceback"])
        return [self._invented.cards.Record.from_json(dict(each)) for each in answer["records"]]

    def stop(self) -> None:
        """End it, with the plays that nobody waits for any more."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture(scope="session")
def theatre(
    request: pytest.FixtureRequest,
    comfy: ModuleType,
    invented: ModuleType,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Theatre]:
    """Plays what the selected tests want, in their order, once each."""
    if not hasattr(os, "fork"):
        pytest.skip("the invented card needs os.fork, and files with holes")
    specs = [item.callspec for item in request.session.items if hasattr(item, "callspec")]
    wanted = [spec.params[OWNER] for spec in specs if OWNER in spec.params]
    folder = tmp_path_factory.mktemp("invented_card")
    theatre = Theatre(list(dict.fromkeys(wanted)), comfy, invented, folder)
    yield theatre
    theatre.stop()


@pytest.fixture
def played(request: pytest.FixtureRequest, theatre: Theatre) -> list[Any]:
    """The records of the play that the test is parametrised by."""
    return theatre.records(request.param)


@pytest.fixture
def total(request: pytest.FixtureRequest, invented: ModuleType) -> int:
    """Bytes of the card that the test is parametrised by."""
    row = request.node.callspec.params[OWNER].partition(": ")[0]
    return invented.cards.Row.parse(row).model.gigabytes * invented.cards.GIB


@pytest.fixture
def system(invented: ModuleType) -> int:
    """Bytes that are never free."""
    return importlib.import_module(f"{invented.__name__}.memory").SYSTEM


@pytest.fixture
def reserve(system: int) -> int:
    """What the host leaves free beside working memory (400 MiB), and the system takes."""
    return system + 400 * 2**20
