"""The network of SPCDD's experiments: two hidden convolutions, 'channels [2, 64, 64, 1]' and '[1, 32, 32, 1]' [SPCDD §4.4, Table 1].

    f_1 = relu(conv(x)),      f_2 = (1 + s) relu(conv(f_1)) + b,      out = conv(f_2)

(s, b) is the intensity modulation of its only resolution, and f_2 the feature map that is distilled. As published it has no room for a
noise level: with `timed`, the time is told to both hidden layers by FiLM, each before its rectifier. 3×3 convolutions throughout, so a
pixel of the output sees 7 × 7 of the input.

    [2, 64, 64, 1]   38,721 parameters          [1, 32, 32, 1]   9,857
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxsr.nn.convolution import conv, dense
from jaxsr.nn.embedding import sinusoids
from jaxsr.nn.film import Film, modulated


class PlainNetwork(nn.Module):
    """`x` `[B, H, W, C]`, `time` `[B]`, `modulation` `[B, H, W, 2 width]` → output `[B, H, W, 1]` and f_2, float32.

    Attributes:
      width: of both hidden layers.
      timed: it is told the time, in steps of the schedule.
      dtype: of the computation; parameters are float32.
    """

    width: int = 64
    timed: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, time: Array | None = None, modulation: Array | None = None) -> tuple[Array, Array]:
        if self.timed:
            assert time is not None
            embedding = nn.swish(dense(self.width, dtype=self.dtype, name="level")(sinusoids(time, self.width)))
        x = x.astype(self.dtype)
        for i in (1, 2):
            x = conv(self.width, dtype=self.dtype, name=f"conv{i}")(x)
            if self.timed:
                x = Film(self.dtype, name=f"film{i}")(x, embedding)
            x = nn.relu(x)
        if modulation is not None:
            x = modulated(x, modulation)
        return conv(1, dtype=jnp.float32, name="out")(x.astype(jnp.float32)), x.astype(jnp.float32)
