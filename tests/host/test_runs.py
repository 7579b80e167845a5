"""Whole graphs in a real ComfyUI, over its API."""

import io
import json
import re
import shutil
import time

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.host


def pictures(server, run, node):
    """The pictures a node showed, float [H, W, 3] in 0..255."""
    shown = run.outputs[node]["images"]
    return [
        np.asarray(Image.open(io.BytesIO(server.picture(i))).convert("RGB"), dtype=float)
        for i in shown
    ]


def finished(run):
    assert run.status == "execution_success", run.error.get("exception_message")
    return run


def test_reconstruct_paints_what_was_encoded(comfy_server, graphs):
    graph = graphs["reconstruct"].set("decode", steps=12)
    run = finished(comfy_server.run(graph))
    (painted,) = pictures(comfy_server, run, "show")
    assert painted.shape == (128, 128, 3)
    # The sample is a fox on yellow: the corners say whether the background survived.
    red, green, blue = painted[[4, 4, -5, -5], [4, -5, 4, -5]].mean(0)
    assert red > 180
    assert green > 160
    assert blue < green - 40
    assert run.outputs["codes"]["images"], "the preview of the codes shows nothing"


def test_ask_answers_and_writes_on_the_node_meanwhile(comfy_server, graphs):
    run = finished(comfy_server.run(graphs["ask"]))
    (answer,) = run.outputs["read"]["text"]
    assert "fox" in answer.lower()
    assert run.texts()[-1] == answer
    states = [e for e in run.events if e.type == "progress_state" and "generate" in e.data["nodes"]]
    assert states, "the node sent no progress"


def test_text_to_image_draws_one_picture_a_variation(comfy_server, graphs):
    graph = graphs["text_to_image"].set("generate", variations=2, temperature=1.0)
    run = finished(comfy_server.run(graph))
    assert len(pictures(comfy_server, run, "show")) == 2


def test_edit_gives_a_new_picture_and_a_mark_for_it(comfy_server, graphs):
    run = finished(comfy_server.run(graphs["edit"]))
    assert "<image>" in run.outputs["read"]["text"][0]
    assert len(pictures(comfy_server, run, "show")) == 1


def test_a_second_run_is_served_from_the_cache(comfy_server, graphs):
    first = finished(comfy_server.run(graphs["ask"]))
    second = finished(comfy_server.run(graphs["ask"]))
    assert second.executed == []
    assert second.cached >= set(graphs["ask"])
    assert second.outputs == first.outputs


def test_the_same_seed_paints_the_same_picture_alone_or_in_a_batch(comfy_server, graphs):
    """Row 1 of a batch with seed 40 is the picture that seed 41 paints alone."""
    batch = graphs["reconstruct"]
    batch["second"] = {"class_type": "SEEDSamplePicture", "inputs": {"picture": "owl_on_red"}}
    joined = {"image1": ["picture", 0], "image2": ["second", 0]}
    batch["both"] = {"class_type": "ImageBatch", "inputs": joined}
    batch.set("encode", image=["both", 0]).set("decode", seed=40)
    _, in_batch = pictures(comfy_server, finished(comfy_server.run(batch)), "show")

    alone = batch.set("encode", image=["second", 0]).set("decode", seed=41)
    (by_itself,) = pictures(comfy_server, finished(comfy_server.run(alone)), "show")
    assert (in_batch == by_itself).all()

    (other_seed,) = pictures(
        comfy_server, finished(comfy_server.run(alone.set("decode", seed=42))), "show"
    )
    assert (other_seed != by_itself).any()


def test_the_embedding_feeds_the_hosts_unclip_node(comfy_server, graphs):
    """A list of two: the host's node runs once for each picture."""
    graph = graphs["reconstruct"]
    for name in ("decoder", "decode", "show"):
        del graph[name]
    graph["pair"] = {
        "class_type": "RepeatImageBatch",
        "inputs": {"image": ["picture", 0], "amount": 2},
    }
    graph.set("encode", image=["pair", 0])
    graph["embed"] = {
        "class_type": "SEEDCodesToEmbedding",
        "inputs": {"tokenizer": ["tokenizer", 0], "codes": ["encode", 0]},
    }
    graph["see"] = {"class_type": "PreviewAny", "inputs": {"source": ["embed", 0]}}
    run = finished(comfy_server.run(graph))
    assert len(run.outputs["see"]["text"]) == 2


@pytest.fixture(scope="module")
def indifferent_llm(comfy_server, mini_folder):
    """A language model to which all tokens are alike, so that its replies go on and on."""
    folder = comfy_server.base_dir / "models" / "seed_llm" / "indifferent"
    shutil.copytree(mini_folder / "llm", folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"].zero_()
    save_file(tensors, folder / "model.safetensors")
    yield folder.name
    shutil.rmtree(folder)


@pytest.mark.parametrize("part", ["generate", "decode"])
def test_stop_interrupts_within_a_second(comfy_server, graphs, indifferent_llm, part):
    """From the request to the host's word that the prompt has stopped, on a busy CPU."""
    graph = graphs["text_to_image"]
    if part == "generate":
        graph.set("llm", model=indifferent_llm)
        graph.set("generate", reply="text", max_new_tokens=1500, variations=64)
        graph.set("generate", temperature=2.0, top_p=1.0, top_k=0)
    else:
        finished(comfy_server.run(graph))  # generates the codes
        graph.set("decode", steps=1000, seed=99)
    prompt_id = comfy_server.queue(graph)
    wait_until_busy(comfy_server, prompt_id, part)
    pressed = time.monotonic()
    comfy_server.post_plain("/interrupt")
    run = comfy_server.wait(prompt_id, 30)
    stopped = run.events[-1]
    print(f"{part} stopped after {stopped.time - pressed:.2f} s")
    assert stopped.type == "execution_interrupted"
    assert stopped.data["node_id"] == part
    assert stopped.time - pressed < 1.0
    finished(comfy_server.run(graphs["ask"]))  # and the server goes on


def wait_until_busy(server, prompt_id, node):
    """Until the node has reported progress a few times."""

    def is_moving(event):
        return (
            event.type == "progress_state" and event.data["nodes"].get(node, {}).get("value", 0) > 3
        )

    server.events.wait_until(prompt_id, is_moving, 60)


def test_unload_frees_the_weights(comfy_server, graphs):
    """First the host's memory management lets go, then dropping the cache ends the models."""
    finished(comfy_server.run(graphs["text_to_image"].set("generate", seed=7)))
    state = comfy_server.get("/seed_test/state")
    assert set(state["loaded"]) >= {"PictureEncoder", "CodeEmbedder", "Llama", "UnclipModel"}
    comfy_server.post_plain("/free", {"unload_models": True})
    settled(comfy_server, lambda state: not state["loaded"])
    comfy_server.post_plain("/free", {"unload_models": True, "free_memory": True})
    settled(comfy_server, lambda state: not state["alive"])
    finished(comfy_server.run(graphs["text_to_image"]))


def settled(server, is_done):
    """The host frees between prompts; a tiny one makes it look at its flags."""
    deadline = time.monotonic() + 20
    while not is_done(state := server.get("/seed_test/state")):
        assert time.monotonic() < deadline, json.dumps(state)[-500:]
        time.sleep(0.2)


def test_two_loaders_of_one_file_share_the_model(comfy_server, graphs):
    graph = graphs["reconstruct"]
    inputs = dict(graph["tokenizer"]["inputs"], precision="fp32")
    graph["again"] = {"class_type": "SEEDTokenizerLoader", "inputs": inputs}
    graph.set("decode", tokenizer=["again", 0])
    finished(comfy_server.run(graph))
    assert comfy_server.get("/seed_test/state")["alive"].count("SeedTokenizer") == 1


def test_codes_are_saved_and_loaded_again(comfy_server, graphs):
    """Through both folders, and as text: the same codes come back each time."""
    graph = graphs["reconstruct"]
    for name in ("decoder", "decode", "show", "codes"):
        del graph[name]
    graph["save"] = {
        "class_type": "SEEDSaveCodes",
        "inputs": {"codes": ["encode", 0], "filename_prefix": "codes/fox"},
    }
    run = finished(comfy_server.run(written_down(graph, "save")))
    (file,) = run.outputs["save"]["codes"]
    saved = comfy_server.base_dir / "output" / file["subfolder"] / file["filename"]
    name = f"copy of {file['filename']}"
    (comfy_server.base_dir / "input" / name).write_bytes(saved.read_bytes())

    info = comfy_server.get("/object_info/SEEDLoadCodes")["SEEDLoadCodes"]
    offered = json.dumps(info["input"]["required"]["file"])
    assert name in offered
    assert f"{file['subfolder']}/{file['filename']} [output]" in offered
    for choice in (name, f"{file['subfolder']}/{file['filename']} [output]"):
        graph = {"load": {"class_type": "SEEDLoadCodes", "inputs": {"file": choice}}}
        again = finished(comfy_server.run(written_down(graph, "load")))
        assert again.outputs["read"] == run.outputs["read"]


def written_down(graph, node):
    """The graph with the codes of a node as text, and that text read and written once more."""
    return graph | {
        "text": {"class_type": "SEEDCodesToText", "inputs": {"codes": [node, 0]}},
        "parse": {
            "class_type": "SEEDTextToCodes",
            "inputs": {"text": ["text", 0], "family": "seed-mini"},
        },
        "again": {"class_type": "SEEDCodesToText", "inputs": {"codes": ["parse", 0]}},
        "read": {"class_type": "PreviewAny", "inputs": {"source": ["again", 0]}},
    }


def test_codes_are_mixed_joined_and_picked(comfy_server):
    def codes(value):
        inputs = {"text": str([value] * 32), "family": "seed-mini"}
        return {"class_type": "SEEDTextToCodes", "inputs": inputs}

    mix = {"start": 30, "end": 32, "mode": "splice", "amount": 0.5, "seed": 0}
    graph = {
        "a": codes(1),
        "b": codes(2),
        "mix": {
            "class_type": "SEEDMixCodes",
            "inputs": {"codes_a": ["a", 0], "codes_b": ["b", 0]} | mix,
        },
        "join": {
            "class_type": "SEEDBatchCodes",
            "inputs": {"codes_1": ["a", 0], "codes_2": ["mix", 0]},
        },
        "pick": {
            "class_type": "SEEDSelectCodes",
            "inputs": {"codes": ["join", 0], "index": -1, "length": 1},
        },
        "text": {"class_type": "SEEDCodesToText", "inputs": {"codes": ["pick", 0]}},
        "read": {"class_type": "PreviewAny", "inputs": {"source": ["text", 0]}},
    }
    run = finished(comfy_server.run(graph))
    (text,) = run.outputs["read"]["text"]
    assert text == f"<img>{'<img_00001>' * 30}{'<img_00002>' * 2}</img>"


def test_each_generation_is_one_line_of_the_log_and_nothing_else_of_ours_is(comfy_server, graphs):
    before = len(comfy_server.log())
    finished(comfy_server.run(graphs["edit"].set("generate", seed=77)))
    plain = re.sub(r"\x1b\[\d*m", "", comfy_server.log()[before:])  # newer hosts write in colours
    lines = [line.removeprefix("[INFO] ") for line in plain.splitlines()]
    told = [line for line in lines if line.startswith("SEED-LLaMA: ")]
    assert len(told) == 1, lines
    assert re.search(r"\d tokens in .* pictures: 1, device: cpu, precision: fp32$", told[0])
    hosts = ("got prompt", "Requested to load", "Model", "loaded completely", "Prompt executed")
    others = [line for line in lines if line and line not in told and not line.startswith(hosts)]
    assert others == []
