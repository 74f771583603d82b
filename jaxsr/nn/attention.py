"""Attention over the pixels of a feature map, and over its channels.

y = x + W_o softmax(q kᵀ / √d) v,      q, k, v = W norm(x),      d channels a head         [Vaswani et al. 2017; SR3, App. A]
y = x + W_z softmax(θ φᵀ) g,           θ, φ, g = W x,            of C / 2 channels         [Wang et al. 2018, Eqs. 1–4, 6]
y = x ⊙ sigmoid(W_2 relu(W_1 mean(x))),                          mean over pixels          [Hu et al. 2018, Eqs. 2–4]
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxsr.nn.attend import attend
from jaxsr.nn.convolution import conv, dense
from jaxsr.nn.norm import GroupNorm


class PixelAttention(nn.Module):
    """`[B, H, W, C]` → the same shape.

    Attributes:
      heads: of C / heads channels each.
      groups: of the normalisation in front.
      epsilon: of the normalisation.
      fused: one convolution without bias makes queries, keys and values, as in SR3; else three with biases, as in Stable Diffusion.
    """

    heads: int = 1
    groups: int = 32
    epsilon: float = 1e-5
    fused: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        normed = GroupNorm(self.groups, epsilon=self.epsilon, dtype=self.dtype, name="norm")(x)
        if self.fused:
            parts = jnp.split(conv(3 * channels, 1, bias=False, dtype=self.dtype, name="qkv")(normed), 3, axis=-1)
        else:
            parts = [conv(channels, 1, dtype=self.dtype, name=name)(normed) for name in ("query", "key", "value")]
        q, k, v = (part.reshape(batch, height * width, self.heads, channels // self.heads) for part in parts)
        y = attend(q, k, v)  # [B, HW, heads, d]; softmax in float32
        return x + conv(channels, 1, dtype=self.dtype, name="out")(y.reshape(x.shape))


class NonLocal(nn.Module):
    """The embedded-Gaussian non-local block: `[B, H, W, C]`, C even → the same shape.

    As published it neither normalises its input nor divides by √d, and starts as the identity, W_z being zero. The scores take
    (H W)² float32 a slice.
    """

    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        if channels % 2:
            raise ValueError(f"a non-local block works on half of its channels, so it needs an even number, got {channels}")
        embedded = (conv(channels // 2, 1, dtype=self.dtype, name=name)(x) for name in ("theta", "phi", "g"))
        theta, phi, g = (part.reshape(batch, height * width, 1, channels // 2) for part in embedded)
        y = attend(theta, phi, g, scale=1.0)  # [B, HW, 1, C/2]; softmax in float32
        return x + conv(channels, 1, zero=True, dtype=self.dtype, name="out")(y.reshape(batch, height, width, channels // 2))


class ChannelAttention(nn.Module):
    """Squeeze and excitation: each channel times a weight in (0, 1) that all channels' means decide; `[B, H, W, C]` → the same shape.

    Attributes:
      reduction: r, of the channels between the two layers; C / r of them, at least one.
    """

    reduction: int = 16
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        squeezed = x.mean((1, 2), dtype=jnp.float32)  # [B, C]
        hidden = nn.relu(dense(max(1, channels // self.reduction), dtype=self.dtype, name="squeeze")(squeezed))
        weight = nn.sigmoid(dense(channels, dtype=self.dtype, name="excite")(hidden))
        return x * weight[:, None, None, :].astype(x.dtype)
