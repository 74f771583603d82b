"""Self-attention over the pixels of a feature map.

y = x + W_o softmax(q kᵀ / √d) v,      q, k, v = W norm(x),      d channels a head         [Wang et al. 2018; SR3, App. A]
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxsr.nn.convolution import conv, group_norm


class PixelAttention(nn.Module):
    """`[B, H, W, C]` → the same shape.

    Attributes:
      heads: of C / heads channels each.
      groups: of the normalisation in front.
      epsilon: of the normalisation.
      fused: one convolution without bias makes queries, keys and values, as in SR3; else three with biases, as in Stable Diffusion.
    """

    heads: int = 1
    groups: int = 32
    epsilon: float = 1e-5
    fused: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        normed = group_norm(self.groups, epsilon=self.epsilon, dtype=self.dtype, name="norm")(x)
        if self.fused:
            parts = jnp.split(conv(3 * channels, 1, bias=False, dtype=self.dtype, name="qkv")(normed), 3, axis=-1)
        else:
            parts = [conv(channels, 1, dtype=self.dtype, name=name)(normed) for name in ("query", "key", "value")]
        q, k, v = (part.reshape(batch, height * width, self.heads, channels // self.heads) for part in parts)
        y = jax.nn.dot_product_attention(q, k, v)  # [B, HW, heads, d]; softmax in float32
        return x + conv(channels, 1, dtype=self.dtype, name="out")(y.reshape(x.shape))
