"""What importing the pack costs."""

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]

SCRIPT = """
import importlib.util, pathlib, sys

def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module

tests = pathlib.Path(sys.argv[1])
load("host_double", tests / "host_double.py").install(tests)
for name in sys.argv[2:]:  # what others have imported counts as missing from here on
    sys.modules[name] = None
load("pack", tests.parent / "__init__.py")
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


ONLINE = ("http.client", "urllib.request", "ssl", "socket", "huggingface_hub", "requests", "httpx")


def packages_after_import(*missing):
    command = [sys.executable, "-c", SCRIPT, str(TESTS), *missing]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_the_pack_imports_neither_transformers_nor_diffusers():
    packages = packages_after_import()
    assert "torch" in packages
    assert not packages & {"transformers", "diffusers", "accelerate", "skimage"}


def test_importing_the_pack_needs_no_library_that_goes_online():
    assert "pack" in packages_after_import(*ONLINE)


def test_errors_bear_a_name_that_people_can_read(pack):
    """The host shows module and class in front of each message; a pack's module is a path."""
    errors = vars(sys.modules[f"{pack.__name__}.seed_core.errors"])
    classes = [each for each in errors.values() if isinstance(each, type)]
    assert len(classes) > 5
    assert {each.__module__ for each in classes} == {"SEED"}
