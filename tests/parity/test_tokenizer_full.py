"""The full-size tokenizers with generated weights against the reference's numbers.

1.1 billion weights are generated and written in the published pieces: the vision tower once, as both
tokenizers share it, and the rest of each as pickled files. The ordinary loader reads them, SEED-2's
after they were converted to one file; the pictures are encoded in one batch. About 6 GB of memory,
9.5 GB of temporary disk, three minutes. `cat` is left out: its file belongs to the reference's
repository.
"""

import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import seed_core
from seed_core.models.convert import convert_model, plan_conversion

PICTURES = ["astronaut", "chelsea", "coffee", "rocket", "retina", "motorcycle_left", "camera"]

# 39 layers of width 1408 sum far more terms than the tiny models do, so rounding is allowed ten times
# as much; the nearest wrong code is 0.025 away in squared distance, hundreds of times further.
TOLERANCE = 1e-4

# Files of the published layout and the beginnings of the keys in each; the rest lies in the last.
V1_FILES = {
    "causal_qformer.pth": ("query_tokens", "Qformer.", "ln_vision."),
    "seed_tokenizer.pth": ("",),
}
V2_FILES = {"seed_quantizer.pt": ("",)}
TOWER = "visual_encoder."
UNKNOWN = {f"unknown.{i}.weight": torch.zeros(3) for i in range(146)}
"""The published seed_quantizer.pt holds as many tensors that no part of the model has."""


def used_shapes(golden_folder, version):
    """Key and shape of every tensor that inference reads."""
    listed = json.loads((golden_folder / f"keys_{version}.json").read_text(encoding="utf-8"))
    unused = set(listed["unused_at_inference"])
    return {k: tuple(v["shape"]) for k, v in listed["keys"].items() if k not in unused}


def write_safetensors(path, shapes, make):
    """Write float32 tensors one at a time: never more than one in memory."""
    header, end = {}, 0
    for key, shape in shapes.items():
        start, end = end, end + 4 * int(np.prod(shape))
        header[key] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode("utf-8")
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of eight bytes
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for key, shape in shapes.items():
            file.write(make(key, shape).data)


@pytest.fixture(scope="module")
def tower_folder(tmp_path_factory, golden_folder, golden_weights):
    """A folder with the vision tower, under names without its prefix as published."""
    folder = tmp_path_factory.mktemp("full")
    shapes = {
        key.removeprefix(TOWER): shape
        for key, shape in used_shapes(golden_folder, "v2").items()
        if key.startswith(TOWER)
    }
    path = folder / "eva_vit_g.safetensors"
    write_safetensors(path, shapes, lambda key, shape: golden_weights.weight(TOWER + key, shape))
    yield folder
    path.unlink()


@pytest.fixture(scope="module", params=["v2", "v1"])
def case(request, tower_folder, golden_folder, golden_weights, read_golden):
    """A golden and our tokenizer, loaded from the published files."""
    version, files = request.param, V1_FILES if request.param == "v1" else V2_FILES
    shapes = used_shapes(golden_folder, version)
    left = [key for key in shapes if not key.startswith(TOWER)]
    for name, beginnings in files.items():
        chosen = [key for key in left if key.startswith(beginnings)]
        left = [key for key in left if key not in chosen]
        table = {k: torch.from_numpy(golden_weights.weight(k, shapes[k])) for k in chosen}
        torch.save({"model": table} if version == "v1" else table | UNKNOWN, tower_folder / name)
    source = tower_folder / list(files)[-1]
    if version == "v2":  # and so through the converter too; SEED-1 takes the short way
        converted = tower_folder / "converted.safetensors"
        convert_model(plan_conversion(source, torch.float32), converted)
        source = converted
    tokenizer = seed_core.load_tokenizer(source)
    for file in (*map(tower_folder.joinpath, files), source):
        file.unlink(missing_ok=True)
    golden = read_golden(f"golden_{version}")
    return SimpleNamespace(
        version=version, tokenizer=tokenizer, facts=golden.facts, arrays=golden.arrays
    )


@pytest.fixture(scope="module")
def pictures(photograph):
    return {name: photograph(name) for name in PICTURES}


@pytest.fixture(scope="module")
def pixels(case, pictures):
    return case.tokenizer.preprocess(list(pictures.values()))


def stages_of(tokenizer):
    model, side = tokenizer.module, "text" if tokenizer.config.embeds_text else "image"
    reduction = {
        "image_down": model.embedder.image_down,
        "Reverse_Qformer.bert": model.embedder.reverse_qformer,
    }
    return {
        "visual_encoder.blocks.0": model.encoder.visual_encoder.blocks[0],
        "visual_encoder": model.encoder.visual_encoder,
        "ln_vision": model.encoder.image_norm,
        "Qformer.bert.encoder.layer.0": model.encoder.qformer.layers[0],
        "Qformer.bert": model.encoder.qformer,
        "encode_task_layer": model.encoder.encode_head,
        "decode_task_layer": model.embedder.decode_head,
        f"blocks_{side}.0": model.embedder.decode_blocks[0],
        f"blocks_{side}.-1": model.embedder.decode_blocks[-1],
        **{name: module for name, module in reduction.items() if module is not None},
        f"distill_{side}_proj": model.embedder.projection,
    }


@pytest.fixture(scope="module")
def run(case, pixels, all_threads):
    """One encode of all pictures and one embed of their codes, with the stages' outputs."""
    outputs, hooks, few = {}, [], torch.get_num_threads()
    torch.set_num_threads(all_threads)
    for name, module in stages_of(case.tokenizer).items():

        def keep(module, arguments, output, name=name):
            # Embeddings are computed row by row, so a stage may be several calls.
            outputs[name] = torch.cat((outputs[name], output)) if name in outputs else output

        hooks.append(module.register_forward_hook(keep))
    codes = case.tokenizer.encode(pixels)
    embedding = case.tokenizer.embed(codes)
    torch.set_num_threads(few)
    for hook in hooks:
        hook.remove()
    return SimpleNamespace(stages=outputs, codes=codes, embedding=embedding)


def sha256(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


@pytest.mark.parametrize("name", PICTURES)
def test_photograph_is_the_one_of_the_golden(name, pictures, case):
    assert sha256(np.asarray(pictures[name])) == case.facts["images"][name]["input"]["rgb_sha256"]


@pytest.mark.parametrize("name", PICTURES)
def test_pixels_equal_the_reference_bit_for_bit(name, pixels, case):
    facts = case.facts["images"][name]
    ours = sha256(pixels[PICTURES.index(name)].numpy())
    assert ours == facts["preprocess"][facts["transform_used"]]["float32_sha256"]


def test_the_config_of_bare_files_is_the_published_one(case):
    published = {"v1": seed_core.TokenizerConfig.seed_1(), "v2": seed_core.TokenizerConfig.seed_2()}
    assert case.tokenizer.config == published[case.version]
    assert (case.tokenizer.family, case.tokenizer.codebook_size) == (
        {"v1": "seed-1", "v2": "seed-2"}[case.version],
        8192,
    )


@pytest.mark.parametrize("name", PICTURES)
def test_codes_equal_the_reference(name, run, case):
    row = PICTURES.index(name)
    assert run.codes[row].tolist() == case.facts["images"][name]["codes"]


def test_embeddings_equal_the_reference(run, case, relative_error):
    """Of every picture whose embedding was recorded; SEED-1's are large, so there it was four."""
    recorded = case.arrays["names"].tolist()[: len(case.arrays["embedding"])]
    compared = [name for name in recorded if name in PICTURES]
    assert len(compared) >= 4
    ours = run.embedding[[PICTURES.index(name) for name in compared]]
    reference = case.arrays["embedding"][[recorded.index(name) for name in compared]]
    assert relative_error(ours, reference) <= TOLERANCE


@pytest.mark.parametrize("name", PICTURES)
def test_encoder_output_equals_the_reference(name, run, case, relative_error):
    row = case.arrays["names"].tolist().index(name)
    ours = run.stages["encode_task_layer"][PICTURES.index(name)]
    assert relative_error(ours, case.arrays["encode_out"][row]) <= TOLERANCE


def test_whole_stages_of_the_first_picture_equal_the_reference(run, case, relative_error):
    recorded = {k.removeprefix("first_image__"): v for k, v in case.arrays.items() if "__" in k}
    assert len(recorded) == 2
    for stage, reference in recorded.items():
        assert relative_error(run.stages[stage][0], reference) <= TOLERANCE, stage


@pytest.mark.parametrize("name", PICTURES)
def test_recorded_numbers_of_every_stage_agree(name, run, case):
    """The golden keeps both ends, the norm and the largest entry of each stage's tensor."""
    image = case.facts["images"][name]
    recorded = image.get("stages") or {**image["encode_stages"], **image["decode_stages"]}
    for stage, outputs in run.stages.items():
        ours, facts = outputs[PICTURES.index(name)].double().flatten(), recorded[stage]
        ends = torch.tensor(facts["first8"] + facts["last8"], dtype=torch.float64)
        difference = (torch.cat((ours[:8], ours[-8:])) - ends).abs().max()
        assert difference <= TOLERANCE * facts["absmax"], stage
        assert float(ours.norm()) == pytest.approx(facts["norm"], rel=TOLERANCE), stage
