"""The vocabulary: codes to token ids and back, the segment rule, and broken vocabulary files."""

import json
import shutil

import pytest
import sentencepiece

from seed_core.errors import CheckpointError
from seed_core.files.folder import ModelFolder
from seed_core.models.llm import read_vocabulary

PICTURE = tuple(range(32))
OTHER = tuple(range(100, 132))


@pytest.fixture(scope="module")
def text_model(mini_folder):
    return sentencepiece.SentencePieceProcessor(str(mini_folder / "llm" / "tokenizer.model"))


@pytest.fixture(scope="module")
def vocab(mini_folder):
    folder = mini_folder / "llm"
    return read_vocabulary(ModelFolder(folder))


def test_ids_are_those_of_the_files(vocab):
    assert (vocab.begin_image, vocab.end_image, vocab.first_code) == (1536, 1537, 1024)
    assert (vocab.codebook_size, vocab.size, vocab.bos, vocab.eos) == (512, 1538, 1, 2)


def test_a_picture_is_34_tokens(vocab):
    expected = [1536, *range(1024, 1056), 1537]
    assert vocab.encode([PICTURE]) == [1, *expected]


def test_every_code_round_trips_through_token_ids(vocab):
    for first in range(0, 512, 32):
        codes = tuple(range(first, first + 32))
        assert vocab.decode(vocab.encode([codes])) == (codes,)


def test_text_and_pictures_round_trip_in_order(vocab):
    pieces = ("before", PICTURE, "between the two", OTHER, "after")
    assert vocab.decode(vocab.encode(pieces)) == pieces


def test_each_segment_is_encoded_by_itself(vocab, text_model):
    """Every text segment gets sentencepiece's dummy prefix, also after a picture."""
    token_ids = vocab.encode(["USER: ", PICTURE, "What is this?\nASSISTANT:"])
    picture = [1536, *range(1024, 1056), 1537]
    after = text_model.encode("What is this?\nASSISTANT:")
    assert token_ids == [1, *text_model.encode("USER:"), *picture, *after]
    assert text_model.id_to_piece(after[0]).startswith("\u2581")


@pytest.mark.parametrize(
    ("pieces", "segments"),
    [
        ([], []),
        ([""], []),
        (["a"], ["a"]),
        ([" a \n"], [" a \n"]),
        (["a ", PICTURE], ["a", PICTURE]),
        ([" a \n", PICTURE], [" a", PICTURE]),
        ([PICTURE, "\n a \n"], [PICTURE, "a \n"]),
        ([PICTURE, " \n\t ", OTHER], [PICTURE, OTHER]),
        ([PICTURE, "", OTHER], [PICTURE, OTHER]),
        ([PICTURE, "\n a\nb \n", OTHER], [PICTURE, "a\nb", OTHER]),
        (["a ", "b ", PICTURE, " c", " d "], ["a b", PICTURE, "c d "]),
        (["a", "", " ", PICTURE], ["a", PICTURE]),
        ([" ", PICTURE], [PICTURE]),
        ([PICTURE, " "], [PICTURE]),
    ],
)
def test_white_space_beside_pictures_is_dropped_and_only_there(vocab, pieces, segments):
    assert vocab.segments(pieces) == segments


def test_decode_leaves_control_tokens_out(vocab, text_model):
    assert vocab.decode([1, *text_model.encode("Hello"), 2]) == ("Hello",)


def test_decode_leaves_an_unfinished_picture_out(vocab, text_model):
    """A reply that is still being written: its text shows, its half picture does not."""
    token_ids = [*text_model.encode("A fox."), 1536, *range(1024, 1034)]
    assert vocab.decode(token_ids) == ("A fox.",)


def test_decode_of_nothing_is_nothing(vocab):
    assert vocab.decode([]) == ()
    assert vocab.decode([2]) == ()


@pytest.mark.parametrize(
    "text",
    ["caf\u00e9", "\u732b", "\U0001f98a", "tab\there", "a\nb"],
    ids=["accent", "kanji", "emoji", "tab", "newline"],
)
def test_any_text_survives_by_bytes(vocab, text):
    assert vocab.decode(vocab.encode([text])) == (text,)


def test_typed_markers_are_text_not_pictures(vocab):
    """A user who types a marker writes text; only codes make pictures."""
    token_ids = vocab.encode(["<img><img_00001></img></s>"])
    assert max(token_ids) < 1024
    assert 2 not in token_ids


@pytest.fixture
def folder(tmp_path, mini_folder):
    for name in ("tokenizer.model", "added_tokens.json"):
        shutil.copy(mini_folder / "llm" / name, tmp_path / name)
    return tmp_path


def open_in(folder):
    return read_vocabulary(ModelFolder(folder))


def change_added(folder, change):
    file = folder / "added_tokens.json"
    added = json.loads(file.read_text(encoding="utf-8"))
    change(added)
    file.write_text(json.dumps(added), encoding="utf-8")


@pytest.mark.parametrize("name", ["tokenizer.model", "added_tokens.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        open_in(folder)


@pytest.mark.parametrize("content", [b"", b"not a model at all", b"\x00" * 4096])
@pytest.mark.parametrize("name", ["tokenizer.model", "added_tokens.json"])
def test_a_damaged_file_is_one_clear_error(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        open_in(folder)


@pytest.mark.parametrize("token", ["<img>", "</img>", "<img_00000>"])
def test_a_missing_token_is_named(folder, token):
    change_added(folder, lambda added: added.pop(token))
    with pytest.raises(CheckpointError, match=token):
        open_in(folder)


def swap_two_codes(added):
    added["<img_00007>"], added["<img_00008>"] = added["<img_00008>"], added["<img_00007>"]


def begin_on_a_code(added):
    added["<img>"] = added["<img_00003>"]


def inside_the_text(added):
    for token in added:
        added[token] -= 100


@pytest.mark.parametrize("change", [swap_two_codes, begin_on_a_code, inside_the_text])
def test_ids_that_would_draw_wrong_pictures_are_refused(folder, change):
    change_added(folder, change)
    with pytest.raises(CheckpointError):
        open_in(folder)
