"""Codes made of other codes, without a model: mixed, joined, selected."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from ..errors import CodesError, OptionError
from .value import MOST_PICTURES, NUM_CODES, SeedCodes, check_count

MIX_MODES = ("splice", "random")


def mix_codes(
    a: SeedCodes,
    b: SeedCodes,
    start: int,
    end: int,
    mode: str,
    amount: float,
    generators: Iterable[torch.Generator],
) -> SeedCodes:
    """Return ``a`` with codes of ``b`` in the positions ``start .. end - 1``.

    Args:
        a: codes of one picture or more; a single one is used with each of ``b``.
        b: codes of the same family; a single picture is used with each of ``a``.
        start: first position, 0..32.
        end: position after the last one, ``start``..32.
        mode: ``splice`` takes every position in the range from ``b``, ``random`` some of them.
        amount: with ``random``, the probability 0..1 that a position is taken.
        generators: with ``random``, one CPU generator for each picture of the result.

    Raises:
        CodesError: the families differ, or the numbers of pictures do not pair up.
        OptionError: an option is out of its range.
    """
    counts = len(a), len(b)
    count = count_pairs(a, b)
    if count is None:
        if not min(counts):
            raise CodesError(
                f"one side of the mix has no picture ({counts[0]} and {counts[1]}). A reply without "
                "pictures has none: let SEED Generate's reply be image."
            )
        raise CodesError(
            f"{counts[0]} pictures cannot be mixed with {counts[1]}: give both the same number, or "
            "one of them a single picture, which is then used for all"
        )
    check_range(start, end)
    if mode not in MIX_MODES:
        raise OptionError(f"unknown mode {mode!r}; known modes: {', '.join(MIX_MODES)}")
    if not 0 <= amount <= 1:
        raise OptionError(f"amount must lie in 0..1; got {amount}")
    position = torch.arange(NUM_CODES)
    is_from_b = ((position >= start) & (position < end)).repeat(count, 1)  # [B, 32]
    if mode == "random":
        # Every position draws, so that another range or amount does not turn all choices over.
        chance = torch.empty(is_from_b.shape)
        for row, generator in zip(chance, generators, strict=True):
            row.uniform_(generator=generator)
        is_from_b &= chance < amount
    values = torch.where(is_from_b.to(a.values.device), b.values, a.values)
    return SeedCodes(values, a.family, a.codebook_size)


def check_range(start: int, end: int) -> None:
    """Refuse positions ``start .. end - 1`` that no picture has, with an `OptionError`."""
    if not 0 <= start <= end <= NUM_CODES:
        raise OptionError(
            f"start and end must lie in 0..{NUM_CODES}, start not after end; got {start} and {end}"
        )


def count_pairs(a: SeedCodes, b: SeedCodes) -> int | None:
    """Return how many pairs two batches make, a single picture going with each of the other side.

    None if their numbers do not pair up.

    Raises:
        CodesError: the families differ.
    """
    _check_one_family([a, b])
    least, most = sorted((len(a), len(b)))
    return most if least in (1, most) else None


def join_codes(batches: Sequence[SeedCodes]) -> SeedCodes:
    """Return the pictures of one or more batches in one batch, in order.

    Raises:
        CodesError: the families differ, or the pictures are more than `MOST_PICTURES`.
    """
    _check_one_family(batches)
    check_count(sum(map(len, batches)), MOST_PICTURES, "together these are")
    values = torch.cat([codes.values for codes in batches])
    distances = torch.cat([codes.distances for codes in batches])
    return SeedCodes(values, batches[0].family, batches[0].codebook_size, distances)


def select_codes(codes: SeedCodes, index: int, length: int) -> SeedCodes:
    """Return ``length`` pictures from ``index`` on; a negative index counts from the end.

    Raises:
        CodesError: the batch has fewer pictures.
        OptionError: the length is below 1.
    """
    count = len(codes)
    if length < 1:
        raise OptionError(f"length must be at least 1; got {length}")
    first = index + count if index < 0 else index
    if not 0 <= first <= first + length <= count:
        raise CodesError(
            f"index {index} with length {length} reaches beyond a batch of {count} pictures; the "
            "first is 0, the last -1"
        )
    rows = slice(first, first + length)
    return SeedCodes(codes.values[rows], codes.family, codes.codebook_size, codes.distances[rows])


def _check_one_family(batches: Sequence[SeedCodes]) -> None:
    first = batches[0]
    for codes in batches:
        if (codes.family, codes.codebook_size) != (first.family, first.codebook_size):
            raise CodesError(
                f"{first.family} codes (0..{first.codebook_size - 1}) and {codes.family} codes "
                f"(0..{codes.codebook_size - 1}) cannot be put together: codes of one family mean "
                "nothing to another"
            )
