"""What arrives from a server is checked token by token."""

import pytest

from seed_core.errors import GenerationError
from seed_core.llm.sampling import ImageTokens
from seed_core.serving.rows import Row

TOKENS = ImageTokens(begin=50, end=51, first_code=40, codebook_size=10, per_image=32)
PICTURE = [50, *[40, 45, 49, 43] * 8, 51]
EOS, OTHER_END = 2, 1


@pytest.fixture
def row():
    return make_row()


def make_row(length=100):
    return Row("the server", TOKENS, 52, EOS, frozenset({EOS, OTHER_END}), length, 7)


def take(row, token_ids):
    for token_id in token_ids:
        row.take(token_id)
    return row.token_ids


def test_words_and_whole_pictures_are_kept_as_they_come(row):
    token_ids = [5, *PICTURE, *PICTURE, 6, EOS]
    assert take(row, token_ids) == token_ids
    assert row.is_finished


@pytest.mark.parametrize("end", [EOS, OTHER_END])
def test_what_comes_after_the_end_is_not_part_of_the_reply(row, end):
    assert take(row, [5, end, 6, 99]) == [5, end]


@pytest.mark.parametrize("token_id", [52, -1, 10**30, 1.5, "7", None, True])
def test_what_is_not_in_the_vocabulary_is_another_models(row, token_id):
    with pytest.raises(GenerationError, match=r"another model"):
        take(row, [5, token_id])


@pytest.mark.parametrize(
    "token_ids",
    [
        [40],  # a code outside a picture
        [5, 51],  # the end of none
        PICTURE[:10] + [5],  # words inside
        [*PICTURE[:-1], 40],  # a 33rd code
        [*PICTURE[:-2], 51],  # only 31
        PICTURE[:3] + [50],  # one inside another
        PICTURE[:3] + [EOS],
    ],
)
def test_a_picture_that_is_not_whole_tells_of_a_server_without_grammar(row, token_ids):
    with pytest.raises(
        GenerationError, match=r"^the server does not keep to the grammar.*xgrammar$"
    ):
        take(row, token_ids)


def test_where_no_picture_was_allowed_one_tells_of_a_server_without_grammar(row):
    row.go_on(has_pictures=False)
    with pytest.raises(GenerationError, match="grammar"):
        row.take(50)


@pytest.mark.parametrize(("length", "fits"), [(36, True), (35, False)])
def test_a_picture_is_begun_only_where_it_fits(length, fits):
    row = make_row(length)
    token_ids = [5, 6, *PICTURE]
    assert take(row, token_ids) == (token_ids if fits else [5, 6])
    assert row.lacks_room is not fits
    assert not row.is_waiting or fits


def test_a_reply_that_lacked_room_goes_on_in_words():
    row = make_row(35)
    take(row, [5, 6, 50, 40, 40])
    row.go_on(has_pictures=False)
    assert take(row, [7, EOS]) == [5, 6, 7, EOS]


def test_more_tokens_than_were_asked_for_are_refused():
    with pytest.raises(GenerationError, match="more than the 3 tokens"):
        take(make_row(3), [5, 6, 7, 8])


@pytest.mark.parametrize(("stopped_by", "end"), [(OTHER_END, OTHER_END), (None, EOS), (9, EOS)])
def test_an_end_token_that_an_engine_leaves_out_is_there(row, stopped_by, end):
    take(row, [5])
    row.finish("stop", stopped_by)
    assert row.token_ids == [5, end]
    assert row.is_finished


def test_an_end_token_that_came_is_there_once(row):
    take(row, [5, EOS])
    row.finish("stop", None)
    assert row.token_ids == [5, EOS]


def test_a_reply_that_runs_out_of_tokens_has_no_end_token(row):
    take(row, [5])
    row.finish("length", None)
    assert row.token_ids == [5]
    assert row.is_finished


@pytest.mark.parametrize(
    ("token_ids", "reason", "said"),
    [
        ([5], "abort", "broke the reply off: 'abort'"),
        ([5], 7, "broke the reply off: 7"),
        (PICTURE[:9], "length", "in the middle of a picture"),
        (PICTURE[:9], "stop", "in the middle of a picture"),
        ([], "length", "empty reply"),
    ],
)
def test_an_end_that_leaves_something_unfinished_is_one_sentence(row, token_ids, reason, said):
    take(row, token_ids)
    with pytest.raises(GenerationError, match=said):
        row.finish(reason, None)
