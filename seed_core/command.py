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

_BY_NAME = "python -m seed_core"

_PLAIN = re.compile(r"[\w.:\\/+=-]+")  # needs no quotes in cmd.exe and in PowerShell


def command_line(*words: str) -> str:
    """Return what to type in any folder to run a command such as ``fetch``.

    It names Python and this pack by their paths. The Python of ComfyUI's portable version imports
    nothing from the folder that it is started in, and is seldom on the search path.
    """
    here = str(PACK) if (PACK / "__main__.py").is_file() else None
    program = [sys.executable or "python", *([here] if here else ["-m", "seed_core"])]
    return quoted([*program, *words], os.name == "nt")


def started_as() -> str:
    """Return how the command line was started, for its own help."""
    by_path = len(sys.argv[0]) > 0 and os.path.isdir(sys.argv[0])
    return quoted(["python", sys.argv[0]], os.name == "nt") if by_path else _BY_NAME


def quoted(words: Sequence[str], is_windows: bool) -> str:
    """Return words as a line for sh, or for both cmd.exe and PowerShell."""
    if not is_windows:
        return shlex.join(words)
    # Neither lets a quote into a path, and nothing else ends one.
    line = " ".join(word if _PLAIN.fullmatch(word) else f'"{word}"' for word in words)
    return f"{line} (in PowerShell with & before it)" if line.startswith('"') else line
