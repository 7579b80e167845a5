"""SeedLLM on the bundled model: replies, conversations, progress, refusals."""

import logging
import re
import shutil

import pytest
import torch

import seed_core
from seed_core import GenerationOptions, SeedChat, SeedCodes
from seed_core.errors import CodesError, GenerationError, PromptError
from seed_core.llm.runtime import SeedLLM

GREEDY = GenerationOptions(temperature=0, max_new_tokens=80)
PICTURE = GenerationOptions(reply="image", temperature=0, max_new_tokens=40)


def test_it_describes_a_picture(mini_llm, sample_codes):
    """The bundled samples: a fox on yellow and a cat on orange."""
    for row, thing in ((0, "fox"), (1, "cat")):
        reply = mini_llm.generate("What is this?", sample_codes[row : row + 1], options=GREEDY)
        assert reply.text == f"It is a {thing}."
        assert reply.codes.shape == (0, 32)
        assert reply.is_complete


def test_it_draws_a_picture(mini_llm):
    reply = mini_llm.generate("a panda on blue", options=GREEDY)
    assert reply.text == "<image>"
    assert reply.codes.shape == (1, 32)
    assert reply.codes.dtype == torch.int64
    assert reply.is_complete
    assert len(reply.token_ids) == 35  # the picture's 34 and the end token


def test_what_it_draws_it_recognises(mini_llm):
    drawn = mini_llm.generate("a panda on blue", options=GREEDY)
    asked = mini_llm.generate("What color is the background?", drawn.codes, options=GREEDY)
    assert asked.text == "The background is blue."


def test_a_conversation_goes_on(mini_llm):
    drawn = mini_llm.generate("Draw a fox on a red background", options=GREEDY)
    changed = mini_llm.generate("Make the background blue", chat=drawn.chat, options=GREEDY)
    asked = mini_llm.generate("What color is the background?", chat=changed.chat, options=GREEDY)
    assert asked.text == "The background is blue."
    roles = [turn.role for turn in asked.chat.turns]
    assert roles == ["user", "assistant"] * 3
    assert asked.chat.codes.tolist() == [*drawn.codes.tolist(), *changed.codes.tolist()]
    assert len(drawn.chat.turns) == 2  # an earlier conversation is never changed


def test_pictures_in_the_prompt_are_kept_in_the_conversation(mini_llm, sample_codes):
    reply = mini_llm.generate("<image> or <image>?", sample_codes[:2], options=GREEDY)
    first = tuple(sample_codes[0].tolist())
    second = tuple(sample_codes[1].tolist())
    assert reply.chat.turns[0].parts == (first, " or ", second, "?")


def scripted(mini_llm, monkeypatch, parts):
    """The bundled model made to answer with given parts, by replacing what its decode loop returns."""
    from seed_core.llm import runtime as llm_module

    token_ids = [*mini_llm.vocab.encode(parts)[1:], mini_llm.vocab.eos]
    monkeypatch.setattr(llm_module, "generate_tokens", lambda *arguments, **named: [token_ids])
    return mini_llm.generate("go", options=GREEDY)


def test_text_before_between_and_after_pictures_survives(mini_llm, monkeypatch):
    first, second = tuple(range(32)), tuple(range(100, 132))
    reply = scripted(mini_llm, monkeypatch, ["One:", first, "two:", second, "done."])
    assert reply.text == "One:<image>two:<image>done."
    assert reply.codes.tolist() == [list(first), list(second)]
    assert reply.chat.turns[-1].parts == ("One:", first, "two:", second, "done.")


def test_a_reply_of_nothing_is_an_empty_reply(mini_llm, monkeypatch):
    reply = scripted(mini_llm, monkeypatch, [])
    assert reply.text == ""
    assert reply.codes.shape == (0, 32)
    again = mini_llm.generate
    monkeypatch.undo()
    assert again("Hello", chat=reply.chat, options=GREEDY).is_complete


def test_the_same_generator_gives_the_same_reply(mini_llm, make_generator):
    options = GenerationOptions(reply="image", temperature=3.0, top_p=1.0, max_new_tokens=40)
    first, again, other = (
        mini_llm.generate("a fox", options=options, generator=make_generator(seed))
        for seed in (1, 1, 2)
    )
    assert first.token_ids == again.token_ids
    assert first.token_ids != other.token_ids


def test_variation_i_is_the_reply_of_its_generator_alone(mini_llm, make_generator):
    options = GenerationOptions(reply="image", temperature=3.0, top_p=1.0, max_new_tokens=40)
    alone = [
        mini_llm.generate("a fox", options=options, generator=make_generator(seed)).token_ids
        for seed in (3, 4, 5)
    ]
    batch = mini_llm.generate_batch(
        "a fox", options=options, generators=seed_core.seeded_generators(3, 3)
    )
    assert [reply.token_ids for reply in batch] == alone
    assert len(set(alone)) == 3


def test_every_picture_is_whole_at_any_temperature(mini_llm):
    """100 % valid blocks is the grammar's promise, not the model's."""
    options = GenerationOptions(
        reply="image", temperature=100.0, top_p=1.0, top_k=0, max_new_tokens=75
    )
    for reply in mini_llm.generate_batch(
        "a fox", options=options, generators=seed_core.seeded_generators(0, 8)
    ):
        assert len(reply.codes) >= 1
        assert reply.text.count("<image>") == len(reply.codes)
        assert reply.codes.min() >= 0
        assert reply.codes.max() < 512


def test_running_out_of_tokens_is_told(mini_llm):
    options = GenerationOptions(temperature=0, max_new_tokens=3)
    assert not mini_llm.generate("What can you do?", options=options).is_complete


def test_codes_without_a_picture_are_no_pictures(mini_llm):
    empty = SeedCodes.empty("seed-mini", 512)
    with_empty = mini_llm.generate("Hello", empty, options=GREEDY)
    assert with_empty.token_ids == mini_llm.generate("Hello", options=GREEDY).token_ids


def test_seed_codes_and_their_values_are_the_same(mini_llm, sample_codes):
    codes = SeedCodes(sample_codes[:1], "seed-mini", 512)
    first = mini_llm.generate("What is this?", codes, options=GREEDY)
    assert first.text == mini_llm.generate("What is this?", sample_codes[:1], options=GREEDY).text


# --- progress ---


def test_progress_counts_tokens_and_shows_the_text_so_far(mini_llm):
    seen = []

    def on_token(progress):
        seen.append((progress.done, progress.total, progress.text()))

    reply = mini_llm.generate("What can you do?", options=GREEDY, on_token=on_token)
    assert [done for done, _, _ in seen] == list(range(1, len(reply.token_ids) + 1))
    assert {total for _, total, _ in seen} == {80}
    texts = [text for _, _, text in seen]
    assert texts[-1] == reply.text
    assert all(later.startswith(earlier) for earlier, later in zip(texts, texts[1:], strict=False))
    assert len(set(texts)) > 5


def test_a_picture_shows_in_the_text_once_it_is_whole(mini_llm):
    texts = []
    mini_llm.generate(
        "a fox", options=PICTURE, on_token=lambda progress: texts.append(progress.text())
    )
    assert texts[:33] == [""] * 33
    assert texts[33] == "<image>"


class Interrupted(BaseException):
    """The host's interruption is no Exception in every version."""


def test_an_interruption_passes_through_and_the_model_goes_on_working(mini_llm):
    interruption, seen = Interrupted(), []

    def on_token(progress):
        seen.append(progress.done)
        if progress.done == 4:
            raise interruption

    with pytest.raises(Interrupted) as caught:
        mini_llm.generate("a panda on blue", options=GREEDY, on_token=on_token)
    assert caught.value is interruption
    assert seen == [1, 2, 3, 4]
    assert mini_llm.generate("a panda on blue", options=GREEDY).text == "<image>"


# --- refusals ---


@pytest.mark.parametrize("prompt", ["", " \n"])
def test_an_empty_prompt_is_refused(mini_llm, prompt):
    with pytest.raises(PromptError, match="empty"):
        mini_llm.generate(prompt)


def test_marks_without_pictures_are_refused(mini_llm):
    with pytest.raises(PromptError, match="<image>"):
        mini_llm.generate("What is <image>?")


def test_codes_of_another_family_are_refused_with_both_names(mini_llm):
    codes = SeedCodes(torch.zeros(1, 32, dtype=torch.int64), "seed-2", 8192)
    with pytest.raises(CodesError, match="seed-mini.*seed-2"):
        mini_llm.generate("What is this?", codes)


def test_codes_out_of_range_are_refused(mini_llm):
    with pytest.raises(CodesError, match=r"0\.\.511; got 512"):
        mini_llm.generate("What is this?", torch.full((1, 32), 512))


def test_31_codes_are_refused(mini_llm):
    with pytest.raises(CodesError, match="exactly 32"):
        mini_llm.generate("What is this?", torch.zeros(1, 31, dtype=torch.int64))


def test_a_conversation_of_another_family_is_refused_with_both_names(mini_llm):
    chat = SeedChat(family="seed-2", codebook_size=8192)
    with pytest.raises(CodesError, match="seed-2.*seed-mini"):
        mini_llm.generate("Hello", chat=chat)


def test_a_conversation_that_waits_for_an_answer_is_refused(mini_llm):
    chat = SeedChat(family="seed-mini", codebook_size=512).ask(("Hello",))
    with pytest.raises(PromptError, match="no answer"):
        mini_llm.generate("Hello?", chat=chat)


def test_a_prompt_of_4096_tokens_is_one_clear_error(mini_llm):
    with pytest.raises(GenerationError, match="512"):
        mini_llm.generate("fox " * 4096)


def test_too_many_pictures_are_one_clear_error(mini_llm):
    with pytest.raises(GenerationError, match="512"):
        mini_llm.generate("What?", torch.zeros(20, 32, dtype=torch.int64))


def test_a_forced_picture_that_cannot_fit_is_refused(mini_llm):
    with pytest.raises(GenerationError, match="34"):
        mini_llm.generate("a fox", options=GenerationOptions(reply="image", max_new_tokens=33))


def test_refusals_come_before_the_first_token(mini_llm):
    """count_tokens finds every mistake at no cost."""
    with pytest.raises(PromptError):
        mini_llm.count_tokens("")
    with pytest.raises(CodesError):
        mini_llm.count_tokens("x", torch.full((1, 32), 512))


# --- estimates ---


def test_tokens_are_counted_up_to_the_context(mini_llm):
    prompt = len(mini_llm.vocab.encode(["USER: Hello\nASSISTANT:"]))
    short = mini_llm.count_tokens("Hello", options=GenerationOptions(max_new_tokens=10))
    assert short == prompt + 10
    assert mini_llm.count_tokens("Hello", options=GenerationOptions(max_new_tokens=9999)) == 512


def test_the_memory_estimate_covers_the_cache_and_grows(mini_llm):
    one, four = mini_llm.memory_required(400, 1), mini_llm.memory_required(400, 4)
    cache = 2 * 4 * 400 * 256 * 4  # keys and values, layers, tokens, width, bytes
    assert one >= cache
    assert four >= 4 * cache
    assert four > one


def test_a_plan_says_what_the_generation_takes_and_its_answer_is_that_of_generate(
    mini_llm, sample_codes
):
    options = GenerationOptions(reply="image", temperature=3.0, top_p=1.0, max_new_tokens=40)
    asked = ("What is this?", sample_codes[:1], None, options)
    plan = mini_llm.plan(*asked, seed_core.seeded_generators(3, 2))
    assert plan.tokens == mini_llm.count_tokens(*asked)
    assert plan.memory_required == mini_llm.memory_required(plan.tokens, 2)
    answers = mini_llm.answer(plan)
    wanted = mini_llm.generate_batch(*asked, seed_core.seeded_generators(3, 2))
    assert [reply.token_ids for reply in answers] == [reply.token_ids for reply in wanted]


# --- loading ---


def test_a_folder_and_one_of_its_files_load_alike(tmp_path, mini_folder, mini_llm):
    folder = shutil.copytree(mini_folder / "llm", tmp_path / "llm")
    expected = mini_llm.generate("Hello", options=GREEDY).token_ids
    for path in (folder, folder / "model.safetensors", str(folder)):
        assert seed_core.load_llm(path).generate("Hello", options=GREEDY).token_ids == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loads_and_answers(dtype, sample_codes):
    llm = seed_core.load_llm("seed-mini", dtype=dtype)
    assert {value.dtype for value in llm.module.parameters()} == {dtype}
    reply = llm.generate("What is this?", sample_codes[:1], options=GREEDY)
    assert reply.text == "It is a fox."


def test_loading_and_answering_leave_global_state_alone():
    """The conftest's watch compares before and after every test; this one gives it a load to see."""
    seed_core.load_llm("seed-mini", dtype=torch.bfloat16).generate("Hello", options=GREEDY)


def test_a_loaded_model_needs_no_gradients(mini_llm):
    assert isinstance(mini_llm, SeedLLM)
    assert not any(value.requires_grad for value in mini_llm.module.parameters())
    assert not mini_llm.module.training


LOG_LINE = re.compile(
    r"SEED-LLaMA: (\d+) tokens in [\d.]+ s \([\d.]+ tokens/s\), pictures: (\d+), device: cpu, "
    r"precision: (\w+)"
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_generation_is_one_line_of_the_log(caplog, dtype):
    llm = seed_core.load_llm("seed-mini", dtype=dtype)
    generators = [torch.Generator().manual_seed(number) for number in (0, 1)]
    with caplog.at_level(logging.INFO):
        drawn = llm.generate_batch("a panda on blue", options=PICTURE, generators=generators)
        llm.generate("What is this?", drawn[0].codes, options=GREEDY)
    drawing, answering = map(LOG_LINE.fullmatch, caplog.messages)
    tokens = sum(len(reply.token_ids) for reply in drawn)
    precision = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
    assert drawing.groups() == (str(tokens), "2", precision)
    assert answering.groups()[1:] == ("0", precision)


def test_a_generation_that_was_stopped_says_nothing(mini_llm, caplog):
    def stop(progress):
        raise KeyboardInterrupt

    with caplog.at_level(logging.INFO), pytest.raises(KeyboardInterrupt):
        mini_llm.generate("a panda on blue", options=PICTURE, on_token=stop)
    assert caplog.messages == []
