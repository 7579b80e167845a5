"""The codes of pictures: 32 integers each, of one model family, and which values are legal.

The token ids that stand for codes in a language model are in ``llm/vocab``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..errors import CheckpointError, CodesError

NUM_CODES = 32
"""Codes of one picture, in causal order: each refines what the earlier ones say."""

CODEBOOK_SIZES = {"seed-1": 8192, "seed-2": 8192, "seed-mini": 512}
"""The published families and the number of different codes each one has."""


MOST_PICTURES = 100_000
"""Most pictures of a text, a file or a batch: what a person makes, and a second's work to read."""

MOST_AT_ONCE = 4096
"""Most pictures that are embedded or painted in one go; ComfyUI's own limit of a batch."""


def check_count(count: int, most: int, what: str) -> None:
    """Check how many pictures there are, before anything is made of each.

    Raises:
        CodesError: there are more than ``most``; the message begins with ``what``.
    """
    if count > most:
        raise CodesError(
            f"{what} {count} pictures, and {most} is the most: take fewer, some at a time "
            "with SEED Select Codes"
        )


def check_negative(pictures: int, negative: int) -> None:
    """Check that pictures to steer away from are one for all, or one for each picture.

    Raises:
        CodesError: they are of another number.
    """
    if negative not in (1, pictures):
        raise CodesError(
            f"negative_codes holds {negative} pictures and codes {pictures}: give one negative "
            "picture for all, or as many as there are pictures"
        )


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


def check_codes(values: torch.Tensor, codebook_size: int) -> None:
    """Check codes ``[B, 32]`` of a codebook.

    Raises:
        CodesError: the shape or dtype is wrong, or a code is not in ``0 .. codebook_size - 1``.
    """
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise CodesError(f"codes must be integers; got {values.dtype}")
    if values.ndim != 2 or values.shape[1] != NUM_CODES:
        raise CodesError(
            f"a picture has exactly {NUM_CODES} codes; got codes of shape {list(values.shape)}, "
            f"expected [pictures, {NUM_CODES}]"
        )
    wrong = (values < 0) | (values >= codebook_size)
    if wrong.any():
        row, position = (int(i) for i in wrong.nonzero()[0])
        raise CodesError(
            f"codes must lie in 0..{codebook_size - 1}; got {int(values[row, position])} "
            f"at row {row}, position {position}"
        )


def check_distances(distances: torch.Tensor, values: torch.Tensor) -> None:
    """Check that codes ``[B, 32]`` have as many distances; NaN stands for an unknown one.

    Raises:
        CodesError: the shape differs, or a distance is negative or infinite.
    """
    if distances.shape != values.shape:
        raise CodesError(
            f"codes {list(values.shape)} need as many distances; got {list(distances.shape)}"
        )
    if not distances.is_floating_point() or ((distances < 0) | distances.isinf()).any():
        raise CodesError("distances must be 0 or more, or NaN where they are unknown")


def _as_rows(values: torch.Tensor, codebook_size: int) -> torch.Tensor:
    """Return int64 ``[B, 32]``; one picture may come as ``[32]``."""
    values = values[None] if values.ndim == 1 else values
    check_codes(values, codebook_size)
    return values.long()


@dataclass(frozen=True, eq=False)
class SeedCodes:
    """Codes of zero or more pictures together with the family they belong to.

    Attributes:
        distances: from what the tokenizer saw to the nearest thing it has a code for, in the unit of
            its codebook: small for pictures like those it was trained on. NaN where codes do not
            come from a picture.

    Raises:
        CodesError: the family is unknown or has fewer codes, or `check_codes` or `check_distances`
            refuses the numbers.
    """

    values: torch.Tensor  # int64 [B, 32], each in 0 .. codebook_size - 1
    family: str  # a key of CODEBOOK_SIZES
    codebook_size: int
    distances: torch.Tensor = field(default=None)  # type: ignore[assignment]  # float32 [B, 32]

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
        values = _as_rows(self.values, self.codebook_size)
        distances = self.distances
        if distances is None:
            distances = torch.full(values.shape, torch.nan, device=values.device)
        check_distances(distances, values)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "distances", distances)

    @classmethod
    def empty(cls, family: str, codebook_size: int) -> SeedCodes:
        """Return the codes of zero pictures, legal on a wire."""
        return cls(torch.empty(0, NUM_CODES, dtype=torch.int64), family, codebook_size)

    @classmethod
    def from_rows(
        cls,
        rows: list[list[int]],
        family: str,
        codebook_size: int,
        distances: torch.Tensor | None = None,
    ) -> SeedCodes:
        """Return the codes in ``rows``, one row a picture.

        Raises:
            CodesError: there are more than `MOST_PICTURES`, a row has another length, or the family
                does not have these codes.
        """
        check_count(len(rows), MOST_PICTURES, "these are")
        for i, row in enumerate(rows):
            if len(row) != NUM_CODES:
                raise CodesError(f"a picture has exactly {NUM_CODES} codes; row {i} has {len(row)}")
        try:
            values = torch.tensor(rows, dtype=torch.int64).reshape(
                -1, NUM_CODES
            )  # [0] of zero rows
        except (RuntimeError, OverflowError, ValueError) as error:
            raise CodesError("a code is far too large to be one") from error
        return cls(values, family, codebook_size, distances)  # type: ignore[arg-type]

    @property
    def has_distances(self) -> bool:
        """Whether any distance is known."""
        return not bool(self.distances.isnan().all())

    def __len__(self) -> int:
        """Return the number of pictures."""
        return self.values.shape[0]

    def require(self, family: str, codebook_size: int, who: str) -> torch.Tensor:
        """Return the values for a caller, such as "This tokenizer", that reads codes of ``family``.

        Raises:
            CodesError: these codes belong to another family; the message names both.
        """
        if (self.family, self.codebook_size) != (family, codebook_size):
            raise CodesError(
                f"{who} reads {family} codes (0..{codebook_size - 1}), but these are {self.family} "
                f"codes (0..{self.codebook_size - 1}). Codes of one family mean nothing to "
                "another: use the tokenizer, language model and decoder of the same family."
            )
        return self.values

    def to_text(self) -> str:
        """Return one line a picture: ``<img><img_00012>...</img>``."""
        return "\n".join(codes_to_text(row) for row in self.values.tolist())


def codes_to_text(codes: list[int] | tuple[int, ...]) -> str:
    """Return the image tokens of one picture between its two markers."""
    return BEGIN_IMAGE + "".join(image_token(code) for code in codes) + END_IMAGE


def codes_values(
    codes: torch.Tensor | SeedCodes, family: str, codebook_size: int, who: str
) -> torch.Tensor:
    """Return int64 ``[B, 32]`` from either form of codes, checked for the caller's family.

    Raises:
        CodesError: `SeedCodes.require` or `check_codes` refuses them.
    """
    if isinstance(codes, SeedCodes):
        return codes.require(family, codebook_size, who)
    return _as_rows(codes, codebook_size)
