"""Hosts that keep fewer results than usual: the same pictures, and every model is let go."""

import io
import time

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.host


def pictures(server, run, node):
    shown = run.outputs[node]["images"]
    return [np.asarray(Image.open(io.BytesIO(server.picture(i))).convert("RGB")) for i in shown]


def finished(run):
    assert run.status == "execution_success", run.error.get("exception_message")
    return run


@pytest.fixture
def conversation(graphs):
    """Three replies, two replies to each of them, all shown and painted."""
    graph = graphs["edit"].set("generate", variations=3, temperature=1.0, top_p=0.9)
    again = dict(graph["generate"]["inputs"], chat=["generate", 2], variations=2, seed=20)
    del again["codes"]
    again["prompt"] = "Make the background red."
    graph["again"] = {"class_type": "SEEDGenerate", "inputs": again}
    graph.set("decode", codes=["again", 1]).set("read", source=["again", 0])
    graph["view"] = {"class_type": "SEEDChatView", "inputs": {"chat": ["again", 2]}}
    graph["written"] = {"class_type": "SEEDCodesToText", "inputs": {"codes": ["again", 1]}}
    graph["seen"] = {"class_type": "SEEDCodesToText", "inputs": {"codes": ["view", 1]}}
    for name in ("written", "seen"):
        show = {"class_type": "PreviewAny", "inputs": {"source": [name, 0]}}
        graph[f"read {name}"] = show
    return graph


def test_replies_to_replies_arrive_in_order(comfy_server, conversation):
    """Reply 2i + j is the j-th to the i-th, in words, in codes and in the conversations shown."""
    run = finished(comfy_server.run(conversation))
    texts = run.outputs["read"]["text"]
    views = run.outputs["view"]["text"]
    assert len(texts) == len(views) == len(pictures(comfy_server, run, "show")) == 6
    written = "\n".join(run.outputs["read written"]["text"]).splitlines()
    seen = [text.splitlines() for text in run.outputs["read seen"]["text"]]
    assert [codes[-1] for codes in seen] == written  # the last picture of each conversation
    firsts = [codes[-2] for codes in seen]  # the picture it replies to
    assert firsts[0::2] == firsts[1::2]
    assert len(set(firsts)) == 3
    assert len(set(written)) > 3

    one = conversation.set("generate", variations=1, seed=3)  # the third of the three: 1 + 2
    last = finished(comfy_server.run(one)).outputs
    assert last["read written"]["text"][0].splitlines() == written[4:]


@pytest.mark.parametrize("flags", [("--cache-none",), ("--cache-lru", "1")], ids=" ".join)
def test_a_host_that_keeps_little_paints_the_same_and_keeps_no_model(
    flags, comfy, comfy_server, conversation, tmp_path
):
    usual = pictures(comfy_server, finished(comfy_server.run(conversation)), "show")
    args = (*comfy.ON_THE_PROCESSOR, *flags)
    server = comfy.ComfyServer(comfy.find_checkout(), tmp_path, comfy_server.packs, args)
    try:
        server.start()
        for _ in range(2):  # the second finds what the first left
            run = finished(server.run(conversation))
            assert all(map(np.array_equal, pictures(server, run, "show"), usual))
        small = {"text": {"class_type": "PrimitiveString", "inputs": {"value": "something else"}}}
        small["read"] = {"class_type": "PreviewAny", "inputs": {"source": ["text", 0]}}
        finished(server.run(small))
        deadline = time.monotonic() + 20
        while alive := server.get("/seed_test/state")["alive"]:
            assert time.monotonic() < deadline, alive
            time.sleep(0.2)
    finally:
        server.stop()
