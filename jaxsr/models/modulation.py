"""Intensity modulation: h looks at the slice, and scales and shifts a denoiser's features, pixel by pixel [SPCDD §3.3].

    (s_l, b_l) = Z_l H_l(… H_0(S(y))),        f ← (1 + s_l) ⊙ f + b_l,        l = 0 … levels − 1

S brings the slice from the image's resolution to that of the denoiser's first level by convolutions of stride 2, each H_l is a residual
block (behind a further convolution of stride 2 where l > 0), and Z_l a 1×1 convolution that starts at zero: before training the modulated
network is the plain one. It differs from FiLM in that every pixel has its own.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxsr.nn.convolution import conv
from jaxsr.nn.resnet import ResnetBlock


class IntensityBranch(nn.Module):
    """`y` `[B, f H, f W, 1]` → scale and shift of each level, side by side, `[B, H / 2ˡ, W / 2ˡ, 2 * features[l]]`.

    f H and f W must be multiples of `factor * 2 ** (len(features) - 1)`.

    Attributes:
      features: of the denoiser's levels that are modulated, from the highest resolution on.
      factor: f, a power of two: how much smaller the denoiser's first level is than the slice.
      base: features of the branch at the first level, doubled at each further one up to four times that.
      groups: of its normalisations.
      dtype: of the computation; parameters are float32.
    """

    features: tuple[int, ...]
    factor: int = 1
    base: int = 16
    groups: int = 8
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, y: Array) -> tuple[Array, ...]:
        halvings = self.factor.bit_length() - 1
        if self.factor != 2**halvings:
            raise ValueError(f"an intensity branch halves the resolution, so its factor must be a power of two, got {self.factor}")
        x = y.astype(self.dtype)
        for i in range(halvings):
            x = nn.swish(conv(max(self.base >> (halvings - i), 1), stride=2, dtype=self.dtype, name=f"stem{i}")(x))
        modulations = []
        for level, features in enumerate(self.features):
            own = self.base * 2 ** min(level, 2)
            x = conv(own, stride=2 if level else 1, dtype=self.dtype, name=f"level{level}_in")(x)
            x = ResnetBlock(own, self.groups, dtype=self.dtype, name=f"level{level}")(x)
            modulations.append(conv(2 * features, 1, zero=True, dtype=self.dtype, name=f"level{level}_out")(x))
        return tuple(modulations)
