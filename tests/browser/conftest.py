"""A real Chromium on a real ComfyUI. Both are searched for; where one is absent the layer skips."""

import importlib.util
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

TESTS = Path(__file__).parents[1]
# From this one on the frontend draws, words and saves things as these tests say in every detail.
CURRENT = (1, 47)


def load_beside(path: Path) -> ModuleType:
    """Import a helper from its file: nothing under tests is on sys.path."""
    spec = importlib.util.spec_from_file_location(f"browser_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def what_is_missing() -> str:
    """Why the layer cannot run here, or an empty string."""
    if load_beside(TESTS / "comfy_server.py").find_checkout() is None:
        return "no ComfyUI checkout (set COMFYUI_PATH)"
    drive = load_beside(TESTS / "browser" / "frontend.py")
    if drive.find_chromium() is None:
        return f"no Chromium on PATH (looked for {', '.join(drive.CHROMIUM_NAMES)})"
    if importlib.util.find_spec("playwright") is None:
        return "the playwright package is not installed"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what cannot run, with the reason and how many tests it takes with it."""
    mine = [item for item in items if Path(__file__).parent in Path(item.path).parents]
    reason = what_is_missing() if mine else ""
    if reason:
        text = f"{len(mine)} browser tests skipped: {reason}"
        for item in mine:
            item.add_marker(pytest.mark.skip(reason=text))


@pytest.fixture(scope="session")
def is_current() -> bool:
    """Whether the frontend is one of today's, by what its ComfyUI asks for."""
    checkout = load_beside(TESTS / "comfy_server.py").find_checkout()
    wanted = (checkout / "requirements.txt").read_text(encoding="utf-8")
    numbers = re.search(r"comfyui-frontend-package==([\d.]+)", wanted)[1].split(".")
    return tuple(map(int, numbers)) >= CURRENT


@pytest.fixture
def current_frontend(is_current: bool) -> None:
    """For tests of what older frontends draw, word or save otherwise, or not at all."""
    if not is_current:
        pytest.skip(f"told of frontend {'.'.join(map(str, CURRENT))} and later only")


@pytest.fixture(scope="session")
def frontend_module() -> ModuleType:
    return load_beside(TESTS / "browser" / "frontend.py")


@pytest.fixture(scope="session")
def browser_server(comfy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """One server for all files of the layer that a worker runs."""
    base = tmp_path_factory.mktemp("comfy")
    # The graph that a frontend begins with asks for this model, and on a slow machine the word that
    # it is missing comes when another graph is open.
    checkpoints = base / "models" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "v1-5-pruned-emaonly-fp16.safetensors").touch()
    server = comfy.ComfyServer(comfy.find_checkout(), base)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def chromium(frontend_module: ModuleType, tmp_path_factory) -> Iterator[object]:
    """One browser with a fresh profile for a worker, closed at the end."""
    executable = frontend_module.find_chromium()
    with frontend_module.launch(executable, tmp_path_factory.mktemp("profile")) as context:
        yield context


@pytest.fixture
def open_frontend(frontend_module, browser_server, chromium) -> Iterator[Callable[..., object]]:
    """Opens ComfyUI in a new page, with Vue nodes on or off, in a language; closed after the test."""
    opened = []

    def open_page(vue_nodes: bool, locale: str = "en"):
        opened.append(frontend_module.Frontend(chromium, browser_server, vue_nodes, locale))
        return opened[-1]

    yield open_page
    for frontend in opened:
        frontend.close()


@pytest.fixture(scope="session")
def screenshot_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go: SEED_SCREENSHOTS if set, else pytest's own temporary folder."""
    chosen = os.environ.get("SEED_SCREENSHOTS")
    folder = Path(chosen) if chosen else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
