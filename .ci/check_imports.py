"""Import every module of seed_core with the host, transformers and diffusers made unimportable."""

import importlib
import pkgutil
import sys

FORBIDDEN = ("comfy", "comfy_api", "folder_paths", "server", "diffusers", "transformers")

sys.modules.update(dict.fromkeys(FORBIDDEN))  # None makes an import raise ModuleNotFoundError
package = importlib.import_module("seed_core")
for module in pkgutil.iter_modules(package.__path__):
    importlib.import_module(f"seed_core.{module.name}")
