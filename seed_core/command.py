"""What to type: the command line of this pack for the Python and the folder that it runs in."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

# Not resolved: behind a link, the folder that ComfyUI knows is the one that lies beside its models.
PACK = Path(os.path.abspath(__file__)).parents[1]

_PLAIN = re.compile(r"[\w.:\\/+=-]+")  # needs no quotes in cmd.exe and in PowerShell


def command_line(*words: str) -> str:
    """Return what to type in any folder to run a command such as ``fetch``.

    It names Python and this pack by their paths. The Python of ComfyUI's portable version imports
    nothing from the folder that it is started in, and seldom is on the search path.
    """
    here = str(PACK) if (PACK / "__main__.py").is_file() else None
    program = [sys.executable or "python", *([here] if here else ["-m", "seed_core"])]
    return quoted([*program, *words], os.name == "nt")


def quoted(words: Sequence[str], is_windows: bool) -> str:
    """Return words as a line for sh, or for both cmd.exe and PowerShell."""
    if not is_windows:
        return shlex.join(words)
    # Neither lets a quote into a path, and nothing else ends one.
    line = " ".join(word if _PLAIN.fullmatch(word) else f'"{word}"' for word in words)
    return f"{line} (in PowerShell with & before it)" if line.startswith('"') else line
