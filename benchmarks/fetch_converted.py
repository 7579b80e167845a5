"""The disk and the memory that it takes to fetch a model and convert it on the way.

    python benchmarks/fetch_converted.py --size 8b --precision fp8

A language model of a published size, full of zeros, lies on a server of this machine in files as large
as the published ones. It is fetched in a process of its own. The zeros are holes in the served files,
so they take no room. Nothing comes from the network, so the time tells what the computer itself needs.
"""

import argparse
import dataclasses
import io
import json
import multiprocessing
import os
import runpy
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from seed_core.bench.subject import Subject  # noqa: E402
from seed_core.codes.value import BEGIN_IMAGE, END_IMAGE, image_token  # noqa: E402
from seed_core.compute.precision import LLM_PRECISIONS  # noqa: E402
from seed_core.fetching import converted, plan  # noqa: E402
from seed_core.llm.layout import parts_in_file  # noqa: E402
from seed_core.llm.vocab import VOCABULARY_FILES  # noqa: E402
from seed_core.models.names import bundled  # noqa: E402

GIB = 2**30
LOOK_EVERY = 0.05  # seconds
# By what `fetch` calls them: size, and the format of the published files.
MODELS = {
    "8b": ("seed-llama-8b-sft", torch.float32),
    "14b": ("seed-llama-14b-sft", torch.bfloat16),
}
SHARD = 10 * 10**9  # bytes at most in a published file
TOKENIZER_REPO, TOKENIZER_COMMIT = (
    "AILab-CVC/seed-tokenizer-2",
    "c6d957a9b280d9ed3879b1eb5d99036cf8390012",
)


class Sparse(io.FileIO):
    """A new file whose zeros are holes."""

    def write(self, data: Any) -> int:
        """Leave a hole in place of zeros."""
        content = bytes(data)
        if content.count(0) < len(content):
            return super().write(content)
        self.seek(len(content), os.SEEK_CUR)
        self.truncate()
        return len(content)


def shards(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> Iterator[list[str]]:
    """Names of tensors that go into one file, in their order."""
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        more = torch.Size(shape).numel() * dtype.itemsize
        if names and size + more > SHARD:
            yield names
            names, size = [], 0
        names.append(name)
        size += more
    yield names


def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros that take no memory until somebody writes to them, unlike torch's own."""
    size = torch.Size(shape).numel() * dtype.itemsize
    return torch.from_numpy(np.zeros(size, np.uint8)).view(dtype).view(shape)


def write_model(folder: Path, size: str, dtype: torch.dtype) -> None:
    """A published language model, whose weights are zeros."""
    config = Subject(size, torch.device("cpu"), dtype).config
    shapes = {name: part.shape for name, part in parts_in_file(config).items()}
    files = list(shards(shapes, dtype))
    index: dict[str, str] = {}
    folder.mkdir(parents=True)
    for number, names in enumerate(files, 1):
        file = f"pytorch_model-{number:05}-of-{len(files):05}.bin"
        index |= dict.fromkeys(names, file)
        with Sparse(folder / file, "w") as stream:
            torch.save({name: zeros(shapes[name], dtype) for name in names}, stream)
    told = {
        "config.json": dataclasses.asdict(config) | {"model_type": "llama"},
        "generation_config.json": {},
        "pytorch_model.bin.index.json": {"weight_map": index},
    }
    for name, content in told.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")


def write_vocabulary(folder: Path, rows: int) -> None:
    """The miniature's words, then words that there are none of, then SEED-2's pictures."""
    pieces, added_tokens = VOCABULARY_FILES
    folder.mkdir(parents=True)
    shutil.copy(bundled("llm") / pieces, folder)
    count = sentencepiece.SentencePieceProcessor(str(folder / pieces)).vocab_size()
    first = rows - 8192 - 2
    added = {f"<word {number}>": number for number in range(count, first)}
    added |= {image_token(code): first + code for code in range(8192)}
    added |= {BEGIN_IMAGE: rows - 2, END_IMAGE: rows - 1}
    (folder / added_tokens).write_text(json.dumps(added), encoding="utf-8")


def fetch(name: str, folder: Path, precision: str, endpoint: str) -> None:
    """What is measured."""
    from huggingface_hub import constants

    constants.ENDPOINT = endpoint
    address = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    constants.HUGGINGFACE_CO_URL_TEMPLATE = address
    wanted = plan.make_plan(name, folder / name)
    converted.fetch_converted(
        wanted, LLM_PRECISIONS[precision], converted.output_of(wanted, precision)
    )


def memory_of(process: int) -> int:
    """Bytes of main memory that are its own; pages of files, which the system can drop, left out."""
    with open(f"/proc/{process}/status", encoding="ascii") as lines:
        return next((int(line.split()[1]) << 10 for line in lines if "RssAnon" in line), 0)


def room_of(folder: Path) -> int:
    """Bytes that a folder takes of its disk."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(place, name)).st_blocks * 512
            except OSError:  # gone meanwhile
                continue
    return total


def main() -> None:
    """Serve, fetch, look on, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=MODELS, default="8b")
    parser.add_argument("--precision", choices=("bf16", "fp16", "fp8"), default="fp8")
    parser.add_argument("--folder", type=Path, help="for the work; default: the system's own")
    args = parser.parse_args()
    name, dtype = MODELS[args.size]
    source = plan.DOWNLOADS[name].sources[0]
    hub_module = runpy.run_path(str(ROOT / "tests" / "hub.py"))
    with tempfile.TemporaryDirectory(dir=args.folder) as work, hub_module["Hub"]() as hub:
        served, models = Path(work, "served"), Path(work, "seed_llm")
        write_model(served / source.repo, args.size, dtype)
        write_vocabulary(
            served / TOKENIZER_REPO,
            Subject(args.size, torch.device("cpu"), dtype).config.vocab_size,
        )
        hub.serve_folder(served)
        hub.repositories[source.repo].commit = source.commit.ljust(40, "0")
        hub.repositories[TOKENIZER_REPO].commit = TOKENIZER_COMMIT
        for path in served.rglob("*.bin"):
            hub.sha256(path)  # before anybody waits for it
        models.mkdir()
        largest = max(path.stat().st_size for path in served.rglob("*.bin"))
        child = multiprocessing.get_context("spawn").Process(
            target=fetch, args=(name, models, args.precision, hub.url)
        )
        begin = time.monotonic()
        child.start()
        disk = memory = 0
        while child.is_alive():
            disk, memory = max(disk, room_of(models)), max(memory, memory_of(child.pid or 0))
            child.join(LOOK_EVERY)
        seconds = time.monotonic() - begin
        if child.exitcode:
            sys.exit(f"the fetch failed: {child.exitcode}")
        (made,) = models.glob("*.safetensors")
        size = made.stat().st_size
    print(f"{name}, {args.precision}, {seconds:.0f} s without a network")
    print("| | GiB | allowed |\n|---|---|---|")
    print(f"| file in the end | {size / GIB:.2f} | |")
    print(f"| largest published file | {largest / GIB:.2f} | |")
    print(f"| disk at most | {disk / GIB:.2f} | {(size + largest) / GIB:.2f} |")
    print(f"| memory at most | {memory / GIB:.2f} | {(largest + 2 * GIB) / GIB:.2f} |")


if __name__ == "__main__":
    main()
