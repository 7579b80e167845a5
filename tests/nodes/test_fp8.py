"""A language model converted to fp8, through the host's own layers for quantised weights."""

import json
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch

FP8 = torch.float8_e4m3fn
LAYER = "model.layers.0.self_attn.o_proj"


@pytest.fixture(scope="module")
def converted(pack):
    """seed-mini in fp8, in the host's model folder."""
    folder = Path(pack.folder_paths.models_dir) / "seed_llm"
    folder.mkdir(parents=True, exist_ok=True)
    convert = import_module(f"{pack.seed_core.__name__}.models.convert")
    file = folder / "mini-fp8.safetensors"
    source = pack.seed_core.models.names.bundled("llm")
    convert.convert_model(convert.plan_conversion(source, FP8), file)
    yield file
    shutil.rmtree(folder)


@pytest.fixture
def on_comfyui(host_name):
    if host_name != "comfyui":
        pytest.skip("the double has no layers for quantised weights")


@pytest.fixture
def load(run, on_comfyui, converted):
    return lambda precision: run("SEEDLLaMALoader", model=converted.name, precision=precision)[0]


@pytest.fixture
def logits_of(pack):
    """Logits at each of 60 random tokens, float32."""
    token_ids = torch.randint(3, 1500, (1, 60), generator=torch.Generator().manual_seed(3))

    def logits_of(core):
        cache = pack.seed_core.llm.cache.KVCache(core.config, 1, 60, core.device, core.dtype)
        with torch.inference_mode():
            return core.module.prefill(token_ids, cache, all_positions=True).float()

    return logits_of


def distance(logits, expected):
    return float((logits - expected).norm() / expected.norm())


@pytest.mark.parametrize("precision", ["auto", "fp8"])
def test_a_converted_model_stays_in_fp8(pack, load, precision, monkeypatch):
    monkeypatch.setattr(pack.host, "prefers_fp8", lambda: True)  # as on a card
    core = load(precision).core
    assert core.dtype == torch.bfloat16
    state = core.module.state_dict()
    fp8 = [name for name, tensor in state.items() if tensor.dtype == FP8]
    assert len(fp8) == 4 * 4  # products of a layer, layers
    assert state["lm_head.weight"].dtype == torch.bfloat16
    assert not any(tensor.is_meta for tensor in state.values())


def test_on_a_cpu_auto_is_what_it_says(load):
    core = load("auto").core
    assert {tensor.dtype for tensor in core.module.state_dict().values()} == {torch.float32}


def test_a_device_without_fp8_is_refused_by_name(pack, load, management, monkeypatch):
    monkeypatch.setattr(management, "supports_cast", lambda device, dtype: False)
    assert not pack.host.prefers_fp8()
    with pytest.raises(pack.seed_core.OptionError, match="cpu cannot hold fp8"):
        load("fp8")


def test_the_host_computes_what_the_library_does(pack, load, converted, logits_of):
    """Where the device has no units for fp8, and so nothing but weights is rounded to it.

    What differs is bf16: the host rounds a scale to it before it is used. The logits of seed-mini
    are no further from float32 than in bf16 without fp8.
    """
    logits = logits_of(load("fp8").core)
    exact = logits_of(pack.seed_core.load_llm(converted))
    alone = logits_of(pack.seed_core.load_llm(converted, dtype=FP8))
    assert distance(logits, exact) < 0.01
    assert distance(alone, exact) < 0.01


@pytest.mark.parametrize("is_patched", [False, True], ids=["at hand", "patched"])
def test_each_row_is_scaled_where_the_device_has_units(
    pack, converted, on_comfyui, management, monkeypatch, logits_of, is_patched
):
    """torch emulates the product on a CPU. Activations rounded to fp8 cost a few parts in a hundred.

    What the host changes on the way, here by nothing, is multiplied in 16 bits.
    """
    fp8 = pack.seed_core.compute.fp8
    monkeypatch.setattr(management, "supports_fp8_compute", lambda device: True)
    monkeypatch.setattr(fp8, "has_fp8_units", lambda device: True)
    scales, product = [], fp8.scaled_product

    def scaled_product(x, *rest):
        scales.append(fp8.activation_scales(x.flatten(0, -2)).flatten())
        return product(x, *rest)

    monkeypatch.setattr(fp8, "scaled_product", scaled_product)
    core = pack.seed_core.load_llm(converted, dtype=FP8, operations=pack.host.fp8_operations())
    if is_patched:
        for name, layer in core.module.named_modules():
            if name.endswith("_proj"):
                layer.weight_function = [lambda weight: weight]
    logits = logits_of(core)
    assert len(scales) == (0 if is_patched else 16)
    assert all(len(rows.unique()) > 10 for rows in scales)
    assert distance(logits, logits_of(pack.seed_core.load_llm(converted))) < 0.05


def test_it_answers(run, load, fox_codes):
    reply = run(
        "SEEDGenerate", llm=load("auto"), prompt="What is this?", codes=fox_codes, temperature=0.0
    )
    assert reply[0] == ["It is a fox."]


def test_another_precision_is_of_plain_weights(load, pack, converted, logits_of):
    core = load("fp32").core
    assert {p.dtype for p in core.module.parameters()} == {torch.float32}
    torch.testing.assert_close(logits_of(core), logits_of(pack.seed_core.load_llm(converted)))


def test_the_file_is_read_by_the_hosts_own_loader(pack, on_comfyui, converted):
    """With nothing of ours: its reader of metadata, its layers, one tensor of the file."""
    comfy = pack.comfy
    path = str(converted)
    tensors, metadata = comfy.utils.load_torch_file(path, return_metadata=True)
    weight, scale = tensors[f"{LAYER}.weight"], tensors[f"{LAYER}.weight_scale"]
    tensors, _ = comfy.utils.convert_old_quants(tensors, metadata=metadata)
    assert json.loads(tensors[f"{LAYER}.comfy_quant"].numpy().tobytes()) == {
        "format": "float8_e4m3fn"
    }
    layer = comfy.ops.mixed_precision_ops().Linear(256, 256, bias=False)
    own = {key.removeprefix(f"{LAYER}."): t for key, t in tensors.items() if LAYER in key}
    layer.load_state_dict(own, strict=True)
    expected = weight.to(torch.bfloat16) * scale.to(torch.bfloat16)
    assert torch.equal(layer.weight.dequantize(), expected)


def test_a_model_that_was_not_converted_is_refused_with_the_command(pack, run):
    with pytest.raises(pack.seed_core.OptionError, match="convert FOLDER -o NEW_FILE"):
        run("SEEDLLaMALoader", precision="fp8")


@pytest.mark.parametrize("find_layout", [None, lambda name: None], ids=["old", "incomplete"])
def test_a_host_without_such_layers_is_one_clear_error(
    pack, run, converted, monkeypatch, find_layout
):
    monkeypatch.setattr(pack.comfy.ops, "get_layout_class", find_layout, raising=False)
    with pytest.raises(pack.seed_core.OptionError, match="no layers for models in fp8"):
        run("SEEDLLaMALoader", model=converted.name, precision="fp8")
