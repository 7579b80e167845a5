"""Weight files: every form that is read, and everything that can be wrong with one."""

import json
import logging
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import seed_core
from seed_core.errors import CheckpointError
from seed_core.files import assemble, pickled, safetensors, weights
from seed_core.models import names


@pytest.fixture
def pixels(make_generator):
    return torch.randn(2, 3, 16, 16, generator=make_generator(8))


@pytest.fixture
def merged(tiny_tensors, tiny_config):
    """The tokenizer as one merged safetensors file."""
    path = tiny_config / "tokenizer.safetensors"
    save_file(tiny_tensors, path)
    return path


def save_published(tensors, folder, extra=None):
    """Save as published: the tower apart, under names without its prefix."""
    prefix = "visual_encoder."
    tower = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    rest = {k: v for k, v in tensors.items() if not k.startswith(prefix)}
    # The published tower has one block more than the model builds.
    tower |= {f"blocks.2.{k[9:]}": v for k, v in tower.items() if k.startswith("blocks.0.")}
    torch.save(tower, folder / "eva_vit_g.pth")
    torch.save(rest | (extra or {}), folder / "seed_quantizer.pt")
    return folder / "seed_quantizer.pt"


def outputs(path, pixels):
    """Codes and weights; an embedding's last bits depend on where the weights lie in memory."""
    tokenizer = seed_core.load_tokenizer(path)
    weights = {name: value.tolist() for name, value in tokenizer.module.state_dict().items()}
    return tokenizer.encode(pixels).tolist(), weights


def test_the_published_pair_equals_the_merged_file(merged, tiny_tensors, tiny_config, pixels):
    pair = save_published(tiny_tensors, tiny_config)
    assert outputs(pair, pixels) == outputs(merged, pixels)


def test_a_folder_finds_the_published_pair(tiny_tensors, tiny_config, pixels):
    pair = save_published(tiny_tensors, tiny_config)
    assert outputs(tiny_config, pixels) == outputs(pair, pixels)


def test_codes_of_random_weights_are_not_all_alike(merged, pixels):
    """So that the comparisons here compare something."""
    codes, _ = outputs(merged, pixels)
    assert len(set(codes[0])) > 3
    assert codes[0] != codes[1]


def test_146_unknown_keys_are_ignored_and_listed_at_debug_level(
    tiny_tensors, tiny_config, merged, pixels, caplog
):
    """The published seed_quantizer.pt holds 146 tensors that no part of the model has."""
    unknown = {f"unknown.module.{i}.weight": torch.zeros(3) for i in range(146)}
    pair = save_published(tiny_tensors, tiny_config, unknown)
    with caplog.at_level(logging.DEBUG, logger="seed_core"):
        assert outputs(pair, pixels) == outputs(merged, pixels)
    records = [record for record in caplog.records if "unknown.module.0.weight" in record.message]
    assert [record.levelno for record in records] == [logging.DEBUG]
    assert "unknown.module.145.weight" in records[0].message


def test_unused_keys_of_the_reference_are_ignored(tiny_tensors, tiny_config, merged, pixels):
    unused = {
        "pos_embed": torch.zeros(1, 32, 24),
        "blocks.0.norm1.weight": torch.zeros(24),
        "Qformer.bert.embeddings.position_ids": torch.arange(512)[None],
    }
    path = tiny_config / "more.safetensors"
    save_file(tiny_tensors | unused, path)
    assert outputs(path, pixels) == outputs(merged, pixels)


# Upstream's key, and what a message may call it: that name, or ours.
REQUIRED = {
    "ln_vision.weight": r"ln_vision\.weight|image_norm\.weight",
    "query_tokens": "query_tokens",
    "quantize.embedding.weight": r"quantize\.embedding\.weight|quantizer\.codebook",
    "distill_image_proj.bias": r"distill_image_proj\.bias|image_projection\.bias",
    "visual_encoder.blocks.1.mlp.fc1.weight": r"visual_encoder\.blocks\.1\.mlp\.fc1\.weight",
    "visual_encoder.blocks.0.attn.v_bias": r"visual_encoder\.blocks\.0\.attn\.(qkv\.bias|v_bias)",
    "Qformer.bert.encoder.layer.1.output_query.LayerNorm.bias": r"layers?\.1\..*bias",
}


@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_tensor_is_named(tiny_tensors, tiny_config, key):
    del tiny_tensors[key]
    path = tiny_config / "incomplete.safetensors"
    save_file(tiny_tensors, path)
    with pytest.raises(CheckpointError, match=REQUIRED[key]) as caught:
        seed_core.load_tokenizer(path)
    assert "incomplete.safetensors" in str(caught.value)


def test_many_missing_tensors_are_counted_and_the_first_ten_named(tiny_tensors, tiny_config):
    path = tiny_config / "incomplete.safetensors"
    kept = ("visual_encoder.cls_token", "image_down.0.weight")
    save_file({key: tiny_tensors[key] for key in kept}, path)
    with pytest.raises(CheckpointError) as caught:
        seed_core.load_tokenizer(path)
    message = str(caught.value)
    assert "..." in message
    assert len(message) < 1500


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tiny_tensors, tiny_config):
    tiny_tensors["ln_vision.bias"] = torch.zeros(1408)
    path = tiny_config / "other.safetensors"
    save_file(tiny_tensors, path)
    with pytest.raises(CheckpointError, match=r"\[1408\].*\[24\]"):
        seed_core.load_tokenizer(path)


def test_a_tower_that_is_not_beside_its_tokenizer_is_named_with_its_address(
    tiny_tensors, tiny_config
):
    pair = save_published(tiny_tensors, tiny_config)
    (tiny_config / "eva_vit_g.pth").unlink()
    with pytest.raises(CheckpointError, match="eva_vit_g.pth.*https://"):
        seed_core.load_tokenizer(pair)


def test_a_file_of_something_else_is_no_tokenizer(tiny_config):
    path = tiny_config / "lora.safetensors"
    save_file({"lora_up.weight": torch.zeros(4, 4)}, path)
    with pytest.raises(CheckpointError, match="not a whole SEED"):
        seed_core.load_tokenizer(path)


# --- damage ---

FORMS = ["safetensors", "pt"]


def save_as(form, tensors, folder):
    path = folder / f"model.{form}"
    if form == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_one_clear_error(tiny_tensors, tiny_config, form, share):
    path = save_as(form, tiny_tensors, tiny_config)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=f"model.{form}"):
        seed_core.load_tokenizer(path)


def test_a_truncated_file_of_the_old_form_is_one_clear_error_wherever_it_ends(tmp_path):
    """It is a row of pickles, so each length breaks another part of torch's reader."""
    path = tmp_path / "old.pth"
    tensors = {"a": torch.ones(3), "b": torch.arange(2)}
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="old.pth"):
            list(weights.read_tensors(path))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "content",
    [b"<!doctype html><title>404</title>", b"\x00" * 10_000, b"version https://git-lfs.github.com"],
    ids=["web page", "zeros", "git-lfs pointer"],
)
def test_a_file_of_something_else_entirely_is_one_clear_error(tiny_config, form, content):
    path = tiny_config / f"model.{form}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"model.{form}"):
        seed_core.load_tokenizer(path)


def test_a_lying_header_is_one_clear_error(tiny_config):
    """A safetensors header that claims more bytes than any file has."""
    path = tiny_config / "model.safetensors"
    path.write_bytes((2**60).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="model.safetensors"):
        seed_core.load_tokenizer(path)


class Bomb:
    """Writes a file when it is unpickled by an ordinary reader."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


@pytest.mark.parametrize("how", ["torch", "pickle"])
@pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "ckpt"])
def test_a_pickle_with_code_is_refused_and_its_code_does_not_run(
    tiny_tensors, tiny_config, how, suffix
):
    target, path = tiny_config / "ran.txt", tiny_config / f"model.{suffix}"
    content = {**tiny_tensors, "payload": Bomb(target)}
    if how == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps({"payload": Bomb(target)}))
    with pytest.raises(CheckpointError, match="program code"):
        seed_core.load_tokenizer(path)
    assert not target.exists()


def test_a_bomb_is_a_bomb(tmp_path):
    """So that the test above cannot pass on a dud."""
    target = tmp_path / "ran.txt"
    pickle.loads(pickle.dumps(Bomb(target))).close()
    assert target.exists()


@pytest.mark.parametrize("content", [[1, 2], {}, {"model": {"nested": torch.zeros(1)}}, 3])
def test_a_pickle_without_a_table_of_tensors_is_refused(tiny_config, content):
    path = tiny_config / "model.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="model.pt"):
        seed_core.load_tokenizer(path)


def test_the_old_form_of_pickled_files_is_read(tiny_tensors, tiny_config, merged, pixels):
    """Files from before torch 1.6, eva_vit_g.pth's time, are no zip archives."""
    path = tiny_config / "old.pth"
    torch.save(tiny_tensors, path, _use_new_zipfile_serialization=False)
    assert outputs(path, pixels) == outputs(merged, pixels)


def test_a_missing_file_is_named_with_its_folder(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        seed_core.load_tokenizer(tmp_path / "gone.safetensors")
    assert "gone.safetensors" in str(caught.value)
    assert tmp_path.name in str(caught.value)


def test_an_unknown_ending_is_refused_and_the_known_are_listed(tiny_config):
    path = tiny_config / "model.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"model\.gguf.*\.safetensors"):
        seed_core.load_tokenizer(path)


def test_an_empty_folder_says_what_belongs_there(tmp_path):
    with pytest.raises(CheckpointError, match="model.safetensors.*https://"):
        seed_core.load_tokenizer(tmp_path)


def test_a_file_is_never_changed(merged):
    before = merged.read_bytes()
    seed_core.load_tokenizer(merged, dtype=torch.bfloat16)
    assert merged.read_bytes() == before


# --- which files ---

FULL, HALF = "model.safetensors", "model.fp16.safetensors"


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        ([FULL, "model.bin", HALF], FULL),
        (["model.bin", "pytorch_model.bin"], "model.bin"),
        (["pytorch_model.bin", HALF], "pytorch_model.bin"),  # full numbers, if in an older format
        ([HALF, "pytorch_model.fp16.bin"], HALF),
        (["pytorch_model.fp16.bin"], "pytorch_model.fp16.bin"),
    ],
)
def test_full_weights_come_before_those_of_half_precision(tmp_path, there, chosen):
    for name in there:
        (tmp_path / name).touch()
    assert weights.weight_files(tmp_path, ("model", "pytorch_model")) == [tmp_path / chosen]


@pytest.mark.parametrize(
    "index", ["model.safetensors.index.fp16.json", "model.fp16.safetensors.index.json"]
)
def test_shards_of_half_precision_are_found_by_either_name_of_their_index(tmp_path, index):
    """Hugging Face's libraries have written both."""
    names = [f"model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name in names:
        (tmp_path / name).touch()
    table = {"weight_map": dict(zip("ab", names, strict=True))}
    (tmp_path / index).write_text(json.dumps(table), encoding="utf-8")
    assert weights.weight_files(tmp_path, ("model",)) == [tmp_path / name for name in names]


# --- config.json ---


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100_000])
def test_a_broken_config_is_named(merged, content):
    (merged.parent / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match="config.json"):
        seed_core.load_tokenizer(merged)


@pytest.mark.parametrize(
    ("field", "value"),
    [("vit_width", None), ("n_embed", "many"), ("family", "seed-x"), ("num_query_tokens", 31)],
)
def test_a_wrong_field_is_one_clear_error(merged, field, value):
    file = merged.parent / "config.json"
    fields = {**json.loads(file.read_text(encoding="utf-8")), field: value}
    file.write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(CheckpointError):
        seed_core.load_tokenizer(merged)


def test_a_missing_field_is_named(merged):
    file = merged.parent / "config.json"
    fields = json.loads(file.read_text(encoding="utf-8"))
    del fields["vit_depth"]
    file.write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(CheckpointError, match="vit_depth"):
        seed_core.load_tokenizer(merged)


# --- memory and precision ---


def mapped_ranges(path):
    """Address ranges of this process that are views of a file."""
    ranges = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        if line.endswith(str(path)):
            ranges.append(tuple(int(end, 16) for end in line.split()[0].split("-")))
    return ranges


needs_maps = pytest.mark.skipif(
    not Path("/proc/self/maps").exists(), reason="reads Linux's list of mappings"
)


@needs_maps
def test_weights_are_views_of_their_file_not_copies(tiny_tensors, tiny_config):
    """At the file's own precision a network costs no memory beyond the mapped file.

    All but the fused biases of the tower, which are put together from two tensors.
    """
    path = save_as("safetensors", tiny_tensors, tiny_config)
    module = seed_core.load_tokenizer(path).module
    ranges = mapped_ranges(path)
    copied = {
        name
        for name, value in module.state_dict().items()
        if not any(start <= value.data_ptr() < end for start, end in ranges)
    }
    assert copied == {f"encoder.visual_encoder.blocks.{i}.attn.qkv.bias" for i in range(2)}


@needs_maps
def test_a_pickled_file_is_let_go_once_its_weights_are_read(tiny_tensors, tiny_config, monkeypatch):
    """Its one mapping holds all of it, fused and unknown tensors too; and is renewed as it is read."""
    monkeypatch.setattr(pickled, "_MAPPED_AT_ONCE", 4096)
    path = save_as("pt", tiny_tensors, tiny_config)
    module = seed_core.load_tokenizer(path).module
    assert mapped_ranges(path) == []
    again = seed_core.load_tokenizer(save_as("safetensors", tiny_tensors, tiny_config)).module
    assert all(map(torch.equal, module.state_dict().values(), again.state_dict().values()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_take_the_precision_that_was_asked_for(merged, dtype):
    module = seed_core.load_tokenizer(merged, dtype=dtype).module
    dtypes = {name: value.dtype for name, value in module.named_parameters()}
    assert dtypes.pop("embedder.quantizer.codebook") == torch.float32
    assert set(dtypes.values()) == {dtype}


def test_operations_are_where_the_layers_come_from(merged):
    """A host brings its own Linear, Conv2d and LayerNorm."""

    class Counted(torch.nn.Linear):
        made = 0

        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            Counted.made += 1

    class Operations:
        Linear = Counted
        Conv2d = torch.nn.Conv2d
        LayerNorm = torch.nn.LayerNorm

    module = seed_core.load_tokenizer(merged, operations=Operations).module
    linears = [m for m in module.modules() if isinstance(m, torch.nn.Linear)]
    assert all(type(m) is Counted for m in linears)
    assert Counted.made == len(linears) > 20


def test_each_network_is_built_once(merged):
    made = []

    class Layer(torch.nn.Linear):
        pass

    for operations in (torch.nn, type("Host", (), {"Linear": Layer})):
        built = []

        def build(layers, built=built):
            built.append(layers)
            return layers.Linear(2, 3, bias=False, device="meta")

        tensors = [("weight", torch.ones(3, 2))]
        made.append(assemble.assemble(build, operations, tensors, torch.device("cpu"), merged))
        assert built == [operations]
    assert [type(layer) for layer in made] == [torch.nn.Linear, Layer]


def test_a_host_whose_layers_hold_nothing_before_they_are_loaded_gets_all_weights(merged):
    """As ComfyUI's do on Windows, and its quantised ones everywhere."""

    class Late(torch.nn.Module):
        def __init__(self, inside, outside, bias, device):
            super().__init__()
            self.weight = None

        def _load_from_state_dict(self, state_dict, prefix, *rest):
            self.weight = torch.nn.Parameter(state_dict[f"{prefix}weight"], requires_grad=False)

    class Operations:
        Linear = Late

    def build(layers):
        return torch.nn.Sequential(layers.Linear(2, 3, bias=False, device="meta"), torch.nn.SiLU())

    weight = torch.arange(6.0).view(3, 2)
    tensors, cpu = [("0.weight", weight)], torch.device("cpu")
    module = assemble.assemble(build, Operations, tensors, cpu, merged)
    assert type(module[0]) is Late
    assert torch.equal(module[0].weight, weight)
    with pytest.raises(CheckpointError, match=r"0\.weight.*missing"):
        assemble.assemble(build, Operations, [], cpu, merged)


def test_a_transposed_tensor_of_a_pickled_file_keeps_its_numbers(tmp_path, make_generator):
    """Pickles store the strides of a tensor, and torch keeps them in a copy."""
    path, weight = tmp_path / "model.pt", torch.randn(4, 6, generator=make_generator(4)).T
    torch.save({"a": weight}, path)
    assert torch.equal(joined_from(path, torch.float32, ("a",)), weight)


# --- what shares a mapping ---


def joined_from(path, dtype, names):
    """A layer whose weight is joined of the tensors of these names."""
    tensors = weights.read_tensors(path, joined=[names])
    return assemble.assemble(
        lambda layers: layers.Linear(4, 6, bias=False, device="meta", dtype=dtype),
        torch.nn,
        tensors,
        torch.device("cpu"),
        path,
        lambda _: names,
    ).weight


@needs_maps
@pytest.mark.parametrize(
    ("names", "between", "dtype", "is_view"),
    [
        (("a", "b", "c"), {}, torch.float16, True),
        (("a", "b", "c"), {}, torch.float32, False),  # another precision
        (("c", "a", "b"), {}, torch.float16, False),  # another order
        (("a", "b", "c"), {"a1": torch.ones(8).half()}, torch.float16, False),
    ],
)
def test_neighbours_in_a_file_are_joined_without_a_copy(
    names, between, dtype, is_view, tmp_path, make_generator
):
    path, random = tmp_path / "parts.safetensors", make_generator(3)
    parts = {name: torch.randn(2, 4, generator=random).half() for name in "abc"}
    save_file(parts | between, path)
    weight = joined_from(path, dtype, names)
    assert torch.equal(weight, torch.cat([parts[name] for name in names]).to(dtype))
    ranges = mapped_ranges(path)
    assert is_view == any(start <= weight.data_ptr() < end for start, end in ranges)


@needs_maps
def test_a_model_of_many_tensors_takes_few_open_files(tmp_path):
    """A process may have about a thousand, and the published decoder has 938 tensors."""
    path = tmp_path / "many.safetensors"
    save_file({f"layer.{i}": torch.full((3,), float(i)) for i in range(300)}, path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    tensors = dict(weights.read_tensors(path))
    assert len(list(Path("/proc/self/fd").iterdir())) - before < 10
    assert all(torch.equal(tensors[f"layer.{i}"], torch.full((3,), float(i))) for i in range(300))


@needs_maps
def test_a_large_tensor_is_let_go_whatever_is_kept_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors, "_MAPPED_TOGETHER", 40_000)
    path = tmp_path / "large.safetensors"
    save_file({name: torch.ones(6000) for name in "abcde"} | {"a1": torch.ones(4)}, path)
    kept = [tensor for key, tensor in weights.read_tensors(path) if key in ("a", "a1", "d")]
    assert len(kept) == 3
    mapped = sum(end - start for start, end in mapped_ranges(path))
    assert mapped <= 2 * (24_000 + 2 * 4096)


# --- the bundled family ---


def test_every_part_of_the_bundled_family_is_there():
    for part in ("tokenizer", "llm", "decoder"):
        assert names.bundled(part).is_dir()


def test_the_sample_pictures_open():
    from PIL import Image

    pictures = names.sample_pictures()
    assert len(pictures) == 24
    for name, path in pictures.items():
        with Image.open(path) as picture:
            assert picture.size == (128, 128), name


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (MemoryError("cannot map"), "close other programs"),
        (RuntimeError("unable to mmap: Cannot allocate memory (12)"), "close other programs"),
        (PermissionError(13, "Permission denied"), "the right to read it"),
        (RuntimeError("unexpected end"), "download it again"),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_a_healthy_file_is_not_to_be_downloaded_again(
    tiny_tensors, tiny_config, monkeypatch, form, error, advice
):
    path = save_as(form, tiny_tensors, tiny_config)

    def refuse(*arguments, **options):
        raise error

    monkeypatch.setattr(pickled, "_load_weights_only", refuse)
    monkeypatch.setattr(safetensors, "_read_header", refuse)
    with pytest.raises(CheckpointError, match=advice):
        weights.read_keys(path)


def test_a_header_whose_length_begins_as_a_pickle_does_is_a_header(tmp_path):
    """640 bytes: 80 02 hexadecimal."""
    path = tmp_path / "model.safetensors"
    for filler in range(400, 640):
        save_file({"a": torch.ones(2)}, path, {"filler": "x" * filler})
        if path.read_bytes()[:2] == b"\x80\x02":
            break
    else:
        pytest.fail("no header of 640 bytes was made")
    assert torch.equal(dict(weights.read_tensors(path))["a"], torch.ones(2))
