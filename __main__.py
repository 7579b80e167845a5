"""The command line by path: ``python FOLDER fetch``, where FOLDER is this one, however it is named.

The Python of ComfyUI's portable version starts isolated and imports nothing from the folder it is
started in, so that ``python -m seed_core`` finds nothing there.
"""

import runpy
import sys

if __name__ == "__main__":
    module = "seed_core"
    if sys.argv[1:2] == ["training"]:
        module = f"seed_core.{sys.argv.pop(1)}"
    runpy.run_module(module, run_name="__main__")  # its help names the command as it was typed
