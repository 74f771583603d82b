"""Diffusion in pixel space: of an image itself, or of what it adds to one that is known already.

    x_0 = image        or        x_0 = (image − y) / s,        y: what is known, s: its standard deviation, `residual_std`

The published recipes diffuse the image itself. A residual spares a small network learning to copy y, which holds nearly everything.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from pydantic import Field, model_validator

from jaxsr.config import Strict
from jaxsr.diffusion.process import Prediction
from jaxsr.diffusion.sampling import Denoiser
from jaxsr.diffusion.schedule import Schedule
from jaxsr.methods.base import Sampler


class PixelNetworkConfig(Strict):
    """Attributes of `jaxsr.models.sr3.Sr3UNet`, but for dropout."""

    width: int = 64
    multipliers: tuple[int, ...] = (1, 2, 4, 8, 8)
    blocks: int = 2
    attention_at: tuple[int, ...] = (8,)
    groups: int | None = Field(32, ge=1)
    middle_attention: bool = True
    skips: bool = True
    patch: int = 1
    remat: bool = False

    @model_validator(mode="after")
    def _norms_divide(self) -> "PixelNetworkConfig":
        if self.width < 1 or self.blocks < 1 or not self.multipliers or min(self.multipliers) < 1:
            raise ValueError("width, blocks and every multiplier must be at least 1")
        if self.width % (self.groups or 1) or self.width % 2:
            raise ValueError(f"width must be even and a multiple of groups, got width {self.width} and groups {self.groups}")
        if self.groups is None and (self.attention_at or self.middle_attention):
            raise ValueError("attention normalises what it sees: without groups, set attention_at: [] and middle_attention: false")
        if not self.skips and len(self.multipliers) > 1:
            raise ValueError("without skips what is fine would be lost between levels: give one multiplier, or leave skips")
        levels = {2**i for i in range(len(self.multipliers))}
        if not set(self.attention_at) <= levels:
            raise ValueError(
                f"attention_at names levels that this network lacks: {sorted(set(self.attention_at) - levels)}; it has {sorted(levels)}"
            )
        return self

    @property
    def multiple(self) -> int:
        """Slice sides must be multiples of this: a patch, and one halving between levels."""
        return self.patch * 2 ** (len(self.multipliers) - 1)


class Pixels(NamedTuple):
    """What is diffused in place of an image, given `known` `[B, H, W, 1]`.

    Attributes:
      residual_std: None: the image itself; s: the residual above.
      bound: while sampling, the image that x̂_0 stands for is kept within ± this; None leaves it free.
    """

    residual_std: float | None = None
    bound: float | None = None

    def diffused(self, image: Array, known: Array) -> Array:
        return image if self.residual_std is None else (image - known) / self.residual_std

    def image(self, x0: Array, known: Array) -> Array:
        return x0 if self.residual_std is None else known + self.residual_std * x0

    def sampler(self, schedule: Schedule, prediction: Prediction, denoise: Denoiser, known: Array) -> Sampler:
        return Sampler(schedule, prediction, denoise, known.shape[1:], lambda x0: self.image(x0, known), self.bounds(known))

    def bounds(self, known: Array) -> Callable[[Array], Array] | None:
        """For `sample`. Where a residual is diffused and `known` itself lies beyond the bound, the image may go as far."""
        if self.bound is None:
            return None
        limit = jnp.maximum(self.bound, jnp.abs(known)) if self.residual_std else jnp.full_like(known, self.bound)
        # The limits are brought to x̂_0, not x̂_0 to the limits and back: what is within them keeps every bit.
        return functools.partial(jnp.clip, min=self.diffused(-limit, known), max=self.diffused(limit, known))
