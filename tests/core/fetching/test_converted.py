"""Models that are converted while they come."""

import hashlib
import json
import os
import shutil
import signal
import threading
import time
from random import Random

import pytest
import torch
from safetensors.torch import load_file

from seed_core import load_llm, load_tokenizer
from seed_core.__main__ import main
from seed_core.errors import DownloadError, OptionError
from seed_core.fetching import converted, outline
from seed_core.fetching.converted import fetch_converted
from seed_core.fetching.downloads import DOWNLOADS, Download, HubSource, WebSource
from seed_core.fetching.fetch import fetch
from seed_core.fetching.plan import make_plan
from seed_core.files.writer import sha256_of
from seed_core.models.convert import convert_model, plan_conversion

NAME = "seed-llama-8b-sft"
SHARDS = 3
SIZES = {"bf16": 2.0, "fp16": 2.0, "fp8": 1.0}  # GB, as they are told
SMALL_FILES = ("config.json", "generation_config.json", "tokenizer.model", "added_tokens.json")


def number_in(key):
    return [int(part) if part.isdigit() else part for part in key.split(".")]


@pytest.fixture
def published(llm_folder, tmp_path, hub, monkeypatch):
    """A model in shards of about one size, as the Hub has them: between two of them lie the products."""
    tensors = load_file(llm_folder / "model.safetensors")
    layers = [key for key in sorted(tensors) if "layers" in key]
    keys = ["model.embed_tokens.weight", *layers, "model.norm.weight", "lm_head.weight"]
    cuts = [0, keys.index("model.layers.0.self_attn.v_proj.weight") - 1, len(keys) - 4, len(keys)]
    index = {}
    for number in range(SHARDS):
        name = f"pytorch_model-{number + 1:05}-of-{SHARDS:05}.bin"
        own = keys[cuts[number] : cuts[number + 1]]
        index |= dict.fromkeys(own, name)
        torch.save({key: tensors[key] for key in own}, tmp_path / name)
        hub.files[name] = (tmp_path / name).read_bytes()
    hub.files["pytorch_model.bin.index.json"] = json.dumps({"weight_map": index}).encode()
    hub.files |= {name: (llm_folder / name).read_bytes() for name in SMALL_FILES}
    files = ("config.json", "generation_config.json", "pytorch_model*.bin*")
    sources = (
        HubSource("owner/model", files, 1.0, "llama2", None),
        HubSource("owner/model", SMALL_FILES[2:], 1.0, "apache-2.0", None),
    )
    monkeypatch.setitem(DOWNLOADS, NAME, Download(f"seed_llm/{NAME}", sources, SIZES))
    monkeypatch.setattr(converted, "_SMALL", 20_000)
    monkeypatch.setattr(outline, "_BLOCK", 4096)
    return hub


@pytest.fixture
def models(tmp_path):
    folder = tmp_path / "models"
    (folder / "seed_llm").mkdir(parents=True)
    (folder / "seed_tokenizer").mkdir(parents=True)
    return folder


def plan_in(models):
    return make_plan(NAME, models / "seed_llm" / NAME)


def output_in(models, precision="fp8"):
    return models / "seed_llm" / f"{NAME}-{precision}.safetensors"


def reference(models, dtype, tmp_path):
    """The SHA-256 of the file that `convert` makes of what `fetch` gets."""
    list(fetch(plan_in(models)))
    conversion = plan_conversion(models / "seed_llm" / NAME, dtype)
    digest = convert_model(conversion, tmp_path / "reference.safetensors")
    shutil.rmtree(models / "seed_llm" / NAME)
    return digest


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.float16])
def test_it_is_the_file_that_fetching_and_then_converting_makes(published, models, tmp_path, dtype):
    expected = reference(models, dtype, tmp_path)
    output = output_in(models)
    assert fetch_converted(plan_in(models), dtype, output) == expected
    assert output.read_bytes() == (tmp_path / "reference.safetensors").read_bytes()
    assert list(output.parent.iterdir()) == [output]
    load_llm(output, dtype=dtype)


def test_of_the_published_files_no_more_than_one_is_ever_there(published, models):
    counted = []

    def count(*_):
        sizes = [path.stat().st_blocks * 512 for path in models.rglob("*") if path.is_file()]
        whole = [path for path in models.rglob("*.bin") if path.stat().st_blocks * 512 > 30_000]
        counted.append((len(whole), sum(sizes)))

    output = output_in(models)
    fetch_converted(plan_in(models), torch.float8_e4m3fn, output, count)
    assert max(number for number, _ in counted) == 1
    largest = max(len(content) for content in published.files.values())
    outlines = 4096 * 4 * SHARDS  # whose blocks are small in a test, as the shards are
    small = sum(len(published.files[name]) + 4096 for name in SMALL_FILES)
    assert max(total for _, total in counted) < output.stat().st_size + largest + outlines + small


class KilledError(Exception):
    pass


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float16])
def test_whatever_ends_a_run_the_next_goes_on(published, models, tmp_path, dtype):
    """It is ended at every step; no shard is asked for from its beginning a second time."""
    expected = reference(models, dtype, tmp_path)
    published.asked.clear()
    output, runs, told = output_in(models), 0, []
    while True:
        runs += 1
        steps = iter([None] * 3)

        def step(*count, steps=steps):
            told.append(count)
            try:
                next(steps)
            except StopIteration:
                raise KilledError from None

        try:
            digest = fetch_converted(plan_in(models), dtype, output, step)
        except KilledError:
            continue
        break
    assert runs > 5
    assert digest == expected
    whole = [path for path, begin in published.asked if path.endswith(".bin") and begin is None]
    assert len(whole) == SHARDS
    assert max(here for here, _ in told) == plan_in(models).size


def test_what_an_earlier_run_has_converted_is_counted_as_here(published, models):
    told, plan = [], plan_in(models)
    first = max(file.size for _, file in plan.files)

    def stop(here, fetched):
        if fetched > first + 30_000:
            raise KilledError

    with pytest.raises(KilledError):
        fetch_converted(plan, torch.float16, output_in(models), stop)
    fetch_converted(plan, torch.float16, output_in(models), lambda *count: told.append(count))
    here, fetched = told[-1]
    assert here == plan.size
    assert fetched < plan.size - first


def test_a_server_that_sends_no_parts_still_gives_the_same_file(published, models, tmp_path):
    expected = reference(models, torch.float16, tmp_path)
    published.sends_parts = False
    assert fetch_converted(plan_in(models), torch.float16, output_in(models)) == expected


def test_a_file_of_a_form_without_a_table_is_fetched_whole(published, models, tmp_path):
    """As torch saved before 1.6."""
    for name in [name for name in published.files if name.endswith(".bin")]:
        content = torch.load(tmp_path / name, weights_only=True)
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=False)
        published.files[name] = (tmp_path / name).read_bytes()
    expected = reference(models, torch.float16, tmp_path)
    assert fetch_converted(plan_in(models), torch.float16, output_in(models)) == expected


def test_a_model_that_is_there_already_is_converted_and_kept(published, models):
    list(fetch(plan_in(models)))
    published.asked.clear()
    plan = plan_in(models)
    fetch_converted(plan, torch.float16, output_in(models))
    assert (models / "seed_llm" / NAME / "config.json").exists()
    assert not any("/resolve/" in path for path, _ in published.asked)


def test_a_new_version_is_never_mixed_with_what_is_left_of_an_old_one(
    published, models, llm_folder, tmp_path
):
    def stop(*_):
        raise KilledError

    with pytest.raises(KilledError):
        fetch_converted(plan_in(models), torch.float16, output_in(models), stop)
    published.commit = "b" * 40
    for name in [name for name in published.files if name.endswith(".bin")]:
        content = torch.load(tmp_path / name, weights_only=True)
        torch.save({key: tensor + 1 for key, tensor in content.items()}, tmp_path / name)
        published.files[name] = (tmp_path / name).read_bytes()
    expected = reference(models, torch.float16, tmp_path)
    assert fetch_converted(plan_in(models), torch.float16, output_in(models)) == expected


def test_a_file_that_does_not_hold_what_its_outline_told_is_refused(
    published, models, tmp_path, monkeypatch
):
    name = f"pytorch_model-00002-of-{SHARDS:05}.bin"
    tensors = torch.load(tmp_path / name, weights_only=True)
    tensors = {key: tensor.double() for key, tensor in tensors.items()}
    torch.save(tensors, tmp_path / "other.bin")
    other = (tmp_path / "other.bin").read_bytes()
    draw = outline.draw

    def draw_another(path, size, ask):
        if path.name == name:
            size, ask = len(other), lambda at, length: other[at : at + length]
        draw(path, size, ask)

    monkeypatch.setattr(outline, "draw", draw_another)
    with pytest.raises(DownloadError, match=f"{name} does not hold the tensors"):
        fetch_converted(plan_in(models), torch.float16, output_in(models))
    assert not output_in(models).exists()


def test_an_output_that_exists_is_left_alone(published, models):
    output = output_in(models)
    output.write_bytes(b"mine")
    with pytest.raises(OptionError, match="exists already"):
        fetch_converted(plan_in(models), torch.float16, output)
    assert output.read_bytes() == b"mine"


def test_a_tokenizer_comes_from_two_places(
    hub, tiny_tensors, tmp_path, models, monkeypatch, tiny_config
):
    own = {k: v for k, v in tiny_tensors.items() if not k.startswith("visual_encoder.")}
    tower = {
        k.removeprefix("visual_encoder."): v
        for k, v in tiny_tensors.items()
        if k.startswith("visual_encoder.")
    }
    torch.save(own, tmp_path / "own.pt")
    torch.save(tower, tmp_path / "tower.pth")
    hub.files = {
        "seed_quantizer.pt": (tmp_path / "own.pt").read_bytes(),
        "config.json": (tiny_config / "config.json").read_bytes(),
    }
    content = (tmp_path / "tower.pth").read_bytes()
    hub.web = {"eva_vit_g.pth": content}
    digest = hashlib.sha256(content).hexdigest()
    sources = (
        HubSource("owner/model", ("seed_quantizer.pt", "config.json"), 1.0, "apache-2.0", None),
        WebSource(f"{hub.url}/eva_vit_g.pth", ("eva_vit_g.pth",), len(content), digest, "bsd"),
    )
    monkeypatch.setitem(DOWNLOADS, "seed-tokenizer-2", Download("seed_tokenizer", sources, {}))
    monkeypatch.setattr(converted, "_SMALL", 10_000)
    monkeypatch.setattr(outline, "_BLOCK", 4096)
    folder = models / "seed_tokenizer"
    output = folder / "seed-tokenizer-2-fp16.safetensors"
    fetched = fetch_converted(make_plan("seed-tokenizer-2", folder), torch.float16, output)
    assert list(folder.iterdir()) == [output]
    list(fetch(make_plan("seed-tokenizer-2", folder)))
    conversion = plan_conversion(folder / "seed_quantizer.pt", torch.float16)
    assert convert_model(conversion, tmp_path / "reference.safetensors") == fetched
    load_tokenizer(output)


def test_the_command_says_what_it_will_make_and_makes_it(published, models, capsys):
    options = ["fetch", NAME, "--models", str(models), "--precision", "fp8", "--yes"]
    assert main(options) == 0
    out = capsys.readouterr().out
    assert f"converted to fp8 while it comes, into {output_in(models)}" in out
    assert "SHA-256" in out
    load_llm(output_in(models), dtype=torch.float8_e4m3fn)
    assert main(options) == 1
    assert "exists already" in capsys.readouterr().err


def test_fp8_of_what_is_no_language_model_is_refused_before_anything_is_fetched(
    published, models, capsys
):
    name = "stable-diffusion-2-1-unclip"
    assert main(["fetch", name, "--models", str(models), "--precision", "fp8", "--yes"]) == 1
    assert "fp8 is for language models" in capsys.readouterr().err
    assert published.asked == []


def test_too_little_room_is_said_before_a_shard_is_fetched(published, models, monkeypatch):
    usage = shutil.disk_usage(models)._replace(free=100_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(DownloadError, match="while it is converted"):
        fetch_converted(plan_in(models), torch.float16, output_in(models))
    assert not any(path.endswith(".bin") and begin is None for path, begin in published.asked)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_a_process_that_is_killed_at_any_moment_leaves_what_the_next_goes_on_with(
    published, models, tmp_path, kills
):
    expected = reference(models, torch.float8_e4m3fn, tmp_path)
    output, plan = output_in(models), plan_in(models)
    begun = time.monotonic()
    fetch_converted(plan, torch.float8_e4m3fn, output)
    takes, random = time.monotonic() - begun, Random(kills)
    for _ in range(kills):
        output.unlink(missing_ok=True)
        for lasts in (random.uniform(0, takes), None):
            child = os.fork()
            if not child:
                try:
                    fetch_converted(plan, torch.float8_e4m3fn, output)
                finally:
                    os._exit(0)
            if lasts is not None:
                threading.Event().wait(lasts)
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert sha256_of(output) == expected
        assert [path for path in output.parent.iterdir() if path.suffix != ".lock"] == [output]


def test_two_runs_of_one_model_are_kept_apart(published, models):
    output = output_in(models)
    plan, said = plan_in(models), []

    def again(*_):
        if not said:
            with pytest.raises(DownloadError, match="another run is fetching") as caught:
                fetch_converted(plan, torch.float16, output)
            said.append(caught)

    fetch_converted(plan, torch.float16, output, again)
    assert said
    load_llm(output)
