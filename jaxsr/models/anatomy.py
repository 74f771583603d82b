"""The anatomy extractor A: what tissue each pixel of a slice is, and the template that tells it to a denoiser [SPCDD §3.3].

    m = softmax(A(y))                            masks of K classes, that sum to one
    a = m_0 (−1) + Σ_{k ≥ 1} m_k μ_k             the template
    μ_k = Σ m_k y / Σ m_k                        the mean of the slice itself where it is tissue k, over its pixels

Class 0 is all that is no tissue, air, skull and scalp, and is drawn as air, the lower end of the intensity window. So a template is
piecewise constant as far as masks are hard, of the contrast of its slice, and neither noise nor bias field is in it. The paper says of
its network that it is a lightweight CNN.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxsr.nn.convolution import conv
from jaxsr.nn.norm import GroupNorm
from jaxsr.nn.resnet import Downsample, ResnetBlock, Upsample

AIR = -1.0  # of the intensity window
LEAST = 1e-3  # pixels: a class that is nowhere has no mean, and needs none


class AnatomyExtractor(nn.Module):
    """`y` `[B, H, W, 1]` → logits `[B, H, W, classes]`, float32. H and W must be multiples of `2 ** (len(multipliers) - 1)`.

    Attributes:
      classes: K.
      width: features at full resolution.
      multipliers: of the width, one a level.
      blocks: residual blocks a level, on the way down and on the way up.
      groups: of every normalisation.
      dtype: of the computation; parameters are float32.
    """

    classes: int = 4
    width: int = 16
    multipliers: tuple[int, ...] = (1, 2, 4)
    blocks: int = 1
    groups: int = 8
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, y: Array) -> Array:
        levels = len(self.multipliers)

        def blocks(x: Array, level: int, way: str) -> Array:
            for i in range(self.blocks):
                x = ResnetBlock(self.width * self.multipliers[level], self.groups, dtype=self.dtype, name=f"{way}{level}_{i}")(x)
            return x

        x = conv(self.width, dtype=self.dtype, name="stem")(y.astype(self.dtype))
        skips = []
        for level in range(levels):
            x = blocks(x, level, "down")
            if level < levels - 1:
                skips.append(x)
                x = Downsample(self.dtype, name=f"down{level}_half")(x)
        for level in reversed(range(levels - 1)):
            x = Upsample(self.dtype, name=f"up{level}_double")(x)
            x = blocks(jnp.concatenate([x, skips.pop()], axis=-1), level, "up")
        x = nn.swish(GroupNorm(self.groups, dtype=self.dtype, name="norm")(x))
        return conv(self.classes, 1, dtype=jnp.float32, name="out")(x.astype(jnp.float32))


def masks_of(logits: Array) -> Array:
    """m of `logits`, both `[B, H, W, K]`, float32."""
    return nn.softmax(logits.astype(jnp.float32))


def class_means(y: Array, masks: Array) -> Array:
    """μ_k `[B, K]` of slices `[B, H, W, 1]`, weighed by `masks` `[B, H, W, K]`; near 0 for a class that is nowhere."""
    return (masks * y).sum((1, 2)) / (masks.sum((1, 2)) + LEAST)


def template(y: Array, masks: Array) -> Array:
    """a `[B, H, W, 1]` of slices `[B, H, W, 1]` and their masks `[B, H, W, K]`."""
    means = class_means(y.astype(jnp.float32), masks).at[:, 0].set(AIR)
    return (masks * means[:, None, None]).sum(-1, keepdims=True)
