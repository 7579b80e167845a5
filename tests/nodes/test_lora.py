"""SEEDLoRALoader: patches of the host on shared weights, there while they are used and gone after."""

import gc
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

BUNDLED = "seed-mini night (bundled)"
FP8 = torch.float8_e4m3fn
CPU = torch.device("cpu")
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}  # the same sums, by the host in another order


@pytest.fixture
def folder(pack):
    """models/seed_lora, empty before and after."""
    folder = Path(pack.folder_paths.models_dir) / "seed_lora"
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def make_llm(pack):
    """Copies of seed-mini that no other test holds, as the loader makes them."""

    def make(source="seed-mini", dtype=torch.float32, operations=pack.host.cast_operations):
        with torch.inference_mode():
            core = pack.seed_core.load_llm(source, dtype=dtype, operations=operations())
        return pack.host.LoadedModel(core, stays_whole=True)

    return make


@pytest.fixture(scope="module")
def llm(make_llm):
    return make_llm()


@pytest.fixture
def save(folder, llm, peft_adapter, make_generator):
    """Writes a random adapter into the host's folder and returns its name there."""

    def save(name="one", number=1, size=0.05, in_full=False, **fields):
        random = make_generator(number)
        tensors = peft_adapter.random_tensors(llm.core.config, random, size=size, in_full=in_full)
        peft_adapter.save(folder / name, tensors, **fields)
        return name

    return save


@pytest.fixture
def load(run):
    return lambda llm, lora, strength=1.0: run(
        "SEEDLoRALoader", llm=llm, lora=lora, strength=strength
    )[0]


@pytest.fixture
def merged(pack, folder):
    """The network with adapters merged by the library, each a name and a strength."""

    def merged(*adapters, source="seed-mini"):
        llm = pack.seed_core.load_llm(source)
        for name, strength in adapters:
            adapter = pack.seed_core.read_lora(folder / name, llm.config)
            pack.seed_core.merge_lora(llm.module, adapter, strength)
        return llm

    return merged


def weights(llm, is_ready=True):
    """A copy of the weights that it computes with."""
    with torch.inference_mode():
        core = llm.ready(0) if is_ready else llm.core
        return {name: tensor.clone() for name, tensor in core.module.state_dict().items()}


def equal(state, other):
    """Bit by bit, whatever the precision."""
    return state.keys() == other.keys() and all(
        x.dtype == other[name].dtype and torch.equal(x.float(), other[name].float())
        for name, x in state.items()
    )


def assert_close(state, expected):
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, expected[name], msg=name, **ROUNDING)


# --- what the patched weights are ---


@pytest.mark.parametrize("strength", [1.0, 0.3, -2.0])
@pytest.mark.parametrize("in_full", [False, True], ids=["projections", "everything"])
def test_the_weights_are_what_the_library_merges(llm, save, load, merged, strength, in_full):
    name = save(in_full=in_full)
    expected = merged((name, strength)).module.state_dict()
    assert_close(weights(load(llm, name, strength)), expected)


def test_two_adapters_add_up(llm, save, load, merged):
    first, second = save("one", 1), save("two", 2, lora_alpha=2, use_rslora=True)
    both = weights(load(load(llm, first, 0.7), second, -1.5))
    assert_close(both, weights(load(load(llm, second, -1.5), first, 0.7)))
    assert_close(both, merged((first, 0.7), (second, -1.5)).module.state_dict())
    plain, alone = weights(llm), (weights(load(llm, first, 0.7)), weights(load(llm, second, -1.5)))
    assert_close(both, {name: alone[0][name] + alone[1][name] - x for name, x in plain.items()})


def test_an_adapter_and_its_opposite_are_nothing(llm, save, load):
    name = save()
    assert_close(weights(load(load(llm, name, 1.0), name, -1.0)), weights(llm))


def test_the_bundled_adapter_needs_no_file_and_is_the_librarys(pack, llm, load):
    node = pack.nodes_by_id["SEEDLoRALoader"]
    assert node.validate_inputs(lora=BUNDLED) is True
    expected = pack.seed_core.load_llm("seed-mini")
    adapter = pack.seed_core.read_lora("seed-mini night", expected.config)
    pack.seed_core.merge_lora(expected.module, adapter, 0.7)
    patched = load(llm, BUNDLED, 0.7)
    assert not equal(weights(llm), weights(patched))
    assert_close(weights(patched), expected.module.state_dict())


def test_strength_0_is_the_model_itself(llm, save, load):
    assert load(llm, save(), 0.0) is llm


# --- one set of weights, several wires ---


def test_each_wire_answers_as_if_it_were_alone(run, llm, save, load, merged):
    """The host patches and restores one set of weights as they take turns."""
    name = save(size=0.2)
    asked = {"prompt": "Draw a red fox on a blue background.", "reply": "text"}
    asked |= {"temperature": 0.0, "max_new_tokens": 12}

    def reply(llm):
        return run("SEEDGenerate", llm=llm, **asked)[0][0]

    def alone(*adapters):
        llm = merged(*adapters)
        llm.ready, llm.core = lambda memory: llm, llm
        return reply(llm)

    whole, half = load(llm, name), load(llm, name, 0.5)
    expected = [alone(), alone((name, 1.0)), alone((name, 0.5))]
    assert len(set(expected)) == 3
    order = [0, 1, 0, 2, 1, 1, 0]
    assert [reply((llm, whole, half)[i]) for i in order] == [expected[i] for i in order]


def test_unloading_restores_every_bit(llm, save, load):
    before = weights(llm)
    name = save(in_full=True)
    patched = load(load(llm, name, 0.37), name, 1.3)
    assert not equal(weights(patched), before)
    with torch.inference_mode():
        patched.patchers[0].unpatch_model()
    assert equal(weights(llm, is_ready=False), before)
    weights(patched)
    assert equal(weights(llm), before)


def test_the_weights_are_not_copied_and_the_patches_do_not_spread(llm, save, load):
    patched = load(llm, save())
    assert patched.core is llm.core
    assert patched.patchers[0].model is llm.patchers[0].model
    assert not llm.patchers[0].patches
    longer = load(patched, "one")
    key = "model.layers.0.self_attn.o_proj.weight"
    assert [len(x.patchers[0].patches[key]) for x in (patched, longer)] == [1, 2]


def test_loaders_share_the_model_while_only_a_lora_holds_it(pack, run, save, load):
    name = save()
    (llm,) = run("SEEDLLaMALoader", precision="fp16")
    module = llm.core.module
    patched = load(llm, name)
    del llm
    gc.collect()
    (again,) = run("SEEDLLaMALoader", precision="fp16")
    assert again.core.module is module
    del patched, again, module
    gc.collect()
    assert not [key for key in pack.host.memory._loaded if torch.float16 in key]


# --- where the host keeps weights in other ways ---


@pytest.fixture
def on_comfyui(host_name):
    if host_name != "comfyui":
        pytest.skip("the double has one way to keep weights")


@pytest.fixture
def logits_of(pack):
    """Logits at each of 60 random tokens, float32."""
    token_ids = torch.randint(3, 1500, (1, 60), generator=torch.Generator().manual_seed(3))

    def logits_of(core):
        cache = pack.seed_core.llm.cache.KVCache(core.config, 1, 60, CPU, core.dtype)
        with torch.inference_mode():
            return core.module.prefill(token_ids, cache, all_positions=True).float()

    return logits_of


def distance(logits, expected):
    return float((logits - expected).norm() / expected.norm())


def test_layers_that_are_streamed_are_patched_on_their_way(
    on_comfyui, llm, save, load, merged, logits_of
):
    """As on a card that holds none of them. Norms, embeddings and head are among them."""
    name = save(in_full=True)
    patched = load(load(llm, name, 0.1), save("two", 2))
    with torch.inference_mode():
        plain = logits_of(llm.ready(0))
        patched.patchers[0].patch_model(CPU, lowvram_model_memory=1)
        streamed = [m for m in llm.core.module.modules() if getattr(m, "weight_function", None)]
        logits = logits_of(llm.core)
        llm.ready(0)
    assert len(streamed) == len(patched.patchers[0].patches) == 4 * 6 + 3
    expected = logits_of(merged((name, 0.1), ("two", 1.0)))
    assert distance(plain, expected) > 0.05
    assert distance(logits, expected) < 1e-4
    assert torch.equal(logits_of(llm.core), plain)


@pytest.mark.parametrize("has_units", [False, True])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_weights_in_fp8_are_patched_too(
    on_comfyui, pack, make_llm, save, load, merged, management, monkeypatch, tmp_path,
    logits_of, has_units, is_streamed,
):  # fmt: skip
    """Kept whole they are rounded to fp8 again; streamed, they are used before they would be.

    Rounding the weights, by chance up or down, moves the logits by 3 parts in 100, and rounding the
    activations, which the device has units for, by as many. The adapter moves them by 10.
    """
    monkeypatch.setattr(management, "supports_fp8_compute", lambda device: has_units)
    convert = import_module(f"{pack.seed_core.__name__}.models.convert")
    plan = convert.plan_conversion(pack.seed_core.models.names.bundled("llm"), FP8)
    convert.convert_model(plan, tmp_path / "fp8.safetensors")
    llm = make_llm(tmp_path / "fp8.safetensors", FP8, pack.host.fp8_operations)
    before, name = weights(llm), save()
    patched = load(llm, name)
    with torch.inference_mode():
        if is_streamed:
            patched.patchers[0].patch_model(CPU, lowvram_model_memory=1)
        else:
            patched.ready(0)
        logits = logits_of(llm.core)
    kinds = {t.dtype for t in llm.core.module.state_dict().values()}
    assert FP8 in kinds
    expected = logits_of(merged((name, 1.0), source=tmp_path / "fp8.safetensors"))
    without = logits_of(merged(source=tmp_path / "fp8.safetensors"))
    assert distance(without, expected) > 0.09
    assert distance(logits, expected) < (0.05 if has_units or not is_streamed else 0.01)
    assert equal(weights(llm), before)


# --- files ---


def options(pack):
    return pack.nodes_by_id["SEEDLoRALoader"].GET_SCHEMA().inputs[1].options


def test_peft_folders_and_files_are_offered(pack, folder, save):
    assert options(pack) == [BUNDLED]
    save("b")
    save("run/checkpoint-500")
    shutil.copy(folder / "b" / "adapter_model.safetensors", folder / "run" / "a.safetensors")
    (folder / "run" / "notes.txt").touch()
    assert options(pack) == [BUNDLED, "b", "run/a.safetensors", "run/checkpoint-500"]


def test_the_checkpoints_of_a_run_are_offered_beside_its_result(pack, folder, save):
    """As transformers' trainer leaves them: the run's folder is an adapter, and holds others."""
    for name in ("run", "run/checkpoint-500", "run/checkpoint-1000"):
        save(name)
    shutil.copy(folder / "run" / "adapter_model.safetensors", folder / "run" / "copy.safetensors")
    names = ["run", "run/checkpoint-1000", "run/checkpoint-500"]
    assert options(pack) == [BUNDLED, *names]
    node = pack.nodes_by_id["SEEDLoRALoader"]
    assert all(node.validate_inputs(lora=name) is True for name in names)
    for inside in ("run/copy.safetensors", "run/checkpoint-500/adapter_model.safetensors"):
        assert "is not a LoRA adapter" in node.validate_inputs(lora=inside)


def test_tokens_that_were_trained_alone_are_patched_too(
    folder, llm, save, load, merged, make_generator
):
    """Of both tables, in any order, with gaps between them."""
    width, random = llm.core.config.hidden_size, make_generator(5)
    ids = {"embed_tokens": [7, 5, 6, 900], "lm_head": [3]}
    base = "base_model.model."
    rows = {
        f"{base}{name}.token_adapter.trainable_tokens_delta": torch.randn(
            count, width, generator=random
        )
        for name, count in (("model.embed_tokens", 4), ("lm_head", 1))
    }
    save("tokens", trainable_token_indices=ids)
    file = folder / "tokens" / "adapter_model.safetensors"
    save_file(load_file(file) | rows, file)
    for strength in (1.0, 0.4):
        expected = merged(("tokens", strength)).module.state_dict()
        assert_close(weights(load(llm, "tokens", strength)), expected)
    assert not torch.equal(expected["lm_head.weight"][3], weights(llm)["lm_head.weight"][3])


def test_rows_of_a_table_that_was_trained_in_full_come_after_it(
    folder, llm, save, load, merged, make_generator
):
    rows = torch.randn(1, llm.core.config.hidden_size, generator=make_generator(5))
    key = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    save("both", in_full=True, trainable_token_indices=[6])
    file = folder / "both" / "adapter_model.safetensors"
    save_file({key: rows} | load_file(file), file)
    for strength in (1.0, 0.4):
        expected = merged(("both", strength)).module.state_dict()
        assert_close(weights(load(llm, "both", strength)), expected)
    full = weights(load(llm, "both"))["model.embed_tokens.weight"]
    torch.testing.assert_close(full[6], rows[0], **ROUNDING)


def test_an_adapter_that_vanished_is_refused_with_its_folder(pack, folder):
    node = pack.nodes_by_id["SEEDLoRALoader"]
    assert node.validate_inputs() is True
    for gone in ("gone", "../gone", "seed-mini (bundled)"):
        said = node.validate_inputs(lora=gone)
        assert f"'{gone}' is not in models/seed_lora" in said
        assert str(folder) in said
        assert f"'{BUNDLED}' is always there" in said


def test_a_changed_adapter_or_config_changes_the_fingerprint(pack, folder, save):
    node = pack.nodes_by_id["SEEDLoRALoader"]

    def fingerprints():
        names = ("one", "one.safetensors")
        return [node.fingerprint_inputs(lora=name, strength=1.0) for name in names]

    save()
    shutil.copy(folder / "one" / "adapter_model.safetensors", folder / "one.safetensors")
    first = fingerprints()
    assert fingerprints() == first
    (folder / "adapter_config.json").write_text('{"lora_alpha": 4}', encoding="utf-8")
    second = fingerprints()
    assert second[0] == first[0]
    assert second[1] != first[1]
    save(lora_alpha=16)
    assert fingerprints()[0] != first[0]


def test_an_adapter_of_another_kind_of_model_is_one_sentence(pack, folder, llm, load, peft_adapter):
    tensors = {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.zeros(4, 8)}
    peft_adapter.save(folder / "of_pictures", tensors)
    with pytest.raises(pack.seed_core.CheckpointError, match="no LoRA adapter of a language model"):
        load(llm, "of_pictures")
