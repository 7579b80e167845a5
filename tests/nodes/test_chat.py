"""SEEDChatView: a conversation in words, its pictures as codes, and both in the node."""

from types import SimpleNamespace

import pytest
import torch


@pytest.fixture
def view(pack):
    def execute(**inputs):
        with torch.inference_mode():
            return pack.nodes_by_id["SEEDChatView"].execute(**inputs)

    return execute


@pytest.fixture
def empty(pack):
    return pack.seed_core.SeedChat("seed-mini", 512)


@pytest.fixture
def chat(empty, fox_codes):
    fox = tuple(fox_codes.values[0].tolist())
    other = tuple((code + 7) % 512 for code in fox)
    return empty.ask((fox, "Make it blue.")).answer(("Here: ", other)).ask(("Thanks",))


@pytest.fixture
def models(mini):
    return {"tokenizer": mini.tokenizer, "decoder": mini.decoder}


def test_words_and_pictures_come_out_in_order(pack, view, chat):
    text, codes = view(chat=chat).args
    assert text == "User: <image>Make it blue.\n\nAssistant: Here: <image>\n\nUser: Thanks"
    assert isinstance(codes, pack.seed_core.SeedCodes)
    assert (codes.family, codes.codebook_size) == ("seed-mini", 512)
    assert torch.equal(codes.values, chat.codes)


def test_it_shows_the_words_without_a_save_node(pack, view, chat):
    output = view(chat=chat)
    said = "User: [picture 1]Make it blue.\n\nAssistant: Here: [picture 2]\n\nUser: Thanks"
    assert output.ui["text"] == [said]
    assert output.ui["images"] == []
    assert pack.nodes_by_id["SEEDChatView"].GET_SCHEMA().is_output_node


def test_with_both_models_it_shows_the_pictures_too(view, chat, models):
    output = view(chat=chat, **models)
    assert len(output.ui["images"]) == 2
    assert len(output.args) == 2


def test_an_empty_conversation_is_no_mistake(view, empty, models):
    for wired in ({}, models):
        output = view(chat=empty, **wired)
        assert output.args[0] == ""
        assert output.args[1].values.shape == (0, 32)
        assert output.ui["images"] == []


def test_every_conversation_shows_the_same_kinds_of_things(view, chat, empty, models):
    """Over a list of conversations the host joins what the first one shows, by name."""
    kinds = [view(chat=c, **wired).ui.keys() for c in (chat, empty) for wired in ({}, models)]
    assert all(k == kinds[0] for k in kinds)


@pytest.mark.parametrize("missing", ["tokenizer", "decoder"])
def test_one_model_without_the_other_is_refused(pack, view, chat, models, missing):
    models.pop(missing)
    with pytest.raises(pack.seed_core.OptionError, match=f"the {missing} is missing"):
        view(chat=chat, **models)


def test_models_of_another_family_are_refused_by_both_names(pack, view, models):
    chat = pack.seed_core.SeedChat("seed-2", 8192).ask((tuple(range(32)),))
    with pytest.raises(pack.seed_core.CodesError, match=r"seed-mini.*seed-2"):
        view(chat=chat, **models)


def test_what_is_sent_while_it_runs_is_no_markup(pack, view, empty, monkeypatch):
    """Sent as it is, the frontend took a word in angle brackets for a tag and showed nothing."""
    sent = []
    server = SimpleNamespace(client_id="me", send_progress_text=lambda *given: sent.append(given))
    monkeypatch.setattr(pack.host.progress.PromptServer, "instance", server, raising=False)
    monkeypatch.setattr(
        pack.host.progress, "get_executing_context", lambda: SimpleNamespace(node_id="7")
    )
    view(chat=empty.ask(("a <b> c",)))
    assert sent == [("User: a &lt;b&gt; c", "7", "me")]


@pytest.mark.parametrize("given", ["tokenizer", "decoder"])
def test_one_model_without_the_other_is_told_before_anything_runs(pack, view, chat, models, given):
    node = pack.nodes_by_id["SEEDChatView"]
    missing = {"tokenizer": "decoder", "decoder": "tokenizer"}[given]
    assert f"the {missing} is missing" in node.validate_inputs(**{given: None})
    assert node.validate_inputs(tokenizer=None, decoder=None) is True
    assert node.validate_inputs() is True
    with pytest.raises(pack.seed_core.SeedError, match=f"the {missing} is missing"):
        view(chat=chat, **{given: models[given]})
