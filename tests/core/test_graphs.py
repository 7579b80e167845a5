"""Captured calls: when they are captured, when they are not, and that tokens stay the same."""

import logging

import pytest
import torch

from seed_core.generation import DecodeRequest, GenerationOptions, ImageTokens, generate_tokens
from seed_core.graphs import GraphedCalls, can_capture
from seed_core.llama import Llama, LlamaConfig

CPU = torch.device("cpu")


class Replay:
    """Stands for a captured graph: a replay does the same work again."""

    def __init__(self, function):
        self.replay = function


@pytest.fixture
def captures(monkeypatch):
    """Captures that succeed without a card; the functions that were captured."""
    captured = []

    def capture(self, function):
        captured.append(function)
        return Replay(function), "captured"

    monkeypatch.setattr(GraphedCalls, "_capture", capture)
    return captured


def test_the_first_call_is_plain_and_later_ones_replay(captures):
    """Libraries set themselves up in the first call; capturing that fails on a card."""
    done, calls = [], GraphedCalls(CPU, enabled=True)
    results = [calls("a", lambda: done.append("a") or "plain") for _ in range(3)]
    assert results == ["plain", "captured", "captured"]
    assert done == ["a", "a", "a"]
    assert len(captures) == 1


def test_another_key_is_another_graph_and_needs_no_plain_call_of_its_own(captures):
    done, calls = [], GraphedCalls(CPU, enabled=True)
    for key in "aabbab":
        calls(key, lambda key=key: done.append(key))
    assert done == list("aabbab")
    assert len(captures) == 2


def test_calls_that_are_not_enabled_are_plain(captures):
    calls = GraphedCalls(CPU, enabled=False)
    assert [calls("a", lambda: "plain") for _ in range(3)] == ["plain"] * 3
    assert captures == []


def test_a_card_that_cannot_capture_goes_on_plainly_and_says_so_once(monkeypatch, caplog):
    def capture(self, function):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(GraphedCalls, "_capture", capture)
    calls = GraphedCalls(CPU, enabled=True)
    with caplog.at_level(logging.WARNING):
        assert [calls("a", lambda: "plain") for _ in range(4)] == ["plain"] * 4
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_later_shape_may_need_a_plain_call_of_its_own(monkeypatch, caplog):
    """cuDNN plans a product of a new shape when it is first called, which a capture may forbid."""
    seen, captured = set(), []

    def capture(self, function):
        if function.key not in seen:
            raise RuntimeError("operation not permitted when stream is capturing")
        captured.append(function.key)
        return Replay(function), "captured"

    class Call:
        def __init__(self, key):
            self.key = key

        def __call__(self):
            seen.add(self.key)
            return "plain"

    monkeypatch.setattr(GraphedCalls, "_capture", capture)
    calls = GraphedCalls(CPU, enabled=True)
    results = [calls(key, Call(key)) for key in "aabbb"]
    assert results == ["plain", "captured", "plain", "captured", "captured"]
    assert captured == ["a", "b"]
    assert caplog.records == []


def test_what_a_captured_function_raises_passes_through(monkeypatch):
    """Stop raises inside the host's layers, also while they are being captured."""

    class StopError(Exception):
        pass

    def stop():
        raise StopError

    monkeypatch.setattr(GraphedCalls, "_capture", lambda self, function: function())
    calls = GraphedCalls(CPU, enabled=True)
    calls("a", lambda: None)
    with pytest.raises(StopError):
        calls("a", stop)


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
