"""Guidance by a map of the target's acquisition, b (log bias field) or g (gradient nonlinearity) [teacher paper §II-A, Fig. 2].

    r_l = Z_l B_l(… B_0(S(concat(p · field, p)))),      l = 0 … levels − 1,      p: the presence flag

S brings the map from the image's resolution to the latents' by convolutions of stride 2, each B_l is a residual block (behind a further
convolution of stride 2 where l > 0), and Z_l a 1×1 convolution to the features of the UNet's level, zero at the start [ControlNet: Zhang
et al. 2023, §3.1]: a network whose guidance was never trained is the unguided one.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxsr.nn.convolution import conv
from jaxsr.nn.resnet import ResnetBlock


class GuidancePyramid(nn.Module):
    """`field` `[B, f H, f W, C]` and `present` `[B]` (1 or 0) → one residual a level, `[B, H / 2ˡ, W / 2ˡ, width * multipliers[l]]`.

    f H and f W must be multiples of `factor * 2 ** (len(multipliers) - 1)`. An absent map is not looked at: whatever it holds, NaN
    included, is zeros.

    Attributes:
      width, multipliers: of the UNet that is guided.
      factor: f, by which the autoencoder reduces the resolution; a power of two, at least 2.
      base: features at the latents' resolution; the pyramid's own width.
      groups: of its normalisations.
      dtype: of the computation; parameters are float32.
    """

    width: int = 320
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    factor: int = 8
    base: int = 64
    groups: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, field: Array, present: Array) -> tuple[Array, ...]:
        levels, halvings = len(self.multipliers), self.factor.bit_length() - 1
        if self.factor != 2**halvings or not halvings:
            raise ValueError(f"a guidance pyramid halves the resolution, so its factor must be 2, 4, 8, …, got {self.factor}")
        multiple = self.factor * 2 ** (levels - 1)
        if field.shape[1] % multiple or field.shape[2] % multiple:
            raise ValueError(f"sides must be multiples of {multiple} for {levels} levels, got {field.shape[1]} × {field.shape[2]}")

        flag = present.astype(jnp.float32)[:, None, None, None]
        x = jnp.where(flag > 0, field.astype(jnp.float32), 0)
        x = jnp.concatenate([x, jnp.broadcast_to(flag, (*field.shape[:3], 1))], axis=-1).astype(self.dtype)
        for i in range(halvings):
            features = self.base >> (halvings - 1 - i)
            x = nn.swish(conv(features, stride=2, dtype=self.dtype, name=f"stem{i}")(x))

        residuals = []
        for level, multiplier in enumerate(self.multipliers):
            if level:
                x = conv(self.base * multiplier, stride=2, dtype=self.dtype, name=f"level{level}_half")(x)
            x = ResnetBlock(self.base * multiplier, self.groups, dtype=self.dtype, name=f"level{level}")(x)
            residuals.append(conv(self.width * multiplier, 1, zero=True, dtype=self.dtype, name=f"level{level}_out")(x))
        return tuple(residuals)
