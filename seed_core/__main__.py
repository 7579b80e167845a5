"""The command line: ``python -m seed_core demo|encode|decode|chat|convert|bench|fetch``."""

from __future__ import annotations

import sys

from .cli.program import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
