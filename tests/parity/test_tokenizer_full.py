"""The full-size SEED-2 tokenizer with generated weights against the reference's numbers.

1.1 billion weights are generated, written as one merged checkpoint (4.5 GB of temporary disk) and read
by the ordinary loader; the pictures are encoded in one batch. About 5 GB of memory, one minute. `cat` is left out:
its file belongs to the reference's repository.
"""

import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import seed_core

PICTURES = ["astronaut", "chelsea", "coffee", "rocket", "retina", "motorcycle_left", "camera"]

# 39 layers of width 1408 sum far more terms than the tiny models do, so rounding is allowed ten times
# as much; the nearest wrong code is 0.025 away in squared distance, hundreds of times further.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def golden(read_golden):
    return read_golden("golden_v2")


def used_shapes(golden_folder):
    """Key and shape of every tensor that inference reads."""
    listed = json.loads((golden_folder / "keys_v2.json").read_text(encoding="utf-8"))
    unused = set(listed["unused_at_inference"])
    return {k: tuple(v["shape"]) for k, v in listed["keys"].items() if k not in unused}


def write_checkpoint(path, shapes, make):
    """Write float32 tensors as safetensors, one at a time: never more than one in memory."""
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
def tokenizer(tmp_path_factory, golden_folder, golden_weights):
    path = tmp_path_factory.mktemp("full") / "seed_2_generated.safetensors"
    write_checkpoint(path, used_shapes(golden_folder), golden_weights.weight)
    yield seed_core.load_tokenizer(path)
    path.unlink()


@pytest.fixture(scope="module")
def pictures(photograph):
    return {name: photograph(name) for name in PICTURES}


@pytest.fixture(scope="module")
def pixels(pictures):
    from seed_core.preprocess import preprocess

    return preprocess(list(pictures.values()), 224)


def stages_of(model):
    return {
        "visual_encoder.blocks.0": model.visual_encoder.blocks[0],
        "visual_encoder": model.visual_encoder,
        "ln_vision": model.image_norm,
        "Qformer.bert.encoder.layer.0": model.qformer.layers[0],
        "Qformer.bert": model.qformer,
        "encode_task_layer": model.encode_head,
        "decode_task_layer": model.decode_head,
        "blocks_image.0": model.decode_blocks[0],
        "blocks_image.-1": model.decode_blocks[-1],
        "image_down": model.image_down,
        "distill_image_proj": model.image_projection,
    }


@pytest.fixture(scope="module")
def run(tokenizer, pixels, all_threads):
    """One encode of all pictures and one embed of their codes, with the stages' outputs."""
    outputs, hooks, few = {}, [], torch.get_num_threads()
    torch.set_num_threads(all_threads)
    for name, module in stages_of(tokenizer.module).items():

        def keep(module, arguments, output, name=name):
            # Embeddings are computed row by row, so a stage may be several calls.
            outputs[name] = torch.cat((outputs[name], output)) if name in outputs else output

        hooks.append(module.register_forward_hook(keep))
    codes = tokenizer.encode(pixels)
    embedding = tokenizer.embed(codes)
    torch.set_num_threads(few)
    for hook in hooks:
        hook.remove()
    return SimpleNamespace(stages=outputs, codes=codes, embedding=embedding)


def sha256(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


@pytest.mark.parametrize("name", PICTURES)
def test_photograph_is_the_one_of_the_golden(name, pictures, golden):
    assert sha256(np.asarray(pictures[name])) == golden.facts["images"][name]["input"]["rgb_sha256"]


@pytest.mark.parametrize("name", PICTURES)
def test_pixels_equal_the_reference_bit_for_bit(name, pixels, golden):
    recorded = golden.facts["images"][name]["preprocess"]
    ours = sha256(pixels[PICTURES.index(name)].numpy())
    assert ours == recorded["clip"]["float32_sha256"]
    assert ours != recorded["processor"]["float32_sha256"]  # bicubic is another transform


def test_the_config_of_a_bare_file_is_the_published_one(tokenizer):
    assert tokenizer.config == seed_core.TokenizerConfig.seed_2()
    assert (tokenizer.family, tokenizer.codebook_size) == ("seed-2", 8192)


@pytest.mark.parametrize("name", PICTURES)
def test_codes_equal_the_reference(name, run, golden):
    row = PICTURES.index(name)
    assert run.codes[row].tolist() == golden.facts["images"][name]["codes"]


@pytest.mark.parametrize("name", PICTURES)
def test_embedding_equals_the_reference(name, run, golden, relative_error):
    row = golden.arrays["names"].tolist().index(name)
    ours = run.embedding[PICTURES.index(name)]
    assert relative_error(ours, golden.arrays["embedding"][row]) <= TOLERANCE


@pytest.mark.parametrize("name", PICTURES)
def test_encoder_output_equals_the_reference(name, run, golden, relative_error):
    row = golden.arrays["names"].tolist().index(name)
    ours = run.stages["encode_task_layer"][PICTURES.index(name)]
    assert relative_error(ours, golden.arrays["encode_out"][row]) <= TOLERANCE


@pytest.mark.parametrize("stage", ["Qformer.bert", "blocks_image.-1"])
def test_whole_stage_of_the_first_picture_equals_the_reference(stage, run, golden, relative_error):
    error = relative_error(run.stages[stage][0], golden.arrays[f"first_image__{stage}"])
    assert error <= TOLERANCE


@pytest.mark.parametrize("name", PICTURES)
def test_recorded_numbers_of_every_stage_agree(name, run, golden):
    """The golden keeps both ends, the norm and the largest entry of each stage's tensor."""
    image = golden.facts["images"][name]
    recorded = {**image["encode_stages"], **image["decode_stages"]}
    for stage, outputs in run.stages.items():
        ours, facts = outputs[PICTURES.index(name)].double().flatten(), recorded[stage]
        ends = torch.tensor(facts["first8"] + facts["last8"], dtype=torch.float64)
        difference = (torch.cat((ours[:8], ours[-8:])) - ends).abs().max()
        assert difference <= TOLERANCE * facts["absmax"], stage
        assert float(ours.norm()) == pytest.approx(facts["norm"], rel=TOLERANCE), stage
