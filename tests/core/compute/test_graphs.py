"""Captured calls: when they are captured, when they are not, and that tokens stay the same."""

import contextlib
import logging
import weakref
from types import SimpleNamespace

import pytest
import torch

from seed_core.compute import graphs
from seed_core.compute.graphs import GraphedCalls, can_capture
from seed_core.llm.config import LlamaConfig
from seed_core.llm.generation import DecodeRequest, generate_tokens
from seed_core.llm.llama import Llama
from seed_core.llm.sampling import GenerationOptions, ImageTokens

CPU = torch.device("cpu")


class Card:
    """What torch.cuda has of graphs and streams, without a card; `done` is what happened on it."""

    OutOfMemoryError = torch.cuda.OutOfMemoryError

    def __init__(self):
        self.done, self.waits = [], []
        self.is_capturing = False
        self.forbids = lambda: False  # whether a capture goes wrong
        self.replays = lambda: None  # may raise
        self.free = 8 * 2**30
        self.allocator = "native"
        self.default_generators = (Generator(),)

    def mem_get_info(self, device):
        return self.free, 16 * 2**30

    def get_allocator_backend(self):
        return self.allocator

    def current_device(self):
        return 0

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


class Generator:
    """A card's random generator: torch marks it while a capture is open."""

    def __init__(self):
        self.is_capturing = False

    def clone_state(self):
        return Generator()

    def graphsafe_set_state(self, state):
        self.is_capturing = state.is_capturing


class Graph:
    def __init__(self, card):
        self.card = card

    def capture_begin(self, pool, capture_error_mode):
        assert capture_error_mode == "thread_local"
        self.shared = pool
        self.card.is_capturing = True
        self.card.default_generators[0].is_capturing = True
        self.card.done.append("begin")

    def capture_end(self):
        self.card.is_capturing = False
        self.card.done.append("end")
        if self.card.forbids():
            raise RuntimeError("operation failed due to a previous error during capture")
        self.card.default_generators[0].is_capturing = False

    def replay(self):
        self.card.replays()
        self.card.done.append("replay")


@pytest.fixture
def card(monkeypatch):
    card = Card()
    monkeypatch.setattr(graphs.torch, "cuda", card)
    monkeypatch.setattr(graphs, "_streams", {})
    monkeypatch.setattr(
        graphs, "_return_graph_memory", lambda device: card.done.append("memory returned")
    )
    monkeypatch.setattr(graphs, "_leave_pool", lambda pool, device: card.done.append("pool left"))
    monkeypatch.setattr(graphs, "_is_broken", False)
    return card


def work(card, name="work"):
    """A step; while it is captured its kernels are noted, not run."""

    def function():
        if not card.is_capturing:
            card.done.append(name)

    return function


def call(calls, card, times, key="a"):
    for _ in range(times):
        calls(key, work(card, key))


ONE = ["begin", "end", "replay"]


def test_another_key_is_another_graph_in_the_same_memory(card, monkeypatch):
    made = []
    monkeypatch.setattr(card, "CUDAGraph", lambda: made.append(Graph(card)) or made[-1])
    calls = GraphedCalls(CPU, enabled=True)
    for key in "aabbab":
        call(calls, card, 1, key)
    assert card.done == ["a", *ONE, "b", *ONE, "replay", "replay"]
    assert len(made) == 2
    assert made[0].shared is made[1].shared


def test_a_card_that_cannot_capture_is_not_asked_again_and_that_is_said_once(card, caplog):
    """torch does not always recover from a failed capture, so there is no second one."""
    card.forbids = lambda: True
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            call(GraphedCalls(CPU, enabled=True), card, 3)
    assert card.done == ["a", "begin", "end", "pool left", *["a"] * 5]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


# --- memory ---


def test_a_capture_is_only_tried_where_there_is_room_for_it(card):
    """Where memory is short a host waits for the card to find more, which breaks a capture."""
    card.free = graphs.CAPTURE_BYTES - 1
    calls = GraphedCalls(CPU, enabled=True)
    call(calls, card, 3)
    card.free = 8 * 2**30
    call(calls, card, 1)
    assert card.done == ["a"] * 4
    assert not graphs._is_broken
    call(GraphedCalls(CPU, enabled=True), card, 2)  # the next reply may find more
    assert card.done[4:] == ["a", *ONE]


@pytest.mark.parametrize(
    "error",
    [torch.cuda.OutOfMemoryError("tried to allocate"), RuntimeError("CUDA error: out of memory")],
    ids=["allocator", "driver"],
)
@pytest.mark.parametrize("replay", [1, 2])
def test_a_replay_without_memory_is_done_again_plainly_and_lets_go_of_the_graphs(
    card, error, replay
):
    """A graph may take its memory at its launch. A launch that fails has run nothing."""
    seen = []

    def launch():
        seen.append("launch")
        if len(seen) == replay:
            raise error

    card.replays = launch
    calls = GraphedCalls(CPU, enabled=True)
    call(calls, card, 4)
    replayed = ["replay"] * (replay - 1)
    plain = ["a"] * (4 - replay)
    assert card.done == ["a", "begin", "end", *replayed, "synchronize", *plain]
    assert calls._graphs == {}
    assert not graphs._is_broken


def test_a_replay_that_fails_for_another_reason_is_the_last(card, caplog):
    def launch():
        raise RuntimeError("operation not permitted")

    card.replays = launch
    call(GraphedCalls(CPU, enabled=True), card, 2)
    call(GraphedCalls(CPU, enabled=True), card, 2)
    assert card.done == ["a", "begin", "end", "synchronize", *["a"] * 3]
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("allocator", "returned"), [("native", []), ("cudaMallocAsync", ["memory returned"])]
)
def test_graph_memory_goes_back_under_either_allocator(card, allocator, returned):
    """CUDA's own allocator would keep it for other graphs, out of reach for everything else."""
    card.allocator = allocator
    calls = GraphedCalls(CPU, enabled=True)
    call(calls, card, 2)
    calls.close()
    assert card.done == ["a", *ONE, "synchronize", *returned]
    calls.close()
    assert len(card.done) == 5 + len(returned)


def test_a_machine_without_the_driver_keeps_its_graph_memory_quietly():
    graphs._return_graph_memory(torch.device("cuda", 0))


@pytest.mark.parametrize("answer", [0, 100], ids=["there", "no such device"])
def test_the_driver_is_asked_to_return_graph_memory_of_the_right_card(monkeypatch, answer):
    asked = []

    def get(handle, index):
        handle._obj.value = 7 + index
        return answer

    driver = SimpleNamespace(
        cuDeviceGet=get, cuDeviceGraphMemTrim=lambda handle: asked.append(handle.value)
    )
    monkeypatch.setattr(graphs.ctypes, "CDLL", lambda name: driver)
    graphs._return_graph_memory(torch.device("cuda", 1))
    assert asked == ([] if answer else [8])


def test_torchs_allocator_still_has_the_calls_that_end_a_failed_capture():
    """They are private, and only cards would show that they are gone."""
    if torch.version.cuda is None:
        pytest.skip("this torch is built without CUDA")
    assert callable(torch._C._cuda_endAllocateToPool)
    assert callable(torch._C._cuda_releasePool)


# --- Stop ---


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
    call(calls, card, 1)
    with pytest.raises(StopError):
        calls("a", stopped)
    assert card.done == ["a", "begin", "end"]
    assert seen[0]() is None
    assert not card.is_capturing
    call(calls, card, 1)  # and the next reply is captured again
    assert card.done[3:] == ONE


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
    assert card.done[-1] == "pool left"
    assert not card.default_generators[0].is_capturing, "no node could draw on the card any more"


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
