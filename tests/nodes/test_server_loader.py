"""SEED-LLaMA on a Server: its files are found and checked, and its wire does what a local one does."""

import json
import shutil
import threading
from pathlib import Path

import pytest
import torch

NODE = "SEEDServerLoader"
ENGINE = Path(__file__).parents[1] / "engine_double.py"
NONE_YET = "none yet (see help)"
WAITING = "Waiting for the first token ..."
GREEDY = {"temperature": 0.0, "max_new_tokens": 80}
FIELDS = {"address": "http://127.0.0.1:1", "model": "seed-mini", "vocabulary": "seed-mini"}


class StopPressed(BaseException):
    """Like the host's interruption: not an Exception."""


@pytest.fixture(scope="module")
def engine_module(load_helper):
    return load_helper(ENGINE)


@pytest.fixture
def engine(engine_module, mini_llm):
    with engine_module.Engine(mini_llm) as engine:
        yield engine


@pytest.fixture
def folder(pack):
    """The host's folder for language models, empty before and after."""
    place = Path(pack.host.model_folders("seed_llm")[0])
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    yield place
    shutil.rmtree(place)


@pytest.fixture
def write(folder):
    """Writes a server file and returns its name; a field that is None is left out."""

    def write(name="studio.server.json", place=folder, **fields):
        content = {key: value for key, value in {**FIELDS, **fields}.items() if value is not None}
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(json.dumps(content), encoding="utf-8")
        return name

    return write


@pytest.fixture
def served(write, engine, run):
    """The wire of a model that the engine serves; on a busy computer connections take their time."""
    address = f"http://127.0.0.1:{engine.port}"
    return run(NODE, server=write(address=address, connect_seconds=60))[0]


@pytest.fixture
def node(pack):
    return pack.nodes_by_id[NODE]


@pytest.fixture
def options(node):
    return lambda: node.GET_SCHEMA().inputs[0].options


# --- the list ---


def test_it_lists_the_server_files_and_nothing_else(pack, folder, write, options):
    for name in ("studio.server.json", "attic.server.json", ".server.json", ".old.server.json"):
        write(name)
    write("config.json")
    write("below.server.json", folder / "model")
    (folder / "folder.server.json").mkdir()
    assert options() == ["attic.server.json", "studio.server.json"]
    listed = pack.nodes_by_id["SEEDLLaMALoader"].GET_SCHEMA().inputs[0].options
    assert not [name for name in listed if "server" in name]


def test_of_two_files_with_one_name_that_of_the_first_folder_counts(
    pack, folder, write, options, tmp_path, run, monkeypatch
):
    """As extra_model_paths.yaml names folders."""
    monkeypatch.setattr(pack.host, "model_folders", lambda name: [str(tmp_path), str(folder)])
    for place, model in ((folder, "far"), (tmp_path, "near")):
        name = write(place=place, model=model)
    write("other.server.json")
    assert options() == ["other.server.json", name]
    assert run(NODE, server=name)[0].core.server.model == "near"


def test_without_any_the_list_says_so_and_the_error_what_to_put_where(folder, node, options):
    assert options() == [NONE_YET]
    for chosen in (NONE_YET, ""):
        said = node.validate_inputs(server=chosen)
        assert "no server file" in said
        for told in (str(folder), ".server.json", "press R", "help page", "docs/serving.md"):
            assert told in said


def test_a_choice_that_is_gone_is_told_with_those_that_are_there(write, node):
    write()
    said = node.validate_inputs(server="attic.server.json")
    assert "'attic.server.json' is not in models/seed_llm" in said
    assert "studio.server.json" in said


@pytest.mark.parametrize("kind", ["above", "below", "absolute", "backslash"])
def test_no_workflow_names_a_file_that_is_not_in_the_list(folder, write, node, run, pack, kind):
    """One that its sender had put into the input folder, say, would send prompts to the sender."""
    write()
    place = folder.parent if kind == "above" else folder / "model"
    write("evil.server.json", place)
    name = {
        "above": "../evil.server.json",
        "below": "model/evil.server.json",
        "absolute": str(place / "evil.server.json"),
        "backslash": "model\\evil.server.json",
    }[kind]
    try:
        assert "is not in models/seed_llm" in node.validate_inputs(server=name)
        with pytest.raises(pack.seed_core.CheckpointError):
            run(NODE, server=name)
    finally:
        (place / "evil.server.json").unlink()


def test_a_choice_by_wire_is_looked_for_when_it_is_there(node):
    assert node.validate_inputs(server=None) is True


# --- the check, without a connection ---


def test_a_good_file_is_taken_without_asking_the_server(engine, write, node, run):
    name = write(address=f"http://127.0.0.1:{engine.port}")
    assert node.validate_inputs(server=name) is True
    node.fingerprint_inputs(server=name)
    run(NODE, server=name)
    assert engine.paths == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"address": None}, "lacks the field address"),
        ({"address": "studio"}, "address must be"),
        ({"key": "sesame"}, "a key does not belong in this file"),
        ({"dialect": "ollama"}, "dialect must be one of"),
        ({"gap_seconds": 0}, "gap_seconds must be"),
        ({"vocabulary": "seed-14b"}, "vocabulary 'seed-14b' is not there"),
        ({"key_variable": "SEED_TEST_NO_SUCH_KEY"}, "SEED_TEST_NO_SUCH_KEY, and there is none"),
        ({"key_file": "studio.key"}, "studio.key, which cannot be read"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_before_the_graph_runs(write, node, fields, said):
    assert said in node.validate_inputs(server=write(**fields))


def test_what_is_no_json_is_said_too(folder, node):
    (folder / "studio.server.json").write_text("{", encoding="utf-8")
    assert "studio.server.json" in node.validate_inputs(server="studio.server.json")


def test_a_vocabulary_may_be_any_model_of_load_seed_llm(
    pack, folder, mini_folder, tmp_path, write, node, monkeypatch
):
    monkeypatch.setattr(pack.host, "model_folders", lambda name: [str(folder), str(tmp_path)])
    shutil.copytree(mini_folder / "llm", tmp_path / "one" / "mine")
    assert node.validate_inputs(server=write(vocabulary="one/mine")) is True


def test_a_vocabulary_may_lie_in_another_folder_of_the_host(
    pack, folder, mini_folder, tmp_path, write, node, monkeypatch
):
    """With no weights beside it, Load SEED LLM does not list it."""
    monkeypatch.setattr(pack.host, "model_folders", lambda name: [str(folder), str(tmp_path)])
    (tmp_path / "words").mkdir()
    for name in ("config.json", "tokenizer.model", "added_tokens.json"):
        shutil.copy(mini_folder / "llm" / name, tmp_path / "words")
    assert node.validate_inputs(server=write(vocabulary="words")) is True
    listed = pack.nodes_by_id["SEEDLLaMALoader"].GET_SCHEMA().inputs[0].options
    assert not [name for name in listed if "words" in name]


def test_the_bundled_vocabulary_has_the_name_that_load_seed_llm_lists_as_well(write, node):
    assert node.validate_inputs(server=write(vocabulary="seed-mini (bundled)")) is True


# --- when it is loaded again ---


def test_the_fingerprint_is_new_when_the_file_or_its_vocabulary_is(
    folder, mini_folder, write, node
):
    shutil.copytree(mini_folder / "llm", folder / "mine")
    name = write(vocabulary="mine")
    prints = [node.fingerprint_inputs(server=name)]
    assert node.fingerprint_inputs(server=name) == prints[0]
    write(vocabulary="mine", model="another name")
    prints.append(node.fingerprint_inputs(server=name))
    added = folder / "mine" / "added_tokens.json"
    added.write_text(added.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    prints.append(node.fingerprint_inputs(server=name))
    shutil.rmtree(folder / "mine")
    prints.append(node.fingerprint_inputs(server=name))
    assert len(set(prints)) == 4
    assert node.fingerprint_inputs(server="gone.server.json") == "missing"


# --- the wire ---


@pytest.mark.parametrize("reply", ["auto", "text", "image"])
def test_seed_generate_gives_what_it_gives_with_the_model_here(
    run, mini, served, fox_codes, reply, engine
):
    asked = {"prompt": "<image> Make the background green.", "codes": fox_codes, "reply": reply}
    there = run("SEEDGenerate", llm=served, **asked, **GREEDY)
    here = run("SEEDGenerate", llm=mini.llm, **asked, **GREEDY)
    assert there[0] == here[0]
    assert torch.equal(there[1].values, here[1].values)
    assert there[1].family == here[1].family
    assert [chat.turns[-1].role for chat in there[2]] == ["assistant"]
    goes_on = {"prompt": "What is in the picture?", "reply": "text"}
    second = [
        run("SEEDGenerate", llm=llm, chat=turn[2][0], **goes_on, **GREEDY)[0]
        for llm, turn in ((served, there), (mini.llm, here))
    ]
    assert second[0] == second[1]
    assert engine.served == 2


def test_variations_come_in_one_request_and_seeds_repeat(run, served, engine):
    asked = {"prompt": "Is it a cat or a dog?", "temperature": 2.0, "top_p": 1.0, "top_k": 0}
    asked |= {"max_new_tokens": 40, "reply": "text"}
    three = run("SEEDGenerate", llm=served, **asked, variations=3, seed=5)[0]
    assert [body["n"] for body in engine.bodies] == [3]
    assert len(set(three)) == 3
    assert run("SEEDGenerate", llm=served, **asked, variations=3, seed=5)[0] == three
    assert run("SEEDGenerate", llm=served, **asked, seed=6)[0] == three[1:2]


def test_no_memory_is_asked_of_the_host(run, served, management, monkeypatch):
    monkeypatch.setattr(management, "load_models_gpu", None)
    (text,), *_ = run("SEEDGenerate", llm=served, prompt="What is this?", **GREEDY)
    assert text


def test_a_model_here_is_loaded_beside_it(run, served, mini, fox):
    """As in a graph with a tokenizer."""
    codes = run("SEEDEncode", tokenizer=mini.tokenizer, image=fox)[0]
    asked = {"prompt": "What is in this picture?", "codes": codes, "reply": "text"}
    assert "fox" in run("SEEDGenerate", llm=served, **asked, **GREEDY)[0][0].lower()


def test_text_and_bar_move_as_tokens_come(pack, run, served, fox_codes, bar, engine, monkeypatch):
    """After three tokens the engine waits until the node has shown some."""
    said, shown, came_in_time = [], threading.Event(), []

    def show(text):
        said.append(text)
        if text != WAITING:
            shown.set()

    def wait(event):
        came_in_time.append(len(came_in_time) < 3 or shown.wait(30))
        return event

    monkeypatch.setattr(pack.host.progress, "show_text", show)
    monkeypatch.setattr(pack.host.progress, "TEXT_INTERVAL", 0.0)
    engine.faults.mangle = wait
    asked = {"prompt": "What is in this picture?", "codes": fox_codes, "reply": "text"}
    (text,), *_ = run("SEEDGenerate", llm=served, **asked, **GREEDY)
    assert len(came_in_time) > 3
    assert all(came_in_time)
    done = [done for done, _ in bar]
    assert done == sorted(done)
    assert done[-1] > 1
    assert {total for _, total in bar} == {80}
    assert said[-1] == text
    assert all(text.startswith(words) for words in said if words != WAITING)


def test_until_the_first_token_the_node_says_that_it_waits(
    pack, run, served, engine, management, monkeypatch
):
    """An engine that is busy lets a request wait for minutes."""
    engine.faults.silence = "first token"
    said = []

    def check():
        if said:
            raise StopPressed

    monkeypatch.setattr(pack.host.progress, "show_text", said.append)
    monkeypatch.setattr(management, "throw_exception_if_processing_interrupted", check)
    with pytest.raises(StopPressed):
        run("SEEDGenerate", llm=served, prompt="Draw a fox.", **GREEDY)
    assert said == [WAITING]


@pytest.mark.parametrize("when", ["headers", "first token", 10])
def test_stop_closes_the_connection(run, served, engine, management, monkeypatch, bar, when):
    """Before the first token as well as between two."""
    engine.faults.silence = when

    def check():
        if engine.running and (when != 10 or bar[-1][0] >= 10):
            raise StopPressed

    monkeypatch.setattr(management, "throw_exception_if_processing_interrupted", check)
    asked = {"prompt": "Draw a fox.", "reply": "image", "max_new_tokens": 400}
    with pytest.raises(StopPressed):
        run("SEEDGenerate", llm=served, **asked)
    assert engine.wait_until(lambda engine: not engine.running)
    assert engine.aborted == 1


def test_a_broken_stream_is_one_error_and_the_next_run_goes_well(pack, run, served, engine):
    engine.faults.cut = 5
    asked = {"prompt": "Draw a fox.", "reply": "image", **GREEDY}
    with pytest.raises(pack.seed_core.GenerationError, match="broke before the reply was complete"):
        run("SEEDGenerate", llm=served, **asked)
    engine.faults.cut = None
    assert len(run("SEEDGenerate", llm=served, **asked)[1]) == 1


def test_a_lora_says_that_the_server_has_its_own(pack, run, served, engine):
    with pytest.raises(pack.seed_core.OptionError) as raised:
        run("SEEDLoRALoader", llm=served, strength=0.5)
    said = str(raised.value)
    assert "studio.server.json" in said
    assert "model name" in said
    assert engine.paths == []
    assert run("SEEDLoRALoader", llm=served, strength=0.0)[0] is served
