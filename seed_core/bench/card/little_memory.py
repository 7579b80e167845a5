"""Greedy replies with and without graphs, and with nearly no memory left on the card.

The card is filled until less than 300 MB are free, and the reply has to be the one it was before.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

import torch

from ..replies import our_tokens
from ..subject import Subject
from .findings import EQUAL_GRAPHS, EQUAL_SHORT, LEAKED, LEFT, Findings

MIB = 2**20
LEAVE = 280 * MIB
SLACK = 32 * MIB  # of what the driver rounds up
PROMPT = list(range(3, 19))
REPEAT = 3


def free_memory(device: torch.device) -> int:
    """Return the bytes that nobody on the card has."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.synchronize(device)
    return torch.cuda.mem_get_info(device)[0]


@contextlib.contextmanager
def filled(device: torch.device) -> Iterator[int]:
    """Take all of the card's memory but `LEAVE`; give what is left."""
    taken, piece = [], free_memory(device) - LEAVE
    while piece > MIB:
        try:
            taken.append(torch.empty(piece, dtype=torch.uint8, device=device))
        except torch.cuda.OutOfMemoryError:
            piece //= 2
        else:
            piece = min(piece, torch.cuda.mem_get_info(device)[0] - LEAVE)
    try:
        yield torch.cuda.mem_get_info(device)[0]
    finally:
        taken.clear()
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def compare(findings: Findings, name: str, wanted: list[int], got: list[int]) -> None:
    """Count the tokens before the first that differs."""
    same = torch.tensor(wanted) == torch.tensor(got)
    count = int(same.cumprod(0).sum())
    findings.add(name, count, "tokens", count == len(wanted), f"of {len(wanted)}")


def look(subject: Subject, findings: Findings, tokens: int) -> None:
    """Run everything."""
    model, device = subject.llama(), subject.device

    def reply(use_graphs: bool) -> list[int]:
        return our_tokens(subject, model, PROMPT, 1, tokens, use_graphs=use_graphs)

    plain = reply(False)
    if device.type != "cuda":
        for name in (EQUAL_GRAPHS, EQUAL_SHORT, LEAKED):
            findings.add(name, note="not run: no card")
        compare(findings, "the same greedy tokens twice", plain, reply(False))
        return
    compare(findings, EQUAL_GRAPHS, plain, reply(True))
    before = free_memory(device)
    for _ in range(REPEAT):
        with filled(device) as left:
            findings.add(LEFT, left / MIB, "MiB", left < 300e6)
            with findings.attempt(EQUAL_SHORT):
                compare(findings, EQUAL_SHORT, plain, reply(True))
    gone = before - free_memory(device)
    findings.add(LEAKED, max(gone, 0) / MIB, "MiB", gone <= SLACK)
    compare(findings, "greedy tokens with much memory again", plain, reply(True))
