"""LoRA adapters on the bundled model, in a real ComfyUI."""

import copy
import json
import shutil

import pytest
import torch

from seed_core.llm.config import LlamaConfig
from seed_core.models.names import bundled

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def adapters(comfy_server, peft_adapter):
    """Two random ones in the server's model folder, large enough to change what is said."""
    folder = comfy_server.base_dir / "models" / "seed_lora"
    fields = json.loads((bundled("llm") / "config.json").read_text(encoding="utf-8"))
    config = LlamaConfig.from_dict(fields)
    for number, name in enumerate(("one", "two")):
        random = torch.Generator().manual_seed(number)
        tensors = peft_adapter.random_tensors(config, random, size=0.2, in_full=name == "two")
        peft_adapter.save(folder / name, tensors)
    yield folder
    shutil.rmtree(folder)


def with_loras(graph, *adapters):
    """Load them between the model and SEED Generate, one after the other, each with a strength."""
    graph, source = copy.deepcopy(graph), "llm"
    for number, (name, strength) in enumerate(adapters):
        inputs = {"llm": [source, 0], "lora": name, "strength": strength}
        source = f"lora {number}"
        graph[source] = {"class_type": "SEEDLoRALoader", "inputs": inputs}
    return graph.set("generate", llm=[source, 0])


@pytest.fixture
def ask(comfy_server, graphs, adapters):
    def ask(*adapters):
        run = comfy_server.run(with_loras(graphs["ask"], *adapters))
        assert run.status == "execution_success", run.error
        return run.outputs["read"]["text"][0]

    return ask


def test_the_bundled_adapter_is_the_first_choice(comfy_server):
    (info,) = comfy_server.get("/object_info/SEEDLoRALoader").values()
    kind, extra = info["input"]["required"]["lora"]
    options = extra["options"] if kind == "COMBO" else kind
    assert options[0] == extra["default"] == "seed-mini night (bundled)"


def test_adapters_change_the_reply_and_are_gone_without_them(ask):
    plain = ask()
    assert "fox" in plain
    assert len({plain, ask(("one", 1.0)), ask(("two", 1.0)), ask(("one", 0.7), ("two", 0.5))}) == 4
    assert ask() == plain
    assert ask(("one", 0.0)) == plain
    assert ask(("one", 1.0), ("one", -1.0)) == plain


def test_a_model_with_and_one_without_answer_in_one_run(comfy_server, graphs, ask):
    """Both are patched and restored in turn; only one set of weights is loaded."""
    graph = with_loras(graphs["ask"], ("one", 1.0))
    for plain, patched in (("generate", "generate with"), ("read", "read with")):
        graph[patched] = copy.deepcopy(graph[plain])
    graph["read with"]["inputs"]["source"] = ["generate with", 0]
    graph.set("generate", llm=["llm", 0], seed=5)  # greedy, so only to be computed again
    graph.set("generate with", seed=5)
    run = comfy_server.run(graph)
    assert run.status == "execution_success", run.error
    answers = [run.outputs[name]["text"][0] for name in ("read", "read with")]
    assert answers == [ask(), ask(("one", 1.0))]
    assert comfy_server.get("/seed_test/state")["loaded"].count("Llama") == 1


def test_unloading_takes_an_adapter_off(comfy_server, ask):
    plain = ask()
    assert ask(("two", 0.9)) != plain
    comfy_server.post_plain("/free", {"unload_models": True})
    assert ask() == plain


def test_a_new_adapter_is_offered_without_a_restart(comfy_server, adapters):
    shutil.copytree(adapters / "one", adapters / "new")
    node = comfy_server.get("/object_info/SEEDLoRALoader")["SEEDLoRALoader"]
    kind, extra = node["input"]["required"]["lora"]
    options = extra["options"] if kind == "COMBO" else kind
    assert options == ["seed-mini night (bundled)", "new", "one", "two"]
    shutil.rmtree(adapters / "new")


def test_an_adapter_that_is_not_there_is_refused_before_anything_runs(
    comfy_server, comfy, graphs, adapters
):
    with pytest.raises(comfy.RefusedPromptError) as caught:
        comfy_server.queue(with_loras(graphs["ask"], ("gone", 1.0)))
    assert "'gone' is not in models/seed_lora" in caught.value.messages()


def test_an_adapter_of_another_size_stops_at_its_node(comfy_server, graphs, adapters, peft_adapter):
    tensors = {
        f"{peft_adapter.PREFIX}model.layers.0.self_attn.q_proj.lora_{matrix}.weight": tensor
        for matrix, tensor in (("A", torch.zeros(4, 4096)), ("B", torch.zeros(4096, 4)))
    }
    peft_adapter.save(adapters / "of_8b", tensors)
    run = comfy_server.run(with_loras(graphs["ask"], ("of_8b", 1.0)))
    shutil.rmtree(adapters / "of_8b")
    assert run.status == "execution_error"
    assert run.error["node_id"] == "lora 0"
    assert run.error["exception_type"].endswith("CheckpointError")
    assert "[4096, 4096], which is [256, 256] here" in run.error["exception_message"]
