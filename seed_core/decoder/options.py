"""How a picture is made: the options of `SeedDecoder.decode`."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import OptionError

LONGEST_SIDE = 4096  # pixels of a picture

REFERENCE_GUIDANCE = 10.0  # with SD 2.1 unCLIP
MOST_GUIDANCE = 1000


@dataclass(frozen=True)
class DecodeOptions:
    """How a picture is made; the defaults are the reference's, and the decoder's own.

    Raises:
        OptionError: a value is out of range.
    """

    num_inference_steps: int = 20  # diffusion steps; some schedulers call the network once more
    # How strongly the embedding is followed; up to 1: unguided; None is the decoder's own.
    guidance_scale: float | None = None
    noise_level: int = 0  # noise added to the embedding, 0..999; level 0 still adds a trace
    width: int = 0  # pixels, a multiple of 8 up to 4096; 0 is the decoder's own
    height: int = 0  # likewise

    def __post_init__(self) -> None:
        if not 1 <= self.num_inference_steps <= 1000:
            raise OptionError(f"steps must lie in 1..1000; got {self.num_inference_steps}")
        if self.guidance_scale is not None and not 0 <= self.guidance_scale <= MOST_GUIDANCE:
            raise OptionError(
                f"guidance_scale must lie in 0..{MOST_GUIDANCE}, or be left out for the decoder's "
                f"own; got {self.guidance_scale}"
            )
        if not 0 <= self.noise_level <= 999:
            raise OptionError(f"noise_level must lie in 0..999; got {self.noise_level}")
        for name, side in (("width", self.width), ("height", self.height)):
            if not 0 <= side <= LONGEST_SIDE or side % 8:
                raise OptionError(
                    f"{name} must be 0 (the decoder's own) or a multiple of 8 pixels up to "
                    f"{LONGEST_SIDE}; got {side}"
                )
