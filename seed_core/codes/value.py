"""The codes of pictures: 32 integers each, of one model family.

This module knows what codes are and which values are legal. It knows nothing of pixels, nor of the
token ids that stand for codes in a language model (see ``vocab``).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..errors import CheckpointError, CodesError

NUM_CODES = 32
"""Codes of one picture, in causal order: each refines what the earlier ones say."""

CODEBOOK_SIZES = {"seed-1": 8192, "seed-2": 8192, "seed-mini": 512}
"""The published families and the number of different codes each one has."""


def language_family(codebook_size: int) -> str:
    """Return the family of a language model, by the number of codes in its vocabulary.

    Raises:
        CheckpointError: no SEED-LLaMA has so many.
    """
    for family in ("seed-2", "seed-mini"):  # SEED-1 has no language model that was published
        if CODEBOOK_SIZES[family] == codebook_size:
            return family
    raise CheckpointError(
        f"the vocabulary has {codebook_size} image codes; SEED-2 models have "
        f"{CODEBOOK_SIZES['seed-2']}, seed-mini has {CODEBOOK_SIZES['seed-mini']}"
    )


def image_token(code: int) -> str:
    """Return the text form of one code, such as ``<img_00042>``."""
    return f"<img_{code:05d}>"


BEGIN_IMAGE = "<img>"
END_IMAGE = "</img>"


def check_codes(values: torch.Tensor, codebook_size: int) -> torch.Tensor:
    """Return ``values`` as int64 ``[B, 32]`` or say what is wrong with them.

    Args:
        values: integers ``[B, 32]``; one picture may come as ``[32]``.
        codebook_size: codes must lie in ``0 .. codebook_size - 1``.

    Raises:
        CodesError: another shape, another dtype, or a code out of range.
    """
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise CodesError(f"codes must be integers; got {values.dtype}")
    if values.ndim == 1:
        values = values[None]
    if values.ndim != 2 or values.shape[1] != NUM_CODES:
        raise CodesError(
            f"a picture has exactly {NUM_CODES} codes; got codes of shape {list(values.shape)}, "
            f"expected [pictures, {NUM_CODES}]"
        )
    values = values.long()
    wrong = (values < 0) | (values >= codebook_size)
    if wrong.any():
        row, position = (int(i) for i in wrong.nonzero()[0])
        raise CodesError(
            f"codes must lie in 0..{codebook_size - 1}; got {int(values[row, position])} "
            f"at row {row}, position {position}"
        )
    return values


@dataclass(frozen=True, eq=False)
class SeedCodes:
    """Codes of zero or more pictures together with the family they belong to.

    Attributes:
        values: int64 ``[B, 32]``, each in ``0 .. codebook_size - 1``.
        family: ``seed-1``, ``seed-2`` or ``seed-mini``.
        codebook_size: number of different codes the family has.
        distances: float32 ``[B, 32]``, from what the tokenizer saw to the nearest thing it has a code
            for, in its codebook's own unit: small for pictures like those it was trained on. NaN
            where codes do not come from a picture.

    Raises:
        CodesError: see `check_codes`; also for an unknown family, more codes than it has, or
            distances of another shape.
    """

    values: torch.Tensor
    family: str
    codebook_size: int
    distances: torch.Tensor = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.family not in CODEBOOK_SIZES:
            raise CodesError(
                f"unknown family {self.family!r}; known families: {', '.join(CODEBOOK_SIZES)}"
            )
        if not 1 <= self.codebook_size <= CODEBOOK_SIZES[self.family]:
            raise CodesError(
                f"{self.family} has {CODEBOOK_SIZES[self.family]} different codes; got a "
                f"codebook_size of {self.codebook_size}"
            )
        values = check_codes(self.values, self.codebook_size)
        distances = self.distances
        if distances is None:
            distances = torch.full(values.shape, torch.nan, device=values.device)
        elif distances.shape != values.shape:
            raise CodesError(
                f"codes {list(values.shape)} need as many distances; got {list(distances.shape)}"
            )
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "distances", distances)

    @classmethod
    def empty(cls, family: str, codebook_size: int) -> SeedCodes:
        """Return codes of no picture, legal on a wire."""
        return cls(torch.empty(0, NUM_CODES, dtype=torch.int64), family, codebook_size)

    @classmethod
    def from_rows(cls, rows: list[list[int]], family: str, codebook_size: int) -> SeedCodes:
        """Return the codes in ``rows``, one row a picture.

        Raises:
            CodesError: a row of another length, or values that are no codes of the family.
        """
        if not rows:
            return cls.empty(family, codebook_size)
        for i, row in enumerate(rows):
            if len(row) != NUM_CODES:
                raise CodesError(f"a picture has exactly {NUM_CODES} codes; row {i} has {len(row)}")
        try:
            values = torch.tensor(rows, dtype=torch.int64)
        except (RuntimeError, OverflowError, ValueError) as error:
            raise CodesError("a code is far too large to be one") from error
        return cls(values, family, codebook_size)

    def __len__(self) -> int:
        """Return the number of pictures."""
        return self.values.shape[0]

    def require(self, family: str, codebook_size: int, who: str) -> torch.Tensor:
        """Return the values if they belong to ``family``.

        Args:
            family: the family the caller can read.
            codebook_size: its codebook size.
            who: the caller, as the start of the message ("This tokenizer").

        Raises:
            CodesError: codes of another family, naming both.
        """
        if (self.family, self.codebook_size) != (family, codebook_size):
            raise CodesError(
                f"{who} reads {family} codes (0..{codebook_size - 1}), but these are {self.family} "
                f"codes (0..{self.codebook_size - 1}). Codes of one family mean nothing to "
                "another: use the tokenizer, language model and decoder of the same family."
            )
        return self.values

    def to_text(self) -> str:
        """Return one line an image: ``<img><img_00012>...</img>``."""
        return "\n".join(codes_to_text(row) for row in self.values.tolist())


def codes_to_text(codes: list[int] | tuple[int, ...]) -> str:
    """Return the image tokens of one picture between its two markers."""
    return BEGIN_IMAGE + "".join(image_token(code) for code in codes) + END_IMAGE


def codes_values(
    codes: torch.Tensor | SeedCodes, family: str, codebook_size: int, who: str
) -> torch.Tensor:
    """Return int64 ``[B, 32]`` from either form of codes, checked for the caller's family.

    Raises:
        CodesError: see `check_codes` and `SeedCodes.require`.
    """
    if isinstance(codes, SeedCodes):
        return codes.require(family, codebook_size, who)
    return check_codes(codes, codebook_size)
