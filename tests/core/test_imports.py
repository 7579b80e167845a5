"""What importing the library costs and drags in."""

import pkgutil
import subprocess
import sys

import seed_core

MODULES = [
    module.name
    for module in pkgutil.walk_packages(seed_core.__path__, "seed_core.")
    if not module.name.startswith("seed_core.training") and "__main__" not in module.name
]
HEAVY = ["transformers", "diffusers", "huggingface_hub", "comfy", "comfy_api", "folder_paths"]


def run(program):
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )


def test_importing_everything_pulls_in_no_heavy_library():
    imports = "\n".join(f"import {name}" for name in MODULES)
    found = run(f"import sys\n{imports}\nprint([m for m in {HEAVY} if m in sys.modules])")
    assert found.stdout.strip() == "[]", found.stderr


def test_the_library_works_where_transformers_and_diffusers_are_absent():
    """Encode, chat and embed need neither; only pictures do."""
    program = f"""
import sys
for name in {HEAVY}:
    sys.modules[name] = None  # importing it raises ImportError
import torch, seed_core
tokenizer, llm = seed_core.load_tokenizer("seed-mini"), seed_core.load_llm("seed-mini")
codes = tokenizer.encode(torch.zeros(1, 3, 128, 128))
options = seed_core.GenerationOptions(temperature=0, max_new_tokens=20)
print(tokenizer.embed(codes).shape, llm.generate("Hello", options=options).text != "")
"""
    found = run(program)
    assert found.returncode == 0, found.stderr
    assert "torch.Size([1, 256]) True" in found.stdout


def test_every_module_imports_first():
    """No module relies on another having been imported before it, nor changes global state."""
    program = f"""
import importlib, sys, torch
before = torch.get_rng_state()
for name in {MODULES}:
    for loaded in [key for key in sys.modules if key.split(".")[0] == "seed_core"]:
        del sys.modules[loaded]
    importlib.import_module(name)
assert (torch.get_rng_state() == before).all()
assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()
print("all imported")
"""
    found = run(program)
    assert found.stdout.strip() == "all imported", found.stderr


def test_the_public_names_exist():
    for name in seed_core.__all__:
        assert hasattr(seed_core, name), name
    wanted = {"load_tokenizer", "load_llm", "load_decoder", "SeedCodes", "SeedChat", "Reply"}
    wanted |= {"GenerationOptions", "DecodeOptions", "SeedTokenizer", "SeedLLM", "SeedDecoder"}
    assert wanted <= set(seed_core.__all__)
