"""Files that mean harm, or were harmed: archives, tables and numbers that are not what they say."""

import io
import json
import pickle
import struct
import tarfile
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

import seed_core
from seed_core.compute import fp8
from seed_core.errors import CheckpointError
from seed_core.files import assemble, pickled, weights
from seed_core.models.convert import convert_model, plan_conversion

NORM = "model.norm.weight"


def read(path):
    return dict(weights.read_tensors(path))


# --- pickled files ---


def repack(path, compression=zipfile.ZIP_STORED, extra=()):
    """Write a zip archive again, packed or with more entries in its table of contents."""
    with zipfile.ZipFile(path) as archive:
        content = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, inside in content.items():
            archive.writestr(name, inside)
        for name in extra:  # one member that many names share
            info = zipfile.ZipInfo(name)
            info.CRC, info.file_size, info.compress_size = 0, 4 * 2**20, 4 * 2**20
            info.header_offset = archive.infolist()[0].header_offset
            archive.filelist.append(info)
            archive._didModify = True


def test_a_packed_archive_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    """Four megabytes of zeros in a few kilobytes; the same could be terabytes."""
    path = tmp_path / "bomb.pt"
    torch.save({"a": torch.zeros(2**20)}, path)
    repack(path, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 20_000
    assert torch.load(path, weights_only=True)["a"].numel() == 2**20  # torch would unpack it
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(CheckpointError, match=r"bomb\.pt was refused: it would take more memory"):
        read(path)


def test_entries_that_share_their_bytes_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "bomb.pt"
    torch.save({"a": torch.zeros(2**20)}, path)
    repack(path, extra=[f"archive/data/{i}" for i in range(1, 50)])
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(CheckpointError, match=r"bomb\.pt was refused: it would take more memory"):
        read(path)


def test_an_archive_written_again_but_not_packed_is_read(tmp_path):
    """So that the tests above refuse what they mean to."""
    path = tmp_path / "model.pt"
    torch.save({"a": torch.ones(3)}, path)
    repack(path)
    assert torch.equal(read(path)["a"], torch.ones(3))


@pytest.mark.parametrize(
    "huge",
    [torch.ones(1).expand(10**12), torch.empty(10**12, device="meta"), torch.eye(3).to_sparse()],
    ids=["expanded", "meta", "sparse"],
)
def test_a_tensor_that_is_not_stored_is_refused_by_name(tmp_path, huge):
    path = tmp_path / "model.pt"
    torch.save({"fine": torch.ones(3), "huge": huge}, path)
    with pytest.raises(CheckpointError, match=r"huge stands for more numbers than are stored"):
        read(path)


def test_views_of_one_stored_tensor_are_read(tmp_path):
    """As the slices and tied weights of training scripts."""
    base = torch.arange(12.0).reshape(3, 4)
    torch.save({"whole": base, "part": base.t()[1:], "again": base}, tmp_path / "model.pt")
    found = read(tmp_path / "model.pt")
    assert torch.equal(found["part"], base.t()[1:])
    assert torch.equal(found["again"], base)


def stored_bytes(tensors):
    return sum(
        {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values()
    )


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("renewed_after", [0, 2**30])
def test_names_that_share_one_storage_cost_no_more_than_it(
    tmp_path, monkeypatch, is_zip, renewed_after
):
    """A thousand names of a megabyte each, in a file of a megabyte."""
    monkeypatch.setattr(pickled, "_MAPPED_AT_ONCE", renewed_after)
    path, base = tmp_path / "model.pt", torch.arange(2.0**18)
    names = {f"{i}": base[i:] for i in range(1000)}
    names |= {"turned": base.view(512, 512).t(), "own": torch.ones(2**10), "half": base[: 2**17]}
    torch.save(names, path, _use_new_zipfile_serialization=is_zip)
    found = read(path)
    assert list(found) == list(names)
    assert all(torch.equal(found[key], tensor) for key, tensor in names.items())
    assert found["turned"].stride() == (1, 512)
    assert stored_bytes(found.values()) <= path.stat().st_size


def test_slices_of_one_storage_are_copied_one_at_a_time(tmp_path):
    """As scripts save layers that were trained in one flat parameter."""
    base = torch.arange(2.0**12)
    torch.save({f"{i}": base[i * 64 : i * 64 + 64] for i in range(64)}, tmp_path / "model.pt")
    for key, tensor in weights.read_tensors(tmp_path / "model.pt"):
        assert torch.equal(tensor, base[int(key) * 64 :][:64])
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


@pytest.mark.parametrize("turn", [torch.conj, lambda x: x.conj().imag])
def test_a_tensor_that_is_turned_when_it_is_used_is_refused(tmp_path, turn):
    torch.save({"turned": turn(torch.ones(3, dtype=torch.complex64))}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="turned stands for .* or for a special kind"):
        read(tmp_path / "model.pt")


def test_names_that_are_no_text_are_left_out(tmp_path):
    torch.save({0: torch.ones(1), "a": torch.ones(2), ("b",): torch.ones(3)}, tmp_path / "model.pt")
    assert list(read(tmp_path / "model.pt")) == ["a"]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_a_tar_archive_is_refused_by_its_kind(tmp_path, form):
    path = tmp_path / "old.pth"
    with tarfile.open(path, "w", format=form) as archive:
        info = tarfile.TarInfo("storages")
        content = pickle.dumps(0)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    with pytest.raises(CheckpointError, match=r"old\.pth is a tar archive"):
        read(path)


# --- names that occur twice ---


def write_safetensors(path, text, data):
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_a_header_that_would_fill_the_memory_is_not_read(tmp_path, monkeypatch):
    """The library takes 100 MB of it, of which Python makes gigabytes."""
    path = tmp_path / "a.safetensors"
    write_safetensors(path, b"{" + b" " * (16 * 2**20) + b"}", b"")
    monkeypatch.setattr(json, "loads", None)
    with pytest.raises(CheckpointError, match=r"a\.safetensors .* it has no header"):
        read(path)


@pytest.mark.parametrize("part", ["tensor", "metadata"])
def test_a_name_twice_in_a_header_is_refused(tmp_path, part):
    """The library takes the last one."""
    tensor = '"a": {"dtype": "F32", "shape": [%s], "data_offsets": [0, 16]}'
    if part == "tensor":
        text = f"{{{tensor % 4}, {tensor % '2, 2'}}}"
    else:
        text = f'{{"__metadata__": {{"x": "1", "x": "2"}}, {tensor % 4}}}'
    write_safetensors(tmp_path / "a.safetensors", text.encode(), bytes(16))
    with pytest.raises(CheckpointError, match=r"a\.safetensors .*occurs twice"):
        read(tmp_path / "a.safetensors")


def test_a_name_twice_in_a_config_is_refused(llm_folder):
    file = llm_folder / "config.json"
    text = file.read_text("utf-8")
    file.write_text(text.replace("{", '{"hidden_size": 64, ', 1), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"config\.json .*'hidden_size' occurs twice"):
        seed_core.load_llm(llm_folder)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_tensor_in_two_shards_is_refused_by_name(llm_folder, suffix, tmp_path):
    tensors = load_file(llm_folder / "model.safetensors")
    (llm_folder / "model.safetensors").unlink()
    shards = {f"{i}.{suffix}": dict(list(tensors.items())[i::2]) for i in range(2)}
    for shard in shards.values():
        shard[NORM] = tensors[NORM].clone()
    for name, shard in shards.items():
        save = save_file if suffix == "safetensors" else torch.save
        save(shard, llm_folder / name)
    table = {key: name for name, shard in shards.items() for key in shard}
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    index = llm_folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": table}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"1\.{suffix} holds {NORM}, and so does another"):
        seed_core.load_llm(llm_folder)
    with pytest.raises(CheckpointError, match=rf"1\.{suffix} holds {NORM}, and so does another"):
        convert_model(plan_conversion(llm_folder, torch.bfloat16), tmp_path / "out.safetensors")


# --- numbers that are none ---

KINDS = [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("place", [0, 37, 99])
def test_the_largest_number_is_seen_wherever_it_stands(dtype, place, make_generator):
    tensor = torch.rand(100, generator=make_generator(1)).to(dtype)
    for number in (-7.0, 7.0):
        tensor[place] = number
        assert assemble.largest(tensor) == 7.0
        assert assemble.largest((-tensor.float().abs()).to(dtype)) == 7.0
    tensor[place] = torch.nan
    assert assemble.largest(tensor) != assemble.largest(tensor)
    if dtype != fp8.FP8:
        tensor[place] = -torch.inf
        assert assemble.largest(tensor) == torch.inf


def test_both_kinds_of_nan_in_fp8_are_seen():
    for byte in (0x7F, 0xFF):
        tensor = torch.tensor([0, byte, 0x7E, 0xFE], dtype=torch.uint8).view(fp8.FP8)
        assert assemble.largest(tensor) != assemble.largest(tensor)


def spoil(path, key, number):
    tensors = load_file(path)
    tensors[key].view(-1)[-1] = number
    save_file(tensors, path)


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_a_number_that_is_none_is_reported_with_its_tensor(llm_folder, number):
    key = "model.layers.1.self_attn.v_proj.weight"
    spoil(llm_folder / "model.safetensors", key, number)
    with pytest.raises(CheckpointError, match=rf"{key} holds NaN or infinity"):
        seed_core.load_llm(llm_folder)


def test_a_number_that_the_precision_cannot_hold_is_reported_too(llm_folder):
    spoil(llm_folder / "model.safetensors", NORM, 1e6)
    seed_core.load_llm(llm_folder, dtype=torch.bfloat16)
    with pytest.raises(CheckpointError, match=rf"{NORM} .*infinity in float16.*try bf16"):
        seed_core.load_llm(llm_folder, dtype=torch.float16)


def test_a_number_that_is_none_is_reported_in_a_tokenizer(tiny_tensors, tiny_config):
    tiny_tensors["visual_encoder.blocks.1.attn.v_bias"][3] = torch.nan
    save_file(tiny_tensors, tiny_config / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"visual_encoder\.blocks\.1\.attn\.v_bias holds"):
        seed_core.load_tokenizer(tiny_config)


@pytest.mark.parametrize("what", ["weight", "scale"])
def test_a_number_that_is_none_is_reported_in_fp8(llm_folder, tmp_path, what):
    key, path = "model.layers.0.mlp.down_proj.weight", tmp_path / "fp8.safetensors"
    convert_model(plan_conversion(llm_folder, fp8.FP8), path)
    folder = tmp_path / "folder"
    llm_folder.rename(folder)
    (folder / "model.safetensors").unlink()
    path.rename(folder / "model.safetensors")
    seed_core.load_llm(folder, dtype=fp8.FP8)
    spoil(folder / "model.safetensors", key + ("_scale" if what == "scale" else ""), torch.nan)
    with pytest.raises(CheckpointError, match=rf"{key}(_scale)? holds NaN"):
        seed_core.load_llm(folder, dtype=fp8.FP8)


@pytest.mark.parametrize(
    "kind", [torch.int8, torch.uint8, torch.int64, torch.complex64, torch.bool]
)
def test_weights_in_no_format_of_weights_are_refused(llm_folder, tmp_path, kind):
    """Quantised by other programs, they would load as numbers that mean nothing."""
    file = llm_folder / "model.safetensors"
    save_file({**load_file(file), NORM: torch.ones(32).to(kind)}, file)
    expected = rf"{NORM} as {str(kind).removeprefix('torch.')}"
    with pytest.raises(CheckpointError, match=expected):
        seed_core.load_llm(llm_folder)
    with pytest.raises(CheckpointError, match=expected):
        convert_model(plan_conversion(llm_folder, torch.bfloat16), tmp_path / "out.safetensors")


# --- names of shards ---


@pytest.mark.parametrize(
    "name",
    [
        *("../model.safetensors", "/etc/passwd", "a/b.safetensors", "..\\model.safetensors", "."),
        *("..", "", "a\0.safetensors", "x" * 5000, "loop.safetensors", "gone.safetensors"),
        *("con:x", 7, None, ["model.safetensors"], "\ud83d.safetensors"),
    ],
    ids=range(16),
)
def test_a_shard_is_a_file_in_its_folder_or_refused(tmp_path, name):
    """Links are followed, for Hugging Face's cache is made of them; round in a circle they end."""
    (tmp_path / "model.safetensors").write_bytes(b"")
    folder = tmp_path / "folder"
    folder.mkdir()
    if hasattr(folder, "symlink_to"):
        (folder / "loop.safetensors").symlink_to(folder / "loop.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="index.json"):
        weights.weight_files(folder, ("model",))


def test_a_linked_shard_is_read(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "blob.safetensors")
    folder = tmp_path / "folder"
    folder.mkdir()
    try:
        (folder / "model.safetensors").symlink_to(tmp_path / "blob.safetensors")
    except OSError:
        pytest.skip("links are not allowed here")
    (file,) = weights.weight_files(folder, ("model",))
    assert torch.equal(read(file)["a"], torch.ones(1))


# --- small files ---


@pytest.mark.parametrize("name", ["config.json", "added_tokens.json", "tokenizer.model"])
def test_a_side_file_that_would_fill_the_memory_is_not_read(llm_folder, name):
    with (llm_folder / name).open("r+b") as file:
        file.truncate(10**12)  # a hole
    with pytest.raises(CheckpointError, match=rf"{name} has 1,000,000,000,000 bytes, far too many"):
        seed_core.load_llm(llm_folder)


@pytest.mark.parametrize(
    "record",
    [
        *("[]", "{}", '{"part": "llm"}', '{"part": "llm", "files": []}', "{"),
        *('{"part": "llm", "files": {"a": 1}}', '{"part": "llm", "files": {"a": "\\ud83d"}}'),
        *('{"part": "llm", "files": {"a": {"base64": "x"}}}', '{"part": 3, "files": {"a": null}}'),
    ],
)
def test_a_damaged_header_of_a_converted_model_is_one_clear_error(tmp_path, record):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(1)}, path, metadata={"seed_llama": record})
    for load in (seed_core.load_llm, seed_core.load_tokenizer, seed_core.load_decoder):
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            load(path)
