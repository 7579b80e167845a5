"""The project's own files agree with one another."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_requirements_file_and_metadata_name_the_same_packages():
    """Git installs read the one, the registry the other."""
    listed = re.search(r"^dependencies = \[(.*?)^\]", PROJECT, re.M | re.S)[1]
    in_metadata = sorted(re.findall(r'"([^"]+)"', listed))
    in_file = sorted((ROOT / "requirements.txt").read_text(encoding="utf-8").split())
    assert in_metadata == in_file


def test_nothing_we_require_can_replace_the_users_torch():
    required = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert not re.search(r"^(torch|torchvision|torchaudio|numpy|pillow)\b", required, re.M | re.I)
    assert "==" not in required


def test_ci_runs_the_readmes_commands():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    install, test = re.search(r'(pip install -e "\.\[test\]") && (pytest)', readme).groups()
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("pip install") and '".[test]"' in line for line in script)
    assert script[-1] == test
    assert install.startswith("pip install")


def test_the_bundled_model_carries_its_licence_and_nothing_it_does_not_need():
    bundle = ROOT / "seed_core" / "weights" / "seed-mini"
    assert "MIT License" in (bundle / "LICENSE-NOTICE.txt").read_text(encoding="utf-8")
    assert not list(bundle.rglob("classifier*"))
    assert not (bundle / "sheets").exists()
    assert sum(f.stat().st_size for f in bundle.rglob("*") if f.is_file()) < 24 * 2**20


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_metadata_is_valid_and_complete():
    import tomllib

    project = tomllib.loads(PROJECT)
    assert project["project"]["name"] == "seed-llama"
    assert project["tool"]["comfy"]["DisplayName"] == "SEED-LLaMA"
    assert set(project["project"]["optional-dependencies"]) == {"demo", "test"}
