"""SEEDGenerate: widgets become options, replies become lists and one batch of codes."""

import copy
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch


@pytest.fixture(scope="module")
def drawn(run, mini, pack):
    """Two variations of a drawing."""
    asked = {"prompt": "Draw a red fox on a blue background.", "reply": "image"}
    return run("SEEDGenerate", llm=mini.llm, **asked, variations=2, max_new_tokens=80, seed=5)


def test_the_reply_is_cores(pack, run, mini, fox_codes):
    asked = {"prompt": "What is in this picture?", "codes": fox_codes}
    options = pack.seed_core.GenerationOptions(reply="text", max_new_tokens=40, temperature=0.7)
    wanted = mini.llm.core.generate(
        **asked, options=options, generator=torch.Generator().manual_seed(3)
    )
    widgets = {"reply": "text", "max_new_tokens": 40, "temperature": 0.7, "seed": 3}
    text, codes, chat = run("SEEDGenerate", llm=mini.llm, **asked, **widgets)
    assert text == [wanted.text]
    assert "fox" in text[0].lower()
    assert len(codes) == 0
    assert chat == [wanted.chat]


def test_variations_make_lists_and_one_batch(pack, drawn):
    text, codes, chat = drawn
    assert len(text) == len(chat) == 2
    assert all("<image>" in t for t in text)
    assert isinstance(codes, pack.seed_core.SeedCodes)
    assert codes.family == "seed-mini"
    assert len(codes) == sum(t.count("<image>") for t in text)


def test_variation_i_uses_seed_plus_i(run, mini, drawn):
    asked = {"prompt": "Draw a red fox on a blue background.", "reply": "image"}
    text, codes, _ = run("SEEDGenerate", llm=mini.llm, **asked, max_new_tokens=80, seed=6)
    assert text[0] == drawn[0][1]
    assert torch.equal(codes.values, drawn[1].values[-len(codes) :])


def test_the_largest_seed_has_variations_too(run, mini):
    asked = {"prompt": "What is this?", "reply": "text", "max_new_tokens": 4}
    text, _, _ = run("SEEDGenerate", llm=mini.llm, **asked, variations=2, seed=2**64 - 1)
    assert len(text) == 2


def test_a_conversation_goes_on(run, mini, drawn):
    _, _, (chat, _) = drawn
    asked = {"prompt": "What is in the picture?", "reply": "text", "max_new_tokens": 30}
    _, _, (longer,) = run("SEEDGenerate", llm=mini.llm, chat=chat, **asked)
    assert len(longer.turns) == len(chat.turns) + 2
    assert longer.turns[: len(chat.turns)] == chat.turns


REFERENCE = {
    "VICUNA": "USER: {0}Make it blue.\nASSISTANT: {1}\nUSER: And {2} too?\nASSISTANT: {3}\n"
    "USER: Thanks!\nASSISTANT:",
    "LLAMA_2": "[INST] {0}Make it blue. [/INST]\n{1}\n[INST] And {2} too? [/INST]\n{3}\n"
    "[INST] Thanks! [/INST]\n",
}


@pytest.mark.parametrize("template", REFERENCE)
def test_past_pictures_go_back_to_the_model_as_codes(pack, run, mini, fox_codes, template):
    """Five turns with four pictures, two given and two drawn: the reference's prompt, code by code."""
    core = copy.copy(mini.llm.core)
    core.template = getattr(pack.seed_core.llm.prompt, template)
    llm = SimpleNamespace(core=core, ready=lambda memory_required: core)
    other = pack.seed_core.SeedCodes((fox_codes.values + 7) % 512, "seed-mini", 512)
    draw = {"reply": "image", "max_new_tokens": 34}
    _, drawn, (chat,) = run(
        "SEEDGenerate", llm=llm, prompt="Make it blue.", codes=fox_codes, **draw
    )
    asked = {"prompt": "And <image> too?", "codes": other, "chat": chat}
    _, redrawn, (chat,) = run("SEEDGenerate", llm=llm, **asked, **draw, seed=1)

    fed = []
    reader = core.module.model.embed_tokens
    hook = reader.register_forward_pre_hook(lambda module, given: fed.append(given[0]))
    try:
        asked = {"prompt": "Thanks!", "chat": chat, "reply": "text", "max_new_tokens": 2}
        _, codes, (chat,) = run("SEEDGenerate", llm=llm, **asked)
    finally:
        hook.remove()

    pictures = torch.cat([c.values for c in (fox_codes, drawn, other, redrawn)]).tolist()
    pieces = [tuple(pictures[int(p)]) if p.isdigit() else p for p in split(REFERENCE[template])]
    assert fed[0].tolist() == [core.vocab.encode(pieces)]
    assert chat.codes.tolist() == pictures
    assert len(chat.turns) == 6
    assert len(codes) == 0


def split(prompt):
    """Text and the numbers of pictures in turn."""
    return re.split(r"\{(\d)\}", prompt)


def test_an_empty_prompt_is_refused(pack, run, mini):
    with pytest.raises(pack.seed_core.PromptError, match="empty"):
        run("SEEDGenerate", llm=mini.llm, prompt=" \n")


def test_marks_without_pictures_are_refused(pack, run, mini):
    with pytest.raises(pack.seed_core.PromptError, match="<image>"):
        run("SEEDGenerate", llm=mini.llm, prompt="What is <image>?")


def test_codes_of_another_family_are_refused_by_both_names(pack, run, mini):
    codes = pack.seed_core.SeedCodes(torch.zeros(1, 32, dtype=torch.int64), "seed-2", 8192)
    with pytest.raises(pack.seed_core.CodesError, match=r"seed-mini.*seed-2"):
        run("SEEDGenerate", llm=mini.llm, prompt="What is this?", codes=codes)


def test_a_conversation_of_another_family_is_refused_by_both_names(pack, run, mini):
    chat = pack.seed_core.SeedChat("seed-2", 8192)
    with pytest.raises(pack.seed_core.CodesError, match=r"seed-2.*seed-mini"):
        run("SEEDGenerate", llm=mini.llm, prompt="What is this?", chat=chat)


def test_refusals_come_before_the_weights_are_moved(pack, run, mini, management, monkeypatch):
    def load(models, memory_required=0):
        raise AssertionError("asked for memory")

    monkeypatch.setattr(management, "load_models_gpu", load)
    with pytest.raises(pack.seed_core.PromptError):
        run("SEEDGenerate", llm=mini.llm, prompt="")


def test_live_text_is_sent_a_few_times_a_second_to_the_node(pack, monkeypatch):
    """The frontend drops frames under a text a token; the last one must come through."""
    sent = []

    class Server:
        client_id = "me"

        def send_progress_text(self, text, node_id, sid):
            sent.append((text, node_id, sid))

    clock = iter([10.0, 10.1, 10.2, 10.3, 10.31])
    context = type("Context", (), {"node_id": "7"})
    monkeypatch.setattr(pack.host.progress.PromptServer, "instance", Server(), raising=False)
    monkeypatch.setattr(pack.host.progress, "get_executing_context", lambda: context)
    monkeypatch.setattr(pack.host.progress.time, "monotonic", lambda: next(clock))
    progress = pack.host.Progress(4)
    for word in "abcd":
        progress.show(lambda word=word: word)
    progress.show(lambda: "all", is_final=True)
    assert sent == [("a", "7", "me"), ("d", "7", "me"), ("all", "7", "me")]


def test_what_can_be_known_of_a_prompt_is_told_before_anything_runs(pack):
    node = pack.nodes_by_id["SEEDGenerate"]
    assert "the prompt is empty" in node.validate_inputs(prompt=" \n")
    assert "<image>" in node.validate_inputs(prompt="What is <image>?")
    assert node.validate_inputs(prompt="What is this?") is True
    for connected in ("", "What is <image>?"):
        assert node.validate_inputs(prompt=connected, codes=None) is True
    assert node.validate_inputs() is True  # the prompt comes by wire


def test_a_drawing_is_told_in_words_on_the_node(run_node, mini, drawn):
    asked = {"prompt": "Draw a red fox on a blue background.", "reply": "image"}
    output = run_node(
        "SEEDGenerate", llm=mini.llm, **asked, variations=2, max_new_tokens=80, seed=5
    )
    first, second, how = output.ui["text"]
    assert first.startswith("1: ")
    assert "[picture 1]" in first
    assert second.startswith("2: ")
    assert "[picture 2]" in second
    assert "SEED Decode" in how
    assert output.args[0] == drawn[0]  # on the wire they stay marks


def test_a_reply_in_words_is_all_that_the_node_says(run_node, mini, fox_codes):
    asked = {"prompt": "What is in this picture?", "codes": fox_codes, "reply": "text"}
    output = run_node("SEEDGenerate", llm=mini.llm, **asked, max_new_tokens=40)
    assert output.ui["text"] == output.args[0]


def test_words_are_a_file_too_for_the_app_view(pack, run_node, mini):
    """It shows files alone."""
    output = run_node(
        "SEEDGenerate", llm=mini.llm, prompt="Hello", reply="text", variations=2, max_new_tokens=8
    )
    (file,) = output.ui["files"]
    assert file["type"] == "temp"
    path = Path(pack.folder_paths.get_temp_directory(), file["subfolder"], file["filename"])
    assert path.suffix == ".txt"
    assert path.read_text(encoding="utf-8") == "\n\n".join(output.ui["text"])
