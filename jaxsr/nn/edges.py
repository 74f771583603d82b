"""Edge enhancement: a feature map plus a multiple of its Laplacian.

y = x + γ(e) ⊙ L * x,      L = 0  1  0        γ(e) = W e, one a channel, zero at the start
                               1 −4  1
                               0  1  0

L is fixed, so an edge costs one weight a channel and unit of the embedding e. The embedding decides the weight because in a noisy image
the Laplacian is mostly noise, whose edges are not to be enhanced. At the border the image goes on as it ends, so that a border is no edge.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxsr.nn.convolution import dense


class EdgeEnhancement(nn.Module):
    """`x` `[B, H, W, C]`, `embedding` `[B, E]` → `[B, H, W, C]`."""

    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, embedding: Array) -> Array:
        gain = dense(x.shape[-1], zero=True, dtype=self.dtype, name="gain")(embedding)
        return x + gain[:, None, None, :] * laplacian(x).astype(x.dtype)


def laplacian(x: Array) -> Array:
    """L * x, every channel by itself: `[B, H, W, C]` → the same shape, in float32, where a difference of neighbours keeps its digits."""
    x = x.astype(jnp.float32)
    p = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    return p[:, :-2, 1:-1] + p[:, 2:, 1:-1] + p[:, 1:-1, :-2] + p[:, 1:-1, 2:] - 4 * x
