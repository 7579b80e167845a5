"""The conversation: immutable, ordered, of one family."""

import pytest
import torch

from seed_core.errors import CodesError
from seed_core.llm.chat import SeedChat, Turn

A, B = tuple(range(32)), tuple(range(100, 132))


@pytest.fixture
def chat():
    return SeedChat(family="seed-mini", codebook_size=512)


def test_a_new_conversation_is_empty(chat):
    assert chat.turns == ()
    assert chat.codes.shape == (0, 32)
    assert chat.codes.dtype == torch.int64
    assert chat.to_text() == ""


def test_appending_makes_a_new_one_and_keeps_the_old(chat):
    asked = chat.ask((A, "What?"))
    answered = asked.answer(("A fox.",))
    assert chat.turns == ()
    assert asked.turns == (Turn("user", (A, "What?")),)
    assert answered.turns == (*asked.turns, Turn("assistant", ("A fox.",)))


def test_two_futures_of_one_conversation_do_not_meet(chat):
    asked = chat.ask(("Draw",))
    assert asked.answer((A,)).codes.tolist() == [list(A)]
    assert asked.answer((B,)).codes.tolist() == [list(B)]


def test_conversations_are_frozen(chat):
    with pytest.raises(AttributeError):
        chat.turns = (Turn("user", ("x",)),)
    with pytest.raises(AttributeError):
        chat.ask(("x",)).turns[0].parts = ()


def test_a_list_the_caller_keeps_cannot_change_the_conversation(chat):
    parts = ["x"]
    asked = chat.ask(parts)
    parts.append("y")
    assert asked.turns[0].parts == ("x",)


def test_codes_of_all_turns_in_order(chat):
    talked = chat.ask((A, "and", B)).answer(("here ", B)).ask(("more",))
    assert talked.codes.tolist() == [list(A), list(B), list(B)]


def test_text_shows_roles_and_marks(chat):
    text = chat.ask((A, "What?")).answer(("A fox.",)).to_text()
    assert text == "User: <image>What?\n\nAssistant: A fox."


@pytest.mark.parametrize("picture", [tuple(range(31)), (600, *range(31)), (-1, *range(31))])
def test_a_picture_that_is_none_is_refused(chat, picture):
    with pytest.raises(CodesError):
        chat.ask((picture,))
