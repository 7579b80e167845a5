"""What nodes say in a run: live, and kept with it in the host's history."""

import pytest

pytestmark = pytest.mark.host


@pytest.fixture(params=["auto", "text"])
def question(request, graphs):
    """A graph that also paints, where the reply is only text."""
    graph = graphs["edit"].set("generate", prompt="What is in this picture?", reply=request.param)
    graph.set("generate", seed=len(request.param))  # nothing is in the host's cache
    graph["keep"] = {
        "class_type": "SaveImage",
        "inputs": {"images": ["decode", 0], "filename_prefix": "painted"},
    }
    return graph


def test_a_reply_without_a_picture_turns_nothing_red(comfy_server, question):
    for _ in range(2):  # the second time from the host's cache
        run = comfy_server.run(question)
        assert run.status == "execution_success"
        (said,) = run.outputs["decode"]["text"]
        assert "These codes hold no picture" in said
    assert "fox" in run.outputs["generate"]["text"][0]
    assert "show" not in run.outputs
    assert "keep" not in run.outputs
    assert not list((comfy_server.base_dir / "output").glob("painted*"))


def test_words_are_kept_with_the_run_even_when_the_host_has_them_in_its_cache(comfy_server, graphs):
    graph = graphs["edit"].set("generate", variations=2, seed=77)
    graph["view"] = {"class_type": "SEEDChatView", "inputs": {"chat": ["generate", 2]}}
    said = []
    for _ in range(2):
        run = comfy_server.run(graph)
        said.append([run.outputs[node]["text"] for node in ("encode", "generate", "view")])
    assert said[0] == said[1]
    encode, generate, view = said[0]
    assert encode[0].startswith("One picture of the kind that seed-mini knows")
    assert [text[:3] for text in generate[:2]] == ["1: ", "2: "]
    assert "[picture 2]" in generate[1]
    assert len(view) == 2  # a conversation for each variation
    assert all(text.startswith("User: [picture 1]") for text in view)


def test_a_question_alone_is_answered(comfy_server, graphs):
    """Two nodes: a newcomer's first graph."""
    graph = graphs["text_to_image"]
    for name in ("tokenizer", "decoder", "decode", "show"):
        del graph[name]
    graph.set("generate", prompt="Hello!", reply="text")
    run = comfy_server.run(graph)
    assert run.status == "execution_success"
    assert run.outputs["generate"]["text"][0]


def test_a_list_of_codes_is_shown_and_told_of_in_order(comfy_server, graphs):
    """The host runs a node for each, and joins what the runs show by the names of the first."""
    graph = graphs["reconstruct"]
    for name in ("decoder", "decode", "show"):
        del graph[name]
    many = {"image": ["picture", 0], "amount": 66}
    graph["many"] = {"class_type": "RepeatImageBatch", "inputs": many}
    graph["list"] = {
        "class_type": "RebatchImages",
        "inputs": {"images": ["many", 0], "batch_size": 65},
    }
    run = comfy_server.run(graph.set("encode", image=["list", 0]))
    assert run.status == "execution_success", run.error
    assert [text.partition(" of ")[0] for text in run.outputs["encode"]["text"]] == [
        "65 pictures",
        "One picture",
    ]
    assert len(run.outputs["codes"]["images"]) == 64 + 1
    assert run.outputs["codes"]["text"] == ["65 pictures; the first 64 are shown"]
