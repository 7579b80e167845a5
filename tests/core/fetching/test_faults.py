"""Whatever a server does wrong, a fetch ends whole, or with one message and nothing half in place."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from seed_core.__main__ import main
from seed_core.fetching import converted, outline
from seed_core.fetching.downloads import DOWNLOADS, Download, HubSource
from seed_core.fetching.fetch import fetch
from seed_core.fetching.plan import make_plan
from seed_core.files.writer import sha256_of
from seed_core.models.convert import convert_model, plan_conversion

NAME = "seed-llama-8b-sft"
REPO = "AILab-CVC/any-name"
SHARDS = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
SMALL = ("config.json", "generation_config.json", "tokenizer.model", "added_tokens.json")
FINISHES = None
HTML = {"status": 200, "headers": {"Content-Type": "text/html; charset=utf-8"}, "body": b"<p>" * 99}
SHARD, CONFIG, LIST = "00001-of", "config.json", "/api/"


@pytest.fixture
def published(hub, llm_folder, tmp_path, monkeypatch):
    """A repository with a language model in two files."""
    tensors = load_file(llm_folder / "model.safetensors")
    keys = sorted(tensors)
    halves = (keys[: len(keys) // 2], keys[len(keys) // 2 :])
    index = {}
    files = {name: (llm_folder / name).read_bytes() for name in SMALL}
    for name, half in zip(SHARDS, halves, strict=True):
        torch.save({key: tensors[key] for key in half}, tmp_path / name)
        files[name] = (tmp_path / name).read_bytes()
        index |= dict.fromkeys(half, name)
    files["pytorch_model.bin.index.json"] = json.dumps({"weight_map": index}).encode()
    hub.repositories[REPO] = type(hub.repositories["owner/model"])(files)
    source = HubSource(REPO, ("*.json", "*.bin", "tokenizer.model"), 1.0, "llama2", None)
    sizes = {"bf16": 2.0, "fp16": 2.0, "fp8": 1.0}
    monkeypatch.setitem(DOWNLOADS, NAME, Download(f"seed_llm/{NAME}", (source,), sizes))
    monkeypatch.setattr(converted, "_SMALL", 20_000)
    monkeypatch.setattr(outline, "_BLOCK", 4096)
    return files


@pytest.fixture
def kind(tmp_path):
    """The folder of the models of this kind."""
    folder = tmp_path / "seed_llm"
    folder.mkdir()
    return folder


class Published:
    """Fetched as it is published."""

    options = ()

    def check_whole(self, kind, files):
        assert {name: (kind / NAME / name).read_bytes() for name in files} == files

    def check_nothing_half(self, kind, files):
        there = {name for name in files if (kind / NAME / name).exists()}
        assert all((kind / NAME / name).read_bytes() == files[name] for name in there)
        assert "config.json" not in there  # which a loader's list knows the folder by


class Converted:
    """Converted while it comes."""

    options = ("--precision", "fp16")

    def check_whole(self, kind, files):
        output = kind / f"{NAME}-fp16.safetensors"
        assert list(kind.iterdir()) == [output]
        list(fetch(make_plan(NAME, kind / NAME)))
        conversion = plan_conversion(kind / NAME, torch.float16)
        assert sha256_of(output) == convert_model(conversion, kind / "reference.safetensors")

    def check_nothing_half(self, kind, files):
        shown = [path.name for path in kind.iterdir() if not path.name.startswith(".")]
        assert [name for name in shown if name.endswith(".safetensors")] == []
        assert not (kind / NAME).exists()


WAYS = (Published(), Converted())


def run(kind, way):
    return main(["fetch", NAME, "--into", str(kind), "--yes", *way.options])


def without(field):
    def change(info):
        for each in (info, *info.get("siblings", ())):
            each.pop(field, None)
        return info

    return change


# What is wrong, and the words that tell of it.
FAULTS = {
    "too many requests for the list": ({"path": LIST, "times": 2, "status": 429}, FINISHES),
    "too many requests": ({"path": SHARD, "times": 2, "status": 429}, FINISHES),
    "out of order for a moment": ({"path": SHARD, "times": 2, "status": 503}, FINISHES),
    "out of order": ({"path": SHARD, "status": 503}, "answer 503.: run it again later"),
    "out of order later": ({"path": SHARD, "after": 3, "status": 502}, "answer 502"),
    "the other server out of order": (
        {"path": "resolve.*00001", "times": 2, "status": 503},
        FINISHES,
    ),
    "a short wait": (
        {"path": SHARD, "times": 2, "status": 429, "headers": {"Retry-After": "0"}},
        FINISHES,
    ),
    "a long wait": (
        {"path": SHARD, "status": 429, "headers": {"Retry-After": "3600"}},
        "answer 429.: run it again after 60 minutes",
    ),
    "a wait until a time": (
        {"path": LIST, "status": 503, "headers": {"Retry-After": "Fri, 31 Dec 2999 23:59:59 GMT"}},
        "run it again after .* minutes",
    ),
    "terms": ({"path": SHARD, "status": 403, "headers": {"X-Error-Code": "GatedRepo"}}, "accept"),
    "terms for the list": (
        {"path": LIST, "status": 401, "headers": {"X-Error-Code": "GatedRepo"}},
        "accept",
    ),
    "a file gone": (
        {"path": SHARD, "status": 404, "headers": {"X-Error-Code": "EntryNotFound"}},
        "does not have this",
    ),
    "a repository gone": (
        {"path": LIST, "status": 401, "headers": {"X-Error-Code": "RepoNotFound"}},
        "no longer there",
    ),
    "a revision gone": (
        {"path": LIST, "status": 404, "headers": {"X-Error-Code": "RevisionNotFound"}},
        "not at that revision",
    ),
    "cut": ({"path": SHARD, "times": 1, "cut": 1234}, FINISHES),
    "cut again and again": ({"path": SHARD, "times": 12, "cut": 2345}, FINISHES),
    "cut in a small file": ({"path": CONFIG, "times": 1, "cut": 10}, FINISHES),
    "cut before the first byte": ({"path": SHARD, "cut": 0}, "no connection to https"),
    "cut in the list": ({"path": LIST, "cut": 20}, "no connection to https"),
    "cut for ever later": ({"path": SHARD, "after": 3, "cut": 0}, "no connection to https"),
    "too short a length": ({"path": SHARD, "length": -100}, "a server sent"),
    "too long a length": ({"path": SHARD, "length": 100}, "a server sent"),
    "no length": ({"path": SHARD, "length": "missing"}, FINISHES),
    "chunks": ({"path": SHARD, "length": "chunked"}, FINISHES),
    "chunks that are cut": ({"path": SHARD, "times": 3, "length": "chunked", "cut": 3000}, FINISHES),
    "slow bytes": ({"path": CONFIG, "pause": 0.001}, FINISHES),
    "a page to sign in": ({"path": SHARD, **HTML}, "a server sent a web page"),
    "a page to sign in later": ({"path": SHARD, "after": 3, **HTML}, "a server sent a web page"),
    "a page to sign in for the list": ({"path": LIST, **HTML}, "something that is no such list"),
    "a text in place of a file": (
        {"path": CONFIG, "status": 200, "body": b"sign in"},
        "a server sent 7 bytes",
    ),
    "nothing in place of the list": ({"path": LIST, "status": 200}, "no such list"),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: type(way).__name__)
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_told_in_one_message_or_outlasted(
    hub, hub_module, published, kind, capsys, name, way
):
    """And either way nothing half is in place, and the next run ends whole."""
    fault, told = FAULTS[name]
    if "after" in fault and not way.options:
        told = FINISHES  # one request for each file, and no parts before
    hub.faults = [hub_module.Fault(**fault)]
    status = run(kind, way)
    (line,) = capsys.readouterr().err.splitlines() or [None]
    if told is FINISHES:
        assert line is None
        assert status == 0
    else:
        assert status == 1
        way.check_nothing_half(kind, published)
        assert line.startswith("error: ")
        assert re.search(told, line), line
        hub.faults = []
        assert run(kind, way) == 0
    way.check_whole(kind, published)
