"""Captured calls: when they are captured, when they are not, and that tokens stay the same."""

import contextlib
import logging
import weakref
from types import SimpleNamespace

import pytest
import torch

from seed_core import graphs
from seed_core.generation import DecodeRequest, GenerationOptions, ImageTokens, generate_tokens
from seed_core.graphs import GraphedCalls, can_capture
from seed_core.llama import Llama, LlamaConfig

CPU = torch.device("cpu")


class Card:
    """What torch.cuda has of graphs and streams, without a card; `done` is what happened on it."""

    OutOfMemoryError = torch.cuda.OutOfMemoryError

    def __init__(self):
        self.done, self.waits = [], []
        self.is_capturing = False
        self.forbids = lambda: False  # whether a capture goes wrong

    def CUDAGraph(self):  # noqa: N802 - torch's name
        return Graph(self)

    def Stream(self, device):  # noqa: N802 - torch's name
        return SimpleNamespace(wait_stream=lambda other: self.waits.append("capture"))

    def current_stream(self, device):
        def synchronize():
            self.done.append("synchronize")

        wait = self.waits.append
        return SimpleNamespace(wait_stream=lambda other: wait("current"), synchronize=synchronize)

    def stream(self, stream):
        return contextlib.nullcontext()

    def graph_pool_handle(self):
        return object()


class Graph:
    def __init__(self, card):
        self.card = card

    def capture_begin(self, pool, capture_error_mode):
        assert capture_error_mode == "thread_local"
        self.shared = pool
        self.card.is_capturing = True
        self.card.done.append("begin")

    def capture_end(self):
        self.card.is_capturing = False
        self.card.done.append("end")
        if self.card.forbids():
            raise RuntimeError("operation failed due to a previous error during capture")

    def pool(self):
        return self.shared

    def replay(self):
        self.card.done.append("replay")


@pytest.fixture
def card(monkeypatch):
    card = Card()
    monkeypatch.setattr(graphs.torch, "cuda", card)
    monkeypatch.setattr(graphs, "_streams", {})
    monkeypatch.setattr(graphs, "_is_broken", False)
    return card


def work(card, name="work"):
    """A step; while it is captured its kernels are noted, not run."""

    def function():
        if not card.is_capturing:
            card.done.append(name)
        return name

    return function


def test_the_first_call_is_plain_the_second_captured_and_later_ones_replay(card):
    """Libraries plan and allocate in the first call; capturing that fails on a card."""
    calls = GraphedCalls(CPU, enabled=True)
    assert [calls("a", work(card)) for _ in range(4)] == ["work"] * 4
    assert card.done == ["work", "begin", "end", "replay", "replay", "replay"]


def test_another_key_is_another_graph_in_the_same_memory(card):
    calls = GraphedCalls(CPU, enabled=True)
    for key in "aabbab":
        calls(key, work(card, key))
    one = ["begin", "end", "replay"]
    assert card.done == ["a", *one, "b", *one, "replay", "replay"]
    assert len({id(graph.shared) for graph, _ in calls._captured.values()}) == 1


def test_calls_that_are_not_enabled_are_plain(card):
    calls = GraphedCalls(CPU, enabled=False)
    assert [calls("a", work(card)) for _ in range(3)] == ["work"] * 3
    assert card.done == ["work"] * 3


def test_a_card_that_cannot_capture_is_not_asked_again_and_that_is_said_once(card, caplog):
    """torch does not always recover from a failed capture, so there is no second one."""
    card.forbids = lambda: True
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            calls = GraphedCalls(CPU, enabled=True)
            assert [calls("a", work(card)) for _ in range(3)] == ["work"] * 3
    assert card.done == ["work", "begin", "end", *["work"] * 5]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


class StopError(BaseException):
    """The host raises its own inside any of its layers; it is no Exception."""


def test_stop_during_a_capture_ends_the_capture_and_passes_through(card):
    """What the step had made must be gone by then: it never really ran."""
    seen = []

    def stopped():
        made = torch.zeros(3)
        seen.append(weakref.ref(made))
        raise StopError

    calls = GraphedCalls(CPU, enabled=True)
    calls("a", work(card))
    with pytest.raises(StopError):
        calls("a", stopped)
    assert card.done == ["work", "begin", "end"]
    assert seen[0]() is None
    assert not card.is_capturing
    assert calls("a", work(card)) == "work"  # and the next reply is captured again
    assert card.done[3:] == ["begin", "end", "replay"]


def test_stop_is_not_lost_when_the_capture_fails_too(card, caplog):
    def stopped():
        raise StopError

    calls = GraphedCalls(CPU, enabled=True)
    calls("a", work(card))
    card.forbids = lambda: True
    with pytest.raises(StopError):
        calls("a", stopped)
    assert graphs._is_broken
    assert len(caplog.records) == 1


def test_streams_wait_for_each_other_also_after_stop(card):
    """What a stopped step leaves behind is freed at once, on the other stream."""

    def stopped():
        raise StopError

    with pytest.raises(StopError):
        GraphedCalls(CPU, enabled=True)("a", stopped)
    assert card.waits == ["capture", "current"]


def test_without_memory_for_a_graph_the_reply_goes_on_plainly(card):
    """A capture may not give cached memory back, so a plain call can still have enough."""

    def greedy():
        if card.is_capturing:
            raise torch.cuda.OutOfMemoryError
        card.done.append("work")

    calls = GraphedCalls(CPU, enabled=True)
    for _ in range(4):
        calls("a", greedy)
    assert card.done == ["work", "begin", "end", "work", "work", "work"]
    assert not graphs._is_broken


def test_graphs_end_with_their_last_replay_done(card):
    calls = GraphedCalls(CPU, enabled=True)
    calls.close()
    for _ in range(2):
        calls("a", work(card))
    calls.close()
    assert card.done == ["work", "begin", "end", "replay", "synchronize"]
    assert calls._captured == {}


def test_weights_off_the_card_are_not_captured():
    assert not can_capture(torch.nn.Linear(2, 2, device="meta"), CPU)
    assert not can_capture(torch.nn.Linear(2, 2, device="meta"), torch.device("cuda"))


CONFIG = LlamaConfig(
    vocab_size=600,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=1024,
)
IMAGES = ImageTokens(begin=598, end=599, first_code=100, codebook_size=498, per_image=32)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("rows", [1, 4])
def test_graphs_give_the_tokens_of_plain_calls(dtype, temperature, rows):
    """512 tokens, which cross into a second stretch of the cache and so into a second graph."""
    device = torch.device("cuda")
    network = Llama(CONFIG, device=device, dtype=dtype).requires_grad_(False)
    random = torch.Generator(device).manual_seed(0)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.05, generator=random)
    replies = []
    for use_graphs in (True, False):
        request = DecodeRequest(
            prompt=list(range(1, 30)),
            tokens=IMAGES,
            end_ids=frozenset({0}),
            options=GenerationOptions(max_new_tokens=512, temperature=temperature),
            generators=[torch.Generator().manual_seed(seed) for seed in range(rows)],
        )
        with torch.inference_mode():
            replies.append(generate_tokens(network, request, device, dtype, use_graphs=use_graphs))
    assert replies[0] == replies[1]
