"""A language model on a server, in a real ComfyUI: the engine answers in this process.

``pytest -m serving`` runs what a real engine can show against vLLM itself.
"""

import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.host

TESTS = Path(__file__).parents[1]
TWINS = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((TESTS / "workflows" / "api").glob("*.json"))
}
LOCAL, SERVED = "SEEDLLaMALoader", "SEEDServerLoader"
FILE, KEY = "studio.server.json", "sesame"
# Of the settings of SEED Generate: pictures that vLLM needs seconds for, some at once and more waiting.
LONG = {"reply": "image", "variations": 64, "temperature": 2.0, "top_p": 1.0}


def types_of(graph):
    return {node["class_type"] for node in graph.values()}


ANSWERING = [name for name, twin in TWINS.items() if LOCAL in types_of(twin)]


@pytest.fixture(scope="module")
def engine_module(load_helper):
    return load_helper(TESTS / "engine_double.py")


@pytest.fixture
def named(comfy_server):
    """Puts the file that names an engine into the models folder, and its key beside it."""
    folder = comfy_server.base_dir / "models" / "seed_llm"
    folder.mkdir(exist_ok=True)

    def name(engine):
        fields = {"address": f"http://127.0.0.1:{engine.port}", "model": "seed-mini"}
        fields |= {"vocabulary": "seed-mini", "key_file": "studio.key"}
        (folder / FILE).write_text(json.dumps(fields), encoding="utf-8")
        (folder / "studio.key").write_text(KEY, encoding="utf-8")
        return engine

    yield name
    for file in (FILE, "studio.key"):
        (folder / file).unlink()


@pytest.fixture
def engine(engine_module, mini_llm, named):
    with engine_module.Engine(mini_llm, key=KEY) as engine:
        yield named(engine)


@pytest.fixture
def real_engine(vllm, named):
    return named(vllm)


@pytest.fixture(
    params=["engine", pytest.param("real_engine", marks=pytest.mark.serving)],
    ids=["double", "vllm"],
)
def any_engine(request):
    return request.getfixturevalue(request.param)


def served(graph):
    """The graph with its loader exchanged."""
    loader = {"class_type": SERVED, "inputs": {"server": FILE}}
    return {key: loader if node["class_type"] == LOCAL else node for key, node in graph.items()}


def finished(run):
    assert run.status == "execution_success", run.error.get("exception_message")
    return run


def shown(server, run):
    """The texts and the pictures of each node that shows any."""
    found = {}
    for node, output in run.outputs.items():
        files = [server.picture(image) for image in output.get("images", [])]
        pixels = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]
        found[node] = output.get("text"), [picture.tolist() for picture in pixels]
    return found


def is_moving(event):
    """Whether an event says that a reply has begun to come."""
    if event.type != "progress_state":
        return False
    return event.data["nodes"].get("generate", {}).get("value", 0) > 3


def stopped_in_a_reply(server, graph, engine):
    """Press Stop as a reply comes; the run, and after how many seconds the request was gone."""
    prompt_id = server.queue(graph)
    server.events.wait_until(prompt_id, is_moving, 60)
    assert engine.running > 0
    pressed = time.monotonic()
    server.post_plain("/interrupt")
    assert engine.wait_until(lambda engine: not engine.running)
    gone = time.monotonic() - pressed
    print(f"gone from the engine after {gone:.2f} s")
    return server.wait(prompt_id, 30), gone


def test_the_host_lists_the_file(comfy_server, engine):
    info = comfy_server.get(f"/object_info/{SERVED}")[SERVED]["input"]["required"]["server"]
    assert FILE in json.dumps(info)
    local = comfy_server.get(f"/object_info/{LOCAL}")
    assert FILE not in json.dumps(local)
    assert FILE not in json.dumps(comfy_server.get("/models/seed_llm"))


def test_the_reply_is_written_on_the_node_as_it_comes(comfy_server, graphs, engine):
    """After three tokens the engine waits until the node has shown some."""
    queued, in_time = [], []

    def wait(event):
        in_time.append(event)
        if len(in_time) == 3:
            comfy_server.events.wait_until(queued[0], is_text, 30)
        return event

    def is_text(event):
        return event.type == "progress_text" and event.data["text"][:7] != "Waiting"

    engine.faults.mangle = wait
    with engine.computing:  # until the prompt has its id
        queued.append(comfy_server.queue(served(graphs["ask"])))
    run = finished(comfy_server.wait(queued[0]))
    assert engine.served == 1
    (answer,) = run.outputs["read"]["text"]
    assert "fox" in answer.lower()
    assert run.texts()[-1] == answer
    states = [e for e in run.events if e.type == "progress_state" and "generate" in e.data["nodes"]]
    assert len({e.data["nodes"]["generate"]["value"] for e in states}) > 2


def test_stop_has_the_request_gone_from_the_engine_within_a_second(comfy_server, graphs, engine):
    """In the middle of a picture, where the engine is silent."""
    engine.faults.silence = 10
    run, gone = stopped_in_a_reply(comfy_server, served(graphs["text_to_image"]), engine)
    assert run.status == "execution_interrupted"
    assert gone < 1.0
    assert engine.aborted == 1


@pytest.mark.serving
def test_stop_frees_the_request_in_vllm_within_a_second(comfy_server, graphs, real_engine):
    graph = graphs["text_to_image"].set("generate", **LONG)
    before = real_engine.served
    run, gone = stopped_in_a_reply(comfy_server, served(graph), real_engine)
    assert run.status == "execution_interrupted"
    assert gone < 1.0
    completed = real_engine.served
    assert completed < before + LONG["variations"]
    finished(comfy_server.run(served(graphs["ask"])))
    assert real_engine.served == completed + 1


@pytest.mark.serving
def test_vllm_killed_in_a_reply_is_one_sentence_and_started_again_it_answers(
    comfy_server, graphs, make_graphs, real_engine
):
    """ComfyUI stays on, and goes on with what needs no server."""

    def message(run):
        assert run.error["node_id"] == "generate"
        assert run.error["exception_type"] == "SEED.GenerationError"
        (line,) = run.error["exception_message"].strip().splitlines()
        return line

    try:
        prompt_id = comfy_server.queue(served(graphs["text_to_image"].set("generate", **LONG)))
        comfy_server.events.wait_until(prompt_id, is_moving, 60)
        real_engine.kill()
        assert "broke before the reply was complete" in message(comfy_server.wait(prompt_id, 30))
        asked = served(make_graphs()["text_to_image"].set("generate", seed=7))
        assert "refuses connections" in message(comfy_server.run(asked))
        here = finished(comfy_server.run(make_graphs()["text_to_image"]))
    finally:
        real_engine.kill()
        real_engine.start()
    there = finished(comfy_server.run(asked))
    assert shown(comfy_server, there) == shown(comfy_server, here)


@pytest.mark.parametrize("fault", ["cut", "busy", "off"])
def test_what_fails_is_one_sentence_on_the_node_and_the_queue_goes_on(
    comfy_server, graphs, engine, fault
):
    graph = served(graphs["text_to_image"].set("generate", seed=len(fault)))
    said = {"cut": "broke before", "busy": "too busy (answer 503)", "off": "refuses connections"}
    file = comfy_server.base_dir / "models" / "seed_llm" / FILE
    good = file.read_text(encoding="utf-8")
    if fault == "cut":
        engine.faults.cut = 5
    elif fault == "busy":
        engine.faults.refusals = [("completions", 503, {}, b"{}")]
    else:
        file.write_text(good.replace(str(engine.port), "1"), encoding="utf-8")
    first, second = comfy_server.queue(graph), comfy_server.queue(graphs["ask"])
    run = comfy_server.wait(first)
    assert run.error["node_id"] == "generate"
    assert run.error["exception_type"] == "SEED.GenerationError"
    message = run.error["exception_message"].strip()
    assert said[fault] in message
    assert "\n" not in message
    finished(comfy_server.wait(second))
    engine.faults.cut = None
    file.write_text(good, encoding="utf-8")
    finished(comfy_server.run(graph))


def test_a_file_that_is_wrong_is_told_of_before_anything_runs(comfy, comfy_server, graphs, engine):
    (comfy_server.base_dir / "models" / "seed_llm" / FILE).write_text("{}", encoding="utf-8")
    with pytest.raises(comfy.RefusedPromptError) as raised:
        comfy_server.queue(served(graphs["ask"]))
    assert "lacks the field address" in raised.value.messages()
    assert engine.paths == []


@pytest.mark.parametrize("name", ANSWERING)
def test_a_template_shows_the_same_with_its_loader_exchanged(comfy_server, any_engine, name):
    """Greedy; the template of the LoRA says what a server has instead."""
    graph = json.loads(json.dumps(TWINS[name]))
    for node in graph.values():
        if node["class_type"] == "SEEDGenerate":
            node["inputs"]["temperature"] = 0.0
        if node["class_type"] == "SEEDDecode":
            node["inputs"]["steps"] = 2
    if "SEEDLoRALoader" in types_of(graph):
        run = comfy_server.run(served(graph))
        assert "adapters" in run.error["exception_message"]
        assert graph[run.error["node_id"]]["class_type"] == "SEEDLoRALoader"
        return
    completed = any_engine.served
    here = shown(comfy_server, finished(comfy_server.run(graph, 300)))
    there = shown(comfy_server, finished(comfy_server.run(served(graph), 300)))
    assert any(text or pictures for text, pictures in here.values())
    assert there == here
    assert any_engine.served > completed
