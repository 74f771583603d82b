"""Self-attention over the pixels of a feature map.

y = x + W_o softmax(q kᵀ / √d) v,      q, k, v = W norm(x),      d channels a head         [Wang et al. 2018; SR3, App. A]
"""

from typing import Any

import flax.linen as nn
import jax
from jax import Array

from jaxsr.nn.convolution import conv, group_norm


class PixelAttention(nn.Module):
    """`[B, H, W, C]` → the same shape. Queries, keys and values have no bias, the output has.

    Attributes:
      heads: of C / heads channels each.
      groups: of the normalisation in front.
    """

    heads: int = 1
    groups: int = 32
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        normed = group_norm(self.groups, dtype=self.dtype, name="norm")(x)
        qkv = conv(3 * channels, 1, bias=False, dtype=self.dtype, name="qkv")(normed)
        q, k, v = (part.reshape(batch, height * width, self.heads, channels // self.heads) for part in jax.numpy.split(qkv, 3, axis=-1))
        y = jax.nn.dot_product_attention(q, k, v)  # [B, HW, heads, d]; softmax in float32
        return x + conv(channels, 1, dtype=self.dtype, name="out")(y.reshape(x.shape))
