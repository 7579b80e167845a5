"""The project's own files agree with one another."""

import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image

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
    install, test = re.search(r'(pip install -e "\.\[test\]") && (pytest[^`\n]*)', readme).groups()
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("pip install") and '".[test]"' in line for line in script)
    assert test in script
    assert install.startswith("pip install")


def test_the_bundled_model_carries_its_licence_and_nothing_it_does_not_need():
    bundle = ROOT / "seed_core" / "weights" / "seed-mini"
    assert "MIT License" in (bundle / "LICENSE-NOTICE.txt").read_text(encoding="utf-8")
    assert not list(bundle.rglob("classifier*"))
    assert not (bundle / "sheets").exists()
    assert sum(f.stat().st_size for f in bundle.rglob("*") if f.is_file()) < 24 * 2**20


# --- what the Comfy Registry reads and packs ---

NUMBER = r"\d+\.\d+\.\d+"
NEEDED = (
    "locales",
    "nodes",
    "nodes/web",
    "seed_core",
    "seed_core/weights",
    "subgraphs",
    "workflows",
)
NEEDED_FILES = {"__init__.py", "LICENSE", "NOTICE", "pyproject.toml", "README.md"}
NEEDED_FILES |= {"requirements.txt", "seed_core/weights/seed-mini/LICENSE-NOTICE.txt"}
OURS_ALONE = ("tests/", "benchmarks/", "docs/make_", ".ci/", ".git", ".pre-commit", ".comfyignore")
OURS_ALONE += ("CONTRIBUTING.md", "nodes/ruff.toml")
LARGEST_PICTURE = 150_000  # bytes


@pytest.fixture(scope="module")
def metadata():
    tomllib = pytest.importorskip("tomllib", reason="came with Python 3.11")
    return tomllib.loads(PROJECT)


def git_files(*options):
    command = ["git", "-C", str(ROOT), "ls-files", "-z", *options]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"git tells no files here: {getattr(error, 'stderr', error)}")
    return set(filter(None, found.stdout.split("\0")))


@pytest.fixture(scope="module")
def tracked():
    return git_files()


@pytest.fixture(scope="module")
def archive(tracked):
    """What comfy-cli packs: the files git tracks, less what .comfyignore says in git's own words."""
    return tracked - git_files("--cached", "--ignored", f"--exclude-from={ROOT / '.comfyignore'}")


def test_metadata_is_valid_and_complete(metadata):
    project, comfy = metadata["project"], metadata["tool"]["comfy"]
    assert project["name"] == "seed-llama"
    assert re.fullmatch(NUMBER, project["version"])
    assert project["license"] == {"file": "LICENSE"}
    assert {"Repository", "Documentation", "Issues"} <= set(project["urls"])
    assert set(project["optional-dependencies"]) == {"demo", "test", "train"}
    assert (comfy["PublisherId"], comfy["DisplayName"]) == ("seed-llama", "SEED-LLaMA")


def test_the_registry_can_read_the_bounds_on_its_own_parts(metadata):
    """comfy-cli drops, with no more than a warning, a bound that has not three numbers."""
    frontend = [d for d in metadata["project"]["dependencies"] if d.startswith("comfyui-")]
    bounds = [metadata["tool"]["comfy"]["requires-comfyui"], *frontend]
    assert len(bounds) == 2
    for bound in bounds:
        assert re.fullmatch(rf"(comfyui-frontend-package)?>={NUMBER}", bound)


def test_no_machine_is_shut_out_by_a_classifier(metadata):
    """Where one device is named, ComfyUI warns everybody who has another; where none is, nobody."""
    found = [text.split(" :: ") for text in metadata["project"]["classifiers"]]
    assert [rest for kind, *rest in found if kind == "Operating System"] == [["OS Independent"]]
    assert [rest for kind, *rest in found if kind == "Environment"] == []


@pytest.mark.parametrize(("key", "is_right"), [("Icon", "w == h <= 400"), ("Banner", "9w == 21h")])
def test_the_registrys_pictures_are_in_the_repository_and_of_its_sizes(
    metadata, tracked, key, is_right
):
    url = urlsplit(metadata["tool"]["comfy"][key])
    home = urlsplit(metadata["project"]["urls"]["Repository"])
    assert (url.scheme, url.netloc) == ("https", "raw.githubusercontent.com")
    branch = f"{home.path}/main/"
    assert url.path.startswith(branch)
    path = url.path.removeprefix(branch)
    assert path in tracked
    assert (ROOT / path).stat().st_size <= LARGEST_PICTURE
    with Image.open(ROOT / path) as picture:
        width, height = picture.size
        assert picture.format in ("PNG", "JPEG", "GIF")
    laws = {"w == h <= 400": width == height <= 400, "9w == 21h": 9 * width == 21 * height}
    assert laws[is_right]


def test_a_users_copy_has_all_it_runs_on(archive, tracked):
    for folder in NEEDED:
        inside = {path for path in tracked if path.startswith(f"{folder}/")}
        assert inside, folder
        assert inside - archive <= {"nodes/ruff.toml"}
    assert archive >= NEEDED_FILES


def test_a_users_copy_has_nothing_that_only_we_need(archive):
    assert sorted(path for path in archive if path.startswith(OURS_ALONE)) == []


def test_whatever_else_is_tracked_is_in_a_users_copy(archive, tracked):
    """A folder that comes later, such as translations, need not be named anywhere."""
    pictures = {"docs/icon.png", "docs/banner.jpg"}
    assert {p for p in tracked - archive if not p.startswith(OURS_ALONE)} <= pictures


def test_the_picture_files_that_the_readme_shows_are_in_a_users_copy(archive):
    shown = re.findall(r"!\[[^]]*\]\((\S+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert shown
    assert archive >= set(shown)
