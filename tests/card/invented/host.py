"""The real ComfyUI, as much of it as manages memory, started on an invented card with this pack.

ComfyUI reads its launch arguments and asks for the card when it is imported, so this happens once
in a process. What main.py does about memory is done here; the server is left out.
"""

import importlib
import sys
import types
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import driver
from .cards import GIB, Row
from .cuda import Cuda
from .memory import CardMemory

MAIN_MEMORY = 32 * GIB
PACK = "seed_llama_pack"


@dataclass(frozen=True)
class Host:
    """A ComfyUI that believes in a card.

    Attributes:
        cuda: the card.
        management: comfy.model_management.
        is_dynamic: whether dynamic memory is on.
        nodes: the pack's package of nodes.
    """

    cuda: Cuda
    management: Any
    is_dynamic: bool
    nodes: Any

    def after_node(self) -> None:
        """What the host's execution does when a node is done."""
        if self.is_dynamic:
            self.management.reset_cast_buffers()


def start(row: Row, checkout: Path, base: Path, pack: Path) -> Host:
    """Start ComfyUI.

    Args:
        row: the card and the launch arguments.
        checkout: ComfyUI's folder.
        base: where its models are.
        pack: this pack's folder.
    """
    memory = CardMemory(row)
    cuda = Cuda(row, memory)
    cuda.install()
    _install_main_memory()
    allocator = [] if row.allocator == "native" else ["--cuda-malloc"]
    sys.argv = ["main.py", "--base-directory", str(base), *row.arguments, *allocator]
    sys.path.insert(0, str(checkout))
    importlib.import_module("comfy.options").enable_args_parsing()
    arguments = importlib.import_module("comfy.cli_args")
    is_dynamic = arguments.enables_dynamic_vram()
    driver.install(memory)
    _install_kernels()
    management = importlib.import_module("comfy.model_management")
    patcher = importlib.import_module("comfy.model_patcher")
    if is_dynamic:
        patcher.CoreModelPatcher = patcher.ModelPatcherDynamic
        importlib.import_module("comfy.memory_management").aimdo_enabled = True
    return Host(cuda, management, is_dynamic, _import_pack(pack))


def _install_main_memory() -> None:
    """Main memory of one size, as the host pins and keeps as much as there is."""
    import psutil

    memory = namedtuple("svmem", "total available percent used free")
    fixed = memory(MAIN_MEMORY, MAIN_MEMORY * 3 // 4, 25.0, MAIN_MEMORY // 4, MAIN_MEMORY // 2)
    psutil.virtual_memory = lambda: fixed


def _install_kernels() -> None:
    """The host's kernels by their plain equivalents; one operation of torch stays one."""
    registry = importlib.import_module("comfy_kitchen").registry
    find = registry.get_implementation
    registry.get_implementation = lambda name, backend=None, kwargs=None: find(
        name, backend="eager", kwargs=kwargs
    )


def _import_pack(folder: Path) -> Any:
    server = types.ModuleType("server")
    server.PromptServer = types.SimpleNamespace(instance=None)
    sys.modules["server"] = server
    spec = importlib.util.spec_from_file_location(
        PACK, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = package
    spec.loader.exec_module(package)
    nodes = importlib.import_module(f"{PACK}.nodes")
    nodes.host.register_model_folders(nodes.kinds.SUFFIXES)
    return nodes
