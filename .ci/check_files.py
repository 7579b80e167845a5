"""Check files before a commit: JSON parses, text ends with one newline, nothing is large.

With no arguments, all files that git tracks.
"""

import json
import subprocess
import sys
from pathlib import Path

DATA = ("seed_core/weights/", "tests/data/")  # kept byte for byte
LARGEST = 300_000  # bytes


def what_is_wrong(path: Path) -> str:
    """One sentence, or an empty string."""
    content = path.read_bytes()
    if len(content) > LARGEST:
        return f"has {len(content)} bytes, more than {LARGEST}"
    if b"\0" in content:
        return ""  # no text
    if not content.endswith(b"\n") or content.endswith(b"\n\n"):
        return "does not end with exactly one newline" if content else ""
    if path.suffix == ".json":
        try:
            json.loads(content)
        except ValueError as error:
            return f"is no JSON: {error}"
    return ""


def main(names: list[str]) -> int:
    """Say what is wrong with each file; 1 if there is anything."""
    if not names:
        command = ["git", "ls-files", "-z"]
        listed = subprocess.run(command, capture_output=True, text=True, check=False)
        if listed.returncode:
            sys.stdout.write(f"files: not checked, git says {listed.stderr}")
        names = listed.stdout.split("\0")[:-1]
    paths = [Path(name) for name in names if not name.startswith(DATA)]
    found = [(path, fault) for path in paths if path.is_file() and (fault := what_is_wrong(path))]
    for path, fault in found:
        sys.stdout.write(f"{path} {fault}\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
