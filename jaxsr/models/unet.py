"""The UNet of the Stable Diffusion v1 family, in latent space: the teacher's denoiser U [teacher paper §II-A; Rombach et al. 2022, App. E].

    ε̂ = U(concat(z_t, E_1(y)), t, E_2(y), b, g)

Per level: residual blocks, each followed by a spatial transformer where the resolution says so, then half the resolution and the next
multiple of the width; in the middle a transformer between two blocks; then up again, one block more a level, each fed the features of its
twin on the way down. The time enters every residual block, the context every transformer. At the published size with 8 channels in and a
context of 768 features it has 859,532,484 parameters.

Guidance is added to the features after the first residual block of each level, before its transformer: b's on the way down, g's on the way
up. So what is left of the level works on it, and on the way down every skip from there on holds it: all but the stem's. SPCDD's intensity
modulation scales and shifts the features at the places of g.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxsr.nn.convolution import conv, dense
from jaxsr.nn.embedding import sinusoids
from jaxsr.nn.film import modulated
from jaxsr.nn.norm import GroupNorm
from jaxsr.nn.resnet import Downsample, ResnetBlock, Upsample
from jaxsr.nn.transformer import SpatialTransformer

Residuals = tuple[Array, ...]


class LatentUNet(nn.Module):
    """`x` `[B, H, W, C]`, `time` `[B]`, `context` `[B, N, D]`, guidance `down` and `up`, `modulation` → `[B, H, W, channels]` float32.

    H and W must be multiples of `2 ** (len(multipliers) - 1)`. `time` is real-valued, in the steps that the weights were made with, as
    `Schedule.time`. No context is one token of zeros, of which attention makes nothing but its bias: what Zero-1-to-3 was trained to take
    for none. `down` and `up` hold one map a level, `[B, H / 2ˡ, W / 2ˡ, width * multipliers[l]]` from the highest resolution on;
    `modulation` likewise, of twice the features: scale, then shift. What the middle makes is sown as `middle` in `features`.

    Attributes:
      channels: of the output.
      width: features at full resolution.
      multipliers: of the width, one a level.
      blocks: residual blocks a level on the way down (one more on the way up).
      attention_at: downsampling factors of the levels with transformers; the middle always has one.
      heads: of every attention.
      depth: blocks of every transformer.
      context_width: D where there is no context; otherwise the context's own.
      groups: of every normalisation.
      remat: activations within residual blocks and transformers are computed again for the gradient, not kept.
      dtype: of the computation; parameters, the embedding of time, norms' statistics and softmax are float32.
    """

    channels: int = 4
    width: int = 320
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    attention_at: tuple[int, ...] = (1, 2, 4)
    heads: int = 8
    depth: int = 1
    context_width: int = 768
    groups: int = 32
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        time: Array,
        context: Array | None = None,
        down: Residuals | None = None,
        up: Residuals | None = None,
        modulation: Residuals | None = None,
    ) -> Array:
        levels = len(self.multipliers)
        factor = 2 ** (levels - 1)
        if x.shape[1] % factor or x.shape[2] % factor:
            raise ValueError(f"sides must be multiples of {factor} for {levels} levels, got {x.shape[1]} × {x.shape[2]}")
        shapes = [(len(x), x.shape[1] >> level, x.shape[2] >> level, self.width * m) for level, m in enumerate(self.multipliers)]
        for way, residuals in (("down", down), ("up", up)):
            if residuals is not None and [r.shape for r in residuals] != shapes:
                raise ValueError(f"guidance {way} must have the shapes {shapes}, got {[r.shape for r in residuals]}")

        tokens = (jnp.zeros((len(x), 1, self.context_width)) if context is None else context).astype(self.dtype)
        embedding = jnp.roll(sinusoids(time, self.width), self.width // 2, axis=-1)  # cosines first, as the published weights have it
        embedding = nn.swish(dense(4 * self.width, dtype=jnp.float32, name="time_in")(embedding))
        embedding = nn.swish(dense(4 * self.width, dtype=jnp.float32, name="time_out")(embedding))  # of what every block sees

        def resnet(x: Array, features: int, name: str) -> Array:
            kind = nn.remat(ResnetBlock) if self.remat else ResnetBlock
            return jnp.asarray(kind(features, self.groups, dtype=self.dtype, name=name)(x, embedding))

        def transformer(x: Array, name: str) -> Array:
            kind = nn.remat(SpatialTransformer) if self.remat else SpatialTransformer
            return jnp.asarray(kind(self.heads, self.depth, self.groups, self.dtype, name=f"{name}_attention")(x, tokens))

        def block(x: Array, level: int, name: str, guidance: Residuals | None, modulation: Residuals | None = None) -> Array:
            x = resnet(x, self.width * self.multipliers[level], name)
            if guidance is not None:
                x += guidance[level].astype(x.dtype)
            if modulation is not None:
                x = modulated(x, modulation[level])
            return transformer(x, name) if 2**level in self.attention_at else x

        x = conv(self.width, dtype=self.dtype, name="stem")(x.astype(self.dtype))
        skips = [x]
        for level in range(levels):
            for i in range(self.blocks):
                x = block(x, level, f"down{level}_{i}", None if i else down)
                skips.append(x)
            if level < levels - 1:
                x = Downsample(self.dtype, name=f"down{level}_half")(x)
                skips.append(x)

        x = resnet(x, x.shape[-1], "middle_0")
        x = transformer(x, "middle_0")
        x = resnet(x, x.shape[-1], "middle_1")
        if not self.is_initializing():  # or it would be among the variables
            self.sow("features", "middle", x)

        for level in reversed(range(levels)):
            for i in range(self.blocks + 1):
                x = block(jnp.concatenate([x, skips.pop()], axis=-1), level, f"up{level}_{i}", *((None, None) if i else (up, modulation)))
            if level:
                x = Upsample(self.dtype, name=f"up{level}_double")(x)

        x = nn.swish(GroupNorm(self.groups, dtype=self.dtype, name="norm")(x))
        return conv(self.channels, dtype=jnp.float32, zero=True, name="out")(x.astype(jnp.float32))
