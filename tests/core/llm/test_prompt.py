"""Prompts: marks in, pictures at their places, replies out."""

import pytest
import torch

from seed_core.errors import PromptError
from seed_core.llm.chat import IMAGE_MARK, SeedChat
from seed_core.llm.prompt import LLAMA_2, VICUNA, join_parts, pieces_to_string, split_marks

A, B, C = (tuple(range(first, first + 32)) for first in (0, 100, 200))
TOKENS_A = "<img>" + "".join(f"<img_{code:05d}>" for code in A) + "</img>"


def codes(*pictures):
    return torch.tensor(pictures, dtype=torch.int64).reshape(-1, 32)


@pytest.mark.parametrize(
    ("text", "pictures", "parts"),
    [
        ("hello", [], ("hello",)),
        ("<image>what?", [A], (A, "what?")),
        ("what is <image>?", [A], ("what is ", A, "?")),
        ("<image> and <image>", [A, B], (A, " and ", B)),
        ("<image><image>", [A, B], (A, B)),
        ("what?", [A], (A, "what?")),
        ("what?", [A, B], (A, B, "what?")),
        ("now <image>!", [A, B, C], (A, B, "now ", C, "!")),
        ("", [A], (A,)),
        ("<image>", [A], (A,)),
    ],
)
def test_pictures_take_their_marks_and_the_others_go_first(text, pictures, parts):
    assert split_marks(text, codes(*pictures)) == parts


@pytest.mark.parametrize(
    ("text", "pictures", "marks"), [("<image>", [], 1), ("<image> or <image>?", [A], 2)]
)
def test_marks_without_pictures_are_refused_with_both_numbers(text, pictures, marks):
    with pytest.raises(PromptError, match=f"{marks} <image> mark.*{len(pictures)} picture"):
        split_marks(text, codes(*pictures))


@pytest.mark.parametrize("text", ["", "  ", "\n\t"])
def test_an_empty_prompt_is_refused(text):
    with pytest.raises(PromptError, match="empty"):
        split_marks(text, codes())


def test_text_before_between_and_after_pictures_survives():
    parts = ("before ", A, " between ", B, " after")
    text, values = join_parts(parts)
    assert text == "before <image> between <image> after"
    assert values.tolist() == [list(A), list(B)]
    assert split_marks(text, values) == parts


def test_a_reply_without_pictures_has_empty_codes():
    text, values = join_parts(("only words",))
    assert text == "only words"
    assert values.shape == (0, 32)
    assert values.dtype == torch.int64


def test_the_mark_is_the_reference_one():
    assert IMAGE_MARK == "<image>"


def chat(*turns):
    conversation = SeedChat(family="seed-2", codebook_size=8192)
    for i, parts in enumerate(turns):
        conversation = conversation.answer(parts) if i % 2 else conversation.ask(parts)
    return conversation


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (VICUNA, f"USER: {TOKENS_A}What?\nASSISTANT: A fox.\nUSER: Sure?\nASSISTANT:"),
        (LLAMA_2, f"[INST] {TOKENS_A}What? [/INST]\nA fox.\n[INST] Sure? [/INST]\n"),
    ],
    ids=["8B", "14B"],
)
def test_a_conversation_in_each_template(template, expected):
    pieces = template.render(chat((A, "What?"), ("A fox.",), ("Sure?",)))
    assert pieces_to_string(pieces) == expected


def test_a_system_text_comes_first_and_only_where_there_is_one():
    asked = chat(("Hi",))
    assert pieces_to_string(VICUNA.render(asked, "Be kind.")) == "Be kind.\nUSER: Hi\nASSISTANT:"
    llama = pieces_to_string(LLAMA_2.render(asked, "Be kind."))
    assert llama == "<<SYS>>\nBe kind.\n<</SYS>>\n\n[INST] Hi [/INST]\n"
