"""Folders that belong to one piece of work: a file in them says which, the same in every process."""

from __future__ import annotations

import os
from pathlib import Path


def claim(path: Path, text: str) -> bool:
    """Write a file that says what its folder is for, where there is none yet.

    Args:
        path: the file, in a folder that exists.
        text: what it says.

    Returns:
        Whether the file says just that; otherwise the folder is another work's.
    """
    if path.is_file():
        return path.read_text("utf-8") == text
    whole = path.with_suffix(f".{os.getpid()}")  # several processes write it, others read
    whole.write_text(text, "utf-8")
    whole.replace(path)
    return True
