"""Loaders: what they offer, what they share, what they refuse."""

import gc
import importlib
import json
import mmap
import os
import shlex
import shutil
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

BUNDLED = "seed-mini (bundled)"


@pytest.fixture
def models(pack):
    """The host's model folder with nothing of ours in it, before and after."""
    root = Path(pack.folder_paths.models_dir)
    yield root
    for name in ("seed_tokenizer", "seed_llm", "seed_decoder", "diffusers"):
        shutil.rmtree(root / name, ignore_errors=True)


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def options(pack, node_id):
    return pack.nodes_by_id[node_id].GET_SCHEMA().inputs[0].options


LOADERS = ["SEEDTokenizerLoader", "SEEDLLaMALoader", "SEEDDecoderLoader"]


@pytest.mark.parametrize("node_id", LOADERS)
def test_a_fresh_install_offers_the_bundled_model(pack, node_id):
    assert options(pack, node_id) == [BUNDLED]


def test_tokenizer_files_are_offered_without_what_lies_beside_them(pack, models):
    parts = ("eva_vit_g.pth", "causal_qformer.pth", "notes.txt")
    for name in ("b.pt", "a.safetensors", "sub/c.pt", *parts):
        write(models / "seed_tokenizer" / name)
    assert options(pack, "SEEDTokenizerLoader") == [BUNDLED, "a.safetensors", "b.pt", "sub/c.pt"]


def test_a_choice_in_a_subfolder_is_the_same_model_on_every_system(pack, models):
    """The host's own lists have the system's separator, and so has what was written after them."""
    kind = pack.kinds.TOKENIZER
    file = write(models / "seed_tokenizer" / "sub" / "deep" / "c.pt")
    assert "sub/deep/c.pt" in kind.choices()
    for choice in ("sub/deep/c.pt", "sub\\deep\\c.pt", "sub\\deep/c.pt"):
        assert kind.find(choice) == file
        assert kind.fingerprint(choice) != "missing"


@pytest.mark.parametrize("choice", ["..\\c.pt", "sub\\..\\..\\c.pt", "C:\\c.pt", "\\c.pt"])
def test_a_backslash_leads_nowhere_that_is_no_choice(pack, models, choice):
    write(models / "c.pt")
    write(models / "seed_tokenizer" / "sub" / "d.pt")
    with pytest.raises(pack.seed_core.errors.CheckpointError, match="is not in"):
        pack.kinds.TOKENIZER.find(choice)


@pytest.mark.skipif(sys.platform == "win32", reason="a backslash is a separator there")
def test_a_name_with_a_backslash_of_its_own_is_found(pack, models):
    file = write(models / "seed_tokenizer" / "odd\\name.pt")
    write(models / "seed_tokenizer" / "odd" / "name.pt")
    assert pack.kinds.TOKENIZER.find("odd\\name.pt") == file


def test_llm_folders_are_those_with_a_config(pack, models):
    write(models / "seed_llm" / "8b" / "config.json", "{}")
    write(models / "seed_llm" / "8b" / "parts" / "config.json", "{}")
    write(models / "seed_llm" / "empty" / "readme.md")
    assert options(pack, "SEEDLLaMALoader") == [BUNDLED, "8b"]


@pytest.mark.parametrize(
    ("more", "is_listed"),
    [((), False), (("tokenizer_config.json", "README.md", ".gitattributes"), False)]
    + [((name,), True) for name in ("model.safetensors", "model.safetensors.index.json", "a.gguf")],
)
def test_a_folder_with_a_vocabulary_alone_is_no_model(pack, models, more, is_listed):
    """It is there for a model on a server; whatever else lies in it, the check explains."""
    for name in ("config.json", "tokenizer.model", "added_tokens.json", *more):
        write(models / "seed_llm" / "studio" / name, "{}")
    assert options(pack, "SEEDLLaMALoader") == [BUNDLED] + ["studio"] * is_listed
    said = pack.kinds.LLM.check("studio")
    words = "is not a SEED-LLaMA, which is a folder with config.json and weights"
    assert (words not in said) is is_listed


def test_decoder_folders_are_those_of_unclip_pipelines(pack, models):
    unclip = json.dumps({"_class_name": "StableUnCLIPImg2ImgPipeline"})
    write(models / "seed_decoder" / "sd21" / "model_index.json", unclip)
    write(models / "diffusers" / "other" / "unclip" / "model_index.json", unclip)
    sdxl = json.dumps({"_class_name": "StableDiffusionXLPipeline"})
    write(models / "diffusers" / "sdxl" / "model_index.json", sdxl)
    write(models / "diffusers" / "broken" / "model_index.json", "{not json")
    write(models / "diffusers" / "list" / "model_index.json", "[1]")
    assert options(pack, "SEEDDecoderLoader") == [BUNDLED, "other/unclip", "sd21"]


def test_what_is_offered_is_found_and_nothing_else_is(pack, models):
    """A choice is looked up without listing the folder, by the same rules."""
    unclip = json.dumps({"_class_name": "StableUnCLIPImg2ImgPipeline"})
    for folder in ("", "1/", "1/2/3/", "1/2/3/4/", "1/2/3/4/5/", ".hidden/"):
        for name in ("a.pt", "a.safetensors", "eva_vit_g.pth", "notes.txt", ".b.safetensors"):
            write(models / "seed_tokenizer" / folder / name)
        write(models / "seed_llm" / folder / "model" / "config.json", "{}")
        write(models / "seed_llm" / folder / "model" / "inside" / "config.json", "{}")
        write(models / "diffusers" / folder / "model" / "model_index.json", unclip)
        write(models / "seed_lora" / folder / "model" / "adapter_config.json", "{}")
        write(models / "seed_lora" / folder / "model" / "adapter_model.safetensors")
    for kind in (pack.kinds.TOKENIZER, pack.kinds.LLM, pack.kinds.DECODER, pack.kinds.LORA):
        names = {
            path.relative_to(root).as_posix()
            for root in (models / folder for folder in kind.folders)
            for path in root.rglob("*")
        }
        offered = set(kind.choices()) - {kind.bundled_choice}
        assert len(offered) >= 3
        assert {name for name in names if kind.fingerprint(name) != "missing"} == offered
    shutil.rmtree(models / "seed_lora")


@pytest.mark.parametrize("choice", ["", ".", "./a.pt", "sub//c.pt", "sub/./c.pt", "a" * 300, "a\0"])
def test_only_the_name_that_is_offered_finds_a_model(pack, models, choice):
    write(models / "seed_tokenizer" / "a.pt")
    write(models / "seed_tokenizer" / "sub" / "c.pt")
    with pytest.raises(
        pack.seed_core.errors.CheckpointError, match=r"is not (in|a SEED tokenizer)"
    ):
        pack.kinds.TOKENIZER.find(choice)


@pytest.mark.parametrize("question", ["validate_inputs", "fingerprint_inputs", "execute"])
def test_a_question_about_one_model_looks_at_that_one_alone(pack, models, monkeypatch, question):
    """Folders may hold hundreds of models, on slow disks, and each is a question a run."""
    for name in ("mini", "other"):
        shutil.copytree(pack.seed_core.models.names.bundled("llm"), models / "seed_llm" / name)
    given = {"model": "mini"} | ({} if question == "validate_inputs" else {"precision": "auto"})
    looked = []
    for name in ("scandir", "stat"):
        monkeypatch.setattr(os, name, noting(getattr(os, name), looked))
    answer = getattr(pack.nodes_by_id["SEEDLLaMALoader"], question)(**given)
    monkeypatch.undo()
    assert answer != "missing"
    below = [path.relative_to(models / "seed_llm") for path in looked if "seed_llm" in path.parts]
    assert {path.parts[:1] for path in below} == {("mini",)}


def noting(look, looked):
    """The function of os, which writes down what it is asked about."""

    def noted(path=".", *rest, **options):
        if isinstance(path, (str, Path)):
            looked.append(Path(path))
        return look(path, *rest, **options)

    return noted


@pytest.fixture
def converted(pack, models):
    """seed-mini's parts as one file each, by part, in the folder of the language models."""
    convert = import_module(f"{pack.seed_core.__name__}.models.convert")
    folder = models / "seed_llm"
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for part in ("tokenizer", "llm", "decoder"):
        plan = convert.plan_conversion(pack.seed_core.models.names.bundled(part), torch.float32)
        files[part] = folder / f"mini {part}.safetensors"
        convert.convert_model(plan, files[part])
    return files


def test_converted_models_are_offered_where_they_belong(pack, run, models, converted, mini):
    """Each part by its own loader, whatever folder it was dropped into."""
    write(models / "seed_llm" / "notes.safetensors", "nothing that could be read")
    assert options(pack, "SEEDLLaMALoader") == [BUNDLED, "mini llm.safetensors"]
    (llm,) = run("SEEDLLaMALoader", model="mini llm.safetensors")
    assert llm.core.vocab.size == mini.llm.core.vocab.size
    (models / "seed_decoder" / "sub").mkdir(parents=True)
    converted["decoder"].rename(models / "seed_decoder" / "sub" / "d.safetensors")
    assert options(pack, "SEEDDecoderLoader") == [BUNDLED, "sub/d.safetensors"]
    (models / "seed_tokenizer").mkdir()
    converted["tokenizer"].rename(models / "seed_tokenizer" / "t.safetensors")
    converted["llm"].rename(models / "seed_tokenizer" / "l.safetensors")
    assert options(pack, "SEEDTokenizerLoader") == [BUNDLED, "t.safetensors"]
    assert run("SEEDTokenizerLoader", tokenizer="t.safetensors")[0].core.family == "seed-mini"


@pytest.mark.parametrize("folder", ["seed_tokenizer", "seed_llm", "seed_decoder", "seed_lora"])
def test_links_to_nothing_and_unfinished_downloads_are_no_choices(pack, models, folder):
    write(models / folder / ".unfinished" / "model.safetensors")
    (models / folder / "gone.safetensors").symlink_to(models / "nowhere.safetensors")
    for name in ("TOKENIZER", "LLM", "DECODER", "LORA"):
        kind = getattr(pack.kinds, name)
        assert kind.choices() == [kind.bundled_choice]
    shutil.rmtree(models / folder)


def test_a_language_model_as_published_is_told_what_else_it_needs(pack, models):
    """Its repository has neither of the vocabulary's files."""
    folder = models / "seed_llm" / "8b"
    shutil.copytree(pack.seed_core.models.names.bundled("llm"), folder)
    for name in ("tokenizer.model", "added_tokens.json"):
        (folder / name).unlink()
    said = pack.nodes_by_id["SEEDLLaMALoader"].validate_inputs(model="8b")
    assert "lacks tokenizer.model and added_tokens.json; copy them there from https://" in said


def test_a_file_that_is_no_choice_is_told_why(pack, models, converted):
    node = pack.nodes_by_id["SEEDLLaMALoader"]
    assert node.validate_inputs(model="mini llm.safetensors") is True
    said = node.validate_inputs(model="mini decoder.safetensors")
    assert "is not a SEED-LLaMA, which is a folder with config.json and weights, or a" in said


@pytest.mark.parametrize(
    ("name", "words"),
    [("added_tokens.json", "lacks added_tokens.json"), ("model.safetensors", "and weights, or")],
)
def test_what_a_model_lacks_is_told_before_the_queue_starts(pack, models, name, words):
    folder = models / "seed_llm" / "mini"
    shutil.copytree(pack.seed_core.models.names.bundled("llm"), folder)
    node = pack.nodes_by_id["SEEDLLaMALoader"]
    assert node.validate_inputs(model="mini") is True
    (folder / name).unlink()
    said = node.validate_inputs(model="mini")
    assert words in said
    assert "https://huggingface.co/AILab-CVC/seed-llama-8b-sft" in said


def test_folders_of_extra_model_paths_are_searched(pack, tmp_path):
    """extra_model_paths.yaml ends in this call of the host."""
    write(tmp_path / "far.safetensors")
    table = pack.folder_paths.folder_names_and_paths["seed_tokenizer"][0]
    pack.folder_paths.add_model_folder_path("seed_tokenizer", str(tmp_path))
    try:
        assert options(pack, "SEEDTokenizerLoader") == [BUNDLED, "far.safetensors"]
    finally:
        table.remove(str(tmp_path))


def test_a_file_that_vanished_is_refused_with_folder_and_link(pack, models):
    node = pack.nodes_by_id["SEEDTokenizerLoader"]
    assert node.validate_inputs(tokenizer=BUNDLED) is True
    said = node.validate_inputs(tokenizer="gone.pt")
    assert "'gone.pt' is not in models/seed_tokenizer" in said
    assert "https://huggingface.co/AILab-CVC/seed-tokenizer-2" in said
    assert str(models / "seed_tokenizer") in said


def test_a_choice_that_comes_by_wire_is_checked_when_loaded(pack, run):
    """At validation such an input is not there yet."""
    assert pack.nodes_by_id["SEEDLLaMALoader"].validate_inputs() is True
    with pytest.raises(pack.seed_core.CheckpointError, match="seed-llama-8b-sft"):
        run("SEEDLLaMALoader", model="gone")


def test_a_path_out_of_the_folder_is_no_choice(pack, models):
    write(models / "seed_tokenizer" / "a.pt")
    write(models / "outside.pt")
    said = pack.nodes_by_id["SEEDTokenizerLoader"].validate_inputs(tokenizer="../outside.pt")
    assert "is not in models/seed_tokenizer" in said
    (models / "outside.pt").unlink()


def test_a_damaged_file_is_named_with_what_to_do(pack, run, models):
    write(models / "seed_tokenizer" / "half.safetensors", "not a safetensors file")
    with pytest.raises(pack.seed_core.CheckpointError) as caught:
        run("SEEDTokenizerLoader", tokenizer="half.safetensors")
    assert "half.safetensors" in str(caught.value)
    assert "huggingface.co/AILab-CVC/seed-tokenizer-2" in str(caught.value)


def test_a_changed_file_changes_the_fingerprint(pack, models):
    node = pack.nodes_by_id["SEEDTokenizerLoader"]

    def fingerprint():
        return node.fingerprint_inputs(tokenizer="a.pt", precision="auto")

    assert fingerprint() == "missing"
    write(models / "seed_tokenizer" / "a.pt", "one")
    first = fingerprint()
    assert fingerprint() == first
    write(models / "seed_tokenizer" / "a.pt", "three")
    second = fingerprint()
    assert second != first
    write(models / "seed_tokenizer" / "eva_vit_g.pth", "tower")
    assert fingerprint() != second


def test_two_loaders_share_a_model_and_the_last_wire_ends_it(pack, run):
    first = run("SEEDTokenizerLoader", precision="bf16")[0]
    assert run("SEEDTokenizerLoader", precision="bf16")[0] is first
    assert run("SEEDTokenizerLoader", precision="fp16")[0] is not first
    keys = [key for key in pack.host.memory._loaded if torch.bfloat16 in key]
    assert keys
    del first
    gc.collect()
    assert not [key for key in pack.host.memory._loaded if torch.bfloat16 in key]


@pytest.mark.parametrize(
    ("fast", "preferred", "chosen"),
    [
        ((), "fp16", torch.float32),
        (("fp16", "bf16"), "fp16", torch.float16),
        (("fp16", "bf16"), "bf16", torch.bfloat16),
        (("fp16",), "bf16", torch.float16),
        (("bf16",), "fp16", torch.bfloat16),
    ],
)
def test_auto_precision_asks_the_host_what_is_fast(
    pack, management, monkeypatch, fast, preferred, chosen
):
    for name in ("fp16", "bf16"):
        monkeypatch.setattr(management, f"should_use_{name}", lambda device, n=name: n in fast)
    assert pack.host.choose_dtype("auto", preferred) == chosen
    assert pack.host.choose_dtype("fp32", preferred) == torch.float32


def test_auto_on_a_cpu_is_fp32(mini):
    assert (
        mini.tokenizer.core.dtype == mini.llm.core.dtype == mini.decoder.core.dtype == torch.float32
    )


def test_the_host_can_make_a_second_copy(mini):
    """How the host copies a model to another card; it passes disable_dynamic itself."""
    for patcher in mini.tokenizer.patchers:
        make, arguments = patcher.cached_patcher_init
        copy = make(*arguments, disable_dynamic=True)
        assert copy.model is not patcher.model
        assert type(copy.model) is type(patcher.model)


def test_a_loader_says_what_to_type_in_any_folder_and_where_its_model_will_lie(pack, models):
    """With the paths of this machine, for a Python that imports nothing from where it is started."""
    told = pack.kinds.LLM.check("gone")
    (line,) = [line for line in told.splitlines() if " fetch " in line]
    words = shlex.split(line)
    assert words[0] == sys.executable
    assert (Path(words[1]) / "__main__.py").is_file()
    assert words[2:] == ["fetch", "seed-llama-8b-sft", "--into", str(models / "seed_llm")]


@pytest.mark.parametrize(("spare", "kind"), [(1, "WholePatcher"), (0, "DynamicPatcher")])
def test_a_language_model_that_fits_is_kept_whole_on_the_card(pack, run, monkeypatch, spare, kind):
    """The host's dynamic memory fetches a layer at each call, and there are hundreds a second."""
    management, patchers = pack.comfy.model_management, pack.comfy.model_patcher

    class Dynamic(patchers.ModelPatcher):
        pass

    monkeypatch.setattr(patchers, "CoreModelPatcher", Dynamic)
    monkeypatch.setattr(management, "minimum_inference_memory", lambda: 1000)
    monkeypatch.setattr(management, "get_total_memory", lambda device: 1000 + size + spare)
    dtype = torch.bfloat16  # in which no other test holds them
    core = pack.seed_core.load_llm("seed-mini", dtype=dtype)
    size = management.module_size(core.module) + core.memory_required(512)  # its longest reply
    size += pack.seed_core.compute.graphs.CAPTURE_BYTES
    (llm,) = run("SEEDLLaMALoader", model=BUNDLED, precision="bf16")
    assert type(llm.patchers[0]).__name__ == kind
    (decoder,) = run("SEEDDecoderLoader", decoder=BUNDLED, precision="bf16")
    assert type(decoder.patchers[0]).__name__ == "DynamicPatcher"


def test_what_the_command_fetch_brings_lies_where_the_loaders_look(pack):
    importlib.import_module(f"{pack.seed_core.__name__}.fetching.downloads")
    kinds = (pack.kinds.TOKENIZER, pack.kinds.LLM, pack.kinds.DECODER)
    downloads = pack.seed_core.fetching.downloads.DOWNLOADS.values()
    folders = {download.folder.partition("/")[0] for download in downloads}
    assert folders == {kind.folder for kind in kinds}


@pytest.mark.parametrize("node_id", LOADERS)
def test_a_host_without_maps_gets_models_without_maps(pack, run, models, monkeypatch, node_id):
    """Started with --disable-mmap, as for models on a network drive."""
    kind = {"SEEDTokenizerLoader": "tokenizer", "SEEDLLaMALoader": "llm"}.get(node_id, "decoder")
    shutil.copytree(
        Path(pack.seed_core.__file__).parent / "weights/seed-mini" / kind,
        models / f"seed_{kind}" / "mine",
    )
    choice = "mine/model.safetensors" if kind == "tokenizer" else "mine"
    maps, make = [], mmap.mmap
    monkeypatch.setattr(mmap, "mmap", lambda *a, **n: maps.append(a) or make(*a, **n))
    widget = pack.nodes_by_id[node_id].GET_SCHEMA().inputs[0].id
    for is_disabled in (True, False):
        monkeypatch.setattr(pack.comfy.utils, "DISABLE_MMAP", is_disabled)
        (model,) = run(node_id, **{widget: choice})
        assert bool(maps) != is_disabled
        del model  # so that the next one is read again
        gc.collect()
