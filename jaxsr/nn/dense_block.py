"""A block of densely connected layers [Huang et al. 2017, Eq. 2], brought to a given width at its end [Zhang et al. 2018 (RDN), Eq. 6].

x_l = H_l([x_0, …, x_{l−1}]),      l = 1 … L,      x_l of `growth` channels
y = W [x_0, …, x_L],               W a 1×1 convolution

Huang's H_l is norm, activation, convolution; here the convolution comes first, H_l(x) = swish(FiLM(norm(conv(x)), e)), so that a layer
normalises and modulates the few maps that it adds, as one group, and not all that came before it once more: for 16 maps from 512, with an
embedding of 512, FiLM in front of the convolution would have seven times the convolution's parameters.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxsr.nn.convolution import conv
from jaxsr.nn.film import FilmConvBlock


class DenseBlock(nn.Module):
    """`x` `[B, H, W, C]`, `embedding` `[B, E]` → `[B, H, W, features]`; C + layers · growth channels meet before the 1×1 convolution.

    Attributes:
      features: output channels.
      layers: L.
      growth: channels that each layer adds.
    """

    features: int
    layers: int = 4
    growth: int = 16
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, embedding: Array) -> Array:
        for layer in range(self.layers):
            grown = FilmConvBlock(self.growth, groups=1, dtype=self.dtype, name=f"layer{layer}")(x, embedding)
            x = jnp.concatenate([x, grown], axis=-1)
        return jnp.asarray(conv(self.features, 1, dtype=self.dtype, name="transition")(x))
