"""Check that ComfyUI has every name that nodes/ takes from it: today, and in the oldest version we allow.

Reads the git history of the checkout that the tests use, offline, with comfy-import-guard; says in
one line what it could not check, and why.
"""

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOL = "comfy-import-guard"


def find_checkout() -> Path | None:
    """The ComfyUI that the tests run."""
    spec = importlib.util.spec_from_file_location("comfy_server", ROOT / "tests/comfy_server.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.find_checkout()


def why_not(checkout: Path | None) -> str:
    """Why nothing can be checked, or an empty string."""
    if shutil.which(TOOL) is None:
        return f"{TOOL} is not installed"
    if checkout is None:
        return "no ComfyUI found"
    if not (checkout / ".git").exists():
        return f"{checkout} is not a git repository"
    return "" if has_commit(checkout, "HEAD") else f"git cannot read the history of {checkout}"


def has_commit(checkout: Path, ref: str) -> bool:
    """Whether git finds a commit under this name."""
    command = ["git", "-C", str(checkout), "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def check(checkout: Path, ref: str) -> bool:
    """Show what the tool finds in one version of ComfyUI."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)  # the tool wants a clone of this name, and packs in a folder of that
        (folder / "ComfyUI").symlink_to(checkout, target_is_directory=True)
        shutil.copytree(ROOT / "nodes", folder / "custom_nodes" / "seed-llama")
        places = ["--cache-dir", name, "--comfy-dir", name, "--target", ref]
        command = [TOOL, "check", "--offline", "--quiet", *places]
        return subprocess.run(command, check=False).returncode == 0


def main() -> int:
    """Check today's ComfyUI and the oldest; 1 if a name is missing in one of them."""
    checkout = find_checkout()
    if reason := why_not(checkout):
        sys.stdout.write(f"names taken from ComfyUI: not checked, {reason}\n")
        return 0
    metadata = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    oldest = "v" + re.search(r'^requires-comfyui = ">=([\d.]+)"', metadata, re.M)[1]
    refs = ["HEAD"]
    if has_commit(checkout, oldest):
        refs.append(oldest)
    else:
        sys.stdout.write(f"names taken from ComfyUI: {checkout} has no tag {oldest}, HEAD only\n")
    sys.stdout.flush()
    return int(not all([check(checkout, ref) for ref in refs]))


if __name__ == "__main__":
    sys.exit(main())
