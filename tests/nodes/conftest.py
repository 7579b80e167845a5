"""The pack loaded the way the host loads it, on the double and, where there is one, on ComfyUI."""

import asyncio
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

PACK_ROOT = Path(__file__).resolve().parents[2]
BUNDLED = "seed-mini (bundled)"


def load_file(name: str, path: Path) -> ModuleType:
    """Import a file as the host imports a pack: by path, with relative imports inside it."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def install_checkout(checkout: Path, base: Path) -> None:
    """Import ComfyUI into this process, for a CPU, on a folder of its own."""
    sys.path.insert(0, str(checkout))
    args = importlib.import_module("comfy.cli_args").args
    args.cpu, args.base_directory = True, str(base)
    # Its utils first, as at its own start: comfy/utils.py would be found under that name later.
    for name in (
        "utils.extra_config",
        "comfy.clip_vision",
        "comfy_api.latest",
        "folder_paths",
        "server",
    ):
        importlib.import_module(name)


def forget(*roots: str) -> None:
    """Take modules out again, so that the next host starts clean."""
    for name in [n for n in sys.modules if n.partition(".")[0] in roots]:
        del sys.modules[name]


@pytest.fixture(scope="session", params=["double", pytest.param("comfyui", marks=pytest.mark.host)])
def host_name(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[str]:
    """Every test of this folder runs on both."""
    before, path = set(sys.modules), sys.path[:]
    base = tmp_path_factory.mktemp(request.param)
    if request.param == "double":
        double = load_file("tests_host_double", PACK_ROOT / "tests" / "host_double.py")
        double.install(base / "models")
    else:
        checkout = load_file(
            "tests_comfy_server", PACK_ROOT / "tests/comfy_server.py"
        ).find_checkout()
        try:
            install_checkout(checkout, base)
        except ImportError as error:
            pytest.skip(f"this Python lacks what ComfyUI needs: {error}")
    yield request.param
    hosts = (
        "comfy",
        "comfy_api",
        "comfy_execution",
        "folder_paths",
        "server",
        "nodes",
        "execution",
    )
    forget(*hosts, *(n for n in ("utils", "app", "protocol", "api_server") if n not in before))
    sys.path[:] = path


@pytest.fixture(scope="session")
def pack(host_name: str) -> Iterator[ModuleType]:
    """The pack. Take every class from here: it is not the installed seed_core."""
    name = f"seed_llama_on_{host_name}"
    module = load_file(name, PACK_ROOT / "__init__.py")
    module.seed_core = sys.modules[f"{name}.seed_core"]
    module.host = sys.modules[f"{name}.nodes.host"]
    module.kinds = sys.modules[f"{name}.nodes.kinds"]
    module.comfy, module.folder_paths = sys.modules["comfy"], sys.modules["folder_paths"]
    with ThreadPoolExecutor(1) as thread:  # this one may hold the browser layer's running loop
        nodes = thread.submit(asyncio.run, load_nodes(module)).result()
    module.nodes_by_id = {node.GET_SCHEMA().node_id: node for node in nodes}
    yield module
    forget(name)


async def load_nodes(module: ModuleType) -> list[type]:
    """What the host asks of a pack when it starts."""
    extension = await module.comfy_entrypoint()
    await extension.on_load()
    return await extension.get_node_list()


@pytest.fixture(scope="session")
def run_node(pack: ModuleType) -> Callable[..., Any]:
    """Execute a node by id as the host does: widgets left out have their defaults."""

    def execute(node_id: str, **inputs: Any) -> Any:
        node = pack.nodes_by_id[node_id]
        defaults = {
            i.id: getattr(i, "default", None) for i in node.GET_SCHEMA().inputs if not i.optional
        }
        with torch.inference_mode():
            return node.execute(**(defaults | inputs))

    return execute


@pytest.fixture(scope="session")
def run(run_node: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    """The same, for its results on wires."""
    return lambda node_id, **inputs: run_node(node_id, **inputs).args


@pytest.fixture(scope="session")
def mini(run: Callable[..., Any]) -> SimpleNamespace:
    """The bundled models as they travel on wires."""
    return SimpleNamespace(
        tokenizer=run("SEEDTokenizerLoader")[0],
        llm=run("SEEDLLaMALoader")[0],
        decoder=run("SEEDDecoderLoader")[0],
    )


@pytest.fixture(scope="session")
def fox(run: Callable[..., Any]) -> torch.Tensor:
    return run("SEEDSamplePicture", picture="fox_on_yellow")[0]


@pytest.fixture(scope="session")
def fox_codes(run: Callable[..., Any], mini: SimpleNamespace, fox: torch.Tensor) -> Any:
    return run("SEEDEncode", tokenizer=mini.tokenizer, image=fox)[0]


@pytest.fixture(scope="session")
def seed_1(pack: ModuleType, seed_1_folder: Path) -> Any:
    """A small SEED-1 tokenizer as it travels on wires."""
    return pack.host.LoadedModel(pack.seed_core.load_tokenizer(seed_1_folder))


@pytest.fixture(scope="session")
def seed_1_codes(run: Callable[..., Any], seed_1: Any, fox: torch.Tensor) -> Any:
    """The codes of a fox and of its mirror image."""
    pictures = torch.cat((fox, fox.flip(2)))
    return run("SEEDEncode", tokenizer=seed_1, image=pictures)[0]


@pytest.fixture
def management(pack: ModuleType) -> Any:
    """The module comfy.model_management of the host in use."""
    return pack.comfy.model_management


@pytest.fixture
def bar(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Where the progress bar has been."""
    steps: list[tuple[int, int]] = []
    bar = SimpleNamespace(update_absolute=lambda done, total, _: steps.append((done, total)))
    monkeypatch.setattr(pack.comfy.utils, "ProgressBar", lambda total: bar)
    return steps
