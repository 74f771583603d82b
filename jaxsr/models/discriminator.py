"""The PatchGAN: tells for each patch of a slice whether it is real [Isola et al. 2017, App. 6.1.2].

    C64 – C128 – C256 – C512 – 1        Ck: a 4 × 4 convolution to k features, then leaky ReLU of slope 0.2

The first L = `layers` of them halve the resolution, the last C and the head do not, as in the authors' code; every one pads by 1. A logit
sees r × r pixels, and a slice of H × W has h × w of them,

    r = 9 · 2^L − 2        16, 34, 70, 142, 286 for L = 1 … 5        h = ⌊H / 2^L⌋ − 2.

Batch normalisation, which the paper has between, would make what is said of a slice depend on those beside it, and so on how a batch lies
over devices; and it leaves no gradient of one slice for R1. The kernels' spectral normalisation [Miyato et al. 2018] is in its place: it
depends on the weights only.

At the default size, one channel in, there are 2,762,689 parameters, with spectral normalisation or without.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxsr.nn.convolution import conv
from jaxsr.nn.spectral import SpectralConv

SLOPE = 0.2
WIDEST = 8  # times `width`


class PatchDiscriminator(nn.Module):
    """`x` `[B, H, W, C]` → logits `[B, h, w, 1]` float32, above 0 for what it takes for real.

    With `spectral` and `train` it needs `mutable=["spectral"]`: see `jaxsr.nn.spectral.SpectralConv`.

    Attributes:
      width: features of the first layer; each layer doubles them, up to 8 times as many.
      layers: that halve the resolution, L.
      spectral: whether kernels are normalised; parameters are the same.
      dtype: of the computation; parameters, statistics and the head are float32.

    Raises:
      ValueError: where a side is too short for a single logit; says how long it must be.
    """

    width: int = 64
    layers: int = 3
    spectral: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        if min(x.shape[1:3]) < least_side(self.layers):
            raise ValueError(f"sides must be at least {least_side(self.layers)} for {self.layers} layers, got {x.shape[1]} × {x.shape[2]}")

        def convolved(x: Array, features: int, stride: int, name: str, dtype: Any) -> Array:
            if self.spectral:
                return jnp.asarray(SpectralConv(features, 4, stride, (1, 1), dtype, name=name)(x, train))
            return jnp.asarray(conv(features, 4, stride=stride, padding=(1, 1), dtype=dtype, name=name)(x))

        for layer in range(self.layers + 1):
            features, stride = self.width * min(2**layer, WIDEST), 2 if layer < self.layers else 1
            x = nn.leaky_relu(convolved(x, features, stride, f"layer{layer}", self.dtype), SLOPE)
        return convolved(x, 1, 1, "head", jnp.float32)


def least_side(layers: int) -> int:
    """Pixels on a side for one logit, h = 1 above."""
    return 3 * 2**layers
