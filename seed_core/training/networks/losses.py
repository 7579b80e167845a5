"""The losses of a SEED tokenizer, and measures of how far pictures differ.

They are float32, whatever the precision of the networks, and see the rows of all processes.

Sources: arXiv 2307.08041 (SEED); AILab-CVC/SEED at 93b3cf4 for the factors and the order of beta.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import distributed
from torch.distributed.nn.functional import all_gather


def detached(terms: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return terms of a loss for the log, without their gradients."""
    return {name: value.detach() for name, value in terms.items()}


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """Return the rows of all processes, in the processes' order, with gradients to each."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return rows
    return torch.cat(all_gather(rows.contiguous()))


def contrastive_loss(
    pictures: torch.Tensor, texts: torch.Tensor, temperature: torch.Tensor, smoothing: float = 0.1
) -> torch.Tensor:
    """Return how badly pictures and texts find one another in the batch of all processes.

    It is the mean of both directions' cross-entropies.

    Args:
        pictures: float ``[B, D]`` of this process, each of length 1.
        texts: float ``[B, D]``; row i belongs to picture i.
        temperature: divides the cosines.
        smoothing: fraction of the target that is spread over all rows.
    """
    pictures, texts = pictures.float(), texts.float()
    first = len(pictures) * (distributed.get_rank() if distributed.is_initialized() else 0)
    targets = torch.arange(first, first + len(pictures), device=pictures.device)
    to_texts = pictures @ gather_rows(texts).t() / temperature  # [B, B of all]
    to_pictures = texts @ gather_rows(pictures).t() / temperature
    loss = F.cross_entropy(to_texts, targets, label_smoothing=smoothing)
    return (loss + F.cross_entropy(to_pictures, targets, label_smoothing=smoothing)) / 2


def quantization_loss(
    vectors: torch.Tensor, quantized: torch.Tensor, beta: float = 0.25
) -> torch.Tensor:
    """Return how far vectors ``[B, N, D]`` and their codebook rows are apart.

    ``beta`` weighs the pull on the rows, as in the reference; the paper on VQ-VAE weighs the pull
    on the vectors.
    """
    vectors, quantized = vectors.float(), quantized.float()
    commitment = F.mse_loss(vectors, quantized.detach())
    return commitment + beta * F.mse_loss(quantized, vectors.detach())


def cosine_loss(given: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the mean of 1 - cosine over all tokens of float ``[B, N, D]``."""
    return (1 - F.cosine_similarity(given.float(), wanted.float(), dim=-1)).mean()


def each_on(errors: torch.Tensor, cover: torch.Tensor) -> torch.Tensor:
    """Return the mean of the errors on each object, ``[B]``.

    Args:
        errors: ``[B, C, H, W]``.
        cover: ``[B, 1, H, W]`` in 0..1, how much of each place the object covers.
    """
    per_place = errors.float().mean(dim=1, keepdim=True) * cover
    return per_place.sum(dim=(1, 2, 3)) / cover.sum(dim=(1, 2, 3)).clamp(min=1e-6)


def mean_on(errors: torch.Tensor, cover: torch.Tensor) -> torch.Tensor:
    """Return the mean of errors on the objects; small and big ones count alike. See `each_on`."""
    return each_on(errors, cover).mean()


def psnr(
    pictures: torch.Tensor, wanted: torch.Tensor, cover: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the peak signal-to-noise ratio of pictures ``[B, 3, H, W]`` in 0..1 together, in dB.

    With a cover, only the objects are compared; see `mean_on`.
    """
    errors = (pictures.float() - wanted.float()).square()
    return -10 * (errors.mean() if cover is None else mean_on(errors, cover)).log10()


def straight_through(vectors: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
    """Return ``quantized``; its gradient goes to ``vectors``."""
    return vectors + (quantized - vectors).detach()
