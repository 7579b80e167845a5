"""The grammar that engines are sent allows what the local one allows, token by token."""

import pytest
import torch

from seed_core.llm.sampling import ImageTokens, PictureGrammar
from seed_core.serving.grammar import picture_grammar

SIZE, EOS = 60, 2
TOKENS = ImageTokens(begin=50, end=51, first_code=40, codebook_size=10, per_image=32)
PICTURE = [50, *[40, 45, 49, 43] * 8, 51]


def allowed_here(token_ids, has_pictures):
    """What the local grammar allows after each of some tokens, when there is room for everything."""
    grammar = PictureGrammar(TOKENS, SIZE, 1, 500, has_pictures, torch.device("cpu"))
    for step, token_id in enumerate([*token_ids, None]):
        yield ~grammar.forbidden(torch.tensor([step]))[0]
        if token_id is not None:
            grammar.advance(torch.tensor([token_id]))


def allowed_there(engine_module, token_ids, ebnf):
    grammar = engine_module.Grammar(ebnf, SIZE)
    stacks = grammar.start
    for token_id in [*token_ids, None]:
        yield grammar.allowed(stacks, EOS)
        if token_id is not None:
            stacks = grammar.advance(stacks, token_id)


@pytest.mark.parametrize(
    ("token_ids", "has_pictures"),
    [
        ([5, 6, 7], True),
        ([5, 6, 7], False),
        (PICTURE, True),
        ([5, *PICTURE, *PICTURE, 6, *PICTURE, 7, 8], True),
    ],
)
def test_it_allows_what_the_local_grammar_allows(engine_module, token_ids, has_pictures):
    ebnf = picture_grammar(TOKENS, EOS, has_pictures)
    there = allowed_there(engine_module, token_ids, ebnf)
    for ours, theirs in zip(allowed_here(token_ids, has_pictures), there, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("has_pictures", [True, False])
def test_inside_a_picture_it_allows_the_rest_of_it_and_then_more(engine_module, has_pictures):
    ebnf = picture_grammar(TOKENS, EOS, has_pictures, is_inside=True)
    here = list(allowed_here([*PICTURE, 5], True))[1:-2]
    there = list(allowed_there(engine_module, [*PICTURE[1:], 5], ebnf))
    assert all(map(torch.equal, here, there))
    assert [bool(mask[50]) for mask in there[-2:]] == [has_pictures] * 2


def test_nothing_follows_the_end(engine_module):
    grammar = engine_module.Grammar(picture_grammar(TOKENS, EOS), SIZE)
    assert not grammar.advance(grammar.start, EOS)
