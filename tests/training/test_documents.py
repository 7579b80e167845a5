"""Documents become exactly the tokens and labels that the reference trains on."""

import gzip
import json
import logging
import pickle
import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from seed_core.errors import OptionError
from seed_core.llm.chat import SeedChat
from seed_core.llm.prompt import LLAMA_2
from seed_core.training.__main__ import main
from seed_core.training.data.documents import DocumentWriter
from seed_core.training.data.examples import IGNORED, Example, collate, cut, with_wrong_codes
from seed_core.training.data.fields import DocumentError
from seed_core.training.data.json_lines import JsonLines
from seed_core.training.data.questions import DRAW
from seed_core.training.data.sources import Documents, Source, SourceFiles
from seed_core.training.streams import Streams, shuffled

FIRST = list(range(32))
SECOND = list(range(100, 132))
NAMED = {"FIRST": FIRST, "SECOND": SECOND}

# The ids of seed-mini's pieces that the examples here are made of, as its tokenizer.model has them.
IDS = {
    **{"<s>": 1, "</s>": 2, "<0x0A>": 13, "▁": 929, ".": 949, "?": 961, ":": 946},
    **{"▁USER": 277, "U": 955, "S": 935, "ER": 269, "A": 942, "SS": 272, "ISTANT": 278},
    **{
        "▁ASSISTANT": 279,
        "▁A": 266,
        "▁small": 332,
        "▁fox": 615,
        "▁on": 302,
        "▁a": 259,
        "▁red": 397,
    },
    **{"▁background": 291, "▁What": 382, "▁is": 262, "▁this": 334, "▁It": 264},
}
FOX = "▁A ▁small ▁fox ."
USER, LATER = "▁USER :", "▁ <0x0A> U S ER :"
ASSISTANT = "<0x0A> A SS ISTANT :"
WHAT, IT_IS = "▁What ▁is ▁this ?", "▁It ▁is ▁a ▁fox ."


@pytest.fixture(scope="module")
def vocab(mini_llm):
    return mini_llm.vocab


@pytest.fixture(scope="module")
def separate(vocab) -> DocumentWriter:
    return DocumentWriter(vocab, "seed-mini")


@pytest.fixture(scope="module")
def joined(vocab) -> DocumentWriter:
    return DocumentWriter(vocab, "seed-mini", "joined")


class Fixed(random.Random):
    """Chance that always comes out the same."""

    def __init__(self, value: float) -> None:
        super().__init__(0)
        self._value = value

    def random(self) -> float:
        return self._value

    def choice(self, options):
        return options[0]


def tokens(line: str) -> list[int]:
    """Return the ids of pieces; FIRST and SECOND are pictures: 1536, 1024 + each code, 1537."""
    token_ids = []
    for piece in line.split():
        codes = NAMED.get(piece)
        token_ids += [1536, *(1024 + code for code in codes), 1537] if codes else [IDS[piece]]
    return token_ids


def example(*stretches: tuple[str, bool]) -> Example:
    """Return what is written as stretches of pieces, each with whether it counts."""
    token_ids, labels = [], []
    for line, counts in stretches:
        written = tokens(line)
        token_ids += written
        labels += written if counts else [IGNORED] * len(written)
    return Example(token_ids, labels)


def turns(*parts):
    roles = ["user", "assistant"] * len(parts)
    return {
        "format": "conversation",
        "turns": [{"role": role, "parts": part} for role, part in zip(roles, parts, strict=False)],
    }


# --- pretraining -------------------------------------------------------------------------------

CAPTION = {"format": "caption", "codes": FIRST, "text": " A small fox.\n"}


def test_a_caption_comes_after_its_picture(separate):
    written = separate.write(CAPTION, Fixed(0.49))
    # "\n" at the end touches no picture, so it stays.
    assert written == example((f"<s> FIRST {FOX} <0x0A> </s>", True))


def test_a_caption_comes_before_its_picture(separate):
    document = {**CAPTION, "text": "A small fox.\n"}
    assert separate.write(document, Fixed(0.5)) == example((f"<s> {FOX} FIRST </s>", True))


def test_the_picture_is_first_half_of_the_time(separate):
    firsts = [separate.write(CAPTION, random.Random(i)).token_ids[1] == 1536 for i in range(400)]
    assert 160 < sum(firsts) < 240


def test_a_picture_alone_and_text_alone_count_as_a_whole(separate):
    picture = separate.write({"format": "picture", "codes": FIRST}, random.Random(0))
    assert picture == example(("<s> FIRST </s>", True))
    text = separate.write({"format": "text", "text": "A small fox."}, random.Random(0))
    assert text == example((f"<s> {FOX} </s>", True))


INTERLEAVED = {"format": "interleaved", "parts": ["A small fox.", FIRST, "What is this?", SECOND]}


def test_interleaved_pieces_keep_their_order(separate):
    written = separate.write(INTERLEAVED, Fixed(0.5), swapped=0.5)
    assert written == example((f"<s> {FOX} FIRST {WHAT} SECOND </s>", True))


def test_interleaved_pictures_change_places_with_what_follows(separate):
    written = separate.write(INTERLEAVED, Fixed(0.49), swapped=0.5)
    # The two texts that meet now have a space between, so that the second begins a word.
    assert written == example((f"<s> {FOX} {WHAT} FIRST SECOND </s>", True))


def test_a_picture_is_swapped_once_and_pictures_not_with_one_another(separate):
    document = {"format": "interleaved", "parts": [FIRST, SECOND, "A", " small", " fox."]}
    written = separate.write(document, Fixed(0.0), swapped=1.0)
    assert written == example(("<s> FIRST ▁A SECOND ▁small ▁fox . </s>", True))


def test_documents_are_swapped_as_often_as_asked(separate):
    plain = separate.write(INTERLEAVED, Fixed(0.0))
    swaps = sum(
        separate.write(INTERLEAVED, random.Random(i), swapped=0.5) != plain for i in range(400)
    )
    assert 160 < swaps < 240


def test_an_interleaved_document_ends_before_a_picture_too_many(separate):
    written = separate.write(INTERLEAVED, Fixed(0.5), most_pictures=1)
    assert written == example((f"<s> {FOX} FIRST {WHAT} </s>", True))


def test_of_a_video_only_the_text_counts(separate):
    document = {"format": "video", "frames": [FIRST, SECOND, FIRST, SECOND], "text": "A small fox."}
    assert separate.write(document, random.Random(0)) == example(
        ("<s> FIRST SECOND FIRST SECOND", False), (f"{FOX} </s>", True)
    )


# --- instruction tuning ------------------------------------------------------------------------


def test_a_conversation_as_the_reference_writes_it(separate):
    document = turns(
        [FIRST, "What is this?"], ["It is a fox"], ["A red fox."], [SECOND], ["A"], ["A."]
    )
    assert separate.write(document, random.Random(0)) == example(
        (f"<s> {USER} FIRST {WHAT} {ASSISTANT}", False),
        (IT_IS, True),  # with a full stop
        (f"{LATER} ▁A ▁red ▁fox . {ASSISTANT}", False),
        ("SECOND", True),
        (f"{LATER} ▁A {ASSISTANT}", False),  # the line break stays, no picture touches it here
        ("▁A . </s>", True),
    )


def test_a_conversation_as_it_is_rendered_when_the_model_is_used(joined):
    document = turns(
        [FIRST, "What is this?"], ["It is a fox"], ["A red fox."], [SECOND], ["A"], ["A."]
    )
    assert joined.write(document, random.Random(0)) == example(
        (f"<s> {USER} FIRST {WHAT} {ASSISTANT}", False),
        ("▁It ▁is ▁a ▁fox", True),  # as it is
        (f"<0x0A> U S ER : ▁A ▁red ▁fox . {ASSISTANT}", False),
        ("SECOND", True),
        (f"{USER} ▁A {ASSISTANT}", False),  # the line break touches a picture
        ("▁A . </s>", True),
    )


@pytest.mark.parametrize("template", ["vicuna", "llama-2"])
def test_joined_questions_are_what_the_model_is_asked(vocab, mini_llm, template):
    template = LLAMA_2 if template == "llama-2" else mini_llm.template
    writer = DocumentWriter(vocab, "seed-mini", "joined", template)
    said = [
        [FIRST, "What is this?"],
        ["It is a fox."],
        ["Draw it."],
        ["Here:", SECOND],
        ["And in red?"],
        [FIRST],
        ["Hi"],
        ["A"],
    ]
    written = writer.write(turns(*said), random.Random(0))
    chat = SeedChat("seed-mini", 512)
    for question, answer in zip(said[::2], said[1::2], strict=True):
        question, answer = (
            tuple(tuple(part) if isinstance(part, list) else part for part in parts)
            for parts in (question, answer)
        )
        chat = chat.ask(question)
        asked = vocab.encode(template.render(chat), before_image=not isinstance(answer[0], str))
        assert written.token_ids[: len(asked)] == asked
        assert written.labels[len(asked) - 1] == IGNORED
        assert written.labels[len(asked)] == written.token_ids[len(asked)]
        chat = chat.answer(answer)
    assert written.labels[-1] == vocab.eos


def test_the_line_break_after_a_question_goes_where_that_ends_with_a_picture(separate, joined):
    document = turns(["What is this?", FIRST], ["It is a fox."])
    expected = example((f"<s> {USER} {WHAT} FIRST ▁ASSISTANT :", False), (f"{IT_IS} </s>", True))
    assert separate.write(document, random.Random(0)) == expected
    assert joined.write(document, random.Random(0)) == expected


def test_a_request_for_a_picture_gets_its_matching_answer(separate):
    prompt, response = DRAW[0]
    document = {"format": "text_to_image", "text": "a small fox.", "codes": FIRST}
    spelled = turns([prompt.format("a small fox")], [response, FIRST])
    assert separate.write(document, Fixed(0.5)) == separate.write(spelled, Fixed(0.5))
    own = separate.write({**document, "response": "It is a fox."}, Fixed(0.5))
    assert own.labels[-41:] == [IGNORED, *tokens(f"{IT_IS} FIRST </s>")]
    bare = separate.write({**document, "response": ""}, Fixed(0.5))
    assert bare.labels[-36:] == [IGNORED, *tokens("FIRST </s>")]


def test_there_are_twenty_requests_and_all_are_made(separate):
    assert len({prompt for prompt, _ in DRAW}) == 20
    for prompt, response in DRAW:
        assert prompt.endswith(("{}.", "{}?"))
        assert response.endswith(".")
    document = {"format": "text_to_image", "text": "a fox", "codes": FIRST}
    made = {tuple(separate.write(document, random.Random(i)).token_ids) for i in range(300)}
    assert len(made) == 20


def test_an_edit(separate):
    document = {"format": "edit", "source": FIRST, "instruction": "What is this?", "target": SECOND}
    asked = (f"<s> {USER} FIRST {WHAT} {ASSISTANT}", False)
    assert separate.write(document, Fixed(0)) == example(asked, ("SECOND </s>", True))
    answered = separate.write({**document, "response": "It is a fox."}, Fixed(0))
    assert answered == example(asked, (f"{IT_IS} SECOND </s>", True))


def test_two_images(separate):
    document = {"format": "two_images", "pictures": [FIRST, SECOND], "question": "What is this?"}
    asked = (f"<s> {USER} FIRST SECOND {WHAT} {ASSISTANT}", False)
    for answer, said in (("It is a fox", IT_IS), (FIRST, "FIRST"), (["A.", FIRST], "▁A . FIRST")):
        written = separate.write({**document, "answer": answer}, Fixed(0))
        assert written == example(asked, (f"{said} </s>", True))


def test_a_story_in_turns_and_in_one_go(separate):
    document = {"format": "story", "pieces": [["A small fox.", FIRST], ["It is a fox.", SECOND]]}
    assert separate.write(document, Fixed(0)) == example(
        (f"<s> {USER} {FOX} {ASSISTANT}", False),
        ("FIRST", True),
        (f"{LATER} {IT_IS} {ASSISTANT}", False),
        ("SECOND </s>", True),
    )
    assert separate.write({**document, "question": "What is this?"}, Fixed(0)) == example(
        (f"<s> {USER} {WHAT} {ASSISTANT}", False),
        (f"{FOX} FIRST {IT_IS} SECOND </s>", True),  # the line break touches a picture and goes
    )


def test_separate_pieces_know_vicuna_alone(vocab):
    with pytest.raises(OptionError, match="llama-2 they have to be joined"):
        DocumentWriter(vocab, "seed-2", template=LLAMA_2)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (["a"], "a document must be a JSON object"),
        ({"format": "poem"}, "format must be one of caption.*got 'poem'"),
        ({"format": ["caption"]}, "format must be one of"),
        ({"text": "A"}, "got None"),
        ({"format": "caption", "text": "A"}, "field codes is missing; got format, text"),
        ({"format": "caption", "codes": FIRST, "text": " "}, "text must be text"),
        ({"format": "text", "text": 3}, "text must be text; got 3"),
        ({"format": "picture", "codes": FIRST[1:]}, "must be 32 codes"),
        ({"format": "picture", "codes": [512, *FIRST[1:]]}, r"integers in 0\.\.511; got 512"),
        ({"format": "picture", "codes": [True, *FIRST[1:]]}, "got True"),
        ({"format": "picture", "codes": FIRST, "family": "seed-2"}, "of seed-2.* reads seed-mini"),
        ({"format": "interleaved", "parts": []}, "parts must be a list with something"),
        ({"format": "interleaved", "parts": ["", " "]}, "parts must have text or a picture"),
        ({"format": "video", "frames": [], "text": "A"}, "frames must be a list"),
        ({"format": "two_images", "pictures": [FIRST], "question": "A"}, "two pictures; got 1"),
        ({"format": "story", "pieces": ["A"]}, "pairs of text and codes"),
        (turns(["A"]), "must end with a turn of the role assistant"),
        ({"format": "conversation", "turns": [{"role": "assistant"}]}, "turn 1 .* the role user"),
        (turns(["A"], [""]), "parts must have text"),
    ],
)  # fmt: skip
def test_documents_that_do_not_fit_are_refused(separate, document, message):
    with pytest.raises(DocumentError, match=message):
        separate.write(document, random.Random(0))


# --- examples ----------------------------------------------------------------------------------


def test_a_cut_never_goes_through_a_picture(separate, vocab):
    whole = separate.write(INTERLEAVED, Fixed(0.9))  # <s> 4 pieces, 34, 4 pieces, 34, </s>
    for length in range(2, len(whole) + 3):
        kept = cut(whole, length, vocab)
        if length < 5 + 34:
            end = min(length, 5)
        elif length < 9 + 34 + 34:
            end = min(length, 9 + 34)
        else:
            end = min(length, 9 + 34 + 34 + 1)
        assert kept == Example(whole.token_ids[:end], whole.labels[:end]), length


def test_an_answer_that_is_cut_off_teaches_nothing(separate, vocab):
    whole = separate.write(turns(["What is this?"], [FIRST]), random.Random(0))
    assert whole.teaches
    assert not cut(whole, 30, vocab).teaches
    assert not Example([1], [1]).teaches


def test_wrong_codes_are_read_while_the_right_ones_are_learned(separate, vocab):
    document = turns([FIRST, "What is this?"], ["It is a fox.", SECOND])
    right = separate.write(document, random.Random(0))
    answer = right.labels.index(1536) + 1
    parts = []
    for i in range(300):
        wrong = with_wrong_codes(right, 0.4, vocab, random.Random(i))
        assert wrong.labels == right.labels
        changed = [
            j
            for j, (a, b) in enumerate(zip(wrong.token_ids, right.token_ids, strict=True))
            if a != b
        ]
        assert all(answer <= j < answer + 32 for j in changed)
        assert all(1024 <= token_id < 1536 for token_id in wrong.token_ids[answer : answer + 32])
        parts.append(len(changed) / 32)
    assert sum(parts) / 300 == pytest.approx(0.2, abs=0.03)
    assert max(parts) > 0.35
    assert with_wrong_codes(right, 0.0, vocab, random.Random(0)) == right


class Most(random.Random):
    """Chance whose even draws come out as high as they can."""

    def uniform(self, low: float, high: float) -> float:
        return high


def test_a_wrong_code_is_another_one(separate, vocab):
    right = separate.write({"format": "picture", "codes": FIRST}, random.Random(0))
    seen = set()
    for i in range(200):
        wrong = with_wrong_codes(right, 1.0, vocab, Most(i)).token_ids[2:34]
        assert all(a != b for a, b in zip(wrong, right.token_ids[2:34], strict=True))
        seen.update(wrong)
    assert seen == set(range(1024, 1536))


def test_a_batch_is_filled_up_at_the_end(separate):
    short = example(("<s> ▁A", False), ("▁fox </s>", True))
    long = example(("<s>", False), ("▁A ▁small ▁fox . </s>", True))
    batch = collate([short, long])
    assert batch["input_ids"].tolist() == [[*short.token_ids, 0, 0], long.token_ids]
    assert batch["labels"].tolist() == [[-100, -100, 615, 2, -100, -100], long.labels]
    assert all(each.dtype == torch.int64 for each in batch.values())


def test_the_loss_is_over_the_tokens_that_count(separate, isolated_random_state):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1538,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    model = LlamaForCausalLM(config).eval()
    one = separate.write(turns(["What is this?"], ["It is a fox."]), random.Random(0))
    other = separate.write({"format": "text", "text": "A"}, random.Random(0))
    batch = collate([one, other])
    with torch.no_grad():
        loss = model(**batch).loss
        scores = model(batch["input_ids"]).logits.log_softmax(-1)
    # "▁It ▁is ▁a ▁fox . </s>" after the question; "▁A </s>" after the begin of the text.
    start = len(one) - 6
    counted = [
        -scores[0, start + i - 1, token_id] for i, token_id in enumerate(tokens(f"{IT_IS} </s>"))
    ]
    counted += [-scores[1, i, token_id] for i, token_id in enumerate(tokens("▁A </s>"))]
    assert float(loss) == pytest.approx(float(torch.stack(counted).mean()), rel=1e-5)


# --- files -------------------------------------------------------------------------------------


@pytest.fixture
def write_lines(tmp_path: Path):
    def write(name: str, *documents: object) -> Path:
        lines = (each if isinstance(each, str) else json.dumps(each) for each in documents)
        path = tmp_path / name
        path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
        return path

    return write


def numbered(*numbers: int) -> list[dict[str, object]]:
    return [{"format": "text", "text": f"fox {number}"} for number in numbers]


@pytest.mark.parametrize("count", [1, 2, 3, 17, 64, 65])
def test_shuffling_gives_each_its_place(count):
    orders = {
        key: [shuffled(position, count, key) for position in range(count)] for key in ("a", "b")
    }
    for order in orders.values():
        assert sorted(order) == list(range(count))
    assert count < 17 or orders["a"] != orders["b"] != list(range(count))


def test_lines_of_several_files_all_come_once_before_any_comes_again(write_lines, tmp_path):
    write_lines("a.jsonl", *numbered(0, 1, 2))
    write_lines("b.jsonl", *numbered(3, 4))
    write_lines("empty.jsonl")
    lines = JsonLines(tmp_path / "*.jsonl")
    assert len(lines) == 5
    orders = [
        [lines.document(5 * turn + i, Streams(0))["text"] for i in range(5)] for turn in range(4)
    ]
    assert {tuple(sorted(order)) for order in orders} == {tuple(f"fox {i}" for i in range(5))}
    assert len(set(map(tuple, orders))) > 1
    again = JsonLines(tmp_path / "*.jsonl")
    assert again.document(7, Streams(0)) == lines.document(7, Streams(0))


def test_lines_of_mixed_kinds_and_odd_characters_are_read_as_they_are(write_lines, tmp_path):
    odd = {"format": "text", "text": "a\u2028b\u0085c \U0001f98a"}
    path = write_lines(
        "mixed.jsonl", json.dumps(odd, ensure_ascii=False), INTERLEAVED, turns(["A"], [FIRST])
    )
    lines = JsonLines(path)
    found = [lines.document(i, Streams(0)) for i in range(3)]
    assert sorted(map(str, found)) == sorted(map(str, [odd, INTERLEAVED, turns(["A"], [FIRST])]))


def test_a_bad_line_is_named(write_lines, tmp_path, separate):
    path = write_lines("bad.jsonl", *numbered(0), '{"format": "text", ', "[1]", {"format": "poem"})
    source = SourceFiles(str(path)).open()
    samples, messages = Documents([source], separate), []
    for i in range(4):
        try:
            samples.sample(i, Streams(0))
        except DocumentError as error:
            messages.append(str(error))
    assert len(messages) == 3
    for line, text in (
        (2, "this line is not valid JSON"),
        (3, "this line must hold a JSON object; got a list"),
        (4, "got 'poem'"),
    ):
        (message,) = [each for each in messages if f"{path}, line {line}: " in each]
        assert text in message


def test_files_that_cannot_be_read_are_refused(write_lines, tmp_path):
    with pytest.raises(OptionError, match=r"none\.jsonl is missing"):
        JsonLines(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_bytes(b"\n \n")
    with pytest.raises(OptionError, match=r"empty\.jsonl is missing or empty"):
        JsonLines(tmp_path / "empty.jsonl")
    with pytest.raises(OptionError, match=r"is a folder; give its files, such as .*\*\.jsonl"):
        JsonLines(tmp_path)


LINE = b'{"format": "text", "text": "a fox"}'


@pytest.mark.parametrize(
    "content",
    [
        LINE + b"\n" + LINE,
        LINE + b"\n\n\n" + LINE + b"\n\n \t\n\r\n",
        b"\n\n" + LINE + b"\r\n" + LINE + b"\r\n",
        b"\xef\xbb\xbf" + LINE + b"\n" + LINE + b"\n",
        b"\xef\xbb\xbf\n" + LINE + b"\n" + LINE + b"\n\n",
        LINE
        + b"\n"
        + LINE.replace(b"}", b', "more": [1, {"a": NaN}], "x": "' + b"y" * 10**6 + b'"}'),
    ],
    ids=["no newline", "blank lines", "of Windows", "a mark", "a mark alone", "a long line"],
)
def test_blank_lines_and_marks_do_not_count(tmp_path, separate, content):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    samples = Documents([SourceFiles(str(path)).open()], separate)
    samples.check(Streams(0))
    assert len(JsonLines(path)) == 2
    assert {tuple(samples.sample(i, Streams(0)).token_ids) for i in range(6)} == {
        tuple(tokens("<s> ▁a ▁fox </s>"))
    }


def test_a_bad_line_is_found_before_a_run_begins(tmp_path, separate):
    good = b"\n".join([LINE] * 500)
    for bad, message in {
        b"{": "this line is not valid JSON",
        b"7": "must hold a JSON object; got a int",
        b"[]": "must hold a JSON object; got a list",
        b"null": "must hold a JSON object",
        LINE[:-4]: "this line is not valid JSON",
        b"\0" * 100: "this line is not valid JSON",
        b'{"format": "text", "text": "fr\xfch"}': "'utf-8' codec can't decode",
        b'{"format": "text", "text": "a", "text": "b"}': "'text' occurs twice",
        b'{"format": "text", "text": NaN}': "text must be text; got nan",
        b'{"format": "text"}': "the field text is missing; got format",
        b'{"conversations": [{"from": "human", "value": "A"}]}': "got None in a document with conversations",
        b'{"format": "picture", "codes": [1, 2]}': "must be 32 codes",
        b'{"format": "text", "text": "\\ud83d"}': "",
        b"[" * 100_000: "this line",
        b"1" * 5000: "this line",
    }.items():
        path = tmp_path / "a.jsonl"
        path.write_bytes(good + b"\n\n" + bad + b"\n" + good)
        samples = Documents([SourceFiles(str(path)).open()], separate)
        with pytest.raises(DocumentError) as caught:
            samples.check(Streams(0))
        assert f"{path}, line 502: " in str(caught.value)
        assert message in str(caught.value)
    path.write_bytes(b"\n".join([b"7", *[LINE] * 3, b"8", b"9", b"10"]))
    with pytest.raises(DocumentError) as caught:
        Documents([SourceFiles(str(path)).open()], separate).check(Streams(0))
    assert [f"line {i}: " in str(caught.value) for i in (1, 5, 6, 7)] == [True] * 3 + [False]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(LINE), "is compressed; unpack it with gzip"),
        (LINE.decode().encode("utf-16"), "is text in UTF-16; save it as UTF-8"),
        (b"PAR1....", "is a Parquet file"),
        (b"[\n" + LINE + b"]", "is one JSON list"),
        (b"<!DOCTYPE html>", "is a web page"),
        (b"{" + b" " * 2**26, "has a line of more than 67,108,864 bytes"),
    ],
    ids=["gzip", "utf-16", "parquet", "a list", "html", "one line"],
)
def test_files_of_another_kind_are_refused_by_name(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(OptionError, match=message):
        JsonLines(tmp_path / "a.jsonl")


def test_names_with_brackets_are_names_and_folders_in_a_pattern_are_named(tmp_path, caplog):
    (tmp_path / "a[1].jsonl").write_bytes(LINE)
    assert len(JsonLines(tmp_path / "a[1].jsonl")) == 1
    (tmp_path / "b.jsonl").mkdir()
    (tmp_path / "c.jsonl").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert len(JsonLines(tmp_path / "*.jsonl")) == 1
    assert f"passed over: {tmp_path / 'b.jsonl'}, which is not a file" in caplog.text
    assert f"passed over: {tmp_path / 'c.jsonl'}, which is empty" in caplog.text


def test_codes_that_are_not_all_there_are_noticed(tmp_path, caplog):
    (tmp_path / "encoding.json").write_text('{"shards": 3}', "utf-8")
    for i in range(3):
        with caplog.at_level(logging.WARNING):
            (tmp_path / f"{i:06d}.jsonl").write_bytes(LINE)
            JsonLines(tmp_path / "*.jsonl")
        assert (f"{tmp_path} has {i + 1} of the 3 shards" in caplog.text) == (i < 2)
        caplog.clear()
    (tmp_path / "encoding.json").write_text("[", "utf-8")
    JsonLines(tmp_path / "*.jsonl")


def test_documents_that_teach_nothing_are_counted_before_a_run_begins(
    write_lines, tmp_path, separate, caplog
):
    long = turns(["What is this? " * 20], ["A."])
    path = write_lines("a.jsonl", *[long] * 4, turns(["A"], ["A."]))
    with caplog.at_level(logging.WARNING):
        Documents([SourceFiles(str(path), max_length=40).open()], separate).check(Streams(0))
    assert f"nothing to learn in 40 tokens: 4 ({path}, line 1, " in caplog.text
    write_lines("a.jsonl", *[long] * 19, turns(["A"], ["A."]))
    source = SourceFiles(str(path), max_length=40).open()
    with pytest.raises(OptionError, match=r"nothing .* tokens: 19 .*set a larger max_length"):
        Documents([source], separate).check(Streams(0))
    Documents([source, Source(Listed(turns(["A"], ["A."])))], separate).check(Streams(0))


def test_processes_share_the_check(write_lines, separate, monkeypatch):
    source = SourceFiles(str(write_lines("a.jsonl", *numbered(*range(10)), {}))).open()
    refused = []
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        try:
            Documents([source], separate).check(Streams(0))
        except DocumentError as error:
            refused.append((rank, "line 11" in str(error)))
    assert refused == [(1, True)]


@pytest.mark.parametrize("stage", ["llm", "tune"])
def test_every_stage_checks_its_documents_before_it_begins(stage, tmp_path, capsys):
    """A line that no step of the run would come to."""
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([LINE] * 500) + b"\n\n{}\n\n")
    recipe = {
        "data": {"files": [{"files": str(tmp_path / "a.jsonl")}]},
        "schedule": {"steps": 1, "batch_size": 1, "learning_rate": 1e-4},
        "start": {"llm": ["seed-mini"], "tune": "seed-mini"}[stage],
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe), "utf-8")
    assert main([stage, str(tmp_path / "recipe.yaml"), "-o", str(tmp_path / "run")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"error: {tmp_path / 'a.jsonl'}, line 502: the format must be one of" in line
    assert not (tmp_path / "run").exists()


class Listed:
    """A source without a file behind it."""

    def __init__(self, *documents):
        self._documents = documents

    def document(self, number, streams):
        return self._documents[number % len(self._documents)]


def test_an_example_is_known_by_its_number(separate, write_lines, tmp_path):
    path = write_lines("a.jsonl", *numbered(*range(50)), CAPTION, INTERLEAVED)
    files = SourceFiles(str(path), swapped=0.5).open()
    drawn = Source(Listed({"format": "text_to_image", "text": "a fox", "codes": FIRST}))

    def make() -> Documents:
        return Documents([files, drawn], separate, wrong_codes=0.3)

    forwards = [make().sample(number, Streams(0)) for number in range(40)]
    samples = pickle.loads(pickle.dumps(make()))  # as a process that makes samples gets it
    backwards = [samples.sample(number, Streams(0)) for number in reversed(range(40))]
    assert forwards == backwards[::-1]
    assert forwards != [make().sample(number, Streams(1)) for number in range(40)]


def test_sources_are_mixed_by_weight_and_cut_to_their_own_length(separate):
    long = {"format": "text", "text": "A fox. " * 50}
    samples = Documents(
        [Source(Listed(long), 3.0, max_length=20), Source(Listed(long), 1.0, max_length=30)],
        separate,
    )
    lengths = Counter(len(samples.sample(number, Streams(0))) for number in range(1000))
    assert set(lengths) == {20, 30}
    assert 700 < lengths[20] < 800


def test_what_has_nothing_left_to_learn_is_passed_over_and_reported(separate, caplog):
    long = turns(["What is this? " * 20], ["A."])
    source = Source(Listed(long, turns(["A"], ["A."])), max_length=40)
    samples = Documents([source], separate)
    with caplog.at_level(logging.WARNING):
        assert {len(samples.sample(number, Streams(0))) for number in range(20)} == {
            len(samples.sample(1, Streams(0)))
        }
    (record,) = caplog.records
    assert "document 0 has nothing left to learn within a max_length of 40" in record.message
    with pytest.raises(DocumentError, match="set a larger max_length"):
        Documents([Source(Listed(long), max_length=40)], separate).sample(0, Streams(0))


def test_sources_that_make_no_sense_are_refused(separate):
    with pytest.raises(OptionError, match="needs documents to learn from"):
        Documents([], separate)
    for options in ({"weight": 0.0}, {"max_length": 1}, {"most_pictures": 0}):
        with pytest.raises(OptionError, match="weight over 0"):
            SourceFiles("a.jsonl", **options)
