"""What every layer of tests shares: seeded generators, seed-mini, and a watch over global state."""

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

TESTS = Path(__file__).parent

# Servers and other processes that tests start compute with one thread too; see `one_thread`.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def load_beside(path: Path) -> ModuleType:
    """Import a helper module of the tests from its file: nothing under tests is on sys.path."""
    spec = importlib.util.spec_from_file_location(f"tests_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def load_helper() -> Callable[[Path], ModuleType]:
    """Imports a helper module of the tests from its file."""
    return load_beside


def global_state() -> dict[str, object]:
    """Everything global that a library has no business changing."""
    return {
        "torch random state": torch.get_rng_state().numpy().tobytes(),
        "numpy random state": np.random.get_state()[1].tobytes(),
        "default dtype": torch.get_default_dtype(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "default device": torch.get_default_device(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
    }


@pytest.fixture(scope="session")
def all_threads() -> int:
    """How many threads a full-size network may have: all that torch would use, but for a worker's."""
    return 1 if "PYTEST_XDIST_WORKER" in os.environ else torch.get_num_threads()


@pytest.fixture(autouse=True, scope="session")
def one_thread(all_threads: int) -> Iterator[None]:
    """Tiny networks gain nothing from a second thread and wait ten times as long on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def global_state_is_untouched(one_thread: None) -> Iterator[None]:
    """Law for every test: whatever it called left the process as it was."""
    before = global_state()
    yield
    changed = [name for name, value in global_state().items() if value != before[name]]
    assert not changed, f"changed by the test or by what it called: {changed}"


@pytest.fixture(scope="session")
def data_folder() -> Path:
    return TESTS / "data"


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    return TESTS / "data" / "golden"


@pytest.fixture(scope="session")
def seed_1_folder(tmp_path_factory: pytest.TempPathFactory, golden_folder: Path) -> Path:
    """A tokenizer folder with the whole of SEED-1's network, of small width, as one file."""
    folder = tmp_path_factory.mktemp("seed_1")
    shutil.copy(golden_folder / "golden_v1_tiny.safetensors", folder / "model.safetensors")
    shutil.copy(TESTS / "data" / "seed_1_tiny_config.json", folder / "config.json")
    return folder


@pytest.fixture(scope="session")
def make_generator() -> Callable[[int], torch.Generator]:
    """A CPU generator that starts from a number."""
    return lambda number=0: torch.Generator().manual_seed(number)


@pytest.fixture
def generator(make_generator: Callable[[int], torch.Generator]) -> torch.Generator:
    return make_generator(0)


@pytest.fixture
def isolated_random_state() -> Iterator[None]:
    """For reference implementations that draw from, or reseed, the global generator."""
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.fixture(scope="session")
def mini_folder() -> Path:
    """The folder of the bundled model family."""
    from seed_core.models.names import bundled

    return bundled("tokenizer").parent


@pytest.fixture(scope="session")
def peft_adapter() -> ModuleType:
    """The writers of random LoRA adapters."""
    return load_beside(TESTS / "peft_adapter.py")


@pytest.fixture(scope="session")
def photograph() -> Callable[[str], object]:
    """A photograph of scikit-image by its golden name, from the files inside its wheel."""
    import skimage
    from PIL import Image

    folder = Path(skimage.__file__).parent / "data"

    def read(name: str) -> object:
        (path,) = sorted(folder.glob(f"{name}.*"))
        with Image.open(path) as picture:
            return picture.convert("RGB")

    return read


@pytest.fixture(scope="session")
def mini_tokenizer():
    import seed_core

    return seed_core.load_tokenizer("seed-mini")


@pytest.fixture(scope="session")
def mini_llm():
    import seed_core

    return seed_core.load_llm("seed-mini")


@pytest.fixture(scope="session")
def mini_decoder():
    import seed_core

    return seed_core.load_decoder("seed-mini")


class ImageEncoderStandIn(torch.nn.Linear):
    """The stock pipeline reads dtype and device of its image encoder even when it has no use for it."""

    device = torch.device("cpu")
    dtype = torch.float32


@pytest.fixture(scope="session")
def open_stock_decoder(mini_folder: Path) -> Callable[[type], object]:
    """Opens seed-mini's decoder as a pipeline of diffusers, of the class that is given."""

    def open_as(kind):
        with torch.random.fork_rng(devices=[]):
            absent = ["feature_extractor", "image_encoder", "text_encoder", "tokenizer"]
            pipeline = kind.from_pretrained(mini_folder / "decoder", **dict.fromkeys(absent))
            pipeline.image_encoder = ImageEncoderStandIn(1, 1)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return open_as


@pytest.fixture(scope="session")
def sample_codes(mini_tokenizer, mini_folder: Path) -> torch.Tensor:
    """Codes of three bundled pictures: fox on yellow, cat on orange, castle on blue, [3, 32]."""
    from PIL import Image

    names = ("fox_on_yellow", "cat_on_orange", "castle_on_blue")
    pictures = [Image.open(mini_folder / "samples" / f"{name}.png") for name in names]
    return mini_tokenizer.encode(mini_tokenizer.preprocess(pictures))


# --- two workers ------------------------------------------------------------------------------

# One worker runs all tests of a group, so that what they share is made once: a server, a browser,
# a host, gigabytes of files. These take longest and begin first; the others are a file each.
LONG_GROUPS = (
    *("browser/test_templates.py", "host/test_native_sampling.py", "browser/test_blueprints.py"),
    *("load/test_load.py", "card", "nodes on comfyui", "browser/test_native_templates.py"),
    *("comfy_server", "browser/test_languages.py", "nodes on double", "core/files/test_fuzz.py"),
)


def _group(item: pytest.Item) -> str:
    """The name of the group that a test belongs to."""
    file = item.path.relative_to(TESTS)
    if file.parts[0] == "card":
        return "card"
    if item.get_closest_marker("serving"):
        return "vllm"
    if "comfy_server" in item.fixturenames:
        return "comfy_server"
    if "host_name" in item.fixturenames:
        return f"nodes on {item.callspec.params['host_name']}"
    if "front_end" in item.fixturenames:
        return f"{file.as_posix()} ({item.callspec.params['front_end']})"
    return file.as_posix()


def pytest_configure(config: pytest.Config) -> None:
    """Begin groups in the order in which tests come, not by how many tests they have."""
    config.option.loadscopereorder = False
    # Where it writes the group; without groups two workers take twice the memory and the time.
    if config.getoption("dist", "no") == "loadgroup" and not hasattr(pytest.Item, "_nodeid"):
        raise pytest.UsageError(
            f"pytest-xdist cannot group tests with pytest {pytest.__version__}: install the "
            "releases that pyproject.toml names"
        )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Name each test's group, and let the long ones come first where workers share the tests."""
    groups = {item: _group(item) for item in items}
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
    if hasattr(config, "workerinput"):  # xdist's mark of a worker
        ranks = {group: rank for rank, group in enumerate(LONG_GROUPS)}
        items.sort(key=lambda item: ranks.get(groups[item].split(" (")[0], len(ranks)))
    _skip_what_needs_comfyui(items)


# --- a real ComfyUI ---------------------------------------------------------------------------

NO_COMFYUI = "no ComfyUI found: set COMFYUI_PATH to a checkout"


def _skip_what_needs_comfyui(items: list[pytest.Item]) -> None:
    if load_beside(TESTS / "comfy_server.py").find_checkout() is None:
        for item in items:
            if any(item.get_closest_marker(name) for name in ("host", "browser")):
                item.add_marker(pytest.mark.skip(reason=NO_COMFYUI))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how much was left out: a green run without ComfyUI proves less."""
    skipped = terminalreporter.stats.get("skipped", [])
    number = sum(NO_COMFYUI in str(report.longrepr) for report in skipped)
    if number:
        terminalreporter.write_line(
            f"{number} tests need a running ComfyUI and were skipped: there is none in "
            "COMFYUI_PATH or, where that is not set, in ~/comfy/ComfyUI or around this pack"
        )


@pytest.fixture(scope="session")
def comfy() -> ModuleType:
    """The module comfy_server.py: ComfyServer, Run, RefusedPromptError, find_checkout."""
    return load_beside(TESTS / "comfy_server.py")


@pytest.fixture(scope="session")
def comfy_server(comfy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """One real server with this pack installed, for all tests that drive ComfyUI."""
    packs = {comfy.PACK_NAME: comfy.PACK_ROOT, "seed-test-probe": TESTS / "host" / "probe"}
    server = comfy.ComfyServer(comfy.find_checkout(), tmp_path_factory.mktemp("comfyui"), packs)
    try:
        server.start()
        server.state_at_start = server.get("/seed_test/state")  # before any prompt
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """vLLM itself, serving seed-mini as `convert --to folder` writes it, for all tests that ask it."""
    from seed_core.models.convert import plan_conversion
    from seed_core.models.names import bundled
    from seed_core.models.plain_folder import write_plain_folder

    module = load_beside(TESTS / "vllm_server.py")
    try:
        module.python()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"there is no vLLM, and it cannot be installed: {error}")
    folder = tmp_path_factory.mktemp("vllm")
    write_plain_folder(plan_conversion(bundled("llm"), torch.float16), folder / "served")
    with module.VllmServer(folder / "served", "seed-mini", folder / "vllm.log") as server:
        yield server


@pytest.fixture(scope="session")
def hub_module() -> ModuleType:
    """The module of a server that answers as the Hub does, with what can be wrong with it."""
    return load_beside(TESTS / "hub.py")


@pytest.fixture
def hub(hub_module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server of this machine that huggingface_hub asks in place of the Hub."""
    from huggingface_hub import constants, file_download

    with hub_module.Hub() as server:
        address = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        for module in (constants, file_download):  # the latter holds a copy before 1.0
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", address, raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server
