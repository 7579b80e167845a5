"""What loading costs: the weights once, never a second copy of them.

A machine that can run a model must be able to load it. The layers are as wide as SEED-LLaMA 8B's,
four of them, in 16 bits: 1.5 GiB.
"""

import json
import math
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

STATUS = Path("/proc/self/status")
pytestmark = pytest.mark.skipif(not STATUS.exists(), reason="reads Linux's account of a process")

GIB = 2**30
SLACK = 0.75 * GIB  # a fused product while it is put together, one stretch of a mapped file

WIDTH, HIDDEN, LAYERS = 4096, 11008, 4

LOAD = """
import sys, torch, seed_core

def peak():
    # Not getrusage: its peak begins with that of the process that started this one.
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

before = peak()
module = seed_core.load_llm(sys.argv[1], dtype=torch.float16).module
for parameter in module.parameters():
    parameter.view(torch.int8).max()  # a mapped weight counts once it was read
print(sum(parameter.nbytes for parameter in module.parameters()), peak() - before)
"""


def shapes(vocab_size):
    """Names and shapes of the weights, as Hugging Face's files have them."""
    attention = {f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"}
    mlp = {f"mlp.{name}_proj": (HIDDEN, WIDTH) for name in ("gate", "up")}
    layer = attention | mlp | {"mlp.down_proj": (WIDTH, HIDDEN)}
    layer |= dict.fromkeys(("input_layernorm", "post_attention_layernorm"), (WIDTH,))
    ends = dict.fromkeys(("model.embed_tokens", "lm_head"), (vocab_size, WIDTH))
    found = ends | {"model.norm": (WIDTH,)}
    for i in range(LAYERS):
        found |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return {f"{name}.weight": shape for name, shape in found.items()}


def write_safetensors(folder, shapes):
    """One file of zeros, most of it a hole that takes no room on the disk."""
    table, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        table[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(table).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + end)


def write_pickled_shards(folder, shapes):
    """Two shards, of two layers each."""
    shards = {}
    for name, shape in shapes.items():
        half = name.startswith(("model.layers.2.", "model.layers.3."))
        shards.setdefault(f"pytorch_model-{half:d}.bin", {})[name] = shape
    for file, inside in shards.items():
        tensors = {name: torch.zeros(shape, dtype=torch.float16) for name, shape in inside.items()}
        torch.save(tensors, folder / file)
    table = {name: file for file, inside in shards.items() for name in inside}
    index = json.dumps({"weight_map": table})
    (folder / "pytorch_model.bin.index.json").write_text(index, encoding="utf-8")


@pytest.fixture
def folder(tmp_path, mini_folder):
    """A wide model without its weights; seed-mini's vocabulary."""
    for name in ("config.json", "tokenizer.model", "added_tokens.json"):
        shutil.copy(mini_folder / "llm" / name, tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config |= {"hidden_size": WIDTH, "intermediate_size": HIDDEN, "num_hidden_layers": LAYERS}
    file.write_text(json.dumps(config), encoding="utf-8")
    yield tmp_path
    shutil.rmtree(tmp_path)  # pytest would keep it


@pytest.mark.parametrize("write", [write_safetensors, write_pickled_shards])
def test_loading_takes_the_weights_once(write, folder):
    vocab_size = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    write(folder, shapes(vocab_size))
    found = subprocess.run(
        [sys.executable, "-c", LOAD, folder],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    weights, peak = map(int, found.stdout.split())
    assert weights > 1.5 * GIB
    assert 0.9 * weights < peak  # a little was in use, and free again, before
    assert peak <= weights + SLACK
