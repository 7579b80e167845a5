"""Replies with nearly no memory left on the card, on a card that does not exist."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from seed_core.bench.card import goals
from seed_core.bench.card import little_memory as part
from seed_core.bench.card.findings import Findings, read
from seed_core.bench.card.goals import Outcome


@pytest.fixture
def memory(monkeypatch):
    """The part on a card that does not exist: its free memory, and how the last reply goes wrong."""
    state = SimpleNamespace(free=[2**30] * 2, wrong_from=None, is_full=False)

    @contextlib.contextmanager
    def filled(device):
        state.is_full = True
        yield 250e6
        state.is_full = False

    def tokens(*arguments, use_graphs):
        reply = list(range(100))
        if state.is_full and state.wrong_from is not None:
            reply[state.wrong_from :] = [0] * (100 - state.wrong_from)
        return reply

    monkeypatch.setattr(part, "our_tokens", tokens)
    monkeypatch.setattr(part, "filled", filled)
    monkeypatch.setattr(part, "free_memory", lambda device: state.free.pop(0))
    return state


@pytest.mark.parametrize(
    ("wrong_from", "gone", "met"), [(None, 0, "yes"), (40, 0, "**no**"), (None, 2**28, "**no**")]
)
def test_wrong_tokens_and_a_leak_are_found(memory, tmp_path, wrong_from, gone, met):
    memory.wrong_from = wrong_from
    memory.free[1] -= gone
    subject = SimpleNamespace(llama=lambda: None, device=torch.device("cuda"))
    part.look(subject, Findings(tmp_path / "it"), 100)
    outcome = Outcome("ended", found=read(tmp_path / "it"))
    table = {goal.name: goals.cells(goal, outcome, True) for goal in goals.GOALS}
    assert table["a reply with under 300 MB of free memory on the card"][1] == met
    assert table["greedy tokens with graphs as without"] == ("100 tokens of 100", "yes")


def test_a_card_is_filled_in_pieces_and_given_back(monkeypatch):
    """Whatever the largest piece is that it still has."""
    sizes, total, largest = [], 80 * 2**30, 30 * 2**30

    def take(size, **options):
        if size > min(largest, total - sum(sizes)):
            raise part.torch.cuda.OutOfMemoryError
        sizes.append(size)
        return size

    cuda = SimpleNamespace(
        OutOfMemoryError=torch.cuda.OutOfMemoryError,
        mem_get_info=lambda device: (total - sum(sizes), total),
        synchronize=lambda *device: None,
        empty_cache=lambda: None,
    )
    monkeypatch.setattr(part, "torch", SimpleNamespace(cuda=cuda, empty=take, uint8=torch.uint8))
    with part.filled(torch.device("cuda")) as left:
        assert part.LEAVE <= left <= 300e6
    assert len(sizes) > 2
