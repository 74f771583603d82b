"""The U-Net of SR3, in pixel space: the denoiser of `sr3` and of the student [SR3, App. A; teacher paper §II-B].

    ε̂ = U(concat(condition, x_t), √ᾱ)

Per level: residual blocks (with self-attention where the resolution says so), then half the resolution and the next multiple of the width;
two blocks with attention between in the middle; then up again, one block more a level, each fed the features of its twin on the way down.
The noise level enters every block, and what is added to its embedding with it. With `scale_conditioning` so does what is told of the scan,
how much coarser than the target it was, how sharp, how noisy: it scales and shifts what is between a block's convolutions, starting as if
nothing was told. Published sizes, one channel in and one out:

    width 64, multipliers 1 2 4 8 8,          2 blocks, attention at 8          97,804,033     SR3
    width 64, multipliers 1 2 2 4 4 8 8 16,   2 blocks, attention at 16        271,420,673     student (the text)
    width 64, multipliers 1 2 2 4 4 8 8 16,   3 blocks, attention at 4 8 16 32  363,834,305     student (its Table IV)
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxsr.nn.attention import PixelAttention
from jaxsr.nn.convolution import conv, dense
from jaxsr.nn.embedding import sinusoids
from jaxsr.nn.norm import GroupNorm
from jaxsr.nn.resnet import Downsample, ResnetBlock, Upsample, depth_to_space, space_to_depth


class Sr3UNet(nn.Module):
    """`x_t` `[B, H, W, C]`, `condition` `[B, H, W, C']`, `noise_level` √ᾱ `[B]` → `[B, H, W, channels]` float32.

    H and W must be multiples of `patch * 2 ** (len(multipliers) - 1)`.

    Attributes:
      channels: of the output.
      width: features at full resolution.
      multipliers: of the width, one a level.
      blocks: residual blocks a level on the way down (one more on the way up).
      attention_at: downsampling factors of the levels with self-attention.
      groups: of every normalisation; None: there is none.
      dropout: in the residual blocks, when training.
      middle_attention: whether the middle has self-attention, as published.
      skips: whether the way up is fed the features of the way down, as published; False, of one level only: a chain of `2 * blocks + 3`
        residual blocks, as that of Lim et al. 2017 where it has no norms either.
      patch: the network sees blocks of `patch` × `patch` pixels as channels (and answers in them); 1 is published. At 2 a network of the
        same width has a quarter of the work, which suits a CPU, where narrow layers at full resolution are slow for what they do.
      scale_conditioning: it is told the scale of each slice, and what else a method tells beside it.
      remat: activations within residual blocks and attention are computed again for the gradient, not kept.
      dtype: of the computation; parameters are float32.
    """

    channels: int = 1
    width: int = 64
    multipliers: tuple[int, ...] = (1, 2, 4, 8, 8)
    blocks: int = 2
    attention_at: tuple[int, ...] = (8,)
    groups: int | None = 32
    dropout: float = 0.0
    middle_attention: bool = True
    skips: bool = True
    patch: int = 1
    scale_conditioning: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x_t: Array,
        condition: Array,
        noise_level: Array,
        extra: Array | None = None,
        *,
        scale: Array | None = None,
        train: bool = False,
    ) -> Array:
        """`extra` `[B, width]` is added to the noise level's embedding: what else every block is to know. `scale` `[B, 3]`: that of a
        condition, or more such numbers, above 0, of which it is told the logarithms."""
        levels = len(self.multipliers)
        factor = self.patch * 2 ** (levels - 1)
        if x_t.shape[1] % factor or x_t.shape[2] % factor:
            raise ValueError(f"sides must be multiples of {factor} for {levels} levels, got {x_t.shape[1]} × {x_t.shape[2]}")

        embedding = dense(4 * self.width, dtype=self.dtype, name="level_in")(sinusoids(noise_level, self.width))
        embedding = dense(self.width, dtype=self.dtype, name="level_out")(nn.swish(embedding))
        if extra is not None:
            embedding += extra.astype(embedding.dtype)
        told = None
        if self.scale_conditioning:
            assert scale is not None
            told = dense(4 * self.width, dtype=self.dtype, name="scale_in")(jnp.log(scale).astype(self.dtype))
            told = nn.swish(dense(self.width, dtype=self.dtype, name="scale_out")(nn.swish(told)))
        resnet = nn.remat(ResnetBlock, static_argnums=(3,)) if self.remat else ResnetBlock
        attend = nn.remat(PixelAttention) if self.remat else PixelAttention

        def block(x: Array, level: int, name: str, attention: bool) -> Array:
            features = self.width * self.multipliers[level]
            modulation = None if told is None else dense(2 * features, zero=True, dtype=self.dtype, name=f"scale_{name}")(told)
            x = jnp.asarray(resnet(features, self.groups, self.dropout, self.dtype, name=name)(x, embedding, train, modulation))
            if not attention:
                return x
            if self.groups is None:
                raise ValueError("attention normalises what it sees: give groups, or no attention")
            return jnp.asarray(attend(groups=self.groups, dtype=self.dtype, name=f"{name}_attention")(x))

        x = space_to_depth(jnp.concatenate([condition, x_t], axis=-1).astype(self.dtype), self.patch)
        x = conv(self.width, dtype=self.dtype, name="stem")(x)
        skips = [x]
        for level in range(levels):
            for i in range(self.blocks):
                x = block(x, level, f"down{level}_{i}", 2**level in self.attention_at)
                skips.append(x)
            if level < levels - 1:
                x = Downsample(self.dtype, name=f"down{level}_half")(x)
                skips.append(x)

        x = block(x, levels - 1, "middle_0", self.middle_attention)
        x = block(x, levels - 1, "middle_1", False)

        for level in reversed(range(levels)):
            for i in range(self.blocks + 1):
                if self.skips:
                    x = jnp.concatenate([x, skips.pop()], axis=-1)
                x = block(x, level, f"up{level}_{i}", 2**level in self.attention_at)
            if level:
                x = Upsample(self.dtype, name=f"up{level}_double")(x)

        x = nn.swish(GroupNorm(self.groups, dtype=self.dtype, name="norm")(x) if self.groups is not None else x)
        x = conv(self.channels * self.patch**2, dtype=jnp.float32, zero=True, name="out")(x.astype(jnp.float32))
        return depth_to_space(x, self.patch)
