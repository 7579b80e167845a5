"""Pictures beside the text in the cross attention of the host's Stable Diffusion UNets."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import comfy.ldm.modules.attention
import torch

from ...seed_core.decoder.ip_adapter import KeysAndValues
from ...seed_core.errors import OptionError

_Patch = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]], torch.Tensor]

_EVERY_PART = (0.0, 1.0)  # of the way from noise to a picture


class CrossAttention(NamedTuple):
    """One of a UNet, which reads the text."""

    place: tuple[str, int, int]  # side, block and layer in it, as the host counts them
    is_only: bool  # in its block
    width: int
    context: int  # width of a token of the text


def cross_attentions(model: Any) -> list[CrossAttention]:
    """Return those of a MODEL's UNet: on the way down, on the way up, then those between.

    So IP-Adapter files count them; diffusers makes the middle of a UNet last.

    Raises:
        OptionError: it has none in the form of Stable Diffusion 1 and XL.
    """
    network = model.model.diffusion_model
    found = list(_cross_attentions(network)) if hasattr(network, "input_blocks") else []
    if not found:
        raise OptionError(
            f"this model is a {type(model.model).__name__}, and IP-Adapters guide only SD 1.5 and SDXL "
            "models: connect one, from Load Checkpoint"
        )
    return found


def _cross_attentions(network: Any) -> Iterator[CrossAttention]:
    sides = {
        "input": network.input_blocks,
        "output": network.output_blocks,
        "middle": [network.middle_block or ()],
    }
    for side, blocks in sides.items():
        for number, block in enumerate(blocks):
            layers = [layer for part in block for layer in getattr(part, "transformer_blocks", ())]
            for i, layer in enumerate(layers):
                if layer.attn2 is not None:
                    keys = layer.attn2.to_k
                    yield CrossAttention(
                        (side, number, i), len(layers) == 1, keys.out_features, keys.in_features
                    )


def add_pictures(
    model: Any,
    layers: Sequence[CrossAttention],
    positive: Sequence[KeysAndValues],
    negative: Sequence[KeysAndValues],
    weight: float,
    start_at: float,
    end_at: float,
) -> Any:
    """Return a MODEL on the same weights that also reads pictures.

    Args:
        model: the host's MODEL; it stays as it is.
        layers: what `cross_attentions` returns of it.
        positive: for each of these, in their order; picture i is for latent i, and
            after the last the first comes again.
        negative: the same for what the sampler steers away from.
        weight: how strongly.
        start_at: share of the way from noise to a picture where they begin to count.
        end_at: share of the way where they end.

    Raises:
        OptionError: the end does not lie after the start.
    """
    if start_at >= end_at:
        raise OptionError(
            f"start_at is {start_at:g} and end_at {end_at:g}: give end_at a number above start_at"
        )
    sampling = model.get_model_object("model_sampling")
    noise = tuple(sampling.percent_to_sigma(share) for share in (start_at, end_at))
    bounds = None if (start_at, end_at) == _EVERY_PART else noise
    patched = model.clone()
    replaced = patched.model_options["transformer_options"].get("patches_replace", {})
    present = replaced.get("attn2", {})
    for layer, of_positive, of_negative in zip(layers, positive, negative, strict=True):
        # The host looks for a patch of the layer, then for one of its block.
        place, block = layer.place, layer.place[:2]
        before = present.get(place, present.get(block))
        key = block if layer.is_only and place not in present else place
        patch = _ReadsPictures(of_positive, of_negative, weight, bounds, before)
        patched.set_model_attn2_replace(patch, *key)
    return patched


@dataclass(eq=False)
class _ReadsPictures:
    """The host's patch of one cross attention: it adds what is read in pictures.

    Attributes:
        positive, negative: keys and values of the pictures on either side.
        weight: how strongly they count.
        bounds: the most and the least noise at which they do; None for any.
        before: the patch that was there, for what is read in the text.
    """

    positive: KeysAndValues
    negative: KeysAndValues
    weight: float
    bounds: tuple[float, float] | None
    before: _Patch | None

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]
    ) -> torch.Tensor:
        """Return ``[B, N, width]`` of queries, and of the text's keys and values."""
        attend = _attend if self.before is None else self.before
        read = attend(q, k, v, options)
        keys, values = self._of_rows(len(q), options["cond_or_uncond"])
        seen = _attend(q, keys.to(q), values.to(q), options)
        if self.bounds is None:
            return torch.add(read, seen, alpha=self.weight)
        most, least = self.bounds
        noise = options["sigmas"]
        # Not asked of the card, which would have to finish all it does before it could answer.
        counts = ((noise <= most) & (noise >= least)).to(q) * self.weight
        return read + seen * counts.repeat(len(q) // len(counts)).view(-1, 1, 1)

    def _of_rows(self, count: int, sides: Sequence[int]) -> KeysAndValues:
        """Keys and values for the rows of a call, which has the latents once for each side.

        A side is a place in the list of conditions that the host's KSampler and CFGGuider give: 0 is
        what they steer to, 1 what they steer away from.
        """
        latents = count // len(sides)
        chosen = [self.negative if side else self.positive for side in sides]
        rows = ([_in_turn(part, latents) for part in parts] for parts in zip(*chosen, strict=True))
        return KeysAndValues(*(torch.cat(of_sides) for of_sides in rows))

    def to(self, target: Any) -> "_ReadsPictures":
        """Move to a device, as the host asks before and after its work.

        In place: the options of a run that has begun hold this very patch. The host names the model's
        number format too, which may be fp8; the pictures follow the queries in that.
        """
        if isinstance(target, torch.device):
            self.positive, self.negative = (
                KeysAndValues(*(part.to(target) for part in side))
                for side in (self.positive, self.negative)
            )
        if hasattr(self.before, "to"):
            self.before = self.before.to(target)
        return self

    def models(self) -> list[Any]:
        """The models that the patch before brings along; this one has none."""
        return self.before.models() if hasattr(self.before, "models") else []

    def cleanup(self) -> None:
        """Hand on what the host says after its work."""
        if hasattr(self.before, "cleanup"):
            self.before.cleanup()

    def add(self, *_: Any, **__: Any) -> None:
        """Refuse what nodes of ComfyUI_IPAdapter_plus do to any patch that they find.

        Raises:
            OptionError: always.
        """
        raise OptionError(
            "SEED IP-Adapter is connected before an IPAdapter node of the pack ComfyUI_IPAdapter_plus: "
            "connect it after that one"
        )


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]
) -> torch.Tensor:
    """The host's own attention, as its layer calls it."""
    attend: _Patch = comfy.ldm.modules.attention.optimized_attention
    return attend(
        *(q, k, v, options["n_heads"]),
        attn_precision=options["attn_precision"],
        transformer_options=options,
    )


def _in_turn(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Return so many rows, the first again after the last."""
    if len(rows) > count:
        raise OptionError(
            f"the codes of SEED IP-Adapter hold {len(rows)} pictures, one for each latent, and there "
            f"are {count} latents: set batch_size of the latent to {len(rows)}, or choose a picture "
            "with SEED Select Codes"
        )
    return rows.repeat(math.ceil(count / len(rows)), 1, 1)[:count]
