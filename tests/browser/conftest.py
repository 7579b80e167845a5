"""A real Chromium on a real ComfyUI. Both are searched for; where one is absent the layer skips.

Two frontends are tested: the newest, which is installed beside pytest or is in the folder that
COMFYUI_FRONTEND_PATH names, and the one that ComfyUI itself asks for. All tests run on the newest;
those marked `every_frontend` on both.
"""

import functools
import importlib.metadata
import importlib.util
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

TESTS = Path(__file__).parents[1]
# From this one on the frontend draws, words and saves things as these tests say in every detail.
CURRENT = (1, 47)
PACKAGE = "comfyui_frontend_package"
VERSION = "window.__COMFYUI_FRONTEND_VERSION__"


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


def newest_front_end() -> Path | None:
    """The folder of the newest frontend. COMFYUI_FRONTEND_PATH may name one, or none if empty."""
    named = os.environ.get("COMFYUI_FRONTEND_PATH")
    if named is not None:
        return Path(named) if named else None
    package = importlib.util.find_spec(PACKAGE)
    return Path(package.origin).parent / "static" if package else None


def version_of(folder: Path) -> str | None:
    """What the package that a frontend's folder belongs to says of itself, if it is in one."""
    places = [str(folder.parents[1])]
    found = importlib.metadata.distributions(name=PACKAGE.replace("_", "-"), path=places)
    return next((package.version for package in found), None)


def version_that_comfyui_has(comfy: ModuleType) -> str:
    """Of the frontend in the Python that runs ComfyUI."""
    ask = f"import importlib.metadata as m; print(m.version('{PACKAGE}'))"
    command = [comfy.find_python(comfy.find_checkout()), "-c", ask]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@functools.cache
def front_ends() -> dict[str, Path | None]:
    """What to test, the newest first. None is the one that ComfyUI serves by itself."""
    newest = newest_front_end()
    comfy = load_beside(TESTS / "comfy_server.py")
    if newest is None or not comfy.find_checkout():
        return {"own": None}
    if version_of(newest) == version_that_comfyui_has(comfy):
        return {"own": None}
    return {"newest": newest, "own": None}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Everything runs on the first frontend, and what is marked so on the others too."""
    if "front_end" in metafunc.fixturenames:
        found = list(front_ends())
        is_for_all = metafunc.definition.get_closest_marker("every_frontend")
        chosen = found if is_for_all else found[:1]
        metafunc.parametrize("front_end", chosen, scope="session")


@pytest.fixture(scope="session")
def version_served() -> Callable[..., tuple[int, ...]]:
    """Asks a page of a server for its frontend's version."""
    known: dict[str, tuple[int, ...]] = {}

    def ask(server: object, chromium: object) -> tuple[int, ...]:
        if server.base_url not in known:
            page = chromium.new_page()
            page.goto(server.base_url)
            page.wait_for_function(VERSION)
            known[server.base_url] = tuple(map(int, page.evaluate(VERSION).split(".")))
            page.close()
        return known[server.base_url]

    return ask


@pytest.fixture(scope="session")
def frontend_version(browser_server, chromium, version_served) -> tuple[int, ...]:
    """Of the frontend that is served, as (1, 47, 10)."""
    return version_served(browser_server, chromium)


@pytest.fixture(scope="session")
def is_current(frontend_version: tuple[int, ...]) -> bool:
    """Whether the frontend that is served is one of today's."""
    return frontend_version >= CURRENT


@pytest.fixture
def current_frontend(is_current: bool) -> None:
    """For tests of what older frontends draw, word or save otherwise, or not at all."""
    if not is_current:
        pytest.skip(f"told of frontend {'.'.join(map(str, CURRENT))} and later only")


@pytest.fixture(scope="session")
def frontend_module() -> ModuleType:
    return load_beside(TESTS / "browser" / "frontend.py")


@pytest.fixture(scope="session")
def served(
    comfy: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], object]]:
    """Starts a server with a frontend, once for all tests of a worker."""
    started: dict[str, object] = {}

    def serve(front_end: str) -> object:
        if front_end not in started:
            base = tmp_path_factory.mktemp(f"comfy_{front_end}")
            # The graph that a frontend begins with asks for this model, and on a slow machine the
            # word that it is missing comes when another graph is open.
            checkpoints = base / "models" / "checkpoints"
            checkpoints.mkdir(parents=True)
            (checkpoints / "v1-5-pruned-emaonly-fp16.safetensors").touch()
            folder = front_ends()[front_end]
            args = ("--front-end-root", str(folder)) if folder else ()
            args = (*comfy.ON_THE_PROCESSOR, *args)
            server = comfy.ComfyServer(comfy.find_checkout(), base, args=args)
            started[front_end] = server
            server.start()
        return started[front_end]

    yield serve
    for server in started.values():
        server.stop()


@pytest.fixture(scope="session")
def browser_server(front_end: str, served: Callable[[str], object]) -> object:
    """One server for all files of the layer that a worker runs, with one of the frontends."""
    return served(front_end)


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
