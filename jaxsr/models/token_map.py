"""What experts are shown of a slice: its tokens, as a map in the resolution of the latents [MoEDiff-SR, Fig. 2].

    map = Σ_s resize(W_s z_c(s)) + b        W_s: the columns of one projection that belong to scale s

The tokens of every scale lie on a grid of patches; brought to the latents' grid they stand beside z_t. A projection and a resizing of each
channel by itself may change places, so the tokens are projected where they are few.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxsr.nn.convolution import conv


class TokenMap(nn.Module):
    """Grids `[B, h_s, w_s, d]`, one a scale → `[B, *shape, features]`, interpolated linearly.

    Attributes:
      features: channels of the map.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, grids: tuple[Array, ...], shape: tuple[int, int]) -> Array:
        maps = []
        for scale, grid in enumerate(grids):
            projected = conv(self.features, 1, bias=scale == 0, dtype=self.dtype, name=f"scale{scale}")(grid.astype(self.dtype))
            maps.append(jax.image.resize(projected, (len(grid), *shape, self.features), "bilinear"))
        return jnp.asarray(sum(maps))
