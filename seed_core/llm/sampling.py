"""How the next token is chosen: options, the grammar that keeps pictures whole, the draw itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ..errors import OptionError

REPLIES = ("auto", "text", "image")


@dataclass(frozen=True)
class GenerationOptions:
    """How a reply is made; the defaults are those of the reference's scripts.

    Raises:
        OptionError: a value is out of range.
    """

    reply: Literal["auto", "text", "image"] = "auto"  # image: begins with one; text: has none
    max_new_tokens: int = 512  # most tokens of a reply; a picture takes 34
    temperature: float = 1.0  # 0 always takes the likeliest token; above 1 chooses more freely
    top_p: float = 0.5  # keeps the likeliest tokens that together have this probability
    top_k: int = 50  # keeps so many of the likeliest tokens; 0 keeps all

    def __post_init__(self) -> None:
        if self.reply not in REPLIES:
            raise OptionError(f"reply must be one of {', '.join(REPLIES)}; got {self.reply!r}")
        if self.max_new_tokens < 1:
            raise OptionError(f"max_new_tokens must be at least 1; got {self.max_new_tokens}")
        if not 0 <= self.temperature <= 100:
            raise OptionError(f"temperature must lie in 0..100; got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise OptionError(f"top_p must be above 0 and at most 1; got {self.top_p}")
        if self.top_k < 0:
            raise OptionError(f"top_k must be 0 (off) or more; got {self.top_k}")


@dataclass(frozen=True)
class ImageTokens:
    """Which token ids are pictures."""

    begin: int  # the marker that opens a picture
    end: int  # the marker that closes it
    first_code: int  # code 0; the others follow
    codebook_size: int
    per_image: int  # codes between the markers


class PictureGrammar:
    """Which tokens may come next in each row: text, or exactly one whole picture.

    A picture is begun only where it still fits; inside it only codes may follow, after the last one
    only the closing marker.
    """

    # What may come: text alone; text or a picture's begin; a code; the closing marker.
    _TEXT, _ANY, _CODES, _CLOSE = range(4)

    def __init__(
        self,
        tokens: ImageTokens,
        vocab_size: int,  # width of the logits
        rows: int,  # replies made together
        steps: int,  # most tokens of a reply
        allow_images: bool,  # whether a picture may be begun at all
        device: torch.device,  # where the logits are
    ) -> None:
        self._tokens = tokens
        codes = slice(tokens.first_code, tokens.first_code + tokens.codebook_size)
        forbidden = torch.zeros(4, vocab_size, dtype=torch.bool)  # one row a kind
        forbidden[[self._TEXT, self._ANY], codes] = True
        forbidden[[self._TEXT, self._ANY], tokens.end] = True
        forbidden[self._TEXT, tokens.begin] = True
        forbidden[[self._CODES, self._CLOSE]] = True
        forbidden[self._CODES, codes] = False
        forbidden[self._CLOSE, tokens.end] = False
        self._forbidden = forbidden.to(device)
        # [rows]: tokens to come in the picture a row is in, its closing marker included; 0 outside.
        self._remaining = torch.zeros(rows, dtype=torch.int64, device=device)
        # [steps, tokens to come]: what may come at a step, one of the four kinds.
        self._kinds = torch.full((steps, tokens.per_image + 2), self._CODES, device=device)
        self._kinds[:, 1] = self._CLOSE
        last = steps - tokens.per_image - 2  # step at which a picture still fits
        self._kinds[:, 0] = self._TEXT
        if allow_images:
            self._kinds[: max(last + 1, 0), 0] = self._ANY

    def forbidden(self, step: torch.Tensor) -> torch.Tensor:
        """Return what may not come next, bool ``[rows, vocab_size]``; ``step`` is int64 ``[1]``."""
        kinds = self._kinds.index_select(0, step)[0].index_select(0, self._remaining)
        return self._forbidden.index_select(0, kinds)

    def advance(self, token_ids: torch.Tensor) -> None:
        """Take note of the token ``[rows]`` that each row continues with."""
        self._remaining.sub_(1).clamp_(min=0)
        self._remaining.masked_fill_(token_ids == self._tokens.begin, self._tokens.per_image + 1)


def sample(logits: torch.Tensor, options: GenerationOptions, uniform: torch.Tensor) -> torch.Tensor:
    """Choose one token a row, int64 ``[rows]``, by temperature, top-k and top-p in that order.

    ``logits`` are ``[rows, vocab_size]``, minus infinity where a token may not come. ``uniform`` is
    one number in 0..1 a row; the same number gives the same token.
    """
    if options.temperature == 0:
        return logits.argmax(-1)
    kept = min(options.top_k or logits.shape[-1], logits.shape[-1])
    scores, token_ids = logits.topk(kept, dim=-1)  # [rows, kept], likeliest first
    probability = (scores.float() / options.temperature).softmax(-1)
    reached = probability.cumsum(-1)
    is_kept = (reached - probability < options.top_p) & (probability > 0)
    last = is_kept.sum(-1, keepdim=True).clamp(min=1) - 1  # of NaNs the first is kept
    target = uniform[:, None] * reached.gather(-1, last)
    choice = (reached <= target).sum(-1, keepdim=True)
    return token_ids.gather(-1, torch.minimum(choice, last))[:, 0]
