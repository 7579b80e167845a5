"""Import every module of seed_core but those that train, with the host and large libraries unimportable.

What they would cost at start is paid by whoever needs them: they are imported where they are used.
"""

import importlib
import pkgutil
import sys

FORBIDDEN = ("comfy", "comfy_api", "folder_paths", "server")
LATE = ("diffusers", "huggingface_hub", "transformers")

sys.modules.update(
    dict.fromkeys((*FORBIDDEN, *LATE))
)  # None makes an import raise ModuleNotFoundError
package = importlib.import_module("seed_core")
for module in pkgutil.walk_packages(package.__path__, "seed_core."):
    if not module.name.startswith("seed_core.training") and not module.name.endswith("__main__"):
        importlib.import_module(module.name)
