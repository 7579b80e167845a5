"""What loading and converting cost: the weights once, never a second copy; and one tensor at a time.

A machine that can run a model must be able to load it. The layers are as wide as SEED-LLaMA 8B's,
four of them, in 16 bits: 1.5 GiB. By hand (``-m slow``) both published sizes, of files that are holes.
"""

import json
import math
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

STATUS = Path("/proc/self/status")
pytestmark = pytest.mark.skipif(not STATUS.exists(), reason="reads Linux's account of a process")

GIB = 2**30
SLACK = 0.75 * GIB  # a fused product while it is put together, one stretch of a mapped file

WIDTH, HIDDEN, LAYERS = 4096, 11008, 4

PEAK = """
import json, sys, torch, seed_core
from pathlib import Path

def peak():
    # Not getrusage: its peak begins with that of the process that started this one.
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

before = peak()
"""

LOAD = f"""{PEAK}
module = seed_core.load_llm(sys.argv[1], dtype=torch.float16).module
for parameter in module.parameters():
    parameter.view(torch.int8).max()  # a mapped weight counts once it was read
print(sum(parameter.nbytes for parameter in module.parameters()), peak() - before)
"""

KINDS = f"""{PEAK}
def rss(kind):
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(kind))

from seed_core.compute.precision import LLM_PRECISIONS
start = rss("RssAnon")
module = seed_core.load_llm(sys.argv[1], dtype=LLM_PRECISIONS[sys.argv[2]]).module
for tensor in module.state_dict().values():
    tensor.view(-1).view(torch.int8).max()
print(sum(tensor.nbytes for tensor in module.state_dict().values()), rss("RssAnon") - start)
"""

PLAN = f"""{PEAK}
from seed_core.models.convert import convert_model, plan_conversion
from seed_core.compute.precision import LLM_PRECISIONS
plan = plan_conversion(Path(sys.argv[1]), LLM_PRECISIONS[sys.argv[2]])
"""

CONVERT = f"""{PLAN}
convert_model(plan, Path(sys.argv[3]))
print(plan.nbytes, peak() - before)
"""

ONLY_PLAN = f"""{PLAN}
print(plan.nbytes, peak() - before)
"""


def run(program, *arguments):
    """Return the two numbers that a program prints at its end."""
    found = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return tuple(map(int, found.stdout.split()))


def shapes(vocab_size, width=WIDTH, hidden=HIDDEN, layers=LAYERS):
    """Names and shapes of the weights, as Hugging Face's files have them."""
    attention = {f"self_attn.{name}_proj": (width, width) for name in "qkvo"}
    mlp = {f"mlp.{name}_proj": (hidden, width) for name in ("gate", "up")}
    layer = attention | mlp | {"mlp.down_proj": (width, hidden)}
    layer |= dict.fromkeys(("input_layernorm", "post_attention_layernorm"), (width,))
    ends = dict.fromkeys(("model.embed_tokens", "lm_head"), (vocab_size, width))
    found = ends | {"model.norm": (width,)}
    for i in range(layers):
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
    config |= {"num_attention_heads": 32, "num_key_value_heads": 32}
    file.write_text(json.dumps(config), encoding="utf-8")
    yield tmp_path
    shutil.rmtree(tmp_path)  # pytest would keep it


@pytest.mark.parametrize("write", [write_safetensors, write_pickled_shards])
def test_loading_takes_the_weights_once(write, folder):
    vocab_size = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    write(folder, shapes(vocab_size))
    weights, peak = run(LOAD, folder)
    assert weights > 1.5 * GIB
    assert 0.9 * weights < peak  # a little was in use, and free again, before
    assert peak <= weights + SLACK


@pytest.mark.parametrize("write", [write_safetensors, write_pickled_shards])
def test_converting_takes_a_tensor_at_a_time(write, folder):
    """Whatever the size of a shard: of pickled ones a stretch is mapped, and counts once it is read."""
    vocab_size = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    write(folder, shapes(vocab_size))
    written, peak = run(CONVERT, folder, "fp8", folder / "out.safetensors")
    assert written > 0.75 * GIB
    assert peak <= SLACK + 0.5 * GIB


@pytest.mark.parametrize("precision", ["fp16", "fp8"])
def test_a_converted_model_in_its_own_precision_is_in_memory_only_as_its_file(folder, precision):
    """Pages of a file count once for all programs, and a system can take them back any time.

    A host that streams weights pins a copy of them, which is then the only one that must be kept.
    """
    vocab_size = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    write_safetensors(folder, shapes(vocab_size))
    file = folder / "out.safetensors"
    run(CONVERT, folder, precision, file)
    weights, anonymous = run(KINDS, file, precision)
    assert weights > 0.75 * GIB
    assert anonymous < 0.1 * GIB


# --- the published sizes ---

PUBLISHED = {
    "8b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32},
    "14b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40},
}


@pytest.fixture
def published_folder(folder):
    """A model of a published size, whose weights are one hole, and the vocabulary of SEED-2."""
    from seed_core.codes.value import CODEBOOK_SIZES, image_token

    def make(name):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        heads = PUBLISHED[name]["hidden_size"] // 128
        added = {image_token(i): 1024 + i for i in range(CODEBOOK_SIZES["seed-2"])}
        begin = 1024 + len(added)
        added |= {"<img>": begin, "</img>": begin + 1}
        config |= PUBLISHED[name] | {"vocab_size": begin + 2}
        config |= {"num_attention_heads": heads, "num_key_value_heads": heads}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        (folder / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")
        sizes = (config[key] for key in PUBLISHED[name])
        write_safetensors(folder, shapes(begin + 2, *sizes))
        return folder

    return make


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_size_is_planned_in_little_memory(published_folder, name, capsys):
    written, peak = run(ONLY_PLAN, published_folder(name), "fp8")
    with capsys.disabled():
        print(f"\n{name} to fp8: {written / GIB:.1f} GiB planned in {peak / GIB:.2f} GiB")
    assert written > 6 * GIB
    assert peak < 0.5 * GIB


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_size_is_loaded_in_the_memory_of_its_weights(published_folder, name, capsys):
    """A hole is read as zeros and counts like any other page."""
    folder = published_folder(name)
    size = (folder / "model.safetensors").stat().st_size
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    available = next(1024 * int(s.split()[1]) for s in lines if s.startswith("MemAvailable"))
    if available < size + 4 * GIB:
        pytest.skip(f"needs {size / GIB + 4:.0f} GiB of memory")
    start = time.monotonic()
    weights, peak = run(LOAD, folder)
    with capsys.disabled():
        seconds = time.monotonic() - start
        print(f"\n{name}: {weights / GIB:.1f} GiB loaded in {peak / GIB:.1f} GiB, {seconds:.0f} s")
    assert peak <= weights + SLACK


@pytest.mark.slow
def test_the_published_8b_is_converted_to_fp8_in_little_memory(published_folder, capsys):
    folder = published_folder("8b")
    if (free := shutil.disk_usage(folder).free) < 12 * GIB:
        pytest.skip(f"needs 12 GiB on the disk; there are {free / GIB:.0f}")
    start = time.monotonic()
    written, peak = run(CONVERT, folder, "fp8", folder / "out.safetensors")
    with capsys.disabled():
        seconds = time.monotonic() - start
        print(f"\n8b to fp8: {written / GIB:.1f} GiB in {peak / GIB:.2f} GiB, {seconds:.0f} s")
    assert peak <= 2 * GIB
