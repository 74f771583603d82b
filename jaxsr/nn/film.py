"""Feature-wise linear modulation: an embedding scales and shifts the channels of a feature map [Perez et al. 2018, Eqs. 1–2].

FiLM(h, e) = (1 + s) ⊙ h + b,      (s, b) = W e,      one of each a channel, the same for all pixels
y = swish(FiLM(norm(conv(x)), e))                     a convolution block that is told e

It modulates what was just normalised and has no scale but the norm's own. W starts as any layer's, not at zero: a network whose head starts
at zero is quiet already, and a second zero behind it would only make the embedding learn late.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxsr.nn.convolution import conv, dense
from jaxsr.nn.norm import GroupNorm


def modulated(features: Array, modulation: Array) -> Array:
    """(1 + s) ⊙ f + b of `features` `[B, H, W, C]`, (s, b) being `modulation` `[B, H, W, 2 C]`, or `[B, 1, 1, 2 C]`, the same for all."""
    scale, shift = jnp.split(modulation.astype(features.dtype), 2, axis=-1)
    return features * (1 + scale) + shift


class Film(nn.Module):
    """`h` `[B, H, W, C]`, `embedding` `[B, E]` → `[B, H, W, C]`."""

    dtype: Any = None

    @nn.compact
    def __call__(self, h: Array, embedding: Array) -> Array:
        both = dense(2 * h.shape[-1], dtype=self.dtype, name="scale_and_shift")(embedding)
        return modulated(h, both[:, None, None, :])


class FilmConvBlock(nn.Module):
    """`x` `[B, H, W, C]`, `embedding` `[B, E]` → `[B, H, W, features]`.

    Attributes:
      features: output channels.
      groups: of the normalisation; must divide `features`.
      dilation: of the 3×3 convolution.
    """

    features: int
    groups: int = 32
    dilation: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, embedding: Array) -> Array:
        h = conv(self.features, dilation=self.dilation, dtype=self.dtype, name="conv")(x)
        h = GroupNorm(self.groups, dtype=self.dtype, name="norm")(h)
        return nn.swish(Film(self.dtype, name="film")(h, embedding))
