"""The residual block of the SR3 family, and changes of resolution by two [SR3, Fig. A.1; Ho et al. 2020, App. B].

h = conv(swish(norm(x))) + W e        e: embedding of the noise level; an autoencoder has none
y = conv(dropout(swish(norm(h)))) + skip(x)

Without groups there is no norm, and y starts as skip(x): a network that gives small corrections of an image learns much faster so, as norms
hide how bright and how uneven a place is [Lim et al. 2017, §3.1].

With `film` the embedding scales and shifts what the second convolution sees, FiLM(norm(h), e), and is not added to h
[Dhariwal & Nichol 2021, §3.1: adaptive group normalisation].
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxsr.nn.convolution import conv, dense
from jaxsr.nn.film import Film, modulated
from jaxsr.nn.norm import GroupNorm


class ResnetBlock(nn.Module):
    """`x` `[B, H, W, C]`, `embedding` `[B, E]` or None → `[B, H, W, features]`; `modulation` `[B, 2 features]` scales and shifts what
    is between the convolutions, before its norm.

    Attributes:
      features: output channels; a 1×1 convolution brings the skip to them where the input has others.
      groups: of both normalisations; must divide input and output channels; None: no normalisation.
      dropout: before the second convolution.
      epsilon: of both normalisations.
      film: the embedding scales and shifts the second normalisation's output, in place of being added to its input.
      convolution: makes the convolutions; `ComplexConv` for channels in pairs.
    """

    features: int
    groups: int | None = 32
    dropout: float = 0.0
    dtype: Any = None
    epsilon: float = 1e-5
    film: bool = False
    convolution: Callable[..., Any] = conv

    @nn.compact
    def __call__(self, x: Array, embedding: Array | None = None, train: bool = False, modulation: Array | None = None) -> Array:
        def norm(x: Array, name: str) -> Array:
            if self.groups is None:
                return x
            return jnp.asarray(GroupNorm(self.groups, epsilon=self.epsilon, dtype=self.dtype, name=name)(x))

        h = nn.swish(norm(x, "norm1"))
        h = self.convolution(self.features, dtype=self.dtype, name="conv1")(h)
        if embedding is not None and not self.film:
            h += dense(self.features, dtype=self.dtype, name="embedding")(embedding)[:, None, None, :]
        if modulation is not None:
            h = modulated(h, modulation[:, None, None, :])
        h = norm(h, "norm2")
        if embedding is not None and self.film:
            h = Film(self.dtype, name="film")(h, embedding)
        h = nn.Dropout(self.dropout, deterministic=not train)(nn.swish(h))
        still = {"zero": True} if self.groups is None else {}
        h = self.convolution(self.features, dtype=self.dtype, name="conv2", **still)(h)
        skip = x if x.shape[-1] == self.features else self.convolution(self.features, 1, dtype=self.dtype, name="skip")(x)
        return h + skip


class Downsample(nn.Module):
    """Half the resolution by a convolution of stride 2: `[B, H, W, C]` → `[B, H/2, W/2, C]`.

    Attributes:
      padding: before and after; Stable Diffusion's autoencoder pads after only, (0, 1).
    """

    dtype: Any = None
    padding: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return conv(x.shape[-1], stride=2, padding=self.padding, dtype=self.dtype, name="conv")(x)


class Upsample(nn.Module):
    """Twice the resolution, nearest neighbour then a convolution: `[B, H, W, C]` → `[B, 2H, 2W, C]`."""

    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels)).reshape(batch, 2 * height, 2 * width, channels)
        return conv(channels, dtype=self.dtype, name="conv")(x)


def space_to_depth(x: Array, block: int) -> Array:
    """Blocks of pixels as channels: `[B, H, W, C]` → `[B, H/block, W/block, block² C]`."""
    if block == 1:
        return x
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // block, block, width // block, block, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // block, width // block, block**2 * channels)


def depth_to_space(x: Array, block: int) -> Array:
    """The inverse of `space_to_depth`."""
    if block == 1:
        return x
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, block, block, channels // block**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height * block, width * block, channels // block**2)
