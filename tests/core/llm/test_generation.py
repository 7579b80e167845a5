"""The decode loop: random numbers, the picture grammar, stopping.

The network is a real one with random weights; where a law needs certain choices, its head is set so
that they are certain.
"""

import pytest
import torch

from seed_core.compute.graphs import GraphedCalls
from seed_core.errors import GenerationError
from seed_core.llm import generation
from seed_core.llm.config import LlamaConfig
from seed_core.llm.generation import (
    QUEUED_STEPS,
    DecodeLoop,
    DecodeRequest,
    generate_tokens,
    until_end,
)
from seed_core.llm.llama import Llama
from seed_core.llm.sampling import GenerationOptions, ImageTokens

CPU = torch.device("cpu")
END, OTHER_END, BEGIN, CLOSE, FIRST_CODE, CODES, VOCAB = 2, 5, 90, 91, 40, 50, 92
IMAGES = ImageTokens(
    begin=BEGIN, end=CLOSE, first_code=FIRST_CODE, codebook_size=CODES, per_image=32
)
CONFIG = LlamaConfig(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=160,
)
PROMPT = [1, 10, 11, 12]


@pytest.fixture
def network(make_generator):
    module, random = Llama(CONFIG, device="meta"), make_generator(3)
    filled = {
        key: float("norm" in key) + 0.3 * torch.randn(value.shape, generator=random)
        for key, value in module.state_dict().items()
    }
    module.load_state_dict(filled, assign=True)
    return module.requires_grad_(False)


@pytest.fixture
def biased(network):
    """The network with some tokens made likelier or less likely everywhere, by an additive bias."""

    def bias(changes):
        offset = torch.zeros(VOCAB)
        for token_ids, amount in changes:
            offset[token_ids] = amount
        network.lm_head.bias = torch.nn.Parameter(offset, requires_grad=False)
        return network

    return bias


def run(network, generators=None, prompt=PROMPT, end_ids=(END,), on_step=None, **options):
    generators = generators or [torch.Generator().manual_seed(0)]
    options = GenerationOptions(**{"temperature": 1.0, "top_p": 1.0, "top_k": 0, **options})
    request = DecodeRequest(prompt, IMAGES, frozenset(end_ids), options, generators)
    with torch.inference_mode():
        return generate_tokens(network, request, CPU, torch.float32, on_step)


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


# --- random numbers ---


def test_the_same_generator_gives_the_same_reply(network):
    assert run(network, generators(5), max_new_tokens=60) == run(
        network, generators(5), max_new_tokens=60
    )


def test_another_generator_gives_another_reply(network):
    first, second = run(network, generators(5, 6), max_new_tokens=60)
    assert first != second


def test_a_reply_does_not_depend_on_its_place_in_the_batch(network):
    alone = [run(network, generators(seed), max_new_tokens=60)[0] for seed in (1, 2, 3)]
    assert run(network, generators(1, 2, 3), max_new_tokens=60) == alone
    assert run(network, generators(3, 1, 2), max_new_tokens=60) == [alone[2], alone[0], alone[1]]


def test_a_reply_goes_on_when_another_of_the_batch_ends(biased):
    """Rows that ended must neither stop nor change the others."""
    network = biased([(END, 1.5)])
    alone = [run(network, generators(seed), max_new_tokens=60)[0] for seed in range(6)]
    assert len({len(reply) for reply in alone}) > 2
    assert run(network, generators(*range(6)), max_new_tokens=60) == alone


def test_greedy_replies_ignore_the_generator(network):
    first, second = run(network, generators(1, 2), temperature=0, max_new_tokens=40)
    assert first == second


# --- the picture grammar ---


def pictures_of(reply):
    """Positions of begin markers, checking that every one opens a whole picture."""
    starts, position = [], 0
    while position < len(reply):
        if reply[position] == BEGIN:
            starts.append(position)
            codes = reply[position + 1 : position + 33]
            assert len(codes) == 32
            assert all(FIRST_CODE <= token < FIRST_CODE + CODES for token in codes)
            assert reply[position + 33] == CLOSE
            position += 34
        else:
            assert reply[position] < FIRST_CODE
            position += 1
    return starts


def test_every_picture_of_a_reply_is_whole(biased):
    """Twenty replies of a network that likes to begin pictures, at every temperature."""
    network = biased([(BEGIN, 3.0), (END, -20.0)])
    count = 0
    for temperature in (0.5, 1.0, 3.0):
        for reply in run(
            network, generators(*range(20)), temperature=temperature, max_new_tokens=110
        ):
            assert len(reply) == 110
            count += len(pictures_of(reply))
    assert count > 60


def test_end_tokens_cannot_break_a_picture(biased):
    network = biased([(END, 50.0)])
    (reply,) = run(network, reply="image", max_new_tokens=100)
    assert pictures_of(reply) == [0]
    assert reply[34:] == [END]


def test_only_the_closing_marker_follows_the_last_code(biased):
    network = biased([(CLOSE, -50.0), (END, 50.0)])
    (reply,) = run(network, reply="image", max_new_tokens=100)
    assert reply[33] == CLOSE


def test_a_begin_marker_cannot_stand_inside_a_picture(biased):
    network = biased([(BEGIN, 50.0)])
    (reply,) = run(network, max_new_tokens=68)
    assert pictures_of(reply) == [0, 34]


@pytest.mark.parametrize(
    ("length", "starts"), [(33, []), (34, [0]), (35, [0]), (67, [0]), (68, [0, 34])]
)
def test_a_picture_is_never_begun_where_it_cannot_end(biased, length, starts):
    """The network wants nothing but pictures: it begins one exactly when 34 tokens are left."""
    network = biased([(BEGIN, 50.0), (END, -50.0)])
    (reply,) = run(network, max_new_tokens=length)
    assert len(reply) == length
    assert pictures_of(reply) == starts


def test_the_context_limits_a_picture_as_max_new_tokens_does(biased):
    network = biased([(BEGIN, 50.0), (END, -50.0)])
    for left, starts in ((33, []), (34, [0])):
        prompt = [1] + [10] * (CONFIG.max_position_embeddings - left - 1)
        (reply,) = run(network, prompt=prompt, max_new_tokens=512)
        assert len(reply) == left
        assert pictures_of(reply) == starts


def test_reply_text_has_no_picture(biased):
    network = biased([(BEGIN, 50.0), (END, -50.0)])
    (reply,) = run(network, reply="text", max_new_tokens=80)
    assert pictures_of(reply) == []
    assert BEGIN not in reply


def test_reply_image_begins_with_a_picture(biased):
    network = biased([(BEGIN, -50.0)])
    for reply in run(network, generators(1, 2, 3), reply="image", max_new_tokens=34):
        assert pictures_of(reply) == [0]
        assert len(reply) == 34


def test_a_picture_that_was_asked_for_and_cannot_fit_is_refused_with_numbers(network):
    with pytest.raises(GenerationError, match="34 tokens.*33"):
        run(network, reply="image", max_new_tokens=33)


def test_no_code_stands_outside_a_picture(biased):
    network = biased([(slice(FIRST_CODE, FIRST_CODE + CODES), 50.0), (BEGIN, -50.0)])
    (reply,) = run(network, max_new_tokens=50)
    assert max(reply) < FIRST_CODE


# --- stopping ---


@pytest.mark.parametrize("end", [END, OTHER_END])
def test_every_end_token_ends_a_reply(biased, end):
    network, steps = biased([(end, 50.0)]), []
    reply = run(
        network,
        end_ids=(END, OTHER_END),
        max_new_tokens=50,
        on_step=lambda token_ids, total: steps.append(total),
    )
    assert reply == [[end]]
    assert len(steps) == 1  # the loop itself stopped, its result was not merely cut


def test_a_token_that_is_no_end_token_goes_on(biased):
    network = biased([(OTHER_END, 50.0)])
    assert run(network, end_ids=(END,), max_new_tokens=7) == [[OTHER_END] * 7]


@pytest.mark.parametrize("length", [1, 2, 34])
def test_max_new_tokens_is_respected(biased, length):
    (reply,) = run(biased([(END, -50.0)]), reply="text", max_new_tokens=length)
    assert len(reply) == length


def test_a_shorter_limit_gives_the_beginning_of_the_same_reply(biased):
    network = biased([(END, -50.0), (BEGIN, -50.0)])
    (long,) = run(network, generators(4), max_new_tokens=80)
    (short,) = run(network, generators(4), max_new_tokens=33)
    assert short == long[:33]


@pytest.mark.parametrize("length", [160, 161, 4096])
def test_a_prompt_that_fills_the_context_is_refused_with_both_numbers(network, length):
    with pytest.raises(GenerationError, match=f"{length} tokens long.*160"):
        run(network, prompt=[10] * length)


def test_numbers_that_are_not_finite_are_one_clear_error(network):
    network.model.norm.weight[:] = torch.nan
    with pytest.raises(GenerationError, match="not finite"):
        run(network)


def test_numbers_that_cease_to_be_finite_on_the_way_are_one_clear_error(network):
    """A picture's begin marker is the first token; what follows from it is not a number."""
    network.model.embed_tokens.weight[BEGIN] = torch.nan
    with pytest.raises(GenerationError, match="not finite"):
        run(network, generators(1, 2), reply="image", max_new_tokens=40)


# --- progress ---


def test_on_step_is_told_of_every_token(biased):
    told = []
    (reply,) = run(
        biased([(END, -50.0)]),
        max_new_tokens=40,
        on_step=lambda token_ids, total: told.append((token_ids[0].tolist(), total)),
    )
    assert told == [(reply[: i + 1], 40) for i in range(40)]


class Stop(BaseException):
    """Like the host's interruption, no Exception: nothing may swallow it."""


@pytest.mark.parametrize("error", [Stop, ValueError, KeyboardInterrupt])
def test_what_on_step_raises_passes_through_unharmed(network, error):
    raised, calls = error("stop"), []

    def on_step(token_ids, total):
        calls.append(token_ids.shape[1])
        if len(calls) == 3:
            raise raised

    with pytest.raises(error) as caught:
        run(network, max_new_tokens=40, on_step=on_step)
    assert caught.value is raised
    assert calls == [1, 2, 3]


def test_what_on_step_does_to_its_tokens_changes_nothing_later(biased):
    network = biased([(END, -50.0)])
    expected = run(network, max_new_tokens=10)
    kept = []
    assert run(network, max_new_tokens=10, on_step=lambda ids, total: kept.append(ids)) == expected
    assert [len(ids[0]) for ids in kept] == list(range(1, 11))


# --- graphs ---


def test_a_step_never_asks_the_device_for_a_value(network):
    """On the meta device there are none: whatever would wait for the device raises."""
    meta = torch.device("meta")
    options = GenerationOptions(max_new_tokens=40)
    request = DecodeRequest(PROMPT, IMAGES, frozenset({END}), options, generators(1, 2))
    with torch.inference_mode():
        loop = DecodeLoop(network.to(meta), request, meta, torch.float32)
        loop.begin()
        for _ in range(39):
            loop.step(GraphedCalls(CPU, enabled=False))
    assert loop.done == 40


def test_a_step_leaves_its_state_where_it_is(network):
    """A captured graph reads and writes the addresses it was captured with."""

    def places(value):
        if isinstance(value, torch.Tensor):
            yield value.data_ptr()
        elif hasattr(value, "__dict__") and not isinstance(value, torch.nn.Module):
            for part in vars(value).values():
                yield from places(part)

    options = GenerationOptions(max_new_tokens=40)
    request = DecodeRequest(PROMPT, IMAGES, frozenset({END}), options, generators(1, 2))
    with torch.inference_mode():
        loop = DecodeLoop(network, request, CPU, torch.float32)
        loop.begin()
        before = list(places(loop))
        for _ in range(39):
            loop.step(GraphedCalls(CPU, enabled=False))
    assert len(before) > 10
    assert list(places(loop)) == before


@pytest.mark.parametrize("queued", [0, 1, QUEUED_STEPS])
def test_looking_late_changes_no_reply_and_costs_as_many_steps(biased, queued):
    """As on a card, which is given steps beyond the newest token that was looked at."""
    network = biased([(END, 1.5)])
    expected = run(network, generators(*range(4)), max_new_tokens=60)
    longest = max(map(len, expected))
    assert longest < 50  # so that the loop ends before its last step
    options = GenerationOptions(max_new_tokens=60, top_p=1.0, top_k=0)
    request = DecodeRequest(PROMPT, IMAGES, frozenset({END}), options, generators(*range(4)))
    with torch.inference_mode():
        loop = DecodeLoop(network, request, CPU, torch.float32)
        loop.begin()
        arrivals = generation._arrivals(loop, GraphedCalls(CPU, enabled=False), queued)
        columns = [next(arrivals).wait() for _ in range(longest)]
    assert [until_end(row, {END}) for row in torch.stack(columns, 1).tolist()] == expected
    assert loop.done == longest + queued


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("token", [7, 50])
def test_one_logit_that_is_not_finite_ends_the_reply(network, number, token):
    """Also that of a token that may not come, as 50, a code, outside a picture."""
    network.lm_head.bias = torch.nn.Parameter(torch.zeros(VOCAB), requires_grad=False)
    network.lm_head.bias[token] = number
    with pytest.raises(GenerationError, match="not finite"):
        run(network)
