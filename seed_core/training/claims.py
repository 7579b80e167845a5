"""Folders that belong to one piece of work: a file says which, the same in every process."""

from __future__ import annotations

import os
from pathlib import Path


def claim(path: Path, text: str) -> bool:
    """Write what a folder is for, or tell whether the file of an earlier run says the same."""
    if path.is_file():
        return path.read_text("utf-8", errors="replace") == text
    whole = path.with_suffix(f".{os.getpid()}")  # several processes write it, others read
    whole.write_text(text, "utf-8")
    whole.replace(path)
    return True
