"""Files cut anywhere, a converter killed anywhere, folders that may not be written to."""

import contextlib
import json
import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import seed_core
from seed_core.compute import fp8
from seed_core.errors import CheckpointError, OptionError
from seed_core.models.convert import convert_model, plan_conversion

# --- cut files ---


def refuses_every_cut(file, load, named):
    """Cut at each 25th of its size, and next to its end, a file is refused by its name."""
    content = file.read_bytes()
    load()  # whole it is read
    lengths = {len(content) * share // 25 for share in range(25)}
    for length in sorted(lengths | {len(content) - 1}):
        file.write_bytes(content[:length])
        with pytest.raises(CheckpointError) as caught:
            load()
        assert named in str(caught.value), length
    file.write_bytes(content)
    load()


@pytest.mark.parametrize("form", ["safetensors", "pt", "old pt"])
def test_a_tokenizer_cut_anywhere_is_refused(tiny_tensors, tiny_config, form):
    path = tiny_config / ("model.safetensors" if form == "safetensors" else "model.pt")
    if form == "safetensors":
        save_file(tiny_tensors, path)
    else:
        torch.save(tiny_tensors, path, _use_new_zipfile_serialization=form == "pt")
    refuses_every_cut(path, lambda: seed_core.load_tokenizer(path), path.name)


@pytest.mark.parametrize("name", ["seed_quantizer.pt", "eva_vit_g.pth"])
def test_a_published_pair_cut_anywhere_is_refused(tiny_tensors, tiny_config, name):
    tower = {k[15:]: v for k, v in tiny_tensors.items() if k.startswith("visual_encoder.")}
    rest = {k: v for k, v in tiny_tensors.items() if not k.startswith("visual_encoder.")}
    torch.save(tower, tiny_config / "eva_vit_g.pth")
    torch.save(rest, tiny_config / "seed_quantizer.pt")
    refuses_every_cut(tiny_config / name, lambda: seed_core.load_tokenizer(tiny_config), name)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("which", ["first shard", "last shard", "index"])
def test_a_language_model_in_shards_cut_anywhere_is_refused(llm_folder, suffix, which):
    tensors = load_file(llm_folder / "model.safetensors")
    (llm_folder / "model.safetensors").unlink()
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    table = {}
    for i in range(3):
        chosen = dict(list(tensors.items())[i::3])
        name = f"{stem}-{i + 1:05d}-of-00003.{suffix}"
        (save_file if suffix == "safetensors" else torch.save)(chosen, llm_folder / name)
        table |= dict.fromkeys(chosen, name)
    index = llm_folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": table}), encoding="utf-8")
    shards = sorted(set(table.values()))
    file = {"index": index.name, "first shard": shards[0], "last shard": shards[-1]}[which]
    refuses_every_cut(llm_folder / file, lambda: seed_core.load_llm(llm_folder), file)


@pytest.mark.parametrize("name", ["config.json", "added_tokens.json", "generation_config.json"])
def test_a_side_file_cut_anywhere_is_refused(llm_folder, name):
    file = llm_folder / name
    file.write_text(file.read_text("utf-8").rstrip(), encoding="utf-8")
    refuses_every_cut(file, lambda: seed_core.load_llm(llm_folder), name)


@pytest.mark.parametrize("part", ["tokenizer", "llm", "fp8 llm", "decoder"])
def test_a_converted_model_cut_anywhere_is_refused(
    mini_folder, llm_folder, tiny_config, tiny_tensors, tmp_path, part
):
    source, dtype = mini_folder / "decoder", torch.float16
    if "llm" in part:
        source, dtype = llm_folder, fp8.FP8 if "fp8" in part else torch.float16
    if part == "tokenizer":
        save_file(tiny_tensors, tiny_config / "model.safetensors")
        source = tiny_config
    output = tmp_path / "converted" / "one.safetensors"
    output.parent.mkdir()
    convert_model(plan_conversion(source, dtype), output)
    load = getattr(seed_core, f"load_{part.split()[-1]}")
    refuses_every_cut(output, lambda: load(output, dtype=dtype), output.name)


# --- a converter that is killed ---


def converting(plan, output):
    """The id of a process that converts, slowly enough to be stopped on the way."""
    if (child := os.fork()) == 0:
        with contextlib.suppress(BaseException):
            convert_model(plan, output, lambda done, total: time.sleep(0.0005))
        os._exit(0)
    return child


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a process that can be killed at once")
@pytest.mark.parametrize("dtype", [fp8.FP8, torch.bfloat16])
def test_a_conversion_killed_at_random_points_ends_right(llm_folder, tmp_path, dtype):
    output, reference = tmp_path / "killed.safetensors", tmp_path / "reference.safetensors"
    convert_model(plan_conversion(llm_folder, dtype), reference)
    before = {file.name: file.read_bytes() for file in llm_folder.iterdir()}
    plan, start = plan_conversion(llm_folder, dtype), time.monotonic()
    os.waitpid(converting(plan, output), 0)
    undisturbed = time.monotonic() - start
    chance, kills, ends, resumed = random.Random(13), 0, 0, 0
    while kills < 20:
        if output.exists():
            assert output.read_bytes() == reference.read_bytes()
            output.unlink()
            ends += 1
        resumed += output.with_name(f"{output.name}.unfinished").exists()
        child = converting(plan, output)
        time.sleep(chance.uniform(0, undisturbed))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        kills += os.WIFSIGNALED(status)
    output.unlink(missing_ok=True)
    convert_model(plan, output)
    assert output.read_bytes() == reference.read_bytes()
    assert resumed > 4
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {output.name, reference.name, llm_folder.name}
    assert {file.name: file.read_bytes() for file in llm_folder.iterdir()} == before


# --- places ---


@contextlib.contextmanager
def no_rights():
    """Whoever runs the tests: root may write everywhere."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has other rights")
def test_a_folder_that_may_not_be_written_to_is_one_error(mini_folder):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = shutil.copytree(mini_folder / "tokenizer", folder / "source")
        target = folder / "target"
        target.mkdir()
        plan = plan_conversion(source, torch.float16)
        for place in (folder, target):
            place.chmod(0o555)
        try:
            with no_rights(), pytest.raises(OptionError, match=r"may not write .*one\.safe"):
                convert_model(plan, target / "one.safetensors")
            assert list(target.iterdir()) == []
        finally:
            for place in (folder, target):
                place.chmod(0o755)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has other rights")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.model"])
def test_a_file_that_may_not_be_read_is_one_error(llm_folder, name):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        source = Path(shutil.copytree(llm_folder, Path(folder) / "source"))
        for file in source.iterdir():
            file.chmod(0o644)
        (source / name).chmod(0)
        with no_rights(), pytest.raises(CheckpointError, match=name):
            seed_core.load_llm(source)


@pytest.mark.parametrize(
    "name",
    ["mit Leerzeichen und Umläuten", "日本語 🦊", "deep/" * 60 + "end", "a'b\"c;$(d)"],
    ids=range(4),
)
def test_any_path_will_do(llm_folder, tmp_path, name):
    """Spaces, letters of any kind, more than 260 characters; of the source and of the output."""
    folder = tmp_path / name
    folder.mkdir(parents=True)
    source = shutil.copytree(llm_folder, folder / "the source")
    output = folder / "the output ü.safetensors"
    convert_model(plan_conversion(source, fp8.FP8), output)
    expected, made = (seed_core.load_llm(path).module.state_dict() for path in (source, output))
    assert expected.keys() == made.keys()
    assert seed_core.load_llm(output, dtype=fp8.FP8).family == "seed-mini"


def test_a_name_that_no_disk_takes_is_one_error(llm_folder, tmp_path):
    plan = plan_conversion(llm_folder, torch.bfloat16)
    with pytest.raises(OptionError, match="too long"):
        convert_model(plan, tmp_path / f"{'x' * 300}.safetensors")
